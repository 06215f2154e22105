"""Costs of cells: one number per record and measure, in common units, and ranks by run time."""

import re
import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from unlearnbench.errors import one_line, plural
from unlearnbench.report.data.values import MARK, Measure, kept, variant_of
from unlearnbench.store.records import Record

MEMORY_PROBES = {  # best first
    "nvml_process": "device memory of the process, by NVML every 50 ms",
    "nvml_device": "device memory that all processes took since the cell began, by NVML every 50 ms",
    "torch_reserved": "device memory that torch's allocator holds",
    "torch_allocated": "device memory in torch's tensors",
    "rss_peak": "resident size of the process",
    "rss_polled": "resident size of the process, polled",
}
PHASES = ("warmup", "prior", "forget", "sample", "judge", "attack")
CLOCKED = ("prior", "forget")
CONTESTED = ("rte", "total", "amortised")  # costs whose best method is marked
WORK_UNITS = {"PFLOP": 1e15, "TFLOP": 1e12, "GFLOP": 1e9}
PEAK_PRECISIONS = ("tf32", "float32")  # the first that was measured is the peak
LEAST_TOLERANCE = 0.05  # of a ratio of run times, regardless of the number of repeats
LEAST_REPEATS = 2  # a single run time does not show its spread
NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
MOST_KINDS = 5  # of disturbances named in a note

Times = NDArray[np.float64]
Row = TypeVar("Row", bound=Hashable)
Read = Callable[[Record], float | None]


