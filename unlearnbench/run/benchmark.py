"""A run: every cell of a plan in a separate process, recorded as soon as it ends."""

import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from rich.console import Console

from unlearnbench.datasets import Dataset
from unlearnbench.errors import UsageError, plural, spell_bytes, spell_error
from unlearnbench.plugins.spec import MethodSpec
from unlearnbench.run.execution import Execution
from unlearnbench.run.locks import Beside, device_lock
from unlearnbench.run.plan import Plan, Selection, select
from unlearnbench.run.progress import Display, Task
from unlearnbench.run.saving import publish, staging
from unlearnbench.run.showing import Showing
from unlearnbench.run.stages import Fields, Stages, fields_of
from unlearnbench.run.stale import rests_on
from unlearnbench.run.workers import STOPPING, Allowance, Outcome, Workers
from unlearnbench.store.cache import in_use, pin, trim
from unlearnbench.store.cell import Cell, Scalar
from unlearnbench.store.provenance import software_provenance
from unlearnbench.store.records import DeviceModel, Record, ResultStore, device_model
from unlearnbench.store.scratch import remove

WEAK = (
    "The untouched model fails the sanity checks. If the base model is too weak: train it longer (--base-steps), use "
    "more images, or give one with --base."
)
STOP_HINT = " --stop-if-weak ends a run here."
Check = Callable[[Record], Sequence[str]]


@dataclass(frozen=True)
class Summary:
    """How a run ended; `failed` are the cells without a result, of this run or kept from an earlier one."""

    ran: int
    kept: int
    failed: list[Record]
    interrupted: bool
    out_of_time: bool = False  # by --minutes
    lost: Sequence[str] = ()  # cells with records that were removed during the run
    weak: bool = False  # it ended because of a weak base model (--stop-if-weak)


class OutOfTime(KeyboardInterrupt):
    """The run's time is up (--minutes): it stops as on Ctrl-C."""


class Stopped(Exception):
    """The run was stopped during a cell."""


class Interruption:
    """The state of stopping a run: the first cause stops it, further ones are ignored."""

    def __init__(self) -> None:
        self._begun = False

    def begin(self, cause: KeyboardInterrupt) -> None:
        """Raise the cause, if it is the first."""
        if not self._begun:
            self._begun = True
            raise cause


class WeakBase(Exception):
    """The untouched model fails its checks, and --stop-if-weak ends the run."""


@dataclass(frozen=True)
class Lane:
    """A device of a run, which runs one cell at a time."""

    number: int
    device_info: Mapping[str, Any]  # the device, as `run.jobs.resolve_devices` returns it


