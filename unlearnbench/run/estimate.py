"""Estimates of a run's time and memory on this device, from a minute or two of sample work.

Free of torch: `pilot` does and times the work in separate processes, and this module collects the results.
`cli.estimate` computes totals and prints them. Nothing is recorded.
"""

import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from unlearnbench.errors import UsageError
from unlearnbench.run.execution import Execution
from unlearnbench.run.locks import device_lock
from unlearnbench.run.plan import Plan, Selection, select
from unlearnbench.run.progress import Display, spell
from unlearnbench.run.workers import Outcome, Workers
from unlearnbench.store.cell import Cell
from unlearnbench.store.hashing import canonical_json
from unlearnbench.store.records import DeviceModel, Record, ResultStore, device_model

OUTSIDE = ("start", "load", "rest")  # of a record: time around the phases of a cell
AROUND = ("start", "load", "warmup", "judge", "attack", "rest")  # of a cell, besides its method and its samples
BASE = "base model"  # prefix of the names of base models, which take the same time
MAIN_JOBS = ("unlearn", "measure")  # of a cell; each metric that samples anew has one more
JOB_SECONDS = 120.0  # for each of the measurements


@dataclass(frozen=True)
class Rate:
    """The pace of a method's own loop."""

    seconds: float  # of a piece, on average
    pieces: float  # in all
    optimizer_steps: float  # of a piece, on average

    @property
    def step_seconds(self) -> float:
        """Seconds of an optimiser step; of a piece in loops without torch optimisers."""
        return self.seconds / (self.optimizer_steps or 1)


@dataclass(frozen=True)
class Prior:
    """The cost of one prior of a method."""

    seconds: float
    shared: bool  # between forget classes
    cached: bool  # that of the measured cell
    size: int  # bytes in the cache


@dataclass(frozen=True)
class MethodCost:
    """The cost of a method for one cell, in seconds."""

    rte: float  # unlearning
    prior: float
    sample: float  # all images of the cell, sampled from the unlearned model
    rate: Rate | None  # of its loop; None where it has none
    memory: Mapping[str, int]  # probe -> peak over prior and unlearning, bytes
    priors: Mapping[str, Prior]
    warmup: float  # once per cell: compiling, and on CUDA a rehearsed first step
    untouched: bool  # it leaves the model unchanged, so samples are shared between cells
    reckoned: frozenset[str]  # those of rte and prior that were extrapolated


@dataclass(frozen=True)
class Unknown:
    """A cost that could not be determined, and why."""

    reason: str


@dataclass(frozen=True)
class Making:
    """The cost of making something that the cache lacks."""

    seconds: float | None  # None where unknown
    size: int  # bytes in the cache
    reason: str = ""  # why it is unknown, if given


@dataclass(frozen=True)
class Preparation:
    """Preparation of a dataset: cached parts, and those to be made or downloaded."""

    there: Sequence[str]
    making: Mapping[str, Making]
    base_size: int  # bytes of the base model's weights


@dataclass(frozen=True)
class Row:
    """The cells of one method with one choice of settings."""

    method: str
    label: str
    cells: Sequence[Cell]
    unlearns: bool
    default: bool  # all settings have their defaults
    cost: MethodCost | Unknown


@dataclass(frozen=True)
class Surroundings:
    """The time of a cell besides its method and its samples."""

    seconds: Mapping[str, float]  # of each phase of AROUND that is known
    records: int  # number of this device's records used; 0 where it was measured
    unknown: str = ""  # missing parts, and why


@dataclass(frozen=True)
class Outlook:
    """The estimate of a run."""

    plan: Plan
    device_info: Mapping[str, Any]  # the device, as `run.jobs.resolve_device` returns it
    rows: Sequence[Row]
    surroundings: Surroundings
    preparation: Preparation
    kept: int  # cells that need not run
    execution: Execution


