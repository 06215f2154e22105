"""The devices of this machine as a run's launcher: each takes the next cell from one queue."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from unlearnbench.errors import UsageError, spell_bytes, spell_error
from unlearnbench.run.course import Course
from unlearnbench.run.execution import Execution
from unlearnbench.run.locks import Beside, device_lock
from unlearnbench.run.plan import Plan, Selection
from unlearnbench.run.progress import Task
from unlearnbench.run.recording import Recorder, Start
from unlearnbench.run.saving import publish, staging
from unlearnbench.run.stages import Fields, Stages, fields_of
from unlearnbench.run.workers import Allowance, Outcome, Workers, expect
from unlearnbench.store.cache import in_use, pin, trim
from unlearnbench.store.cell import Cell
from unlearnbench.store.records import DeviceModel, Record, ResultStore, device_model
from unlearnbench.store.scratch import remove


class Stopped(Exception):
    """The run was stopped during a cell."""


@dataclass(frozen=True)
class Lane:
    """A device of a run, which runs one cell at a time."""

    number: int
    device_info: Mapping[str, Any]  # the device, as `run.jobs.resolve_devices` returns it


@dataclass(frozen=True)
class Hooks:
    """What a task of a cluster tells the devices that it runs on."""

    place: Mapping[str, str] = field(default_factory=dict)  # facts of provenance
    disturbance: str = ""  # what may disturb all timed phases; empty for nothing
    on_devices: Callable[[Sequence[Mapping[str, Any]]], None] = lambda infos: None  # called with them, may refuse them
    on_selection: Callable[[Selection], None] = lambda selection: None  # called with what is to be run
    on_begin: Callable[[Cell], None] = lambda cell: None  # called before each cell
    on_end: Callable[[Cell], None] = lambda cell: None  # called after each cell that has a result
    is_prepared: bool = False  # base models and judges are made already


class Lanes:
    """Runs cells on the devices of this machine: a process per job, a record per cell."""

    def __init__(
        self, plan: Plan, workers: Workers, store: ResultStore, execution: Execution,
        hooks: Hooks | None = None,
    ) -> None:  # fmt: skip
        """Take the plan, the processes, the store of records, and the options of the run."""
        self._plan, self._workers, self._store, self._execution = plan, workers, store, execution
        self._hooks = hooks or Hooks()
        self._recorder, self._beside = Recorder(plan, self._hooks.place), Beside()
        self._stop, self._stop_reason, self._is_over = threading.Event(), "the run was stopped", False
        self._begun: dict[int, int] = {}  # lane -> start of its cell, in nanoseconds since the epoch

    @contextmanager
    def opened(self, course: Course) -> Iterator[DeviceModel]:
        """Resolve and lock the devices; yield their model."""
        execution, self._course, self._display = self._execution, course, course.display
        infos = expect(self._workers.run("unlearnbench.run.jobs:resolve_devices", execution.device, execution.devices))
        self._plan.dataset.check_device(infos[0]["identity"]["type"])
        self._hooks.on_devices(infos)
        self._lanes = [Lane(number, device) for number, device in enumerate(infos)]
        identities = [device["identity"] for device in infos]
        with device_lock(identities, self._wait_for_device, self._display.warn), in_use(execution.cache) as self._use:
            yield device_model(identities[0])

    def run(self, selection: Selection) -> None:
        """Run the selected cells."""
        self._selection, todo = selection, selection.todo
        self._hooks.on_selection(selection)
        if todo:
            if not self._hooks.is_prepared:
                self.prepare(todo)
            self._trim(todo)
        self._course.expect(todo)
        self._run_cells(todo)

    def _wait_for_device(self, holder: str) -> None:
        self._display.wait("wait for the device", holder)
        self._course.check_time()

    def prepare(self, todo: Sequence[Cell]) -> None:
        """Make base model and judges in a separate process, so that no cell is charged for them."""
        needs = [need for spec in self._plan.metrics for need in spec.needs] if self._plan.metrics else None
        base_seeds = sorted({cell.base_seed for cell in todo})
        label = f"{self._plan.dataset.name}: base model{'' if needs is None else ' and judges'}"
        with self._display.task(label, announce=True) as task:
            outcome = self._workers.run(
                "unlearnbench.run.jobs:prepare_dataset", self._plan.dataset, needs, base_seeds, self._execution.cache,
                self._lanes[0].device_info, on_progress=task.progress, on_warning=self._display.warn,
                on_tick=self._course.tick,
            )  # fmt: skip
        expect(outcome)

    def rehearse(self, cell: Cell) -> None:
        """Make the priors that a cell's method shares between targets in a separate process; a failure is a warning."""
        with self._display.task(f"{self._plan.describe(cell)}: what targets share", announce=True) as task:
            outcome = self._workers.run(
                "unlearnbench.run.unlearning:make_shared_priors", cell, self._plan.dataset,
                self._execution.plugin_files, self._execution.cache, self._lanes[0].device_info,
                on_progress=task.progress, on_warning=self._display.warn, on_tick=self._course.tick,
            )  # fmt: skip
        if outcome.status != "ok":
            self._display.warn(f"{cell.id}: what its method shares between targets was not made: {outcome.reason}")

    def _run_cells(self, todo: Sequence[Cell]) -> None:
        """Run cells, one at a time per device."""
        free: SimpleQueue[Lane] = SimpleQueue()
        for lane in self._lanes:
            free.put(lane)
        with ThreadPoolExecutor(len(self._lanes)) as pool:
            futures: set[Future[None]] = set()
            try:
                for cell in todo:
                    futures.add(pool.submit(self._run_next, cell, free))
                ended = 0
                while futures:
                    done, futures = wait(futures, timeout=0.2, return_when="FIRST_COMPLETED")
                    for future in done:
                        if not isinstance(future.exception(), Stopped):
                            future.result()
                    if done:
                        ended += len(done)
                        self._trim(todo[ended:])
                    self._course.turn()
            except BaseException as error:
                self._stop_reason = str(error) or self._stop_reason
                self._stop.set()
                self._course.showing.end()
                pool.shutdown(cancel_futures=True)
                raise

    def _trim(self, to_come: Sequence[Cell]) -> None:
        """Keep the cache within its limit: what finished cells left there goes first.

        Args:
            to_come: cells that are not finished, whose recorded weights are needed.
        """
        self._use.needs_cells_since(min(self._begun.values(), default=time.time_ns()))
        records = [self._selection.last[cell.id] for cell in to_come if cell.id in self._selection.last]
        pin(self._execution.cache, [artifact for record in records for artifact in record.artifacts.values()])
        if (over := trim(self._execution.cache).over) and not self._is_over:
            self._is_over = True
            self._display.warn(
                f"the cache is {spell_bytes(over)} above its limit (UNLEARNBENCH_CACHE_LIMIT): this run needs it"
            )

    def _run_next(self, cell: Cell, free: SimpleQueue[Lane]) -> None:
        """Run a cell on a free device, in one of the pool's threads."""
        lane = free.get()
        try:
            self._course.showing.wait()
            self._begun[lane.number] = time.time_ns()
            self._run_cell(cell, lane)
        finally:
            self._begun.pop(lane.number, None)
            self._course.showing.finish(cell)
            free.put(lane)

    def _run_cell(self, cell: Cell, lane: Lane) -> None:
        """Run a cell and record its outcome.

        Raises:
            Stopped: the run was stopped; the cell is recorded as interrupted.
        """
        if self._stop.is_set():
            raise Stopped
        self._hooks.on_begin(cell)
        device_info, started = lane.device_info, Start()
        where = f" on {device_info['name']}" if device_info["of"] > 1 else ""
        with self._display.task(f"{self._plan.describe(cell)}{where}") as task, self._beside.working(lane.number):
            stages = self._stages(cell, lane, task)
            try:
                record = stages.standing or self._keep(cell, stages.measured(), lane, started)
            except Stopped:
                self._append(self._record(cell, Outcome("interrupted", reason=self._stop_reason), lane, started))
                raise
            except UsageError:  # it ends the run
                if stages.staged is not None:
                    remove(stages.staged)
                raise
            if record.status == "ok":
                record = self._attack(stages, record, lane, started)
            self._course.finish(record, task, started.seconds)
        self._hooks.on_end(cell)
        if self._course.is_over:
            self._stop.set()

    def _record(self, cell: Cell, outcome: Outcome, lane: Lane, started: Start) -> Record:
        return self._recorder.record(
            cell, outcome, lane.device_info["identity"], started=started.utc, seconds=started.seconds,
            disturbance=self._hooks.disturbance,
        )  # fmt: skip

    def _keep(self, cell: Cell, outcome: Outcome, lane: Lane, started: Start) -> Record:
        """Record the outcome of a cell; return the record."""
        record = self._record(cell, outcome, lane, started)
        try:
            self._append(record)
        except (ValueError, TypeError, RecursionError, OverflowError) as error:  # from a plugin's invalid value
            outcome = Outcome("failed", reason=f"its results cannot be recorded: {spell_error(error)}")
            record = self._record(cell, outcome, lane, started)
            self._append(record)
        return record

    def _attack(self, stages: Stages, record: Record, lane: Lane, started: Start) -> Record:
        """Make the attacks of a measured cell, and record them together, whatever ends them."""
        done: Fields | None = None
        try:
            for done in stages.attacked(fields_of(record)):  # noqa: B007
                pass
        finally:
            if done is not None:
                record = self._keep(stages.cell, Outcome("ok", done), lane, started)
        return record

    def _append(self, record: Record) -> None:
        """Record a cell, then publish its model."""
        self._store.append(record)
        if (models := self._models_of(record.cell)) is not None:
            publish(models, record)

    def _models_of(self, cell: Cell) -> Path | None:
        """Return the folder for a cell's model; None for references and controls, which are not saved."""
        return self._execution.models if self._plan.unlearns(cell) else None

    def _stages(self, cell: Cell, lane: Lane, task: Task) -> Stages:
        """Return the jobs of a cell, each in a separate process."""

        def check_stop() -> None:
            if self._stop.is_set():
                raise Stopped

        models, selection = self._models_of(cell), self._selection
        run = partial(
            self._workers.run, allowance=Allowance(self._execution.timeout), on_progress=task.progress,
            on_tick=check_stop, on_beside=lambda: self._beside.most(lane.number), on_warning=self._display.warn,
        )  # fmt: skip
        return Stages(
            self._plan, self._execution, cell, selection.needed[cell.id], selection.last.get(cell.id),
            lane.device_info, None if models is None else staging(models, cell), run,
        )  # fmt: skip
