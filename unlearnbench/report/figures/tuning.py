"""Figure of performance against budget: the best eligible forgetting after each trial, one panel per method."""

import io
from collections.abc import Sequence

import matplotlib.pyplot as plt

from unlearnbench.report.data.tuning import Tuned
from unlearnbench.report.figures.style import PAGE, own_style, shorten

ACROSS = 4  # panels side by side
HEIGHT = 1.25  # inches of a panel
LONGEST = 24  # letters of a title


def budget(tuned: Sequence[Tuned], measure: str) -> bytes:
    """Return a PNG: trials as dots (open ones below the floor of retention), and the choice among the first as a line.

    Args:
        tuned: what was tuned.
        measure: title of the metric of forgetting.
    """
    with own_style():
        plt.switch_backend("Agg")  # which needs no screen
        down = -(-len(tuned) // ACROSS)
        figure, panels = plt.subplots(
            down, ACROSS, figsize=(PAGE, 0.4 + HEIGHT * down), sharex=True, sharey=True, squeeze=False,
            layout="constrained",
        )  # fmt: skip
        for axes, each in zip(panels.flat, tuned, strict=False):
            for trial in each.trials:
                if trial.counts:
                    face = "0.6" if trial.retention >= each.floor else "none"
                    axes.plot(trial.number + 1, trial.forgetting, "o", markersize=3, color="0.6", markerfacecolor=face)
            after = range(1, each.of + 1)
            best = [value if (value := each.best_of_first(count)) is not None else float("nan") for count in after]
            axes.step(after, best, where="post", color="black")
            axes.set_title(shorten(each.title, LONGEST))
        for axes in panels.flat[len(tuned) :]:
            axes.set_visible(False)
        figure.supxlabel("trials", fontsize=8)
        figure.supylabel(measure, fontsize=8)
        png = io.BytesIO()
        figure.savefig(png, format="png", metadata={"Software": None})
        plt.close(figure)
    return png.getvalue()
