"""Figure of forgetting at equal retention: the models between the base and each unlearned one."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.curves import mean_path, weight_paths
from unlearnbench.report.data.statistics import class_mean
from unlearnbench.report.data.values import Value, Variant
from unlearnbench.report.figures.labels import Label, Path, place_labels
from unlearnbench.report.figures.style import PAGE, SMALL, Canvas, canvas, line_colours, shorten

HEIGHT = 4.2  # inches
LONGEST_LABEL = 24  # letters


def equal_retention(board: Board, parent: Canvas | None = None, only: Sequence[Variant] = ()) -> Canvas | None:
    """Forgetting against retention from the base to each unlearned model, with a ringed mark at equal retention."""
    numbers = board.numbers.sel(rows=only or board.variants)
    found = weight_paths(numbers, board.metrics)
    if not found:
        return None
    measure, rows = next(iter(found.items()))
    axes = canvas(parent, (PAGE, HEIGHT)).subplots()
    colours = line_colours(list(rows), board.styles)
    labels, lines = list[Label](), list[Path]()
    for variant, paths in rows.items():
        points, chosen = mean_path(paths)
        colour = "black" if variant.role == "gold" else colours[variant]
        _draw_path(axes, points, chosen, {"color": colour, "marker": board.styles[variant.label].shape},
                   is_gold=variant.role == "gold")  # fmt: skip
        gap = Value(0.0, ok=len(paths), expected=numbers.expected).gap
        labels.append(Label(f"{shorten(variant.label, LONGEST_LABEL)}{gap}", *chosen, colour, 3.5))
        lines.append(points)
    levels = {cell: path.level for paths in rows.values() for cell, path in paths.items()}
    axes.axvline(class_mean(levels), color="grey", linewidth=0.7, linestyle=":", zorder=0)
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="retained (%)", ylabel="forgotten (%)")
    axes.set_title(f"{measure.title}: ringed, the model at the dotted level", pad=9)
    if missing := place_labels(axes, labels, SMALL + 0.5, lines):
        axes.text(0.02, 0.02, f"{missing} more without a label", transform=axes.transAxes, fontsize=SMALL, color="grey")
    return axes.figure


def _draw_path(
    axes: Axes, points: Path, chosen: tuple[float, float], look: dict[str, Any], *, is_gold: bool
) -> None:  # fmt: skip
    """Draw one row's path with a mark at each model, and a large ringed one at equal retention."""
    x, y = zip(*points, strict=True)
    dashes = "--" if is_gold else "-"
    axes.plot(x, y, markersize=2.5, linewidth=0.9, linestyle=dashes, alpha=0.7, clip_on=False, **look)
    axes.plot(
        [chosen[0]], [chosen[1]], markersize=6, markeredgecolor="black", markeredgewidth=0.7, linestyle="none",
        zorder=4, clip_on=False, **look,
    )  # fmt: skip
