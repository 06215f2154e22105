"""The array of a board's numbers, measures x rows x targets x seeds, and every statistic of them.

Tables, figures, the page, frames and comparisons read their numbers here, so that no two of them can differ.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unlearnbench.report.data.cost import CONTESTED, is_disturbed, ranks
from unlearnbench.report.data.statistics import Interval, auc, best_rows, mean_intervals, proportion_intervals
from unlearnbench.report.data.values import LACKING, ROLES, Measure, Value, Variant, variant_of, why_missing
from unlearnbench.store.cell import Seeds, Target
from unlearnbench.store.hashing import canonical_json
from unlearnbench.store.records import Record, natural

ABSENT = -1  # samples of a measure that a cell does not have
NOT_RUN = "-"

Number = tuple[float | None, int]  # with its samples
Read = Callable[[Record], tuple[Sequence[float | None], Sequence[int]]]  # a record's numbers and their samples
Place = tuple[Variant, Target]


@dataclass(frozen=True, eq=False)
class Numbers:
    """The numbers of some rows, targets and seeds.

    Means are over targets with equal weights, and for a target over its seeds. All statistics have fixed generators.
    """

    measures: tuple[Measure, ...]
    rows: tuple[Variant, ...]
    targets: tuple[Target, ...]
    seeds: tuple[Seeds, ...]
    value: NDArray[np.float64]  # (measures, rows, targets, seeds); NaN where there is none
    n: NDArray[np.int64]  # samples behind each value, 0 for a cost; ABSENT where the cell lacks the measure
    disturbed: NDArray[np.bool_]  # whether something else used the machine during what a cost sums over
    status: NDArray[np.object_]  # (rows, targets, seeds): "ok", "stale", why a cell failed, or NOT_RUN
    records: NDArray[np.object_]  # likewise; None where there is none
    later: frozenset[str] = frozenset()  # keys of the measures that the first step of a sequence cannot have
    _known: dict[Any, Any] = field(default_factory=dict, repr=False)

    def sel(
        self, *, rows: Iterable[Variant] | None = None, targets: Iterable[Target] | None = None,
        where: NDArray[np.bool_] | None = None,
    ) -> "Numbers":  # fmt: skip
        """Return some rows and targets, in the order of this array, without targets and seeds that then have no cell.

        Args:
            rows: to keep, if not all.
            targets: to keep, if not all.
            where: (rows, targets, seeds), the cells to keep, if not all; rows without any are left out.
        """
        kept = np.asarray(self.status != NOT_RUN, dtype=np.bool_) & (True if where is None else where)
        chosen: list[NDArray[np.bool_]] = [np.ones(size, dtype=np.bool_) for size in kept.shape]
        for axis, (names, wanted) in enumerate(((self.rows, rows), (self.targets, targets))):
            if wanted is not None:
                among = set(wanted)
                chosen[axis] = np.array([name in among for name in names], dtype=np.bool_)
        kept = kept & chosen[0][:, None, None] & chosen[1][None, :, None]
        if where is not None:
            chosen[0] &= _any(kept, 1, 2)
        chosen[1], chosen[2] = _any(kept, 0, 2), _any(kept, 0, 1)
        cells: Any = np.ix_(*chosen)
        every: Any = (slice(None), *cells)
        here = kept[cells]

        def part(names: Sequence[Any], axis: int) -> tuple[Any, ...]:
            return tuple(name for name, is_kept in zip(names, chosen[axis], strict=True) if is_kept)

        return Numbers(
            self.measures, part(self.rows, 0), part(self.targets, 1), part(self.seeds, 2),
            np.where(here, self.value[every], np.nan), np.where(here, self.n[every], ABSENT),
            self.disturbed[every] & here, np.where(here, self.status[cells], np.array(NOT_RUN, dtype=np.object_)),
            np.where(here, self.records[cells], np.array(None, dtype=np.object_)), self.later,
        )  # fmt: skip

    @cached_property
    def _row(self) -> dict[Variant, int]:
        return {row: k for k, row in enumerate(self.rows)}

    @cached_property
    def _target(self) -> dict[Target, int]:
        return {target: k for k, target in enumerate(self.targets)}

    @cached_property
    def _measure(self) -> dict[tuple[bool, str], int]:
        return {(measure.is_cost, measure.key): k for k, measure in enumerate(self.measures)}

    def metric(self, key: str) -> Measure | None:
        """Return the metric of a key; None where no cell has a number of it."""
        found = self._measure.get((False, key))
        return None if found is None else self.measures[found]

    def of(self, measure: Measure) -> NDArray[np.float64]:
        """Return a measure's numbers as (rows, targets, seeds)."""
        found: NDArray[np.float64] = self.value[self._measure[measure.is_cost, measure.key]]
        return found

    def cells(self, row: Variant, target: Target) -> list[Record]:
        """Return the records of a row and target, one per seed, whatever their status."""
        if row not in self._row or target not in self._target:
            return []
        return [record for record in self.records[self._row[row], self._target[target]] if record is not None]

    def sound(self, row: Variant, target: Target) -> list[Record]:
        """Return the records of a row and target that carry numbers, one per seed."""
        if row not in self._row or target not in self._target:
            return []
        place = self._row[row], self._target[target]
        return [r for r, status in zip(self.records[place], self.status[place], strict=True) if status == "ok"]

    @cached_property
    def sound_records(self) -> list[Record]:
        """All records that carry numbers, oldest first."""
        found = self.records[self.status == "ok"].tolist()
        return sorted(found, key=lambda record: str(record.provenance.get("started_utc", "")))

    def samples(self, measure: Measure) -> list[int]:
        """Return the numbers of samples behind a measure's numbers, sorted, each once."""
        k = self._measure[measure.is_cost, measure.key]
        return list(map(int, np.unique(self.n[k][~np.isnan(self.value[k])])))

    def total_samples(self, row: Variant, target: Target, measure: Measure) -> int:
        """Return the number of samples behind a row's and target's numbers, all seeds together."""
        place = self._measure[measure.is_cost, measure.key], self._row[row], self._target[target]
        return int(self.n[place][~np.isnan(self.value[place])].sum())

    @property
    def expected(self) -> int:
        """The number of cells that each row should have."""
        return len(self.targets) * len(self.seeds)

    def completeness(self, row: Variant) -> str:
        """Return "9/10": cells with numbers of cells expected."""
        return f"{int((self.status[self._row[row]] == 'ok').sum())}/{self.expected}"

    def cell(self, row: Variant, target: Target, measure: Measure, *, interval: bool = True) -> Value:
        """Return the mean of one row and target over seeds, or a word in its place.

        Args:
            row: of the array or another one.
            target: likewise.
            measure: likewise.
            interval: whether it has its 95 % interval, which takes a bootstrap.
        """
        value = self._cells(measure).get((row, target))
        if value is None:
            return Value(None, NOT_RUN, ok=0, expected=len(self.seeds))
        if not interval or value.number is None:
            return value
        place = self._row[row] * len(self.targets) + self._target[target]
        return replace(value, interval=self._intervals(measure, by_row=False)[place])

    def mean(self, row: Variant, measure: Measure, *, interval: bool = True) -> Value:
        """Return a row's mean over targets, its standard deviation over them (divisor n - 1), and its gaps.

        It is over the targets with a number of this measure, whatever else their cells lack.

        Args:
            row: of the array or another one.
            measure: likewise.
            interval: whether it has its 95 % interval, which takes a bootstrap.
        """
        value = self._means(measure).get(row)
        if value is None:
            return Value(None, NOT_RUN, ok=0, expected=self.expected)
        if value.number is None:
            return value
        ends = self._intervals(measure, by_row=True)[self._row[row]] if interval else None
        return replace(value, interval=ends, best=row in self.best(measure))

    def median(self, row: Variant, measure: Measure) -> Value:
        """Return the median over all cells of a row, with its gap."""
        numbers = self.numbers(row, measure)
        return Value(statistics.median(numbers) if numbers else None, ok=len(numbers), expected=self.expected)

    def numbers(self, row: Variant, measure: Measure) -> list[float]:
        """Return the numbers of a row's cells that have one, in the order of targets and seeds."""
        found = self.of(measure)[self._row[row]]
        return [float(number) for number in found[~np.isnan(found)]]

    def auc(self, measure: Measure, forgets: Iterable[Variant], keeps: Iterable[Variant]) -> float:
        """Return the probability that a cell of the first rows has a better number than one of the others, ties half.

        Raises:
            ZeroDivisionError: either has no cell with a number.
        """
        sign = -1 if measure.better == "lower" else 1
        positives, negatives = ([sign * x for row in rows for x in self.numbers(row, measure)]
                                for rows in (forgets, keeps))  # fmt: skip
        return auc(positives, negatives)

    def best(self, measure: Measure) -> set[Variant]:
        """Return the methods marked as best; none where no difference is significant, or no direction is better.

        A method that lacks a number of any target or seed is never marked.
        """
        key = "best", measure
        if key not in self._known:
            contested = measure.better != "neither" and (not measure.is_cost or measure.key in CONTESTED)
            self._known[key] = best_rows(self._contest(measure), measure.better) if contested else set()
        found: set[Variant] = self._known[key]
        return found

    def _contest(self, measure: Measure) -> dict[Variant, dict[Target, float]]:
        """Return {row: {target: number}} of the methods that lack nothing."""
        cells, asked = self._cells(measure), self._asked(measure)
        rows = {
            row: {target: cells[row, target] for target in asked if (row, target) in cells}
            for row in self.rows if row.competes
        }  # fmt: skip
        return {
            row: {target: value.number for target, value in found.items() if value.number is not None}
            for row, found in rows.items()
            if len(found) == len(asked) and all(value.ok == value.expected for value in found.values())
        }

    def ranks(self, rte: Measure, spread: Measure) -> dict[Variant, int]:
        """Return the ranks by run time of the methods that were repeated in all cells.

        Others would rank by fewer cells than are shown. References and controls unlearn nothing.

        Args:
            rte: median of a cell's repeats.
            spread: greatest less least of them; NaN where a cell was not repeated.
        """
        times, ranges = self.of(rte), self.of(spread)
        fits = ~_any(np.isnan(ranges) | ~(times > 0), 1, 2)
        return ranks({
            row: (times[k].ravel(), ranges[k].ravel() / times[k].ravel())
            for k, row in enumerate(self.rows) if row.role in ("method", "gold") and fits[k]
        })  # fmt: skip

    def _asked(self, measure: Measure) -> list[Target]:
        """Return the targets that a measure applies to: the first step of a sequence has no earlier one."""
        return [t for t in self.targets if t.earlier] if measure.key in self.later else list(self.targets)

    def _cells(self, measure: Measure) -> dict[Place, Value]:
        """Return the means over seeds, without intervals, of all rows and targets with records."""
        key = "cells", measure
        if key not in self._known:
            index = self._measure[measure.is_cost, measure.key]
            numbers = self.value[index]
            known = ~np.isnan(numbers)
            marks = (known & self.disturbed[index]).sum(axis=2)
            self._known[key] = {
                (self.rows[r], self.targets[t]): self._over_seeds(
                    r, t, measure, numbers[r, t][known[r, t]], int(marks[r, t])
                )
                for r, t in np.argwhere(self._run).tolist()
            }
        found: dict[Place, Value] = self._known[key]
        return found

    @cached_property
    def _run(self) -> NDArray[np.bool_]:
        """(rows, targets): whether any cell has a record."""
        return _any(self.status != NOT_RUN, 2)

    def _over_seeds(self, r: int, t: int, measure: Measure, numbers: NDArray[np.float64], marks: int) -> Value:
        ok, expected = len(numbers), len(self.seeds)
        if ok:
            return Value(statistics.fmean(numbers.tolist()), ok=ok, expected=expected, disturbed=marks)
        return Value(None, self._why_none(r, t, measure), ok=0, expected=expected)

    def why_none(self, row: Variant, target: Target) -> str:
        """Return the word in place of a missing number of a row and target."""
        known = row in self._row and target in self._target
        return self._why_none(self._row[row], self._target[target]) if known else NOT_RUN

    def _why_none(self, r: int, t: int, measure: Measure | None = None) -> str:
        cells = zip(self.status[r, t], self.records[r, t], strict=True)
        words = [why_missing(cell, measure) if word == "ok" else str(word) for word, cell in cells if word != NOT_RUN]
        return next((word for word in reversed(words) if word != LACKING), LACKING if words else NOT_RUN)

    def _means(self, measure: Measure) -> dict[Variant, Value]:
        """Return the means over targets of all rows, without intervals and marks."""
        key = "means", measure
        if key not in self._known:
            cells, asked = self._cells(measure), self._asked(measure)
            missing = Value(None, NOT_RUN, ok=0, expected=len(self.seeds))
            self._known[key] = {
                row: _over_targets([cells.get((row, target), missing) for target in asked]) for row in self.rows
            }
        found: dict[Variant, Value] = self._known[key]
        return found

    def _intervals(self, measure: Measure, *, by_row: bool) -> list[Interval]:
        """Return the 95 % intervals of each row's mean over targets and seeds, or of each row's and target's."""
        key = "intervals", measure, by_row
        if key not in self._known:
            index = self._measure[measure.is_cost, measure.key]
            shape = self.status.shape if by_row else (-1, 1, len(self.seeds))
            self._known[key] = _intervals(self.value[index].reshape(shape), self.n[index].reshape(shape), measure)
        found: list[Interval] = self._known[key]
        return found

    def frame(self) -> pd.DataFrame:
        """Return one row per cell and measure, in `COLUMNS`.

        A cell without numbers, failed or stale, has one row with neither metric nor value, so that no gap is hidden; a
        measure without a number that the cell was asked for has NaN. An attack that failed or is stale says so.
        """
        lines: list[dict[str, Any]] = []
        for r, t, s in np.argwhere(np.asarray(self.status != NOT_RUN, dtype=np.bool_)).tolist():
            cell = _columns(self.records[r, t, s], self.rows[r], str(self.status[r, t, s]))
            asked = np.flatnonzero(self.n[:, r, t, s] != ABSENT).tolist()
            lines += [
                {**cell, **_of_measure(self.measures[m], self.records[r, t, s]), "value": self.value[m, r, t, s],
                 "n": None if self.measures[m].is_cost else int(self.n[m, r, t, s])} for m in asked
            ] or [cell]  # fmt: skip
        return pd.DataFrame(lines, columns=list(COLUMNS)).astype({"value": float, "n": "Int64"})


