"""Robustness to attack: forgetting before and after each, as tables and figures, with the gold standard as control."""

import math
from dataclasses import replace
from statistics import median
from typing import Any

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.curves import Curve, attack_curves
from unlearnbench.report.data.statistics import class_mean, mean_interval
from unlearnbench.report.data.values import Value
from unlearnbench.report.tables.table import Table

NO_EVIDENCE = "an attack that succeeds there is no evidence of residual knowledge"
NO_GOLD = (
    "No gold standard is among the rows, so attack success on a model that never saw the class is unknown: add one to "
    "--methods by name (see 'unlearnbench list methods')."
)


def _words(part: Board) -> str:
    """Return the sentence on the gold standards among the rows, or on their absence."""
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


def _relearning_tables(part: Board) -> list[Table]:
    """Return the table of steps until the class is back, and of the area under the curve."""
    attacks = attack_curves(part)
    if not attacks:
        return []
    expected = len(part.targets) * len(part.replicates)
    values = []
    for variant in part.variants:
        rows = [_relearned(curves.get(variant, {}), expected) for curves in attacks.values()]
        values.append([value for pair in rows for value in pair])
    return [
        Table(
            name="relearning",
            title="Relearning",
            caption="Steps: the first evaluated step at which less than 50 % is forgotten, median over cells, never "
            "counting as later than all. Area: under the curve of forgetting over steps, 100 % if nothing comes back, "
            f"mean over forget classes [95 % interval]. {_words(part)} {part.caption(list(attacks))}.",
            corner="Method",
            rows=[variant.label for variant in part.variants],
            groups=[measure.title for measure in attacks for _ in range(2)],
            headers=["steps until back ↑", "area (%) ↑"] * len(attacks),
            formats=["g", ".1f"] * len(attacks),
            values=values,
        )
    ]


def _relearned(curves: dict[Any, Curve], expected: int) -> tuple[Value, Value]:
    """Return the median of steps until back, or `never`, and the mean area."""
    if not curves:
        return Value(None, ok=0, expected=expected), Value(None, ok=0, expected=expected)
    steps, last = median(curve.back for curve in curves.values()), max(c.steps[-1] for c in curves.values())
    areas = {cell: curve.area for cell, curve in curves.items()}
    back = Value(None, f"never in {last}") if math.isinf(steps) else Value(steps)
    found = mean_interval(areas)
    within = None if found is None else (max(found[0], 0.0), min(found[1], 100.0))  # an area is a share
    area = Value(class_mean(areas), interval=within)
    return replace(back, ok=len(curves), expected=expected), replace(area, ok=len(curves), expected=expected)
