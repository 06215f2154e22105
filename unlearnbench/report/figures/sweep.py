"""Figure of ablations: metrics along a swept setting."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import LineCollection
from matplotlib.figure import SubFigure
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.styles import COLOURS, SHAPES, Style
from unlearnbench.report.data.sweeps import Sweep, SweepLine, find_sweeps, spell
from unlearnbench.report.data.values import Measure, Variant, spell_number
from unlearnbench.report.figures.labels import Label, Path, label_ends, place_labels, spread
from unlearnbench.report.figures.style import (
    COLUMN,
    FEW,
    HIGHEST_POWER,
    LETTER,
    LONGEST,
    LOWEST_POWER,
    PAGE,
    Canvas,
    canvas,
    class_ticks,
    is_share,
    limit_percentages,
    point_to_better,
    set_scale,
    shorten,
)

MOST_SWEEPS = 4  # settings that one page holds
ACROSS, NARROW = 3, 8  # columns beside each other, where labels of lines have few letters
HEIGHT = 4.5  # inches of a column
REFERENCE_MARKERS, DASHES = "x+12", ("--", ":", "-.", (0, (5, 1)))
GREY = "0.6"  # of lines without a label


@dataclass(frozen=True)
class Column:
    """The panels of one swept setting, and the labels that are placed once all panels have their positions."""

    panels: dict[str, Axes]  # "forgetting" and "retention" over the values, "both" against each other
    ends: dict[str, list[Annotation]]
    points: list[Label]  # of "both"
    paths: list[Path]  # likewise


def sweep(board: Board, parent: Canvas | None = None, only: Sequence[Variant] = ()) -> Canvas | None:
    """One column per swept setting: forgetting and retention over its values, and both against each other."""
    forgetting, retention = board.headline("forgetting"), board.headline("retention")
    sweeps = find_sweeps(board)[:MOST_SWEEPS]
    if forgetting is None or retention is None or not sweeps:
        return None
    longest = max(len(line.label) for one in sweeps for line in one.lines)
    across = min(len(sweeps), 2 if longest > NARROW or len(sweeps) > ACROSS else ACROSS)
    rows = -(-len(sweeps) // across)
    width = COLUMN if across == 1 else PAGE
    figure = canvas(parent, (width, HEIGHT * rows))
    blocks = figure.subfigures(rows, across, squeeze=False, wspace=0.03, hspace=0.02)
    columns = [
        _draw_sweep(block, board, one, forgetting, retention, width / across)
        for block, one in zip(blocks.flat, sweeps, strict=False)
    ]
    facts = [_facts(board, one) for one in sweeps]
    for column, one, words in zip(columns, sweeps, facts, strict=True):
        letters = int(width / across / LETTER) - 4
        parts = [f"{one.title}: {one.setting}", *([words] if any(facts) else [])]
        column.panels["forgetting"].set_title("\n".join(shorten(part, letters) for part in parts))
    for column in columns:
        for name, texts in column.ends.items():
            spread(column.panels[name], texts)
        place_labels(column.panels["both"], column.points, paths=column.paths)
    return figure


def _draw_sweep(
    block: SubFigure, board: Board, one: Sweep, forgetting: Measure, retention: Measure, inches: float
) -> Column:
    """Draw one column, without the labels of points."""
    panels: dict[str, Axes] = block.subplot_mosaic([["forgetting"], ["retention"], ["both"]], height_ratios=[1, 1, 1.4])
    measures = {"forgetting": forgetting, "retention": retention}
    references = [row for row in board.variants if row.role == "reference"]
    rows = [row for line in one.lines for row in line.variants]
    for name, measure in measures.items():
        means = [number for row in rows if (number := one.mean(row, measure).number) is not None]
        classes = [number for row in rows for number in one.classes(row, measure) if number is not None]
        near = [number for row in references if (number := one.mean(row, measure).number) is not None]
        _frame_axis(panels[name].yaxis, measure, [*means, *classes], near)
        _frame_axis(panels["both"].xaxis if name == "retention" else panels["both"].yaxis, measure, means, near)
    ends: dict[str, list[Label]] = {name: [] for name in measures}
    points: list[tuple[str, Label]] = []
    paths: list[Path] = []
    for k, (line, style) in enumerate(zip(one.lines, _styles(board, one), strict=True)):
        look = _look(style, len(one.lines) - k)
        for name, measure in measures.items():
            ends[name] += _draw_profile(panels[name], one, line, measure, look)
        found = _draw_trajectory(panels["both"], one, line, measures, look)
        points += found
        paths.append([(label.x, label.y) for _, label in found])
    labels = [label for _, label in sorted(points, key=lambda point: not point[0])]  # those with a gap first
    labels += _draw_references(panels, ends, one, references, measures)
    places = class_ticks([spell(value) for value in one.values], inches - 1.2)
    ticks = range(0, len(one.values), places.step)
    for name, measure in measures.items():
        panels[name].set_xticks(ticks, places.names[:: places.step], rotation=90 if places.upright else 0)
        panels[name].set(xlim=(-0.25, len(one.values) - 0.75), ylabel=f"{measure.header}")
    panels["forgetting"].tick_params(labelbottom=False)
    panels["retention"].set_xlabel(one.setting)
    if panels["both"].get_xscale() == "linear":
        panels["both"].xaxis.set_major_locator(MaxNLocator(max(2, int(2 * inches) - 2)))
    panels["both"].set(xlabel=f"{retention.header}, retention", ylabel=forgetting.header)
    return Column(panels, {name: label_ends(panels[name], some) for name, some in ends.items()}, labels, paths)


def _facts(board: Board, one: Sweep) -> str:
    """Return what the lines and classes of a sweep are; empty for one line over all classes."""
    facts = [f"lines: {', '.join(one.others)}"] if one.others else []
    if len(one.lines) > FEW:
        facts.append(f"{FEW} of {len(one.lines)} labelled")
    if len(one.numbers.targets) < len(board.targets):
        facts.append(f"{len(one.numbers.targets)} of {len(board.targets)} classes")
    return "; ".join(facts)


def _styles(board: Board, one: Sweep) -> list[Style]:
    """Return the style of each line: the method's own of a single one, grey of those without a label."""
    if len(one.lines) == 1:
        method = one.lines[0].variants[0].method
        return [board.styles[next(row.label for row in board.variants if row.method == method)]]
    return [
        Style(COLOURS[k % len(COLOURS)] if k < FEW else GREY, SHAPES[k % len(SHAPES)]) for k in range(len(one.lines))
    ]