COLUMNS = (
    "cell_id", "dataset", "protocol", "device", "method", "title", "role", "settings", "forget_class", "target", "seed",
    "base_seed", "sampling_seed", "status", "stale", "metric", "name", "shows", "value", "unit", "better", "n",
)  # fmt: skip


def _columns(record: Record, row: Variant, status: str) -> dict[str, Any]:
    cell = record.cell
    return {
        "cell_id": cell.id, "dataset": cell.dataset, "protocol": cell.protocol,
        "device": record.provenance.get("device", {}).get("name"), "method": cell.method, "title": row.label,
        "role": row.role, "settings": canonical_json(dict(cell.settings)), "forget_class": cell.forget_class,
        "target": cell.target.label, "seed": cell.seed, "base_seed": cell.base_seed,
        "sampling_seed": cell.sampling_seed, "status": record.status, "stale": status == "stale",
    }  # fmt: skip


def _of_measure(measure: Measure, record: Record) -> dict[str, Any]:
    entry = {} if measure.is_cost else record.metrics.get(measure.key.partition("/")[0], {})
    lost = {"status": entry["failed"]} if "failed" in entry else {"stale": True} if "stale" in entry else {}
    return {"metric": measure.key, "name": measure.title, "shows": measure.aspect, "unit": measure.unit,
            "better": measure.better, **lost}  # fmt: skip