class Benchmark:
    """Runs a plan: one process per cell, one record per cell, written by this process alone.

    All devices of the run take cells from one queue.
    """

    def __init__(
        self, plan: Plan, workers: Workers, store: ResultStore, console: Console, execution: Execution,
        check: Check | None = None, show: Callable[[], object] | None = None,
    ) -> None:  # fmt: skip
        """Prepare a run.

        Args:
            plan: the cells.
            workers: start the processes.
            store: takes the records.
            console: shows progress.
            execution: the options of the run.
            check: returns the failed checks of a record of the untouched model, as in the report.
            show: shows the results so far; called after every forget class.
        """
        minutes = execution.minutes
        self._deadline = None if minutes is None else time.monotonic() + 60 * minutes
        self._plan, self._workers, self._store, self._console = plan, workers, store, console
        self._execution, self._check, self._show, self._beside = execution, check, show, Beside()
        self._software = software_provenance()
        self._stop = threading.Event()
        self._stop_reason, self._interruption = "the run was stopped", Interruption()
        self._selection = Selection([], {}, [], {})
        self._weak = self._is_over = False
        self._begun: dict[int, int] = {}  # lane -> start of its cell, in nanoseconds since the epoch

    def run(self) -> Summary:
        """Run the cells that the rerun policy selects and return a summary."""
        execution = self._execution
        with _signals_as_interrupt(self._interruption), Display(self._console) as display:
            try:
                infos = _expect(
                    self._workers.run("unlearnbench.run.jobs:resolve_devices", execution.device, execution.devices)
                )
                self._plan.dataset.check_device(infos[0]["identity"]["type"])
                lanes = [Lane(number, device) for number, device in enumerate(infos)]
                identities = [device["identity"] for device in infos]
                with (
                    device_lock(identities, lambda holder: self._wait_for_device(display, holder), display.warn),
                    in_use(execution.cache) as self._use,
                ):
                    return self._run(lanes, display)
            except KeyboardInterrupt as stop:  # before any cell began
                return Summary(0, 0, [], interrupted=True, out_of_time=isinstance(stop, OutOfTime))

    def _run(self, lanes: Sequence[Lane], display: Display) -> Summary:
        """Run the cells, while the locks of the devices are held."""
        for warning in self._plan.warnings:
            display.warn(warning)
        selection = self._selection = self._select(device_model(lanes[0].device_info["identity"]), display)
        todo, failed = selection.todo, selection.failed
        kept = len(self._plan.cells) - len(todo)
        stop: BaseException | None = None
        ran: list[Record] = []
        try:
            for record in selection.kept:
                self._check_base(record, display)
            self._end_if_weak()
            if todo:
                self._prepare(todo, display, lanes[0].device_info)
                self._trim(todo, display)
            display.expect([cell.method for cell in todo])
            self._run_cells(todo, lanes, display, ran)
        except (KeyboardInterrupt, WeakBase) as error:
            stop = error
        failed += [record for record in ran if record.failure]
        return Summary(
            len(ran), kept, failed, interrupted=isinstance(stop, KeyboardInterrupt),
            out_of_time=isinstance(stop, OutOfTime), lost=self._lost([*selection.kept, *ran]),
            weak=isinstance(stop, WeakBase),
        )  # fmt: skip

    def _lost(self, records: Sequence[Record]) -> list[str]:
        """Return the cells with records that were removed from the folder during this run."""
        there = {record.cell.id for record in self._store.read().records}
        return [record.cell.id for record in records if record.cell.id not in there]

    def _run_cells(self, todo: Sequence[Cell], lanes: Sequence[Lane], display: Display, ran: list[Record]) -> None:
        """Run cells, one at a time per device, and append their records to `ran`."""
        free: SimpleQueue[Lane] = SimpleQueue()
        for lane in lanes:
            free.put(lane)
        showing = Showing(todo, self._show, display.warn)
        with ThreadPoolExecutor(len(lanes)) as pool:
            futures: set[Future[Record]] = set()
            try:
                for cell in todo:
                    futures.add(pool.submit(self._run_next, cell, free, display, showing))
                while futures:
                    done, futures = wait(futures, timeout=0.2, return_when="FIRST_COMPLETED")
                    ran += [future.result() for future in done if not isinstance(future.exception(), Stopped)]
                    if done:
                        self._trim(todo[len(ran) :], display)
                    self._end_if_weak()
                    showing.tick()
                    display.tick()
                    self._check_time()
            except BaseException as error:
                self._stop_reason = str(error) or self._stop_reason
                self._stop.set()
                showing.end()
                pool.shutdown(cancel_futures=True)
                ended = [future for future in futures if not future.cancelled() and future.exception() is None]
                ran += [future.result() for future in ended]
                raise

    def _trim(self, to_come: Sequence[Cell], display: Display) -> None:
        """Keep the cache within its limit: what finished cells left there goes first.

        Args:
            to_come: cells that are not finished, whose recorded weights are needed.
            display: warns where more is in use than the limit allows.
        """
        self._use.needs_cells_since(min(self._begun.values(), default=time.time_ns()))
        records = [self._selection.last[cell.id] for cell in to_come if cell.id in self._selection.last]
        pin(self._execution.cache, [artifact for record in records for artifact in record.artifacts.values()])
        if (over := trim(self._execution.cache).over) and not self._is_over:
            self._is_over = True
            display.warn(
                f"the cache is {spell_bytes(over)} above its limit (UNLEARNBENCH_CACHE_LIMIT): this run needs it"
            )

    def _check_time(self) -> None:
        """Stop the run when its time is up."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._interruption.begin(OutOfTime("the run's time was up (--minutes)"))

    def _wait_for_device(self, display: Display, holder: str) -> None:
        display.wait("wait for the device", holder)
        self._check_time()

    def _select(self, device: DeviceModel, display: Display) -> Selection:
        """Return the cells to run, after printing unreadable records and the number of kept ones."""
        reading = self._store.read()
        for problem in reading.problems:
            display.warn(problem)
        selection = select(self._plan, reading.records, self._execution, device)
        every = len(self._plan.cells)
        if kept := every - len(selection.todo):
            display.say(
                f"{kept} of {plural(every, 'cell')} {'is' if every == 1 else 'are'} recorded in {self._store.root} "
                f"already (--rerun always measures them again)"
            )
        return selection

    def _prepare(self, todo: Sequence[Cell], display: Display, device_info: Mapping[str, Any]) -> None:
        """Make base model and judges in a separate process, so that no cell is charged for them."""
        needs = [need for spec in self._plan.metrics for need in spec.needs] if self._plan.metrics else None
        base_seeds = sorted({cell.base_seed for cell in todo})
        with display.task(
            f"{self._plan.dataset.name}: base model{'' if needs is None else ' and judges'}", announce=True
        ) as task:

            def tick() -> None:
                display.tick()
                self._check_time()

            outcome = self._workers.run(
                "unlearnbench.run.jobs:prepare_dataset", self._plan.dataset, needs, base_seeds, self._execution.cache,
                device_info, on_progress=task.progress, on_warning=display.warn, on_tick=tick,
            )  # fmt: skip
        _expect(outcome)

    def _run_next(self, cell: Cell, free: SimpleQueue[Lane], display: Display, showing: Showing) -> Record:
        """Run a cell on a free device, in one of the pool's threads."""
        lane = free.get()
        try:
            showing.wait()
            self._begun[lane.number] = time.time_ns()
            return self._run_cell(cell, lane, display)
        finally:
            self._begun.pop(lane.number, None)
            showing.finish(cell)
            free.put(lane)

    def _run_cell(self, cell: Cell, lane: Lane, display: Display) -> Record:
        """Run a cell and record its outcome.

        Raises:
            Stopped: the run was stopped; the cell is recorded as interrupted.
        """
        if self._stop.is_set():
            raise Stopped
        device_info, started = lane.device_info, _Start()
        where = f" on {device_info['name']}" if device_info["of"] > 1 else ""
        with display.task(f"{self._label(cell)}{where}") as task, self._beside.working(lane.number):
            stages = self._stages(cell, lane, display, task)
            try:
                record = stages.standing or self._keep(cell, stages.measured(), device_info, started)
            except Stopped:
                outcome = Outcome("interrupted", reason=self._stop_reason)
                self._append(self._record(cell, outcome, device_info, started))
                raise
            except UsageError:  # it ends the run
                if stages.staged is not None:
                    remove(stages.staged)
                raise
            if record.status == "ok":
                record = self._attack(stages, record, device_info, started)
            verdict = _headline(record) if record.status == "ok" else f"{record.status} ({record.reason})"
            display.finish(task, cell.method, started.seconds, verdict)
            self._check_base(record, display)
        return record

    def _keep(self, cell: Cell, outcome: Outcome, device_info: Mapping[str, Any], started: "_Start") -> Record:
        """Record the outcome of a cell; return the record."""
        record = self._record(cell, outcome, device_info, started)
        try:
            self._append(record)
        except (ValueError, TypeError, RecursionError, OverflowError) as error:  # from a plugin's invalid value
            outcome = Outcome("failed", reason=f"its results cannot be recorded: {spell_error(error)}")
            record = self._record(cell, outcome, device_info, started)
            self._append(record)
        return record

    def _attack(self, stages: Stages, record: Record, device_info: Mapping[str, Any], started: "_Start") -> Record:
        """Make the attacks of a measured cell, and record them together, whatever ends them."""
        done: Fields | None = None
        try:
            for done in stages.attacked(fields_of(record)):  # noqa: B007
                pass
        finally:
            if done is not None:
                record = self._keep(stages.cell, Outcome("ok", done), device_info, started)
        return record

    def _check_base(self, record: Record, display: Display) -> None:
        """Warn at once where a record of the untouched model fails the sanity checks, as in the report."""
        if self._check is None or record.status != "ok" or record.method.get("role") != "reference":
            return
        alarms = self._check(record)
        if alarms and not self._weak:
            display.say(f"{WEAK}{'' if self._execution.stop_if_weak else STOP_HINT}")
        for alarm in alarms:
            display.say(f"- {alarm}")
        self._weak |= bool(alarms)
        if self._weak and self._execution.stop_if_weak:
            self._stop.set()

    def _end_if_weak(self) -> None:
        if self._weak and self._execution.stop_if_weak:
            raise WeakBase("the base model is too weak (--stop-if-weak)")

    def _append(self, record: Record) -> None:
        """Record a cell, then publish its model."""
        self._store.append(record)
        if (models := self._models_of(record.cell)) is not None:
            publish(models, record)

    def _models_of(self, cell: Cell) -> Path | None:
        """Return the folder for a cell's model; None for references and controls, which are not saved."""
        return self._execution.models if self._plan.unlearns(cell) else None

    def _stages(self, cell: Cell, lane: Lane, display: Display, task: Task) -> Stages:
        """Return the jobs of a cell, each in a separate process."""

        def check_stop() -> None:
            if self._stop.is_set():
                raise Stopped

        models, selection = self._models_of(cell), self._selection
        run = partial(
            self._workers.run, allowance=Allowance(self._execution.timeout), on_progress=task.progress,
            on_tick=check_stop, on_beside=lambda: self._beside.most(lane.number), on_warning=display.warn,
        )  # fmt: skip
        return Stages(
            self._plan, self._execution, cell, selection.needed[cell.id], selection.last.get(cell.id),
            lane.device_info, None if models is None else staging(models, cell), run,
        )  # fmt: skip

    def _label(self, cell: Cell) -> str:
        changed = ", ".join(f"{name}={value}" for name, value in self._plan.overrides[cell.id].items())
        seed = f", seed {cell.seeds.label}" if len({c.seeds for c in self._plan.cells}) > 1 else ""
        names = [self._plan.dataset.class_names[c] for c in cell.forget_classes]
        named = "" if names == list(map(str, cell.forget_classes)) else f" {'+'.join(names)}"
        return f"{cell.method}{f' ({changed})' if changed else ''} forgets {cell.target.label}{named}{seed}"

    def _record(self, cell: Cell, outcome: Outcome, device_info: Mapping[str, Any], started: "_Start") -> Record:
        spec, dataset = self._plan.methods[cell.method], self._plan.dataset
        fields: Fields = dict(outcome.value or {})
        source_hash = fields.pop("method_source_hash", self._plan.source_hashes[f"method:{cell.method}"])
        return Record(
            cell=cell,
            method={
                "title": spec.title, "paper": spec.paper, "role": spec.role, "overrides": self._plan.overrides[cell.id],
                "changed": _changed(spec, cell), "source_hash": source_hash, "truth": dict(spec.truth),
            },
            status=outcome.status,
            reason=outcome.reason,
            traceback=outcome.traceback,
            protocol=dataset.protocol.to_json(),
            dataset=dataset.to_json(),
            provenance={**self._software, "device": device_info["identity"], "started_utc": started.utc},
            **{
                "revisions": rests_on(spec, self._plan.metrics_of(cell), dataset), "wall_seconds": started.seconds,
                **fields,
            },
        )  # fmt: skip


