"""Figures of attacks: forgetting before and after each, and along relearning."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from unlearnbench.report.data.array import Numbers
from unlearnbench.report.data.board import Board
from unlearnbench.report.data.curves import attack_curves, mean_curve
from unlearnbench.report.data.styles import Style
from unlearnbench.report.data.values import Measure, Value, Variant
from unlearnbench.report.figures.style import (
    LETTER,
    MOST_ROWS,
    PAGE,
    Canvas,
    canvas,
    legend_below,
    legend_height,
    line_colours,
    names_of,
    shorten,
)

COLUMNS, MOST_CURVES = 3, 4  # panels beside each other: of attacks, of curves


SHIFT = 0.17  # offset of the marks before and after, in rows
GOLD_LINE: dict[str, Any] = {"color": "black", "linewidth": 0.9, "linestyle": "--"}
GOLD_BAND: dict[str, Any] = {"color": "black", "alpha": 0.08, "linewidth": 0}


def robustness(board: Board, parent: Canvas | None = None, only: Sequence[Variant] = ()) -> Canvas | None:
    """One panel per attack: forgetting before and after it, methods down, the gold standard after it as a band."""
    shown = only or board.variants
    part = board.attacked
    if part is None:
        return None
    measures, before = board.robustness, board.headline("forgetting")
    rows = [row for row in shown if row in part.rows][:MOST_ROWS]
    columns = min(COLUMNS, len(measures))
    lines = -(-len(measures) // columns)
    names, _ = names_of(variant.label for variant in rows)
    step = 0.24 if any("\n" in name for name in names) else 0.145
    handles, words = _key(any(row.role == "gold" for row in rows))
    figure = canvas(parent, (PAGE, (step * len(rows) + 0.25) * lines + 0.2 + legend_height(words, PAGE)))
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axes, measure in zip(grid.flat, measures, strict=False):
        _draw_attack(axes, board, part, rows, before, measure)
    for axes in list(grid.flat)[len(measures) :]:
        axes.set_visible(False)
    for axes in list(grid.flat)[max(0, len(measures) - columns) : len(measures)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("forgotten (%)")
    grid[0][0].set_yticks(range(len(rows)), names)
    grid[0][0].set(xlim=(0, 100), ylim=(len(rows) - 0.5, -0.5))
    for axes in grid[:, 0]:
        axes.tick_params(axis="y", pad=4)  # room for marks at 0
    legend_below(figure, handles, words, PAGE)
    return figure


def _key(has_gold: bool) -> tuple[list[Any], list[str]]:
    """Return handles and words of the key: hollow and filled marks, and the gold standard's line and band."""
    mark: dict[str, Any] = {"marker": "o", "linestyle": "none", "color": "black", "markersize": 4}
    handles: list[Any] = [Line2D([], [], markerfacecolor="white", **mark), Line2D([], [], **mark)]
    words = ["before the attack", "after it"]
    if has_gold:
        handles += [Line2D([], [], **GOLD_LINE), Patch(**GOLD_BAND)]
        words += ["gold standard after it", "its 95 % interval"]
    return handles, words


def _draw_attack(
    axes: Axes, board: Board, part: Numbers, rows: Sequence[Variant], before: Measure | None, measure: Measure
) -> None:
    """Draw one panel: two marks for each row, and the gold standard's number as a line in its interval."""
    for row, variant in enumerate(rows):
        after, style = part.mean(variant, measure), board.styles[variant.label]
        if before is not None:
            _draw_mark(axes, part.mean(variant, before), row - SHIFT, style, filled=False)
        _draw_mark(axes, after, row + SHIFT, style, filled=True)
        if variant.role == "gold" and after.number is not None:
            axes.axvline(after.number, zorder=1, **GOLD_LINE)
            if after.interval is not None:
                axes.axvspan(*after.interval, zorder=0, **GOLD_BAND)
    axes.set_title(shorten(measure.title, int(PAGE / COLUMNS / LETTER) - 12), pad=3)
    axes.grid(visible=False, axis="y")


def _draw_mark(axes: Axes, value: Value, y: float, style: Style, *, filled: bool) -> None:
    if value.number is None:
        return
    if value.interval is not None:
        axes.plot(value.interval, [y, y], color=style.colour, linewidth=0.8, zorder=2)
    axes.plot(
        [value.number], [y], marker=style.shape, linestyle="none", color=style.colour, markersize=3.5,
        markeredgewidth=0.8, markerfacecolor=style.colour if filled else "white", zorder=3, clip_on=False,
    )  # fmt: skip


def relearning(board: Board, parent: Canvas | None = None, only: Sequence[Variant] = ()) -> Canvas | None:
    """One panel per choice of images: what is forgotten along the steps of fine-tuning, a line per method."""
    shown = only or board.variants
    part = board.attacked
    attacks = {} if part is None else attack_curves(part.sel(rows=shown), board.robustness)
    if not attacks:
        return None
    across = min(len(attacks), MOST_CURVES)
    lines = -(-len(attacks) // across)
    labels = [row.label for row in shown if any(row in rows for rows in attacks.values())]
    figure = canvas(parent, (PAGE, 1.9 * lines + legend_height(labels, PAGE)))
    colours = line_colours([row for row in shown if any(row in rows for rows in attacks.values())], board.styles)
    panels = list(figure.subplots(lines, across, squeeze=False, sharex=True, sharey=True).flat)
    for axes, (measure, rows) in zip(panels, attacks.items(), strict=False):
        for variant, curves in rows.items():
            steps, mean = mean_curve(curves)
            style = board.styles[variant.label]
            line = {"color": "black", "linestyle": "--"} if variant.role == "gold" else {"color": colours[variant]}
            axes.plot(
                steps, mean, marker=style.shape, markersize=3, linewidth=1.0, label=variant.label, clip_on=False, **line
            )
        axes.axhline(50, color="grey", linewidth=0.7, linestyle=":")
        axes.set(xlabel="steps", ylim=(0, 100))
        axes.set_title(shorten(measure.title, int(PAGE / across / LETTER) - 4))
    for axes in panels[len(attacks) :]:
        axes.set_visible(False)
    panels[0].set_ylabel("forgotten (%)")
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    legend_below(figure, list(handles.values()), list(handles), PAGE)
    return figure