def read_metric(key: str, record: Record) -> Number:
    """Return a record's number of a metric and its samples; ABSENT where the record lacks it."""
    entry = record.metrics.get(key)
    return (None, ABSENT) if entry is None else (entry["value"], int(entry.get("n", 0)))


def one_by_one(reads: Mapping[Measure, Callable[[Record], Number]]) -> Read:
    """Return a function that reads all numbers of a record by one function for each."""

    def read(record: Record) -> tuple[list[float | None], list[int]]:
        found = [each(record) for each in reads.values()]
        return [number for number, _ in found], [samples for _, samples in found]

    return read


def _any(mask: object, *axes: int) -> NDArray[np.bool_]:
    return np.asarray(np.any(np.asarray(mask, dtype=np.bool_), axis=axes), dtype=np.bool_)


def _over_targets(values: Sequence[Value]) -> Value:
    numbers = [value.number for value in values if value.number is not None]
    ok, expected = sum(value.ok for value in values), sum(value.expected for value in values)
    if not numbers:
        return Value(None, next((v.word for v in values if v.word != NOT_RUN), NOT_RUN), ok=ok, expected=expected)
    return Value(
        statistics.fmean(numbers), spread=statistics.stdev(numbers) if len(numbers) > 1 else None, ok=ok,
        expected=expected, disturbed=sum(value.disturbed for value in values),
    )  # fmt: skip


