"""Figures of ablations: metrics along a swept setting, and the denoising loss by timestep."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import SubFigure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.styles import COLOURS, SHAPES
from unlearnbench.report.data.values import Measure, Value, Variant, short, spell_number
from unlearnbench.report.figures.figures import (
    COLUMN,
    FEW,
    HIGHEST_POWER,
    LINE,
    LOWEST_POWER,
    PAGE,
    SMALL,
    Canvas,
    canvas,
    is_wide,
    legend_below,
    legend_height,
    point_to_better,
    set_log,
    set_scale,
    shorten,
)
from unlearnbench.store.cell import Seeds, Target
from unlearnbench.store.hashing import canonical_json
from unlearnbench.store.records import Record

Cells = frozenset[tuple[Target, Seeds]]  # (target, replicate)

MOST_SWEEPS, MOST_LOSSES = 4, 3  # settings, pairs of panels that one page holds
REFERENCE_MARKERS, DASHES = "x+12", ("--", ":", "-.", (0, (5, 1)))
OFFSETS = ((5, 4, "left"), (-5, -9, "right"), (5, -9, "left"), (-5, 4, "right"))  # of value marks, by line; points
SIDES = {"forget": "forget class", "retain": "retained classes"}


@dataclass(frozen=True)
class Line:
    """Variants of one method that differ in one numeric setting alone, in the order of its values."""

    label: str  # the other swept settings
    values: tuple[float, ...]
    variants: tuple[Variant, ...]


@dataclass(frozen=True)
class Sweep:
    """One swept numeric setting of one method."""

    title: str  # of the method
    setting: str
    lines: tuple[Line, ...]
    cells: Cells  # of any variant of the method: what each of them should have

    @property
    def values(self) -> list[float]:
        """Every value of the setting, sorted."""
        return sorted({value for line in self.lines for value in line.values})


def find_sweeps(board: Board) -> list[Sweep]:
    """Return the swept numeric settings of every method, from variants with numbers alone."""
    by_method: dict[str, list[Record]] = {}
    for record in board.ok_records:
        by_method.setdefault(record.cell.method, []).append(record)
    order = dict.fromkeys(variant.method for variant in board.variants)
    return [sweep for method in order if method in by_method for sweep in _sweeps(board, by_method[method])]


def _sweeps(board: Board, records: Sequence[Record]) -> Iterator[Sweep]:
    """Yield the sweeps of one method; a default that was measured too is one of the values."""
    method, ids = records[-1].cell.method, {canonical_json(dict(record.cell.settings)) for record in records}
    variants = [v for v in board.variants if v.method == method and v.settings in ids]
    settings = {variant: json.loads(variant.settings) for variant in variants}
    named = sorted({name for record in records for name in record.method.get("overrides") or {}})
    swept = [name for name in named if len({canonical_json(s.get(name)) for s in settings.values()}) > 1]
    cells = frozenset((r.cell.target, r.cell.seeds) for r in board.records if r.cell.method == method)
    title = short(records[-1].method.get("title", method))
    for name in swept:
        if all(_is_number(chosen.get(name)) for chosen in settings.values()):
            lines = tuple(_lines(settings, name, [other for other in swept if other != name]))
            if any(len(line.values) > 1 for line in lines):
                yield Sweep(title, short(name), lines, cells)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _lines(settings: Mapping[Variant, Mapping[str, Any]], name: str, others: Sequence[str]) -> Iterator[Line]:
    """Yield one line per combination of all settings but one."""
    groups: dict[str, list[Variant]] = {}
    for variant, chosen in settings.items():
        rest = canonical_json({key: value for key, value in chosen.items() if key != name})
        groups.setdefault(rest, []).append(variant)
    chosen_first = {rest: [settings[variants[0]].get(other) for other in others] for rest, variants in groups.items()}
    for rest in sorted(groups, key=lambda rest: ([_order(value) for value in chosen_first[rest]], rest)):
        joined = sorted(groups[rest], key=lambda variant: float(settings[variant][name]))
        label = ", ".join(f"{short(k)}={spell(value)}" for k, value in zip(others, chosen_first[rest], strict=True))
        yield Line(label, tuple(float(settings[variant][name]) for variant in joined), tuple(joined))


def _order(value: Any) -> tuple[float, str]:
    """Return a key that sorts numbers as numbers, before words."""
    return (float(value), "") if _is_number(value) else (math.inf, str(value))


def spell(value: object) -> str:
    """Return a setting's value as short as it can be told apart: 10, 0.00025, True."""
    return f"{value:.12g}" if _is_number(value) else short(value)


