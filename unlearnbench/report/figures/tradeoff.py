"""Figures of forgetting, retention and cost against each other."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.front import axes_of, front, places, undominated
from unlearnbench.report.data.styles import Style
from unlearnbench.report.data.values import Measure, Value, Variant, spell_number
from unlearnbench.report.figures.labels import Label, crowded, place_labels
from unlearnbench.report.figures.style import (
    COLUMN,
    PAGE,
    SMALL,
    Canvas,
    canvas,
    end_percentages,
    legend_below,
    legend_height,
    point_to_better,
    set_scale,
    without_method,
)

GREY = (0.72, 0.72, 0.72)
LEAST_AREA, MORE_AREA = 22.0, 90.0  # square points of a mark without cost, and what the largest cost adds
TITLE_PAD = 9  # points, so that marks at the upper edge find room
HEIGHT = 3.0  # inches, without the key
LONGEST_LABEL = 24  # letters that stand next to a mark
PAIRS = ((1, 0), (2, 0), (2, 1))  # (x, y) of the panels: indices of (forgetting, retention, cost)


@dataclass(frozen=True)
class Mean:
    """A row's mean in the trade-off chart."""

    row: str
    label: str  # next to the mark: the row's name, or a number that the key explains, and the gap
    x: float  # retention
    y: float  # forgetting
    cost: float | None  # None for a model that was unlearned elsewhere
    area: float  # square points of the mark
    style: Style


def tradeoff(board: Board, parent: Canvas | None = None, only: Sequence[Variant] = ()) -> Canvas | None:
    """Forgetting against retention with run time as size: a dot per forget class, a ringed mark for the mean.

    The crowded part, if there is one, is enlarged on the right.
    """
    forgetting, retention = board.headline("forgetting"), board.headline("retention")
    if forgetting is None or retention is None:
        return None
    rows = only or board.variants
    total = next(measure for measure in board.costs if measure.key == "total")
    means = _means(board, rows, (retention, forgetting, total))
    if not means:
        return None
    shown = {mean.row for mean in means}
    dots = [
        (x, y, board.styles[row.label].colour) for row in rows if row.label in shown for target in board.targets
        if (x := board.numbers.cell(row, target, retention, interval=False).number) is not None
        and (y := board.numbers.cell(row, target, forgetting, interval=False).number) is not None
    ]  # fmt: skip
    figure = canvas(parent, (COLUMN, HEIGHT))
    panel = figure.subplots()
    _draw_means(panel, means, dots, retention, forgetting)
    panel.set(xlabel=f"{retention.header}, {retention.aspect}", ylabel=f"{forgetting.header}, {forgetting.aspect}")
    known = [mean.cost for mean in means if mean.cost is not None]
    costs = sorted({spell_number(end(known, default=0.0), ".1f") for end in (min, max)}, key=float)
    size = [f"size: {total.title}, {costs[0]} to {costs[1]} {total.unit}"] if len(costs) > 1 else []
    hollow = ["hollow: cost not measured"] if len(known) < len(means) else []
    singles = ["small dots: forget classes"] * (len(board.targets) > 1)
    panel.set_title("\n".join([*size, *hollow, *singles]), pad=TITLE_PAD)
    limits = crowded(panel, [(mean.x, mean.y) for mean in means])
    width = COLUMN if limits is None else PAGE
    handles, words, title = _key(panel, means)
    if isinstance(figure, Figure):
        figure.set_size_inches(width, HEIGHT + (legend_height(words, width, SMALL) if words else 0))
    if words:
        legend_below(figure, handles, words, width, title, SMALL)
    if limits is not None:
        panels = figure.add_gridspec(1, 2)
        panel.set_subplotspec(panels[0])
        inset = figure.add_subplot(panels[1])
        within = [mean for mean in means if _is_between(mean.x, limits[0]) and _is_between(mean.y, limits[1])]
        _draw_means(inset, within, dots, retention, forgetting, limits)
        _mark_inset(panel, inset, limits)
        _write_labels(inset, within)
        means = [mean for mean in means if mean not in within]
    _write_labels(panel, means)
    return figure


def _mark_inset(panel: Axes, inset: Axes, limits: tuple[tuple[float, float], tuple[float, float]]) -> None:
    """Frame an enlarged part in the panel, and its enlargement."""
    (x0, x1), (y0, y1) = limits
    panel.add_patch(
        Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, edgecolor="black", linewidth=0.7, clip_on=False, zorder=4)
    )
    plt.setp(inset.spines.values(), color="black", linewidth=0.7)
    inset.set_xlabel(panel.get_xlabel())
    inset.set_title("framed part, enlarged", pad=TITLE_PAD)


def _is_between(number: float, ends: tuple[float, float]) -> bool:
    return min(ends) <= number <= max(ends)


def _means(board: Board, rows: Sequence[Variant], measures: tuple[Measure, Measure, Measure]) -> list[Mean]:
    """Return the means of the rows that have the first two measures; only models unlearned elsewhere have no cost."""
    found = {row: [board.numbers.mean(row, measure, interval=False) for measure in measures] for row in rows}
    found = {row: values for row, values in found.items() if None not in (values[0].number, values[1].number)}
    most = max([1e-9, *(values[2].number or 0.0 for values in found.values())])
    names: dict[str, str] = {}
    for row in found:
        if len(row.label) > LONGEST_LABEL:
            names[row.label] = str(len(names) + 1)
    means = []
    for row, values in found.items():
        known = [value for value in values if value.number is not None]
        gap = min(known, key=lambda value: value.ok / max(value.expected, 1)).gap
        x, y, cost = (value.number for value in values)
        area = LEAST_AREA + MORE_AREA * (cost or 0.0) / most
        label = f"{names.get(row.label, row.label)}{gap}"
        means.append(Mean(row.label, label, float(x or 0.0), float(y or 0.0), cost, area, board.styles[row.label]))
    return means