class _Start:
    """The start of a cell."""

    def __init__(self) -> None:
        self.utc, self._began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self._began


def train_base(
    workers: Workers, dataset: Dataset, console: Console, *, cache: Path, device: str, out: Path
) -> list[tuple[int, float]] | None:
    """Train a dataset's base model in a separate process and write it to `out`.

    Returns:
        The loss curve, (step, loss per pixel); None when it was stopped.
    """
    with _signals_as_interrupt(Interruption()), Display(console) as display:
        try:
            device_info = _expect(workers.run("unlearnbench.run.jobs:resolve_device", device))
            with (
                device_lock([device_info["identity"]], partial(display.wait, "wait for the device"), display.warn),
                display.task(f"{dataset.name}: base model", announce=True) as task,
            ):
                outcome = workers.run(
                    "unlearnbench.run.jobs:train_base", dataset, cache, device_info["device"], out,
                    on_progress=task.progress, on_warning=display.warn, on_tick=display.tick,
                )  # fmt: skip
        except KeyboardInterrupt:
            return None
    losses: list[tuple[int, float]] = _expect(outcome)
    return losses


def _expect(outcome: Outcome) -> Any:
    """Return the value of an indispensable job; raise UsageError where it failed."""
    if outcome.status != "ok":
        places = re.findall(r'File "(.+)", line (\d+), in ', outcome.traceback or "")
        place = f" ({Path(places[-1][0]).name}, line {places[-1][1]})" if places else ""
        raise UsageError(f"the run cannot start: {outcome.reason}{place}")
    return outcome.value