def _frame_axis(axis: Axis, measure: Measure, numbers: Sequence[float], references: Sequence[float]) -> None:
    """Set scale, direction and limits from the sweep, and from references close to it.

    A distant reference, such as the FID of pure noise, would squeeze the sweep into a corner.
    """
    if not numbers:
        return
    set_scale(axis, numbers, measure)
    low, high = frame(numbers, references, axis.get_scale() == "log")
    if is_share(measure, numbers):
        low, high = limit_percentages(low, high)
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


def _draw_profile(axes: Axes, one: Sweep, line: SweepLine, measure: Measure, look: dict[str, Any]) -> list[Label]:
    """Draw one metric over the setting's values at equal distances: the mean, and each forget class thin and faint."""
    places = [one.values.index(value) for value in line.values]
    means = [one.mean(row, measure) for row in line.variants]
    points = [(k, mean.number) for k, mean in zip(places, means, strict=True) if mean.number is not None]
    if len(one.numbers.targets) > 1:
        classes = zip(*[one.classes(row, measure) for row in line.variants], strict=True)
        paths = [
            [(k, number) for k, number in zip(places, some, strict=True) if number is not None] for some in classes
        ]
        paths = [path for path in paths if path]
        axes.add_collection(LineCollection(paths, colors=look["color"], linewidths=0.5, alpha=0.3), autolim=False)
    if not points:
        return []
    x, y = zip(*points, strict=True)
    axes.plot(x, y, **look)
    return [Label(line.label, x[-1], y[-1], look["color"])] if line.label and look["color"] != GREY else []


def _look(style: Style, above: int) -> dict[str, Any]:
    """Return how a line looks: broader where others are drawn above it, so that none which coincides hides it."""
    more = min(above - 1, 3)
    return {
        "color": style.colour, "marker": style.shape, "markersize": 3.5 + 0.8 * more, "linewidth": 1.0 + 0.5 * more,
        "clip_on": False, "zorder": 3,
    }  # fmt: skip


def _draw_trajectory(
    axes: Axes, one: Sweep, line: SweepLine, measures: dict[str, Measure], look: dict[str, Any]
) -> list[tuple[str, Label]]:
    """Join the points in the order of the value, and return each value as a label, with its gap."""
    points = []
    for value, row in zip(line.values, line.variants, strict=True):
        x, y = (one.mean(row, measures[name]) for name in ("retention", "forgetting"))
        if x.number is not None and y.number is not None:
            gap = min(x, y, key=lambda v: v.ok).gap
            points.append(
                (gap, Label(f"{spell(value)}{gap}", x.number, y.number, look["color"], look["markersize"] / 2))
            )
    if points:
        x_and_y = [(label.x, label.y) for _, label in points]
        axes.plot(*np.transpose(x_and_y), label=line.label or one.title, **look)
    return points


def _draw_references(
    panels: dict[str, Axes],
    ends: dict[str, list[Label]],
    one: Sweep,
    references: Sequence[Variant],
    measures: dict[str, Measure],
) -> list[Label]:
    """Draw reference rows in black: a broken line per metric and a cross, over the classes of the sweep.

    What is outside the frame is drawn at its edge, where an arrow says so. Adds the labels of lines to `ends`.

    Returns:
        The labels of the crosses.
    """
    crosses = []
    for row, marker, dash in zip(references, cycle(REFERENCE_MARKERS), cycle(DASHES), strict=False):
        means = {name: one.mean(row, measure) for name, measure in measures.items()}
        for name, measure in measures.items():
            if (number := means[name].number) is not None:
                panels[name].axhline(number, zorder=2, color="black", linestyle=dash, linewidth=1.0)
                place, arrow = _within(number, panels[name].get_ylim())
                text = f"{shorten(row.label, LONGEST)} {spell_number(number, measure.format)}{means[name].gap}{arrow}"
                ends[name].append(Label(text, 0.0, place, "black"))
        x, y = means["retention"].number, means["forgetting"].number
        if x is not None and y is not None:
            both = panels["both"]
            (left, side), (low, arrow) = _within(x, both.get_xlim(), "→←"), _within(y, both.get_ylim())
            both.plot(
                [left], [low], marker=marker, markersize=5, markeredgewidth=1.2, clip_on=False, zorder=5, color="black",
                linestyle="none", label=row.label,
            )  # fmt: skip
            crosses.append(Label(f"{shorten(row.label, LONGEST)}{side}{arrow}", left, low, "black", 3.0))
    return crosses


def _within(number: float, limits: tuple[float, float], arrows: str = "↑↓") -> tuple[float, str]:
    """Return a number moved to the nearest limit of an axis, and the arrow that says so."""
    low, high = limits
    place = min(max(number, min(limits)), max(limits))
    if place == number:
        return place, ""
    is_towards_high = (number > place) == (high > low)
    return place, f" {arrows[0] if is_towards_high else arrows[1]}"