def _draw_means(
    panel: Axes,
    means: Sequence[Mean],
    dots: Sequence[tuple[float, float, str]],
    retention: Measure,
    forgetting: Measure,
    limits: tuple[tuple[float, float], tuple[float, float]] | None = None,
) -> None:
    """Draw the marks of the means over the dots of single classes, on axes that point to better.

    Args:
        panel: to draw on.
        means: to draw.
        dots: (x, y, colour) of single classes.
        retention: the horizontal measure.
        forgetting: the vertical one.
        limits: of both axes, if not those of all that is drawn.
    """
    if dots:
        x, y, colours = zip(*dots, strict=True)
        panel.scatter(x, y, s=7, alpha=0.45, c=colours, linewidths=0, clip_on=limits is not None)
    for mean in means:
        panel.scatter([mean.x], [mean.y], s=mean.area, zorder=3, label=mean.row, clip_on=False, **_dress(mean))
    for axis, measure, numbers, singles in (
        (panel.xaxis, retention, [mean.x for mean in means], [x for x, *_ in dots]),
        (panel.yaxis, forgetting, [mean.y for mean in means], [y for _, y, _ in dots]),
    ):
        set_scale(axis, [*numbers, *singles] if limits is None else numbers, measure)
        if limits is None:
            end_percentages(axis, measure)
            point_to_better(axis, measure)
    if limits is not None:
        panel.set(xlim=limits[0], ylim=limits[1])


def _dress(mean: Mean) -> dict[str, Any]:
    """Return the style of a mark: hollow where there is no cost that its size could show."""
    colour, shape = mean.style.colour, mean.style.shape
    if mean.cost is None:
        return {"c": "white", "marker": shape, "edgecolors": colour, "linewidths": 1.2}
    return {"c": colour, "marker": shape, "edgecolors": "black", "linewidths": 0.6}


def _key(panel: Axes, means: Sequence[Mean]) -> tuple[list[Any], list[str], str]:
    """Return handles, words and title of the key of numbered rows."""
    numbered = [mean for mean in means if not mean.label.startswith(mean.row)]
    words, title = without_method([mean.row for mean in numbered])
    words = [f"{mean.label.split(' ')[0]}: {word}" for mean, word in zip(numbered, words, strict=True)]
    return [panel.scatter([], [], s=LEAST_AREA, **_dress(mean)) for mean in numbered], words, title


def _write_labels(panel: Axes, means: Sequence[Mean]) -> None:
    """Write names or numbers next to the marks, and how many found no room."""
    labels = [Label(mean.label, mean.x, mean.y, "black", 0.6 * math.sqrt(mean.area)) for mean in means]
    if missing := place_labels(panel, labels, SMALL + 0.5):
        panel.text(
            0.02, 0.02, f"{missing} more without a label", transform=panel.transAxes, fontsize=SMALL, color="grey",
        )  # fmt: skip


def pareto(board: Board, parent: Canvas | None = None, only: Sequence[Variant] = ()) -> Canvas | None:
    """Draw the three pairs of axes with intervals, the front of each pair as steps, dominated methods grey."""
    shown = only or board.variants
    best, measures = undominated(board), axes_of(board)
    placed = {row: values for row, values in places(board).items() if row in shown}
    if len(placed) < 2:
        return None
    words, title = without_method([variant.label for variant in placed])
    figure = canvas(parent, (PAGE, 2.2 + legend_height(words, PAGE, SMALL)))
    panels = figure.subplots(1, len(PAIRS))
    for panel, (x, y) in zip(panels, PAIRS, strict=True):
        _draw_steps(panel, [(values[x], values[y]) for values in placed.values()], measures[x], measures[y])
        for variant, values in placed.items():
            style = board.styles[variant.label]
            colour = style.colour if variant in best else GREY
            dress = {"color": colour, "fmt": style.shape, "label": variant.label, "zorder": 4 if variant in best else 3}
            _draw_point(panel, values[x], values[y], dress)
        for axis, k in ((panel.xaxis, x), (panel.yaxis, y)):
            set_scale(axis, [float(values[k].number or 0.0) for values in placed.values()], measures[k])
            end_percentages(axis, measures[k])
            point_to_better(axis, measures[k])
            axis.set_label_text(measures[k].header)
    legend_below(figure, panels[0].get_legend_handles_labels()[0], words, PAGE, title, SMALL)
    return figure


def _draw_point(panel: Axes, x: Value, y: Value, dress: Mapping[str, Any]) -> None:
    def reach(value: Value) -> list[list[float]] | None:
        if value.interval is None or value.number is None:
            return None
        return [[max(value.number - value.interval[0], 0.0)], [max(value.interval[1] - value.number, 0.0)]]

    panel.errorbar(
        [float(x.number or 0.0)], [float(y.number or 0.0)], xerr=reach(x), yerr=reach(y), markersize=4.5,
        capsize=1.5, elinewidth=0.8, clip_on=False, **dress,
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