def _changed(spec: MethodSpec, cell: Cell) -> dict[str, list[Scalar]]:
    """Return {setting: [default, value]} of the settings that differ from the method's."""
    return {
        name: [spec.defaults[name], value]
        for name, value in cell.settings.items()
        if value != spec.defaults.get(name, value)
    }


def _headline(record: Record) -> str:
    values = [
        f"{entry['title']} {entry['value']:{entry['format']}}{'%' if entry['unit'] == '%' else ''}"
        if entry["value"] is not None
        else f"{entry['title']} not measurable"
        for entry in record.metrics.values()
        if entry["headline"]
    ]
    return f"ok ({', '.join(values)})" if values else "ok"


@contextmanager
def _signals_as_interrupt(interruption: Interruption) -> Iterator[None]:
    """Stop the run in order on a terminating signal: finished cells stay, the running one is `interrupted`.

    Signals that are ignored already (SIGHUP after nohup, SIGINT in a script's background) stay ignored.
    """

    def interrupt(number: int, _: Any) -> None:
        interruption.begin(KeyboardInterrupt(f"the run was stopped by {signal.Signals(number).name}"))

    kept = {number: signal.getsignal(number) for number in STOPPING}
    heard = {number: handler for number, handler in kept.items() if handler not in (signal.SIG_IGN, None)}
    for number in heard:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)