class Costs:
    """The costs of a board's records, as measures and as numbers."""

    def __init__(self, records: Sequence[Record]) -> None:
        """Take the records that carry numbers."""
        self._records = records

    @cached_property
    def probe(self) -> str | None:
        """The best memory probe that every record has."""
        sets = [set(cost["memory_bytes"]) for record in self._records if (cost := record.cost.get("forget"))]
        return next((probe for probe in MEMORY_PROBES if sets and all(probe in names for names in sets)), None)

    @cached_property
    def time_unit(self) -> str:
        """`s` or `min`, depending on the duration of unlearning."""
        longest = max((record.cost.get("forget", {}).get("seconds", 0.0) for record in self._records), default=0.0)
        return "min" if longest >= 120 else "s"

    @cached_property
    def work_unit(self) -> str:
        """`PFLOP`, `TFLOP` or `GFLOP`: the largest unit in which the most expensive cell is at least 0.1."""
        most = max((flops(record) or 0.0 for record in self._records), default=0.0)
        return next((unit for unit, size in WORK_UNITS.items() if most >= 0.1 * size), "GFLOP")

    @cached_property
    def peaks(self) -> list[str]:
        """Names of the precisions of the measured peaks that shares refer to."""
        return [name for name in PEAK_PRECISIONS if name in {peak[0] for r in self._records if (peak := _peak(r))}]

    @cached_property
    def _columns(self) -> dict[str, tuple[Measure, Read]]:
        """Every cost by its key, in the order of the table of costs, with the function that reads it from a record."""
        time, work = self.time_unit, self.work_unit

        def cost(
            key: str, title: str, unit: str, phases: tuple[str, ...], read: Read, *, better: str = "lower",
            format: str = ".2f", headline: bool = False,
        ) -> tuple[Measure, Read]:  # fmt: skip
            return Measure(key, title, unit, better, format, "cost", headline, phases), read

        def memory(key: str, title: str, *phases: str, headline: bool = False) -> tuple[Measure, Read]:
            return cost(key, title, "GB", phases, lambda record: self._memory(record, *phases), headline=headline)

        def count(key: str, title: str, unit: str = "") -> tuple[Measure, Read]:
            return cost(key, title, unit, (), lambda record: _number(record.counts.get(key)), format=".0f")

        columns = [
            cost("rte", "RTE", time, ("forget",), lambda r: self._time(r, "forget"), headline=True),
            cost("range", "RTE range", time, ("forget",), self._range),
            cost("prior", "Prior", time, ("prior",), lambda r: self._time(r, "prior")),
            cost("total", "RTE+prior", time, CLOCKED, lambda r: self._time(r, *CLOCKED)),
            cost("amortised", "Amortised", time, CLOCKED, self._amortised),
            cost("warmup", "Warm-up", time, ("warmup",), self._warmup),
            cost("sampling", "Sampling", "s", ("sample",), self._sampling),
            count("optimizer_steps", "Steps"),
            count("forward_images", "Forwards", "images"),
            count("backward_images", "Backwards", "images"),
            cost("work", "Work", work, (), lambda r: _scaled(flops(r), WORK_UNITS[work])),
            cost("share", "Of peak", "%", CLOCKED, _share_of_peak, better="higher", format=".1f"),
            memory("memory", "Memory", *CLOCKED, headline=True),
            memory("memory_prior", "Memory prior", "prior"),
            memory("memory_forget", "Memory forget", "forget"),
            memory("memory_sample", "Memory sample", "sample"),
            cost("growth", "Growth", "GB", CLOCKED, self._growth),
            *[cost(f"seconds_{name}", name, "s", (name,), partial(_seconds, phase=name)) for name in PHASES],
        ]  # fmt: skip
        return {measure.key: (measure, read) for measure, read in columns}

    @cached_property
    def main(self) -> list[Measure]:
        """RTE as the papers count it (forget), priors, both together, peak memory of both."""
        return [self._columns[key][0] for key in ("rte", "prior", "total", "memory")]

    @property
    def reads(self) -> dict[Measure, Read]:
        """Every cost, with the function that reads it from a record."""
        return dict(self._columns.values())

    @property
    def all(self) -> list[Measure]:
        """Every cost, each once."""
        return [measure for measure, _ in self._columns.values()]

    @cached_property
    def detailed(self) -> list[Measure]:
        """Everything the table of costs may show."""
        others = {"prior", "memory", *(measure.key for measure in self.phases.values())}
        return [measure for key, (measure, _) in self._columns.items() if key not in others]

    @property
    def phases(self) -> dict[str, Measure]:
        """{phase: its seconds}, always in seconds."""
        return {phase: self._columns[f"seconds_{phase}"][0] for phase in PHASES}

    def number(self, record: Record, measure: Measure) -> float | None:
        """Return one record's number in the measure's unit; None where the record lacks it."""
        return self._columns[measure.key][1](record)

    def _time(self, record: Record, *phases: str) -> float | None:
        """Return the seconds of phases in the unit; None for a model that was unlearned elsewhere."""
        if "forget" not in record.cost:
            return None
        return self._in_unit(sum(record.cost.get(phase, {}).get("seconds", 0.0) for phase in phases))

    def _in_unit(self, seconds: float) -> float:
        return float(seconds) / (60 if self.time_unit == "min" else 1)

    def _warmup(self, record: Record) -> float | None:
        return self._time(record, "warmup") if "warmup" in record.cost else None

    def _sampling(self, record: Record) -> float | None:
        """Return the seconds of a cell's samples where a method of the board acts while they are drawn."""
        return _seconds(record, "sample") if self._guided else None

    @cached_property
    def _guided(self) -> bool:
        return any(record.method.get("inference") for record in self._records)

    def _range(self, record: Record) -> float | None:
        repeats = repeats_of(record)
        return self._in_unit(max(repeats) - min(repeats)) if len(repeats) >= LEAST_REPEATS else None

    def _memory(self, record: Record, *phases: str) -> float | None:
        peaks = [record.cost[phase]["memory_bytes"].get(self.probe) for phase in phases if phase in record.cost]
        known = [peak for peak in peaks if peak is not None]
        return max(known) / 1e9 if known else None

    def _growth(self, record: Record) -> float | None:
        """Return the larger growth of prior and forget; None where one of them is unknown."""
        costs = [record.cost[phase] for phase in CLOCKED if phase in record.cost]
        found = [cost.get("memory_growth_bytes", {}).get(self.probe) for cost in costs]
        known = [growth for growth in found if growth is not None]
        return max(known) / 1e9 if known and len(known) == len(found) else None

    @cached_property
    def _users(self) -> Counter[tuple[str, str, str]]:
        """How many cells of a row use an artifact: counts of (method, settings, key of the prior)."""
        return Counter(use for record in self._records for use in _uses(record))

    def _amortised(self, record: Record) -> float | None:
        """Return RTE plus each prior's seconds divided by the cells of the row that use the same artifact."""
        uses = _uses(record)
        if "forget" not in record.cost:
            return None
        if not uses and (not record.outside or record.cost.get("prior")):
            return None  # written before records named their priors, so sharing is unknown
        shared = sum(seconds / self._users[use] for use, seconds in uses.items())
        return self._in_unit(record.cost["forget"].get("seconds", 0.0) + shared)

    @cached_property
    def caption(self) -> list[str]:
        """Return the facts on costs for every caption: the memory probe, missing better ones, shared time."""
        words = "no probe that every cell has"
        if self.probe:
            words = f"peak {MEMORY_PROBES[self.probe]} ({self.probe}), over prior and forget unless a phase is named"
        shared = [phase for phase in PHASES if any(r.cost.get(phase, {}).get("side_by_side") for r in self._records)]
        beside = [f"{', '.join(shared)}: seconds during which other cells of the run shared the machine"]
        return [f"memory: {words}", *self._missing_probes(), *(beside if shared else []), *self._devices_beside()]

    def _devices_beside(self) -> list[str]:
        """Return the largest number of other devices of a run at work while a cell was timed; empty for none."""
        costs = [record.cost[phase] for record in self._records for phase in PHASES if phase in record.cost]
        most = round(max((cost.get("load", {}).get("devices_beside", 0) for cost in costs), default=0))
        return [f"timed while up to {plural(most, 'other device')} of the run worked"] if most else []

    def _missing_probes(self) -> list[str]:
        """Return why each better probe than the one shown is missing, grouped by reason."""
        probes = list(MEMORY_PROBES)
        better = probes[: probes.index(self.probe)] if self.probe else probes
        found: dict[str, list[str]] = {}
        for probe in better:
            reasons = sorted({record.probes[probe] for record in self._records if probe in record.probes})
            if reasons:
                found.setdefault(", ".join(reasons), []).append(probe)
        return [f"{', '.join(names)}: {reason}" for reason, names in found.items()]


