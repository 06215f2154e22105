"""Pareto fronts: the non-dominated rows in forgetting, retention and cost."""

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.values import Measure, Value, Variant

Row = TypeVar("Row", bound=Hashable)


def front(points: Mapping[Row, Sequence[float]]) -> set[Row]:
    """Return the rows that no other row dominates; higher is better.

    A row dominates another where it is nowhere worse and somewhere better. Dominance is transitive, so dominated rows
    need not be compared further.
    """
    return {row for row, point in points.items() if not any(_dominates(other, point) for other in points.values())}


def _dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    return all(x >= y for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


def axes_of(board: Board) -> list[Measure]:
    """Return the three axes: first headline of forgetting and of retention, run time with priors; or none."""
    found = [board.headline("forgetting"), board.headline("retention")]
    total = next(measure for measure in board.costs if measure.key == "total")
    return [measure for measure in [*found, total] if measure is not None] if None not in found else []


def places(board: Board) -> dict[Variant, list[Value]]:
    """Return the three values of each method with a number of every cell in all of them."""
    measures = axes_of(board)
    rows = {v: [board.numbers.mean(v, m) for m in measures] for v in board.variants if v.competes}
    return {v: values for v, values in rows.items() if values and not any(x.number is None or x.gap for x in values)}


def undominated(board: Board) -> set[Variant]:
    """Return the methods on the front of all three axes, by their means."""
    signs = [-1 if measure.better == "lower" else 1 for measure in axes_of(board)]
    return front({
        variant: [sign * float(value.number or 0.0) for sign, value in zip(signs, values, strict=True)]
        for variant, values in places(board).items()
    })  # fmt: skip
