"""Figure of forgetting at equal retention: the models between the base and each unlearned one."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.curves import mean_path, weight_paths
from unlearnbench.report.data.statistics import class_mean
from unlearnbench.report.data.values import Value, Variant, spell_number
from unlearnbench.report.figures.labels import Label, Path, label_ends, spread
from unlearnbench.report.figures.style import PAGE, Canvas, canvas, line_colours, shorten

HEIGHT = 4.2  # inches
LONGEST_LABEL = 24  # letters
BEYOND = 101.5  # percent, so that marks at 100 do not touch the names


def mixed(board: Board, parent: Canvas | None = None, only: Sequence[Variant] = ()) -> Canvas | None:
    """Forgetting against retention from the base to each unlearned model, with a ringed mark at equal retention.

    Rows are named on the right, at the heights of their ringed marks.
    """
    numbers = board.numbers.sel(rows=only or board.variants)
    found = weight_paths(numbers, board.metrics)
    if not found:
        return None
    measure, rows = next(iter(found.items()))
    figure = canvas(parent, (PAGE, HEIGHT))
    axes = figure.subplots()
    colours = line_colours(list(rows), board.styles)
    labels = list[Label]()
    for variant, paths in rows.items():
        points, chosen = mean_path(paths)
        colour = "black" if variant.role == "gold" else colours[variant]
        look = {"color": colour, "marker": board.styles[variant.label].shape}
        _draw_path(axes, points, chosen, look, dashes="--" if variant.role == "gold" else "-")
        gap = Value(0.0, ok=len(paths), expected=numbers.expected).gap
        number = spell_number(chosen[1], measure.format)
        labels.append(Label(f"{shorten(variant.label, LONGEST_LABEL)} {number}{gap}", *chosen, colour))
    levels = {cell: path.level for paths in rows.values() for cell, path in paths.items()}
    axes.axvline(class_mean(levels), color="grey", linewidth=0.7, linestyle=":", zorder=0)
    axes.set(xlim=(0, BEYOND), ylim=(0, 100), xlabel="retained (%)", ylabel="forgotten (%)")
    axes.set_title(f"{measure.title}: ringed, the model at the dotted level", pad=9)
    spread(axes, label_ends(axes, labels))
    return figure


def _draw_path(axes: Axes, points: Path, chosen: tuple[float, float], look: dict[str, Any], *, dashes: str) -> None:
    """Draw one row's path with a mark at each model, and a large ringed one at equal retention."""
    x, y = zip(*points, strict=True)
    axes.plot(x, y, markersize=2.5, linewidth=0.9, linestyle=dashes, alpha=0.7, clip_on=False, **look)
    axes.plot(
        [chosen[0]], [chosen[1]], markersize=6, markeredgecolor="black", markeredgewidth=0.7, linestyle="none",
        zorder=4, clip_on=False, **look,
    )  # fmt: skip
