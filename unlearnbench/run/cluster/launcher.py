"""A cluster as a run's launcher: submits parts, watches what they write, gathers records, and tries again."""

import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence, Sized
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from unlearnbench.errors import UsageError, plural
from unlearnbench.run.cluster.config import ClusterConfig
from unlearnbench.run.cluster.engine import LOGS, Queued, engine_of, write_scripts
from unlearnbench.run.cluster.folder import LAUNCHER, PREPARE, Attempt, Request, RunFolder, runs
from unlearnbench.run.cluster.gathering import Gathering
from unlearnbench.run.cluster.packing import known_seconds, packed
from unlearnbench.run.cluster.standing import (
    cancel,
    command,
    device_of_earlier,
    gather_all,
    submitting,
    under_way,
    watching,
)
from unlearnbench.run.course import Course, WeakBase
from unlearnbench.run.plan import Plan, Selection
from unlearnbench.run.progress import Task
from unlearnbench.run.recording import Recorder, utc
from unlearnbench.run.workers import Outcome
from unlearnbench.store.cell import Cell
from unlearnbench.store.records import DeviceModel, Record, ResultStore

READ_SECONDS, TURN_SECONDS = 1.0, 0.2  # between looks at what jobs wrote, and at the run's own end
ASK_SECONDS = (2.0, 10.0)  # between questions to the scheduler: in the first minutes, and later
SOON_SECONDS = 180.0
ABSENT = 2  # answers in a row without a job, before it counts as gone
MOST_ABSENT = 45  # answers, after which no file system or accounting lags behind any more
LIVE = ("PENDING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED", "CONFIGURING", "RESIZING")  # states of jobs
CANCELLED, OUT_OF_MEMORY, TIMEOUT = "CANCELLED", "OUT_OF_MEMORY", "TIMEOUT"  # Slurm's words
NO_WORD = "the scheduler does not say why"


@dataclass
class Part:
    """A part of a run, as the launcher knows it."""

    name: str
    cells: dict[str, Cell]  # by id, in the order of the run; without those that were given up
    job: str = ""
    absent: int = 0  # answers in a row without its job
    idle: int = 0  # jobs in a row that finished no cell
    at_submission: int = 0  # cells that were finished then
    done: set[str] = field(default_factory=set)  # ids of finished cells
    latest: dict[str, Record] = field(default_factory=dict)  # record that counts, of each cell that has one

    @property
    def left(self) -> list[str]:
        """The ids of the cells that are not finished."""
        return [name for name in self.cells if name not in self.done]


class CannotStart(UsageError):
    """What the cells share could not be made."""


