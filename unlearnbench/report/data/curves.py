"""Curves inside records: along attacks, between base and unlearned model, by timestep; means over cells."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unlearnbench.report.data.array import Numbers
from unlearnbench.report.data.statistics import class_mean
from unlearnbench.report.data.values import Measure, Variant, kept
from unlearnbench.store.cell import Seeds, Target
from unlearnbench.store.records import Record


@dataclass(frozen=True)
class Curve:
    """Forgetting along the steps of an attack."""

    steps: tuple[int, ...]
    after: tuple[float, ...]  # percent
    back: float  # steps until the class is back, infinite if it never is
    area: float  # percent


def curve_of(record: Record, measure: Measure) -> Curve | None:
    """Return a record's curve of an attack; None where it has no number, or no curve that can be drawn."""
    return _curves_of(record).get(measure.key)


@kept
def _curves_of(record: Record) -> dict[str, Curve]:
    """Return a record's curves by metric."""
    details = {name: entry.get("detail") for name, entry in record.metrics.items() if entry.get("value") is not None}
    return {name: curve for name, detail in details.items() if (curve := _curve(detail)) is not None}


def _curve(detail: Any) -> Curve | None:
    if not isinstance(detail, dict) or "steps" not in detail:
        return None
    try:
        steps, after = tuple(map(int, detail["steps"])), tuple(map(float, detail["after"]))
        back = math.inf if detail["steps_until_back"] is None else float(detail["steps_until_back"])
        found = Curve(steps, after, back, float(detail["area"]))
    except (KeyError, TypeError, ValueError):
        return None
    return found if len(steps) == len(after) > 1 and all(map(math.isfinite, (*after, found.area))) else None


def curve_measures(attack: Measure) -> dict[str, Measure]:
    """Return {field of `Curve`: measure} of the numbers of an attack's curve that tables show."""
    return {
        "back": Measure(f"{attack.key}/back", "steps until back", "", "higher", "g", "curve"),
        "area": Measure(f"{attack.key}/area", "area", "%", "higher", ".1f", "curve"),
    }


def attack_curves(
    numbers: Numbers, attacks: Sequence[Measure]
) -> dict[Measure, dict[Variant, dict[tuple[Target, Seeds], Curve]]]:
    """Return {attack: {row: {(target, seeds): curve}}} of the attacks that have steps."""
    found: dict[Measure, dict[Variant, dict[tuple[Target, Seeds], Curve]]] = {}
    for attack in attacks:
        for row in numbers.rows:
            records = [record for target in numbers.targets for record in numbers.sound(row, target)]
            curves = {
                (r.cell.target, r.cell.seeds): curve for r in records if (curve := curve_of(r, attack)) is not None
            }
            if curves:
                found.setdefault(attack, {})[row] = curves
    return found


def mean_curve(curves: Mapping[Any, Curve]) -> tuple[tuple[int, ...], list[float]]:
    """Return the mean over classes of the mean over replicates, of the curves with the same steps as the newest.

    Args:
        curves: {(target, replicate): curve}.
    """
    steps = list(curves.values())[-1].steps
    kept = {cell: curve.after for cell, curve in curves.items() if curve.steps == steps}
    return steps, [class_mean({cell: after[k] for cell, after in kept.items()}) for k in range(len(steps))]


@dataclass(frozen=True)
class WeightPath:
    """Forgetting and retention of the models (1 - a) theta_0 + a theta_u, and the one at equal retention."""

    a: tuple[float, ...]
    forget: tuple[float, ...]  # percent of forget-class samples that are forgotten
    retain: tuple[float, ...]  # percent of retained-class samples that show their class
    at: int  # index of the model at equal retention
    level: float  # the retention that it holds, percent


def weight_path(record: Record, measure: Measure) -> WeightPath | None:
    """Return a record's path of a metric; None where it has no number, or no path that can be drawn."""
    entry = record.metrics.get(measure.key, {})
    detail: Any = (entry.get("detail") if entry.get("value") is not None else None) or {}
    try:
        a, forget, retain = (tuple(map(float, detail[name])) for name in ("a", "forget", "retain"))
        found = WeightPath(a, forget, retain, a.index(float(detail["at"])), float(detail["level"]))
    except (KeyError, TypeError, ValueError):
        return None
    fits = len(a) == len(forget) == len(retain) > 1 and all(x < y for x, y in pairwise(a))
    return found if fits and np.isfinite([*forget, *retain, found.level]).all() else None


