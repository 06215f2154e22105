"""Figures of forgetting, retention and cost against each other."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.front import axes_of, front, places, undominated
from unlearnbench.report.data.values import Measure, Value, Variant, spell_number
from unlearnbench.report.figures.style import (
    COLUMN,
    MOST_LETTERS,
    PAGE,
    Canvas,
    canvas,
    legend_below,
    legend_height,
    point_to_better,
    set_scale,
    widen,
)

GREY = (0.72, 0.72, 0.72)


PAIRS = ((1, 0), (2, 0), (2, 1))  # (x, y) of the panels: indices of (forgetting, retention, cost)


def tradeoff(board: Board, parent: Canvas | None = None, only: Sequence[Variant] = ()) -> Canvas | None:
    """Forgetting against retention with run time as size: a dot per forget class, a ringed mark for the mean."""
    shown = only or board.variants
    forgetting, retention = board.headline("forgetting"), board.headline("retention")
    if forgetting is None or retention is None:
        return None
    total = next(measure for measure in board.costs if measure.key == "total")
    means = {v: [board.numbers.mean(v, m, interval=False) for m in (retention, forgetting, total)] for v in shown}
    means = {v: values for v, values in means.items() if all(value.number is not None for value in values)}
    if not means:
        return None
    labels = [_tradeoff_label(variant, values, total) for variant, values in means.items()]
    width = COLUMN if max(map(len, labels)) < 0.8 * MOST_LETTERS else PAGE
    figure = canvas(parent, (width, 2.5 + legend_height(labels, width)))
    axes = figure.subplots()
    dots = [
        (x, y, board.styles[variant.label].colour)
        for variant in means for target in board.targets
        if (x := board.numbers.cell(variant, target, retention, interval=False).number) is not None
        and (y := board.numbers.cell(variant, target, forgetting, interval=False).number) is not None
    ]  # fmt: skip
    xs, ys, costs = ([float(values[k].number or 0.0) for values in means.values()] for k in range(3))
    if dots:
        every_x, every_y, colours = zip(*dots, strict=True)
        axes.scatter(every_x, every_y, s=7, alpha=0.45, c=colours, linewidths=0)
    handles = []
    for variant, x, y, cost in zip(means, xs, ys, costs, strict=True):
        style = board.styles[variant.label]
        dress: dict[str, Any] = {"c": style.colour, "marker": style.shape, "edgecolors": "black", "linewidths": 0.6}
        size = 26 + 120 * cost / max(*costs, 1e-9)
        axes.scatter([x], [y], s=size, zorder=3, label=variant.label, **dress)
        handles.append(axes.scatter([], [], s=26, **dress))
    axes.set_xlabel(f"{retention.header}, {retention.aspect}")
    axes.set_ylabel(f"{forgetting.header}, {forgetting.aspect}")
    for axis, measure, means_of, singles in (
        (axes.xaxis, retention, xs, [x for x, *_ in dots]),
        (axes.yaxis, forgetting, ys, [y for _, y, _ in dots]),
    ):
        set_scale(axis, [*means_of, *singles], measure)
        point_to_better(axis, measure)
    legend_below(figure, handles, labels, width, "RTE with priors (size)")
    return figure


def _tradeoff_label(variant: Variant, values: Sequence[Value], total: Measure) -> str:
    """Return a row's name with its cost, and the gap of its least complete number."""
    least = min(values, key=lambda value: value.ok / max(value.expected, 1))
    return f"{variant.label} ({spell_number(values[2].number or 0.0, '.1f')} {total.unit}){least.gap}"


def pareto(board: Board, parent: Canvas | None = None, only: Sequence[Variant] = ()) -> Canvas | None:
    """Draw the three pairs of axes with intervals, the front of each pair as steps, dominated methods grey."""
    shown = only or board.variants
    best, measures = undominated(board), axes_of(board)
    placed = {row: values for row, values in places(board).items() if row in shown}
    if len(placed) < 2:
        return None
    figure = canvas(parent, (PAGE, 2.2 + legend_height([variant.label for variant in placed], PAGE)))
    panels = figure.subplots(1, len(PAIRS))
    for panel, (x, y) in zip(panels, PAIRS, strict=True):
        _draw_steps(panel, [(values[x], values[y]) for values in placed.values()], measures[x], measures[y])
        for variant, values in placed.items():
            style = board.styles[variant.label]
            colour = style.colour if variant in best else GREY
            _draw_point(panel, values[x], values[y], colour, style.shape, variant.label)
        for axis, k in ((panel.xaxis, x), (panel.yaxis, y)):
            set_scale(axis, [float(values[k].number or 0.0) for values in placed.values()], measures[k])
            widen(axis, measures[k])
            point_to_better(axis, measures[k])
            axis.set_label_text(measures[k].header)
    handles, labels = panels[0].get_legend_handles_labels()
    legend_below(figure, handles, labels, PAGE)
    return figure


def _draw_point(panel: Axes, x: Value, y: Value, colour: Any, shape: str, label: str) -> None:
    def reach(value: Value) -> list[list[float]] | None:
        if value.interval is None or value.number is None:
            return None
        return [[max(value.number - value.interval[0], 0.0)], [max(value.interval[1] - value.number, 0.0)]]

    panel.errorbar(
        [float(x.number or 0.0)], [float(y.number or 0.0)], xerr=reach(x), yerr=reach(y), fmt=shape, color=colour,
        markersize=4.5, capsize=1.5, elinewidth=0.8, label=label,
    )  # fmt: skip


def _draw_steps(panel: Axes, points: Sequence[tuple[Value, Value]], x: Measure, y: Measure) -> None:
    """Draw the front of two axes as the border of the dominated region."""
    signs = [-1 if measure.better == "lower" else 1 for measure in (x, y)]
    places = {
        k: (signs[0] * float(a.number or 0.0), signs[1] * float(b.number or 0.0)) for k, (a, b) in enumerate(points)
    }
    ends = sorted(places[k] for k in front(places))
    panel.step(
        [signs[0] * a for a, _ in ends], [signs[1] * b for _, b in ends], where="pre", color="black", lw=0.8, ls=":",
        zorder=0,
    )  # fmt: skip