class ClusterLauncher:
    """Runs the cells of a plan as jobs of a cluster, or goes on with a run whose jobs are there."""

    def __init__(
        self, plan: Plan, store: ResultStore, request: Request, config: ClusterConfig, run: RunFolder | None = None, *,
        detach: bool = False, by_hand: bool = False,
    ) -> None:  # fmt: skip
        """Prepare a run.

        Args:
            plan: the cells.
            store: takes the records.
            request: what was asked.
            config: the cluster file.
            run: a run to go on with; None for a new one.
            detach: do not watch it.
            by_hand: only write its job scripts.
        """
        self._plan, self._store, self._request, self._config, self.run_folder = plan, store, request, config, run
        self.is_detached, self._by_hand, self.scripts = detach, by_hand, list[Path]()
        self.is_elsewhere = False  # all that is to be done is under way in other runs
        self._began = time.monotonic()
        self._asked = self._read = 0.0  # when the scheduler was asked, and the jobs' files read
        self._in_queue: dict[str, Queued] = {}  # job -> its state, when it was last asked
        self._shown: dict[str, tuple[Task, ExitStack]] = {}  # cell -> its line
        self.problems: list[str] = []  # why cells have no result

    @contextmanager
    def opened(self, course: Course) -> Iterator[DeviceModel | None]:
        """Yield the model of the devices, as far as an earlier run with the same options has found it."""
        self._course, self._display = course, course.display
        if self.run_folder is None:
            for earlier in runs(self._store.root):
                self._collect(earlier)
        yield self.run_folder.device if self.run_folder else device_of_earlier(self._store.root, self._config)

    def run(self, selection: Selection) -> None:
        """Submit the selected cells, or attach to the run's, and gather their records until all are there."""
        run = self.run_folder = self.run_folder or self._submit(selection)
        if run is None or self.is_detached or self.scripts:
            return
        self._engine = engine_of(run)
        with watching(run):
            self._gathering = Gathering(run, self._store)
            self._parts = [self._part(run, name, set(cells)) for name, cells in run.parts.items()]
            self._course.expect([part.cells[name] for part in self._parts for name in part.left])
            try:
                self._watch(run)
            except (WeakBase, CannotStart):
                cancel(run, self._store)
                raise
            finally:  # of any other error, as of Ctrl-C, the jobs know nothing: they go on
                self._course.showing.end()
                for _, stack in self._shown.values():
                    stack.close()

    def _collect(self, run: RunFolder) -> None:
        """Gather what a run has that nobody watches, so that its finished cells are not measured again."""
        if run.is_closed:
            return
        try:
            with watching(run):
                count = gather_all(run, self._store, self._display.warn, is_over=False)
                if all(set(cells) <= run.finished(part) for part, cells in run.parts.items()):
                    run.close()
        except UsageError:
            return  # somebody watches it
        if count:
            self._display.say(f"{plural(count, 'record')} of run {run.name} gathered, which nobody watches")

    def _submit(self, selection: Selection) -> RunFolder | None:
        """Make the run's folder and submit its jobs; return None where nothing is left to do."""
        with submitting(self._store.root):
            run = self._create(selection)
            if run is None:
                return None
            if self._by_hand:
                self.scripts = write_scripts(run)
                return run
            engine = engine_of(run)
            try:
                first = engine.submit([PREPARE], self._config.options(preparing=True))[PREPARE]
                engine.submit(list(run.parts), self._config.options(preparing=False), after=first)
            except BaseException:  # Ctrl-C as well: nothing of it is to go on alone
                run.close()
                engine.cancel([job for jobs in run.jobs().values() for job in jobs])
                shutil.rmtree(run.path, ignore_errors=True)  # a job may be writing there still
                raise
        cells = sum(map(len, run.parts.values()))
        self._display.say(
            f"run {run.name}: {plural(cells, 'cell')} in {plural(len(run.parts), 'job')}, at most "
            f"{self._config.workers} at once, after job {first}, which prepares them; logs: {run.path / LOGS}"
        )
        return run

    def _create(self, selection: Selection) -> RunFolder | None:
        """Make the folder of a run; return None where nothing is left to do."""
        todo = self._not_under_way(selection.todo)
        if not todo:
            return None
        device = device_of_earlier(self._store.root, self._config)
        seconds = known_seconds(self._store.read().records, self._plan, device)
        minutes = None if self._config.launcher == "local" else self._config.minutes
        parts = [[cell.id for cell in part] for part in packed(todo, seconds, self._config.workers, minutes)]
        return RunFolder.create(self._store.root, self._request, self._config, parts, by_hand=self._by_hand)

    def _not_under_way(self, cells: Sequence[Cell]) -> list[Cell]:
        """Return the cells that no other run of this folder is about to measure."""
        taken: set[str] = set()
        for other in runs(self._store.root):
            if here := under_way(other) & {cell.id for cell in cells}:
                self._display.say(
                    f"{plural(len(here), 'cell')} {_are(here)} under way in run {other.name} "
                    f"and left to it: '{command('attach', other)}' gathers them, cancel gives them back"
                )
                taken |= here
        self.is_elsewhere = bool(cells) and taken >= {cell.id for cell in cells}
        return [cell for cell in cells if cell.id not in taken]

    def _part(self, run: RunFolder, name: str, cells: set[str]) -> Part:
        """Return a part; the cells that an earlier launcher gathered are done."""
        part = Part(name, {cell.id: cell for cell in self._plan.cells if cell.id in cells})
        part.job = run.jobs().get(name, [""])[-1]
        attempts = run.attempts(name)
        finished = run.finished(name, attempts)
        for record in self._gathering.new(name, attempts, self._display.warn):
            self._receive(part, record)
        part.done = {one for one in finished if one in part.latest and self._gathering.is_old(part.latest[one])}
        part.at_submission = len(part.done)
        self.problems += [part.latest[one].failure for one in part.done if part.latest[one].failure]
        return part

    def _watch(self, run: RunFolder) -> None:
        """Follow the jobs until no part has cells left that can be run."""
        preparing = Part(PREPARE, {}, run.jobs().get(PREPARE, [""])[-1])
        while any(part.left for part in self._parts):
            if time.monotonic() - self._read >= READ_SECONDS:
                self._read = time.monotonic()
                if not run.exists:
                    raise UsageError(f"{run.path} is gone: end the jobs of the run by the scheduler's own command")
                if run.is_closed:
                    raise UsageError(f"run {run.name} was cancelled: run the same command again to measure the rest")
                self._note(run, preparing)
                for part in self._parts:
                    self._gather(run, part)
            if (queue := self._queue()) is not None:
                self._in_queue = queue
                if run.prepared is None and self._is_gone(preparing, queue):
                    self._fail_preparation(run, preparing)
                for part in self._parts:
                    if part.left and self._is_gone(part, queue) and run.prepared is not None:
                        self._settle(run, part)
            self._course.turn()
            time.sleep(TURN_SECONDS)
        self._display.note = ""
        run.close()

    def _gather(self, run: RunFolder, part: Part) -> None:
        """Take what a part's jobs have written since the last time, and show what they are at."""
        if not part.left:
            return
        attempts = run.attempts(part.name)
        finished = run.finished(part.name, attempts)  # before the records, which are written first
        for record in self._gathering.new(part.name, attempts, self._display.warn):
            self._receive(part, record)
        for name in part.left:
            if name in finished and name in part.latest:
                self._finish(part, part.latest[name], attempts)
        self._leave_out(part, {name for attempt in attempts for name in attempt.skipped})
        last = attempts[-1] if attempts else None
        running = [] if last is None else last.running
        for name in part.cells:
            if name in self._shown and name not in running:
                self._shown.pop(name)[1].close()
        for name in running:
            if name in part.left:
                self._line(part.cells[name], last)
        if last is not None and run.is_by_hand and (last.refusal or last.last("done")):
            reason = last.refusal or "its job has ended without it: run the same command again"
            self._give_up(run, part, part.left, reason)

    def _receive(self, part: Part, record: Record) -> None:
        """Take a record of a part: one of an interruption only counts if the cell is given up."""
        if record.status != "interrupted" or record.cell.id not in part.latest:
            part.latest[record.cell.id] = record
        if record.status != "interrupted":
            self._gathering.keep(record)

    def _finish(self, part: Part, record: Record, attempts: Sequence[Attempt]) -> None:
        """Report a finished cell."""
        part.done.add(record.cell.id)
        attempt = next((one for one in reversed(attempts) if record.cell.id in one.begun), None)
        task, stack = self._line(record.cell, attempt)
        seconds = record.wall_seconds if record.wall_seconds is not None else time.monotonic() - task.started
        self._course.finish(record, task, seconds)
        self._course.showing.finish(record.cell)
        stack.close()
        del self._shown[record.cell.id]

    def _leave_out(self, part: Part, names: set[str]) -> None:
        """Count cells as done that a job has found in the records, as they rest on its device."""
        if known := [part.cells[name] for name in part.left if name in names]:
            self._display.say(f"{plural(len(known), 'cell')} of {part.name} {_are(known)} recorded already")
            self._expect_no_more(known)
            part.done |= {cell.id for cell in known}
            latest = {record.cell.id: record for record in self._store.read().records}
            failures = [latest[cell.id].failure for cell in known if cell.id in latest]
            self.problems += [failure for failure in failures if failure]

    def _expect_no_more(self, cells: Sequence[Cell]) -> None:
        """Take cells out of what the display expects."""
        self._display.leave_out([cell.method for cell in cells])
        for cell in cells:
            self._course.showing.finish(cell)
            if cell.id in self._shown:
                self._shown.pop(cell.id)[1].close()

    def _line(self, cell: Cell, attempt: Attempt | None) -> tuple[Task, ExitStack]:
        """Return the line of a cell in the display, made if there is none."""
        if cell.id not in self._shown:
            stack = ExitStack()
            where = f" on {attempt.node}" if attempt and attempt.node else ""
            task = stack.enter_context(self._display.task(f"{self._plan.describe(cell)}{where}"))
            if attempt is not None:
                task.started -= max(time.time() - attempt.began(cell.id), 0.0)
            self._shown[cell.id] = task, stack
        return self._shown[cell.id]

    def _queue(self) -> dict[str, Queued] | None:
        """Return the queue, if it is time to ask and the scheduler answers."""
        now = time.monotonic()
        if now - self._asked < ASK_SECONDS[now - self._began > SOON_SECONDS]:
            return None
        self._asked = now
        return self._engine.queue()

    def _is_gone(self, part: Part, queue: dict[str, Queued]) -> bool:
        """Say whether a part's job has left the queue."""
        part.absent = 0 if part.job in queue else part.absent + 1
        return part.absent >= ABSENT

    def _settle(self, run: RunFolder, part: Part) -> None:
        """Decide on a part whose job is gone: what its running cell died of, and whether the rest runs again."""
        run.look_again(part.name)
        self._gather(run, part)
        word = self._engine.ending(part.job)
        if not part.left or (word.split(" ")[0] in LIVE and part.absent < MOST_ABSENT):
            return  # the accounting lags behind the queue
        last = next((one for one in reversed(run.attempts(part.name)) if one.job == part.job), None)
        if last is not None:
            self._blame(run, part, last, word)
            self._gather(run, part)
        part.idle = 0 if len(part.done) > part.at_submission else part.idle + 1
        refused = "" if last is None else last.refusal
        ended = f"job {part.job} ended ({word or NO_WORD})"
        if refused or word.startswith(CANCELLED) or part.idle > run.config.retries:
            logs = f"; logs: {run.path / LOGS}"
            often = f", {part.idle} in a row without a result" if part.idle > run.config.retries else ""
            self._give_up(run, part, part.left, refused or f"{ended}{often}{logs}")
            return
        tries = Counter(name for attempt in run.attempts(part.name) for name in attempt.begun)
        hopeless = [name for name in part.left if tries[name] > run.config.retries]
        self._give_up(run, part, hopeless, f"{ended}: begun {run.config.retries + 1} times, and never finished")
        if part.left:
            self._resubmit(run, part, ended)

    def _resubmit(self, run: RunFolder, part: Part, ended: str) -> None:
        """Submit a part again; if the scheduler refuses that now, it is asked again later."""
        part.absent = 0
        try:
            job = self._engine.submit([part.name], run.config.options(preparing=False))[part.name]
        except UsageError as error:
            part.idle = max(part.idle - 1, 0)  # this end has been counted, and will be found again
            self._display.warn(f"{ended}, and its cells cannot be submitted again now: {error}")
            return
        part.job, part.at_submission = job, len(part.done)
        again = f"{plural(len(part.left), 'cell')} {_are(part.left)} submitted again"
        self._display.warn(f"{ended}: {again}")

    def _blame(self, run: RunFolder, part: Part, last: Attempt, word: str) -> None:
        """Record the cell that was running when its job vanished, if the scheduler says that it is to blame.

        A job of several cells at once does not tell which; one that was measured already keeps its record.
        """
        name = last.begun[-1] if last.begun else ""
        if name not in part.left or self._is_measured(part, name):
            return
        tries = [attempt for attempt in run.attempts(part.name) if name in attempt.begun]
        was_told = last.last("stop").get("signal") == signal.SIGUSR2 and len(tries) > run.config.retries
        if word.startswith(OUT_OF_MEMORY) and last.running == [name]:
            outcome = Outcome("oom", reason=f"Slurm ended its job {last.job} on {last.node}: out of memory")
        elif (word.startswith(TIMEOUT) or was_told) and last.begun == [name]:
            outcome = Outcome("timeout", reason=f"it takes longer than the time of its job, {last.job} on {last.node}")
        else:
            return
        ResultStore(run.path / part.name / LAUNCHER).append(self._record(part.cells[name], last, outcome))

    def _is_measured(self, part: Part, name: str) -> bool:
        """Say whether a cell has a good record, of this run or, if that counts, of an earlier one."""
        known = [part.latest[name]] if name in part.latest else []
        if self._request.execution.rerun != "always":
            known += [record for record in self._store.read().records if record.cell.id == name]
        return any(record.status == "ok" for record in known)

    def _record(self, cell: Cell, attempt: Attempt, outcome: Outcome) -> Record:
        """Return the record of a cell whose job did not live to write it."""
        began = attempt.began(cell.id)
        return Recorder(self._plan, {"node": attempt.node}).record(
            cell, outcome, attempt.last("device").get("identity", {}), started=utc(began), seconds=None
        )

    def _give_up(self, run: RunFolder, part: Part, cells: Sequence[str], reason: str) -> None:
        """Leave cells without a result; what is known of them is that they were interrupted."""
        if not cells:
            return
        begun = {name: attempt for attempt in run.attempts(part.name) for name in attempt.begun}
        for name in cells:
            if name in part.latest:
                self._gathering.keep(part.latest[name])
            elif name in begun:
                outcome = Outcome("interrupted", reason=reason)
                self._gathering.keep(self._record(part.cells[name], begun[name], outcome))
        self.problems.append(f"not measured: {cells[0]}{f' and {len(cells) - 1} more' if cells[1:] else ''}: {reason}")
        self._display.warn(self.problems[-1])
        self._expect_no_more([part.cells[name] for name in cells])
        part.cells = {name: cell for name, cell in part.cells.items() if name not in cells}

    def _fail_preparation(self, run: RunFolder, preparing: Part) -> None:
        """Raise CannotStart with the reason why nothing was prepared, once that is certain."""
        run.look_again(PREPARE)
        run.look_again()
        word = self._engine.ending(preparing.job)
        is_good = word.startswith("COMPLETED") or word.split(" ")[0] in LIVE
        if run.prepared is not None or (is_good and preparing.absent < MOST_ABSENT):
            return  # a network file system or the accounting may lag behind the queue
        attempts = run.attempts(PREPARE)
        refused = attempts[-1].refusal if attempts else ""
        ended = f"job {preparing.job}, which prepares it, ended early ({word or NO_WORD}); logs: {run.path / LOGS}"
        raise CannotStart(f"the run cannot start: {refused or ended}")

    def _note(self, run: RunFolder, preparing: Part) -> None:
        """Tell the display what waits, and for what.

        Raises:
            UsageError: of a run by hand, nothing can be prepared.
        """
        if run.is_by_hand:
            self._display.note = "" if any(part.latest or self._shown for part in self._parts) else "no cell has begun"
            refusals = [attempt.refusal for attempt in run.attempts(PREPARE)[-1:] if run.prepared is None]
            if any(refusals):
                raise UsageError(f"the run cannot start: {refusals[0]}")
            return
        jobs = [part.job for part in self._parts if part.left] + ([] if run.prepared else [preparing.job])
        waiting = {job: self._in_queue[job] for job in jobs if job in self._in_queue}
        waiting = {job: queued for job, queued in waiting.items() if queued.state == "PENDING"}
        why = next((queued.why for queued in waiting.values() if queued.why not in ("None", "Dependency")), "")
        is_preparing = preparing.job in jobs and preparing.job not in waiting
        prepares = "base model, judges and what targets share are being made" if is_preparing else ""
        waits = f"{plural(len(waiting), 'job')} waiting{f' ({why})' if why else ''}" if waiting else ""
        self._display.note = "; ".join(filter(None, [prepares, waits]))


def _are(things: Sized) -> str:
    return "is" if len(things) == 1 else "are"