def _is_path(entry: Mapping[str, Any]) -> bool:
    return "level" in (entry.get("detail") or ())


WeightPaths = dict[tuple[Target, Seeds], WeightPath]


def weight_paths(numbers: Numbers, measures: Sequence[Measure]) -> dict[Measure, dict[Variant, WeightPaths]]:
    """Return {metric: {row: {(target, seeds): path}}} of the metrics that have paths."""
    found: dict[Measure, dict[Variant, WeightPaths]] = {}
    drawn = {name for record in numbers.sound_records for name, entry in record.metrics.items() if _is_path(entry)}
    for measure in (measure for measure in measures if measure.key in drawn):
        for row in numbers.rows:
            records = [record for target in numbers.targets for record in numbers.sound(row, target)]
            paths = {
                (r.cell.target, r.cell.seeds): path for r in records if (path := weight_path(r, measure)) is not None
            }
            if paths:
                found.setdefault(measure, {})[row] = paths
    return found


def mean_path(paths: WeightPaths) -> tuple[list[tuple[float, float]], tuple[float, float]]:
    """Return means over classes of the means over replicates, as (retained, forgotten).

    Args:
        paths: of one row.

    Returns:
        A point for each `a` that all paths have, and the mean of the models at equal retention.
    """
    shared = sorted(set.intersection(*(set(path.a) for path in paths.values())))

    def mean(places: Mapping[tuple[Target, Seeds], int]) -> tuple[float, float]:
        retained, forgotten = (
            class_mean({cell: getattr(paths[cell], side)[k] for cell, k in places.items()})
            for side in ("retain", "forget")
        )
        return retained, forgotten

    points = [mean({cell: path.a.index(a) for cell, path in paths.items()}) for a in shared]
    return points, mean({cell: path.at for cell, path in paths.items()})


SIDES = {"forget": "forget class", "retain": "retained classes"}


@dataclass(frozen=True)
class LossCurve:
    """Denoising loss by timestep bin; 1 corresponds to predicting zero."""

    edges: tuple[float, ...]
    forget: NDArray[np.float64]  # (bins,); nan where it was not finite
    retain: NDArray[np.float64]  # (bins,)


def loss_curve(record: Record) -> LossCurve | None:
    """Return a record's denoising loss by timestep, or None when it has none that can be drawn."""
    entry: Any = record.timestep_loss
    try:
        edges = tuple(map(float, entry["edges"]))
        forget, retain = (
            np.array([np.nan if loss is None else loss for loss in entry[side]], dtype=np.float64) for side in SIDES
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    fits = len(forget) == len(retain) == len(edges) - 1 > 0 and all(a < b for a, b in pairwise(edges))
    return LossCurve(edges, forget, retain) if fits and not np.isnan([forget, retain]).all(axis=1).any() else None


def mean_curves(numbers: Numbers) -> dict[Variant, tuple[LossCurve, int]]:
    """Return {row: (mean over classes of the mean over seeds, number of cells)}, all with the newest bins."""
    curves = {r.cell.id: curve for r in numbers.sound_records if (curve := loss_curve(r)) is not None}
    if not curves:
        return {}
    edges = list(curves.values())[-1].edges
    kept = {name: curve for name, curve in curves.items() if curve.edges == edges}
    means: dict[Variant, tuple[LossCurve, int]] = {}
    for row in numbers.rows:
        groups = [
            [kept[r.cell.id] for r in numbers.sound(row, target) if r.cell.id in kept] for target in numbers.targets
        ]
        if by_class := [group for group in groups if group]:
            forget, retain = (
                np.mean([np.mean([getattr(curve, side) for curve in group], axis=0) for group in by_class], axis=0)
                for side in SIDES
            )
            means[row] = LossCurve(edges, forget, retain), sum(map(len, by_class))
    return means
