"""Robustness to attack: forgetting before and after each, as tables and figures, with the gold standard as control."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.statistics import class_mean, mean_interval
from unlearnbench.report.data.styles import Look
from unlearnbench.report.data.values import Measure, Value, Variant
from unlearnbench.report.figures.figures import (
    LETTER,
    MOST_ROWS,
    PAGE,
    Canvas,
    canvas,
    legend_below,
    legend_height,
    names_of,
    shorten,
)
from unlearnbench.report.write.table import Table
from unlearnbench.store.records import Record

COLUMNS, MOST_CURVES = 3, 4  # panels beside each other: of attacks, of curves
SHIFT = 0.17  # of the marks before and after, in rows
NO_EVIDENCE = "an attack that succeeds there is no evidence of residual knowledge"
NO_GOLD = (
    "No gold standard is among the rows, so it is not known what an attack draws out of any model: add one to "
    "--methods by name (see 'unlearnbench list methods')."
)


@dataclass(frozen=True)
class Curve:
    """What was forgotten along the steps of an attack."""

    steps: tuple[int, ...]
    after: tuple[float, ...]  # percent
    back: float  # steps until the class is back, infinite where it is not
    area: float  # percent


def _words(part: Board) -> str:
    """Return what the gold standard among the rows is there for, or that there is none."""
    gold = [variant.label for variant in part.variants if variant.role == "gold"]
    if not gold:
        return NO_GOLD
    was = "was" if len(gold) == 1 else "were"
    return f"{', '.join(gold)} {was} never trained on the class: {NO_EVIDENCE}."


def robustness_tables(board: Board) -> list[Table]:
    """Return the table of forgetting before and after each attack, and that of relearning; none without attacks."""
    part = board.attacked
    return [] if part is None or not part.robustness else [_overview(part), *_relearning_tables(part)]


def _overview(part: Board) -> Table:
    before = part.headline("forgetting")
    measures = [*([before] if before else []), *part.robustness]
    groups = ["Before" if measure == before else "After" for measure in measures]
    return Table(
        name="robustness",
        title="Robustness to attack",
        caption=f"Forgetting before and after each attack, as its card says (list metrics --cards): mean over forget "
        f"classes [95 % interval], of attacked cells alone. {_words(part)} {part.caption(measures)}.",
        corner="Method",
        rows=[variant.label for variant in part.variants],
        groups=["", *groups],
        headers=["Cells", *[measure.header for measure in measures]],
        formats=["", *[measure.format for measure in measures]],
        values=[
            [
                Value(None, part.completeness(variant)),
                *[replace(part.over_classes(variant, measure), spread=None) for measure in measures],
            ]
            for variant in part.variants
        ],
    )


def curve_of(record: Record, measure: Measure) -> Curve | None:
    """Return the curve that a record keeps of an attack; None where it has no number, or no curve that can be drawn."""
    entry = record.metrics.get(measure.key, {})
    detail: Any = (entry.get("detail") if entry.get("value") is not None else None) or {}
    try:
        steps, after = tuple(map(int, detail["steps"])), tuple(map(float, detail["after"]))
        back = math.inf if detail["steps_until_back"] is None else float(detail["steps_until_back"])
        found = Curve(steps, after, back, float(detail["area"]))
    except (KeyError, TypeError, ValueError):
        return None
    return found if len(steps) == len(after) > 1 and np.isfinite([*after, found.area]).all() else None


def attack_curves(part: Board) -> dict[Measure, dict[Variant, dict[Any, Curve]]]:
    """Return {attack: {variant: {(target, replicate): curve}}} of the attacks that have steps."""
    found: dict[Measure, dict[Variant, dict[Any, Curve]]] = {}
    for measure in part.robustness:
        for variant in part.variants:
            records = [r for target in part.targets for r in part.cell_records(variant, target)]
            curves = {
                (r.cell.target, r.cell.seeds): curve
                for r in records if r.cell.id in part.ok_ids and (curve := curve_of(r, measure)) is not None
            }  # fmt: skip
            if curves:
                found.setdefault(measure, {})[variant] = curves
    return found


def _relearning_tables(part: Board) -> list[Table]:
    """Return the table of how soon the class is back, and of the area under the curve."""
    found = attack_curves(part)
    if not found:
        return []
    expected = len(part.targets) * len(part.replicates)
    values = []
    for variant in part.variants:
        rows = [_relearned(curves.get(variant, {}), expected) for curves in found.values()]
        values.append([value for pair in rows for value in pair])
    return [
        Table(
            name="relearning",
            title="Relearning",
            caption="Steps: the first evaluated step at which less than 50 % is forgotten, median over cells, never "
            "counting as later than all. Area: under the curve of forgetting over steps, 100 % if nothing comes back, "
            f"mean over forget classes [95 % interval]. {_words(part)} {part.caption(list(found))}.",
            corner="Method",
            rows=[variant.label for variant in part.variants],
            groups=[measure.title for measure in found for _ in range(2)],
            headers=["steps until back ↑", "area (%) ↑"] * len(found),
            formats=["g", ".1f"] * len(found),
            values=values,
        )
    ]


def _relearned(curves: dict[Any, Curve], expected: int) -> tuple[Value, Value]:
    """Return the median of steps until back, or that there is none, and the mean area."""
    if not curves:
        return Value(None, ok=0, expected=expected), Value(None, ok=0, expected=expected)
    steps, last = median(curve.back for curve in curves.values()), max(c.steps[-1] for c in curves.values())
    areas = {cell: curve.area for cell, curve in curves.items()}
    back = Value(None, f"never in {last}") if math.isinf(steps) else Value(steps)
    found = mean_interval(areas)
    within = None if found is None else (max(found[0], 0.0), min(found[1], 100.0))  # an area is a share
    area = Value(class_mean(areas), interval=within)
    return replace(back, ok=len(curves), expected=expected), replace(area, ok=len(curves), expected=expected)


def robustness(board: Board, parent: Canvas | None = None) -> Canvas | None:
    """One panel per attack: forgetting before and after it, methods down, the gold standard after it as a band."""
    part = board.attacked
    if part is None or not part.robustness:
        return None
    measures, before, rows = part.robustness, part.headline("forgetting"), part.variants[:MOST_ROWS]
    columns = min(COLUMNS, len(measures))
    lines = -(-len(measures) // columns)
    names, _ = names_of(variant.label for variant in rows)
    step = 0.24 if any("\n" in name for name in names) else 0.145
    figure = canvas(parent, (PAGE, (step * len(rows) + 0.25) * lines + 0.2))
    grid = figure.subplots(lines, columns, squeeze=False, sharex=True, sharey=True)
    for axes, measure in zip(grid.flat, measures, strict=False):
        _draw_attack(axes, board, part, rows, before, measure)
    for axes in list(grid.flat)[len(measures) :]:
        axes.set_visible(False)
    for axes in list(grid.flat)[max(0, len(measures) - columns) : len(measures)]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("forgotten (%)")
    grid[0][0].set_yticks(range(len(rows)), names)
    grid[0][0].set(xlim=(-4, 104), ylim=(len(rows) - 0.5, -0.5))
    return figure


def _draw_attack(
    axes: Axes, board: Board, part: Board, rows: Sequence[Variant], before: Measure | None, measure: Measure
) -> None:
    """Draw one panel: two marks for each row, and the gold standard's number as a line in its interval."""
    for row, variant in enumerate(rows):
        after, look = part.over_classes(variant, measure), board.looks[variant.label]
        if before is not None:
            _draw_mark(axes, part.over_classes(variant, before), row - SHIFT, look, filled=False)
        _draw_mark(axes, after, row + SHIFT, look, filled=True)
        if variant.role == "gold" and after.number is not None:
            axes.axvline(after.number, color="black", linewidth=0.9, linestyle="--", zorder=1)
            if after.interval is not None:
                axes.axvspan(*after.interval, color="black", alpha=0.08, linewidth=0, zorder=0)
    axes.set_title(shorten(measure.title, int(PAGE / COLUMNS / LETTER) - 12), pad=3)
    axes.grid(visible=False, axis="y")


