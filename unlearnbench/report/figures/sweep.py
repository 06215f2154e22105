"""Figures of ablations: metrics along a swept setting, and the denoising loss by timestep."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import SubFigure
from matplotlib.patheffects import withStroke

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.styles import COLOURS, SHAPES
from unlearnbench.report.data.sweeps import Sweep, SweepLine, find_sweeps, spell
from unlearnbench.report.data.values import Measure, Value, Variant, spell_number
from unlearnbench.report.figures.style import (
    COLUMN,
    HIGHEST_POWER,
    LINE,
    LOWEST_POWER,
    PAGE,
    SMALL,
    Canvas,
    canvas,
    legend_below,
    point_to_better,
    set_scale,
    shorten,
)

MOST_SWEEPS = 4  # settings that one page holds
REFERENCE_MARKERS, DASHES = "x+12", ("--", ":", "-.", (0, (5, 1)))
OFFSETS = ((5, 4, "left"), (-5, -9, "right"), (5, -9, "left"), (-5, 4, "right"))  # of value marks, by line; points


def sweep(board: Board, parent: Canvas | None = None, only: Sequence[Variant] = ()) -> Canvas | None:
    """Per swept setting: forgetting against retention along its values, and each of the two against the value."""
    forgetting, retention = board.headline("forgetting"), board.headline("retention")
    sweeps = find_sweeps(board)
    if forgetting is None or retention is None or not sweeps:
        return None
    sweeps = sweeps[:MOST_SWEEPS]
    columns = min(2, len(sweeps))
    rows = -(-len(sweeps) // columns)
    legend = max(len(one.lines) for one in sweeps) + 2
    figure = canvas(parent, (PAGE if columns == 2 else COLUMN, (3.6 + LINE * legend) * rows))
    blocks = figure.subfigures(rows, columns, squeeze=False, wspace=0.03, hspace=0.03)
    for block, one in zip(blocks.flat, sweeps, strict=False):
        _draw_sweep(block, board, one, forgetting, retention)
    return figure


def _draw_sweep(block: SubFigure, board: Board, one: Sweep, forgetting: Measure, retention: Measure) -> None:
    """Draw the trajectory panel over the two panels of one metric each."""
    panels = block.subplot_mosaic([["both", "both"], ["forgetting", "retention"]], height_ratios=[1.4, 1])
    palette = [COLOURS[k % len(COLOURS)] for k in range(len(one.lines))]
    spans: dict[str, list[Value]] = {"forgetting": [], "retention": []}
    for index, (line, colour) in enumerate(zip(one.lines, palette, strict=True)):
        style = {"color": colour, "marker": SHAPES[index % len(SHAPES)], "markersize": 3.5, "linewidth": 1.0}
        ys = [one.mean(variant, forgetting) for variant in line.variants]
        xs = [one.mean(variant, retention) for variant in line.variants]
        _draw_trajectory(panels["both"], line, xs, ys, style | {"label": line.label or one.title}, index)
        for name, values in (("forgetting", ys), ("retention", xs)):
            _draw_profile(panels[name], [one.values.index(value) for value in line.values], values, style)
            spans[name] += values
    references = {
        variant: (one.mean(variant, retention), one.mean(variant, forgetting))
        for variant in board.variants
        if variant.role == "reference"
    }
    _frame_axis(panels["both"].xaxis, retention, spans["retention"], [x for x, _ in references.values()])
    for name in ("both", "forgetting"):
        _frame_axis(panels[name].yaxis, forgetting, spans["forgetting"], [y for _, y in references.values()])
    _frame_axis(panels["retention"].yaxis, retention, spans["retention"], [x for x, _ in references.values()])
    swept = {target for target, _ in one.cells}
    part = f" ({len(swept)} of {len(board.targets)} classes)" if len(swept) < len(board.targets) else ""
    _draw_references(panels, references, retention, forgetting, part)
    panels["both"].set(xlabel=f"{retention.header}, retention", ylabel=f"{forgetting.header}, forgetting")
    for name, measure in (("forgetting", forgetting), ("retention", retention)):
        panels[name].set_xticks(range(len(one.values)), [spell(value) for value in one.values])
        panels[name].set(xlabel=one.setting, ylabel=measure.header)
    block.suptitle(shorten(f"{one.title}: {one.setting}"), fontsize=8)
    handles, labels = panels["both"].get_legend_handles_labels()
    legend_below(block, handles, labels, COLUMN)


def _frame_axis(axis: Axis, measure: Measure, values: Sequence[Value], references: Sequence[Value]) -> None:
    """Set scale, direction and limits from the sweep, and from references close to it.

    A distant reference, such as the FID of pure noise, would squeeze the sweep into a corner.
    """
    ends = [v.number + sign * (v.spread or 0.0) for v in values if v.number is not None for sign in (-1, 1)]
    if not ends:
        return
    set_scale(axis, ends, measure)
    low, high = frame(ends, [v.number for v in references if v.number is not None], axis.get_scale() == "log")
    if measure.unit == "%":
        low, high = max(low, -4.0), min(high, 104.0)
    (axis.axes.set_xlim if axis is axis.axes.xaxis else axis.axes.set_ylim)(low, high)
    point_to_better(axis, measure)


def frame(numbers: Sequence[float], others: Sequence[float], log: bool = False) -> tuple[float, float]:
    """Return the limits of an axis that holds all numbers, and those of the others within half their extent."""
    if log:
        low, high = frame([math.log10(n) for n in numbers], [math.log10(n) for n in others if n > 0])
        return 10.0 ** max(low, LOWEST_POWER), 10.0 ** min(high, HIGHEST_POWER)
    low, high = min(numbers), max(numbers)
    reach = (high - low) / 2 or abs(high) / 20 or 1.0
    near = [n for n in others if low - reach <= n <= high + reach]
    low, high = min([low, *near]), max([high, *near])
    margin = 0.08 * (high - low) or reach
    return low - margin, high + margin


def _draw_trajectory(
    axes: Axes,
    line: SweepLine,
    xs: Sequence[Value],
    ys: Sequence[Value],
    style: Mapping[str, Any],
    index: int,
) -> None:
    """Join the points in the order of the value and write the value to each."""
    points = [
        (x.number, y.number, x.spread, y.spread, f"{spell(value)}{min(x, y, key=lambda v: v.ok).gap}")
        for value, x, y in zip(line.values, xs, ys, strict=True)
        if x.number is not None and y.number is not None
    ]
    if not points:
        return
    x, y, x_spread, y_spread, texts = zip(*points, strict=True)
    axes.plot(x, y, zorder=3, **style)
    _draw_spread(axes, x, y, y_spread, style["color"], x_spread)
    right, up, side = OFFSETS[index % len(OFFSETS)]
    for k, text in enumerate(texts):
        axes.annotate(
            text, (x[k], y[k]), xytext=(right, up), textcoords="offset points", ha=side, fontsize=SMALL,
            color=style["color"], zorder=4, path_effects=[withStroke(linewidth=1.5, foreground="white")],
        )  # fmt: skip


def _draw_profile(axes: Axes, places: Sequence[int], values: Sequence[Value], style: Mapping[str, Any]) -> None:
    """Draw one metric over the setting's values at equal distances."""
    points = [(k, v.number, v.spread) for k, v in zip(places, values, strict=True) if v.number is not None]
    if points:
        x, y, spread = zip(*points, strict=True)
        axes.plot(x, y, zorder=3, **style)
        _draw_spread(axes, x, y, spread, style["color"])