def estimate(plan: Plan, workers: Workers, store: ResultStore, console: Console, execution: Execution) -> Outlook:
    """Estimate the cost of a run with the arguments of `Benchmark`; cache and results stay unchanged.

    Raises:
        UsageError: the run could not start.
    """
    with Display(console) as display:
        device_info = _value(workers.run("unlearnbench.run.jobs:resolve_device", execution.device))
        plan.dataset.check_device(device_info["identity"]["type"])
        identity = device_info["identity"]
        with device_lock([identity], lambda holder: display.wait("wait for the device", holder), display.warn):
            reading = store.read()
            for problem in (*plan.warnings, *reading.problems):
                display.warn(problem)
            here = device_model(device_info["identity"])
            selection = select(plan, reading.records, execution, here)
            pilot = _Pilot(plan, workers, display, execution, device_info)
            preparation = pilot.preparation(selection)
            rows = [pilot.row(cells) for cells in variants(selection.todo)]
            surroundings = pilot.surroundings(selection, recorded(reading.records, plan, here))
            return Outlook(
                plan, device_info, rows, surroundings, preparation, len(plan.cells) - len(selection.todo),
                execution,
            )  # fmt: skip


def variants(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Return cells by method and settings, in the order of the run."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.method, canonical_json(dict(cell.settings))), []).append(cell)
    return list(found.values())


def draws(cell: Cell, plan: Plan) -> list[tuple[int, int]]:
    """Return (class, number of images) of all samples for a cell's metrics."""
    needs = {need for spec in plan.metrics_of(cell) for need in spec.needs}
    protocol = plan.dataset.protocol
    streams: dict[str, tuple[Sequence[int], int]] = {
        "forget": (cell.forget_classes, protocol.forget_samples),
        "earlier": ([c for classes in cell.earlier for c in classes], protocol.forget_samples),
        "retain": (plan.dataset.measured(cell.target), protocol.retain_samples),
    }
    wanted = [part for name, part in streams.items() if any(need.startswith(f"{name}_") for need in needs)]
    return [(c, n) for classes, n in wanted for c in classes]


def recorded(records: Iterable[Record], plan: Plan, here: DeviceModel) -> dict[str, list[float]]:
    """Return {phase: seconds in each record} besides methods and samples, from records of this device and dataset.

    Judging and attacks count where the same metrics were computed, and no other cell ran at the same time.
    """
    dataset = plan.dataset
    found: dict[str, list[float]] = {}
    for record in records:
        alike = (record.dataset.get("digest"), record.dataset.get("panel")) == (dataset.digest, dataset.judges_digest)
        place = (record.cell.dataset, record.cell.protocol)
        known = record.cell.method in plan.methods and place == (dataset.name, dataset.protocol.name)
        if record.status != "ok" or not (alike and known and record.device_model.matches(here)):
            continue
        times = {phase: record.outside[phase] for phase in OUTSIDE if phase in record.outside}
        phases = ["warmup"]
        if set(record.metrics) == {spec.name for spec in plan.metrics_of(record.cell)}:
            phases += ["judge", "attack"]
        costs = {phase: record.cost[phase] for phase in phases if phase in record.cost}
        times |= {phase: cost["seconds"] for phase, cost in costs.items() if not cost.get("side_by_side")}
        for phase, seconds in times.items():
            found.setdefault(phase, []).append(float(seconds))
    return found


def _value(outcome: Outcome) -> Any:
    """Return the value of an indispensable job; raise UsageError where it failed."""
    if outcome.status != "ok":
        raise UsageError(f"nothing can be measured here: {_reason(outcome)}")
    return outcome.value


def _reason(outcome: Outcome) -> str:
    if outcome.status == "timeout":
        return f"a small part of it takes more than {spell(JOB_SECONDS)}"
    return outcome.reason or outcome.status


class _Pilot:
    """Runs measurements in turn, each in a separate process."""

    def __init__(
        self, plan: Plan, workers: Workers, display: Display, execution: Execution, device_info: Mapping[str, Any]
    ) -> None:
        self._plan, self._workers, self._display = plan, workers, display
        self._execution, self._device_info = execution, device_info
        self._starts: list[float] = []  # seconds until a process starts to work

    def _run(self, label: str, job: str, *arguments: Any) -> Outcome:
        """Run a job of `pilot` and return its outcome; the value is (measurement, seconds it worked)."""
        began = time.monotonic()
        with self._display.task(label, announce=True) as task:
            outcome = self._workers.run(
                f"unlearnbench.run.pilot:{job}", *arguments, self._execution.cache, self._device_info,
                timeout=JOB_SECONDS, on_progress=task.progress, on_warning=self._display.warn,
                on_tick=self._display.tick,
            )  # fmt: skip
        if outcome.status != "ok":
            return outcome
        measured, worked = outcome.value
        self._starts.append(max(time.monotonic() - began - worked, 0.0))
        return Outcome("ok", measured)

    def preparation(self, selection: Selection) -> Preparation:
        """Return the cached parts, and the cost of making the rest."""
        if not selection.todo:
            return Preparation([], {}, 0)
        needs = [need for spec in self._plan.metrics for need in spec.needs]
        seeds = sorted({cell.base_seed for cell in selection.todo})
        label = f"{self._plan.dataset.name}: what is cached"
        there, lacking, size = _value(self._run(label, "look_around", self._plan.dataset, needs, seeds))
        making: dict[str, Making] = {}
        for name in lacking:
            alike = (made for other, made in making.items() if name.startswith(BASE) and other.startswith(BASE))
            making[name] = next(alike, None) or self._making(name)
        return Preparation(there, making, size)

    def _making(self, name: str) -> Making:
        """Measure the cost of making a part."""
        outcome = self._run(f"{self._plan.dataset.name}: {name}", "measure_making", self._plan.dataset, name)
        found: Making = outcome.value if outcome.status == "ok" else Making(None, 0, _reason(outcome))
        return found

    def row(self, cells: Sequence[Cell]) -> Row:
        """Measure a method on the first of its cells."""
        cell = cells[0]
        label, changed = self._plan.label(cell), self._plan.overrides[cell.id]
        labels = [c for c, n in draws(cell, self._plan) for _ in range(n)]
        outcome = self._run(label, "measure_method", cell, self._plan.dataset, labels, self._execution.plugin_files)
        cost = outcome.value if outcome.status == "ok" else Unknown(_reason(outcome))
        return Row(cell.method, label, cells, self._plan.unlearns(cell), not changed, cost)

    def surroundings(self, selection: Selection, records: Mapping[str, Sequence[float]]) -> Surroundings:
        """Return the time besides methods and samples, from records if possible, else measured."""
        todo = selection.todo
        cell = next((cell for cell in todo if self._plan.unlearns(cell)), todo[0] if todo else None)
        if cell is None:
            return Surroundings({}, 0)
        metrics = self._plan.metrics_of(cell)
        wanted = set(AROUND) if any(spec.is_apart for spec in metrics) else set(AROUND) - {"attack"}
        if wanted <= records.keys():
            means = {phase: statistics.fmean(records[phase]) for phase in wanted}
            return Surroundings(means, min(len(records[phase]) for phase in wanted))
        names = [spec.name for spec in metrics]
        outcome = self._run(
            "judging", "measure_surroundings", cell, self._plan.dataset, names, self._execution.plugin_files
        )
        jobs = len(MAIN_JOBS) + sum(spec.is_apart for spec in metrics)
        start = {"start": jobs * statistics.fmean(self._starts)} if self._starts else {}
        if outcome.status != "ok":
            return Surroundings(start, 0, f"judging: {_reason(outcome)}")
        seconds, unknown = outcome.value
        return Surroundings({**start, **seconds}, 0, unknown)