def _intervals(values: NDArray[np.float64], samples: NDArray[np.int64], measure: Measure) -> list[Interval]:
    """Return the 95 % interval of each array, (arrays, targets, seeds): a share's from its samples, if it is one."""
    within = ~_any((values < 0) | (values > 100), 1, 2)
    found: list[Interval] = [None] * len(values)
    is_share = within if measure.is_share else np.zeros_like(within)
    shares = proportion_intervals(values[is_share] / 100, np.maximum(samples[is_share], 0).astype(np.float64))
    for index, share in zip(np.flatnonzero(is_share), shares, strict=True):
        found[index] = None if share is None else (100 * share[0], 100 * share[1])
    for index, ends in zip(np.flatnonzero(~is_share), mean_intervals(values[~is_share]), strict=True):
        most = 100.0 if measure.unit == "%" and within[index] else math.inf
        found[index] = None if ends is None else (ends[0], min(ends[1], most))
    return found


def array_of(
    records: Sequence[Record], stale: Set[str], measures: Sequence[Measure], read: Read,
    later: frozenset[str] = frozenset(),
) -> Numbers:  # fmt: skip
    """Return the array of records, oldest first; rows are labelled by the newest.

    Args:
        records: of one board, one per cell.
        stale: ids of cells whose numbers are not shown.
        measures: of its numbers.
        read: returns a record's number of each measure, and its samples; ABSENT where the record lacks it.
        later: keys of the measures that the first step of a sequence cannot have.
    """
    known: dict[Variant, Variant] = {}
    own = {r.cell.id: known.setdefault(row, row) for r in reversed(records) for row in [variant_of(r)]}
    rows = sorted(known, key=lambda row: (ROLES.get(row.role, 2), natural(row.label.lower())))
    targets = sorted({r.cell.target for r in records}, key=lambda target: (len(target.earlier), target))
    seeds = sorted({r.cell.seeds for r in records})
    orders = [{name: k for k, name in enumerate(names)} for names in (rows, targets, seeds)]
    shape = tuple(map(len, orders))
    status, kept = np.full(shape, NOT_RUN, dtype=np.object_), np.full(shape, None, dtype=np.object_)
    places = [(orders[0][own[r.cell.id]], orders[1][r.cell.target], orders[2][r.cell.seeds]) for r in records]
    value, n = np.full((len(measures), *shape), np.nan), np.full((len(measures), *shape), ABSENT)
    disturbed = np.zeros((len(measures), *shape), dtype=np.bool_)
    for place, record in zip(places, records, strict=True):
        kept[place], status[place] = record, "stale" if record.cell.id in stale else record.status
        if status[place] == "ok":
            every = slice(None), *place
            numbers, n[every] = read(record)
            value[every] = np.array(numbers, dtype=np.float64)
            if record.disturbances:
                disturbed[every] = [is_disturbed(record, measure) for measure in measures]
    return Numbers(tuple(measures), tuple(rows), tuple(targets), tuple(seeds), value, n, disturbed, status, kept, later)