def _draw_spread(
    axes: Axes,
    x: Sequence[float],
    y: Sequence[float],
    y_spread: Sequence[float | None],
    colour: Any,
    x_spread: Sequence[float | None] | None = None,
) -> None:
    """Draw thin bars of one standard deviation over forget classes, where there is one."""
    known: dict[str, Any] = {
        name: [0.0 if one is None else one for one in spread]
        for name, spread in (("xerr", x_spread), ("yerr", y_spread))
        if spread is not None and any(spread)
    }
    if known:
        axes.errorbar(x, y, fmt="none", ecolor=colour, elinewidth=0.6, alpha=0.5, **known)


def _draw_references(
    panels: Mapping[str, Axes],
    references: Mapping[Variant, tuple[Value, Value]],
    retention: Measure,
    forgetting: Measure,
    part: str,
) -> None:
    """Draw reference rows in black: a cross and, per metric, a broken line; the legend has their numbers.

    A cross outside the frame is drawn at its edge. The numbers are over the classes of the sweep; `part` gives their
    number where some are missing.
    """
    for (variant, (x, y)), marker, dash in zip(
        references.items(), cycle(REFERENCE_MARKERS), cycle(DASHES), strict=False
    ):
        if x.number is None or y.number is None:
            continue
        style: dict[str, Any] = {"color": "black", "linestyle": dash, "linewidth": 1.0}
        for name, number in (("forgetting", y.number), ("retention", x.number)):
            panels[name].axhline(number, zorder=2, **style)
        pairs = ((forgetting, y.number, y.gap), (retention, x.number, x.gap))
        numbers = [f"{measure.title} {spell_number(number, measure.format)}{gap}" for measure, number, gap in pairs]
        left_right, down_up = panels["both"].get_xlim(), panels["both"].get_ylim()
        panels["both"].plot(
            [_within(x.number, left_right)], [_within(y.number, down_up)], marker=marker, markersize=5,
            markeredgewidth=1.2, clip_on=False, zorder=5, label=f"{variant.label}: {', '.join(numbers)}{part}", **style,
        )  # fmt: skip


def _within(number: float, limits: tuple[float, float]) -> float:
    return min(max(number, min(limits)), max(limits))