def is_disturbed(record: Record, measure: Measure) -> bool:
    """Say whether a cost is disturbed: something else used the machine in one of its phases."""
    phases = {found["phase"] for found in record.disturbances}
    return bool(measure.phases) and any(phase in measure.phases or phase not in PHASES for phase in phases)


def disturbance_note(records: Sequence[Record]) -> list[str]:
    """Return a sentence on the numbers of disturbed records by kind; empty if there are none."""
    cells: dict[tuple[str, ...], set[str]] = {}
    texts: dict[tuple[str, ...], list[str]] = {}
    for record in records:
        for found in record.disturbances:
            text = one_line(f"{found['phase']}: {found['what']}")
            kind = tuple(re.split(NUMBER, text)[::2])  # texts that differ only in numbers are of one kind
            cells.setdefault(kind, set()).add(record.cell.id)
            texts.setdefault(kind, []).append(text)
    if not cells:
        return []
    kinds = sorted(cells, key=lambda kind: (-len(cells[kind]), kind))
    named = [f"{_ranged(texts[kind])} ({len(cells[kind])})" for kind in kinds[:MOST_KINDS]]
    more = [f"{len(kinds) - MOST_KINDS} more kinds"] if len(kinds) > MOST_KINDS else []
    count = len(set().union(*cells.values()))
    what = "; ".join([*named, *more])
    disturbed = f"{plural(len(records), 'cell')} {'was' if count == 1 else 'were'} disturbed"
    return [f"{count} of {disturbed}, costs that rest on them carry {MARK}: {what}"]