def mean_over(board: Board, variant: Variant, measure: Measure, cells: Cells) -> Value:
    """Return the mean of a variant over the forget classes of given cells, and how many of these cells it is over."""
    mean = board.bare_mean(variant, measure, {target for target, _ in cells})
    return replace(mean, expected=len(cells))


def sweep(board: Board, parent: Canvas | None = None) -> Canvas | None:
    """Per swept setting: forgetting against retention along its values, and each of the two against the value."""
    forgetting, retention = board.headline("forgetting"), board.headline("retention")
    found = find_sweeps(board)
    if forgetting is None or retention is None or not found:
        return None
    found = found[:MOST_SWEEPS]
    columns = min(2, len(found))
    rows = -(-len(found) // columns)
    legend = max(len(one.lines) for one in found) + 2
    figure = canvas(parent, (PAGE if columns == 2 else COLUMN, (3.6 + LINE * legend) * rows))
    blocks = figure.subfigures(rows, columns, squeeze=False, wspace=0.03, hspace=0.03)
    for block, one in zip(blocks.flat, found, strict=False):
        _draw_sweep(block, board, one, forgetting, retention)
    return figure


def _draw_sweep(block: SubFigure, board: Board, one: Sweep, forgetting: Measure, retention: Measure) -> None:
    """Draw the trajectory panel over the two panels of one metric each."""
    panels = block.subplot_mosaic([["both", "both"], ["forgetting", "retention"]], height_ratios=[1.4, 1])
    palette = [COLOURS[k % len(COLOURS)] for k in range(len(one.lines))]
    spans: dict[str, list[Value]] = {"forgetting": [], "retention": []}
    for index, (line, colour) in enumerate(zip(one.lines, palette, strict=True)):
        style = {"color": colour, "marker": SHAPES[index % len(SHAPES)], "markersize": 3.5, "linewidth": 1.0}
        ys = [mean_over(board, variant, forgetting, one.cells) for variant in line.variants]
        xs = [mean_over(board, variant, retention, one.cells) for variant in line.variants]
        _draw_trajectory(panels["both"], line, xs, ys, style | {"label": line.label or one.title}, index)
        for name, values in (("forgetting", ys), ("retention", xs)):
            _draw_profile(panels[name], [one.values.index(value) for value in line.values], values, style)
            spans[name] += values
    references = {
        variant: (mean_over(board, variant, retention, one.cells), mean_over(board, variant, forgetting, one.cells))
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
    """Set scale, direction and limits by the sweep alone, and by references close to it.

    A reference far off, as pure noise is in a distance between distributions, would press the sweep into a corner.
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
    line: Line,
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
    """Draw one metric over the places of the setting's values, which stand at equal distances."""
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

    A cross outside the frame stands at its edge. The numbers are over the classes of the sweep; `part` says how many
    these are where they are not all.
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


@dataclass(frozen=True)
class LossCurve:
    """Denoising loss by timestep bin; 1 is what predicting zero gives."""

    edges: tuple[float, ...]
    forget: NDArray[np.float64]  # (bins,); nan where it was not finite
    retain: NDArray[np.float64]  # (bins,)


def loss_curve(record: Record) -> LossCurve | None:
    """Return a record's denoising loss by timestep, or None when it has none that can be drawn."""
    entry = getattr(record, "timestep_loss", None)
    if not isinstance(entry, Mapping) or not entry:
        return None
    try:
        edges = tuple(float(edge) for edge in entry["edges"])
        forget, retain = (np.array([np.nan if v is None else float(v) for v in entry[side]]) for side in SIDES)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if forget.shape != (len(edges) - 1,) or retain.shape != forget.shape or not _rises(edges):
        return None
    forget, retain = (np.where(np.isfinite(side), side, np.nan) for side in (forget, retain))
    return LossCurve(edges, forget, retain) if np.isfinite([forget, retain]).any(axis=1).all() else None


def _rises(edges: Sequence[float]) -> bool:
    return bool(len(edges) > 1 and np.isfinite(edges).all() and (np.diff(edges) > 0).all())


def mean_curves(board: Board) -> dict[Variant, tuple[LossCurve, int]]:
    """Return {variant: (mean over classes of the mean over seeds, how many cells)}, all with the newest bins."""
    curves = {r.cell.id: curve for r in board.ok_records if (curve := loss_curve(r)) is not None}
    if not curves:
        return {}
    edges = list(curves.values())[-1].edges
    means: dict[Variant, tuple[LossCurve, int]] = {}
    for variant in board.variants:
        by_class = [
            [curves[r.cell.id] for r in board.cell_records(variant, t) if r.cell.id in curves] for t in board.targets
        ]
        by_class = [kept for group in by_class if (kept := [curve for curve in group if curve.edges == edges])]
        if by_class:
            forget = np.mean([np.mean([curve.forget for curve in group], axis=0) for group in by_class], axis=0)
            retain = np.mean([np.mean([curve.retain for curve in group], axis=0) for group in by_class], axis=0)
            means[variant] = LossCurve(edges, forget, retain), sum(map(len, by_class))
    return means


def timesteps(board: Board, parent: Canvas | None = None) -> Canvas | None:
    """Denoising loss by timestep, on the forget class and on retained classes, one line per variant."""
    curves = mean_curves(board)
    if not curves:
        return None
    rows = _loss_rows(list(curves))[:MOST_LOSSES]
    expected = len(board.targets) * len(board.replicates)
    lengths = [1.9 + legend_height([variant.label + " (9/10)" for variant in row], PAGE) for row in rows]
    figure = canvas(parent, (PAGE, sum(lengths) + 0.1))
    blocks = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=lengths)[:, 0]
    log = is_wide([1.0, *(y for c, _ in curves.values() for y in [*c.forget, *c.retain] if np.isfinite(y))])
    edges = next(iter(curves.values()))[0].edges
    for block, variants in zip(blocks, rows, strict=True):
        pair = block.subplots(1, 2, sharex=True, sharey=True)
        if log:
            set_log(pair[0].yaxis)
        for axes, (side, words) in zip(pair, SIDES.items(), strict=True):
            _draw_losses(axes, board, variants, curves, side, expected)
            axes.set_title(words)
            axes.set(xlabel="timestep (bin centre)", xlim=(edges[0], edges[-1]))
        pair[0].set_ylabel("denoising loss per pixel")
        pair[1].text(  # of the two panels the one where lines seldom come close to 1
            0.99, 1.0, "predicting zero", transform=pair[1].get_yaxis_transform(), ha="right", va="bottom",
            color="grey", fontsize=SMALL,
        )  # fmt: skip
        handles, labels = pair[0].get_legend_handles_labels()
        legend_below(block, handles, labels, PAGE)
    return figure


def _loss_rows(variants: Sequence[Variant]) -> list[list[Variant]]:
    """Return the variants of each pair of panels: all in one, or, when they are many, one pair per method.

    Methods of one variant share pairs, and the references stand in each.
    """
    references = [variant for variant in variants if variant.role == "reference"]
    others = [variant for variant in variants if variant.role != "reference"]
    if len(others) <= FEW:
        return [[*references, *others]]
    methods: dict[str, list[Variant]] = {}
    for variant in others:
        methods.setdefault(variant.method, []).append(variant)
    single = [group[0] for group in methods.values() if len(group) == 1]
    shared = [single[k : k + FEW] for k in range(0, len(single), FEW)]
    return [[*references, *group] for group in [*shared, *(g for g in methods.values() if len(g) > 1)]]


def _draw_losses(
    axes: Axes,
    board: Board,
    variants: Sequence[Variant],
    curves: Mapping[Variant, tuple[LossCurve, int]],
    side: str,
    expected: int,
) -> None:
    """Draw one line per variant over the bins' centres, references black and broken, and the line at 1."""
    dashes = cycle(DASHES)
    for variant in variants:
        curve, count = curves[variant]
        look = board.looks[variant.label]
        style: dict[str, Any] = {"color": look.colour, "marker": look.shape, "markersize": 3}
        if variant.role == "reference":
            style = {"color": "black", "linestyle": next(dashes), "zorder": 4}
        label = f"{variant.label}{Value(0.0, ok=count, expected=expected).gap}"
        centres = np.add(curve.edges[1:], curve.edges[:-1]) / 2
        axes.plot(centres, getattr(curve, side), linewidth=1.0, label=label, **style)
    axes.axhline(1.0, color="grey", linewidth=0.8)