def _draw_mark(axes: Axes, value: Value, y: float, look: Look, *, filled: bool) -> None:
    if value.number is None:
        return
    if value.interval is not None:
        axes.plot(value.interval, [y, y], color=look.colour, linewidth=0.8, zorder=2)
    axes.plot(
        [value.number], [y], marker=look.shape, linestyle="none", color=look.colour, markersize=3.5,
        markeredgewidth=0.8, markerfacecolor=look.colour if filled else "white", zorder=3,
    )  # fmt: skip


def relearning(board: Board, parent: Canvas | None = None) -> Canvas | None:
    """One panel per choice of images: what is forgotten along the steps of fine-tuning, a line per method."""
    part = board.attacked
    found = {} if part is None else attack_curves(part)
    if part is None or not found:
        return None
    across = min(len(found), MOST_CURVES)
    lines = -(-len(found) // across)
    labels = [variant.label for variant in part.variants]
    figure = canvas(parent, (PAGE, 1.9 * lines + legend_height(labels, PAGE)))
    panels = list(figure.subplots(lines, across, squeeze=False, sharex=True, sharey=True).flat)
    for axes, (measure, rows) in zip(panels, found.items(), strict=False):
        for variant, curves in rows.items():
            steps, mean = mean_curve(curves)
            look = board.looks[variant.label]
            style = {"color": "black", "linestyle": "--"} if variant.role == "gold" else {"color": look.colour}
            axes.plot(steps, mean, marker=look.shape, markersize=3, linewidth=1.0, label=variant.label, **style)
        axes.axhline(50, color="grey", linewidth=0.7, linestyle=":")
        axes.set(xlabel="steps", ylim=(-4, 104))
        axes.set_title(shorten(measure.title, int(PAGE / across / LETTER) - 4))
    for axes in panels[len(found) :]:
        axes.set_visible(False)
    panels[0].set_ylabel("forgotten (%)")
    handles = {
        label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    legend_below(figure, list(handles.values()), list(handles), PAGE)
    return figure


def mean_curve(curves: Mapping[Any, Curve]) -> tuple[tuple[int, ...], list[float]]:
    """Return the mean over classes of the mean over replicates, of the curves that have the newest one's steps.

    Args:
        curves: {(target, replicate): curve}.
    """
    steps = list(curves.values())[-1].steps
    kept = {cell: curve.after for cell, curve in curves.items() if curve.steps == steps}
    return steps, [class_mean({cell: after[k] for cell, after in kept.items()}) for k in range(len(steps))]