def _ranged(texts: Sequence[str]) -> str:
    """Return texts that differ only in numbers as one, with `0.3 to 0.8` for a number that varies."""
    parts = []
    for index, column in enumerate(zip(*[re.split(NUMBER, text) for text in texts], strict=True)):
        ordered = sorted(column, key=lambda text: (float(text), text)) if index % 2 else column[:1]
        parts.append(" to ".join(dict.fromkeys([ordered[0], ordered[-1]])))
    return "".join(parts)


@kept
def flops(record: Record) -> float | None:
    """Return the floating point operations of prior and forget, from the images that went through the models."""
    images = [_number(record.counts.get(f"{way}_images")) for way in ("forward", "backward")]
    each = [_number(record.flops.get(way)) for way in ("forward", "backward")]
    if None in images or None in each:
        return None
    return sum(n * one for n, one in zip(images, each, strict=True) if n is not None and one is not None)


def _share_of_peak(record: Record) -> float | None:
    """Return the achieved share of the device's measured peak in percent; None for a cell that computed nothing."""
    work, peak = flops(record), _peak(record)
    seconds = sum(record.cost.get(phase, {}).get("seconds", 0.0) for phase in CLOCKED)
    return 100 * work / seconds / peak[1] if work and peak and seconds else None


def _peak(record: Record) -> tuple[str, float] | None:
    """Return the precision and FLOP/s of the device's measured peak."""
    peaks = record.flops.get("peak") or {}
    return next(((name, float(peaks[name])) for name in PEAK_PRECISIONS if peaks.get(name)), None)


def _seconds(record: Record, phase: str) -> float | None:
    """Return the seconds of a phase; 0 for a missing prior of a cell that unlearned, None for another missing phase."""
    seconds = record.cost.get(phase, {}).get("seconds", 0.0 if phase in CLOCKED and "forget" in record.cost else None)
    return None if seconds is None else float(seconds)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _scaled(number: float | None, unit: float) -> float | None:
    return None if number is None else number / unit


def _uses(record: Record) -> dict[tuple[str, str, str], float]:
    """Return {(method, settings, key): seconds} of a cell's priors."""
    row = variant_of(record)
    return {(row.method, row.settings, str(p["key"])): float(p["seconds"]) for p in record.priors.values()}


def repeats_of(record: Record) -> list[float]:
    """Return the seconds of each repeat of the forget phase; empty where it ran once."""
    return [float(seconds) for seconds in record.cost.get("forget", {}).get("repeats") or ()]


def ranks(rows: Mapping[Row, tuple[Times, Times]]) -> dict[Row, int]:
    """Return the ranks by mean run time over the same cells; none for a single row.

    A rank is 1 + the number of rows that are separably faster by their mean, and never less than the rank of a
    faster row: ranks share the order of the means, and ties share a rank.

    Args:
        rows: {row: median run time of each cell above 0, range of its repeats over it}, cells in one order.
    """
    found: dict[Row, int] = {}
    means = {row: statistics.fmean(times.tolist()) for row, (times, _) in rows.items()}
    faster: list[Row] = []
    rank = 1
    for row in sorted(rows, key=lambda row: means[row]) if len(rows) > 1 else []:
        rank = max(rank, 1 + sum(_is_slower(rows[row], rows[other]) for other in faster))
        found[row] = rank
        faster.append(row)
    return found


def _is_slower(slow: tuple[Times, Times], fast: tuple[Times, Times]) -> bool:
    """Say whether a row is slower than another beyond the scatter of repeats.

    The median ratio of their run times must exceed 1 by more than 5 %, and by more than the median over cells of
    the sum of both relative ranges (greatest minus least repeat, over their median).
    """
    ratio, scatter = np.median(slow[0] / fast[0]), np.median(slow[1] + fast[1])
    return bool(ratio > 1 + max(LEAST_TOLERANCE, scatter))
