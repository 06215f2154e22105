"""A run: every cell of a plan without a record is measured, wherever its launcher sends it."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console

from unlearnbench.errors import plural
from unlearnbench.run.course import Check, Course, WeakBase
from unlearnbench.run.execution import Execution
from unlearnbench.run.plan import Plan, Selection, select
from unlearnbench.run.progress import Display
from unlearnbench.run.stopping import Interruption, OutOfTime, Signalled, signals_as_interrupt
from unlearnbench.store.records import DeviceModel, Record, ResultStore


class Launcher(Protocol):
    """Hands the cells of a run out: to the devices of this machine (`lanes`), or to a cluster."""

    def opened(self, course: Course) -> AbstractContextManager[DeviceModel | None]:
        """Make ready; the context yields the model of the devices, None where it is not known yet."""

    def run(self, selection: Selection) -> None:
        """Run the selected cells, see that their records are in the store, and report them to the course.

        The course takes its `turn` several times a second, in the main thread; its exceptions stop the cells.
        """


@dataclass(frozen=True)
class Summary:
    """How a run ended; `failed` are the cells without a result, of this run or kept from an earlier one."""

    ran: int
    kept: int
    failed: list[Record]
    stop: BaseException | None = None  # that ended it early
    lost: Sequence[str] = ()  # cells with records that were removed during the run

    @property
    def interrupted(self) -> bool:
        """Whether it was stopped, by a signal or because its time was up."""
        return isinstance(self.stop, KeyboardInterrupt)

    @property
    def out_of_time(self) -> bool:
        """Whether its time was up (--minutes)."""
        return isinstance(self.stop, OutOfTime)

    @property
    def weak(self) -> bool:
        """Whether a weak base model ended it (--stop-if-weak)."""
        return isinstance(self.stop, WeakBase)

    @property
    def signal(self) -> int | None:
        """The number of the signal that stopped it."""
        return self.stop.number if isinstance(self.stop, Signalled) else None


class Benchmark:
    """Runs the cells of a plan that the rerun policy selects."""

    def __init__(
        self, plan: Plan, launcher: Launcher, store: ResultStore, console: Console, execution: Execution,
        check: Check | None = None, show: Callable[[], object] | None = None,
    ) -> None:  # fmt: skip
        """Prepare a run.

        Args:
            plan: the cells.
            launcher: hands them out.
            store: has the records.
            console: shows progress.
            execution: the options of the run.
            check: returns the failed checks of a record of the untouched model, as in the report.
            show: shows the results so far; called after every forget class.
        """
        self._plan, self._launcher, self._store, self._console = plan, launcher, store, console
        self._execution, self._check, self._show = execution, check, show

    def run(self) -> Summary:
        """Run the cells and return a summary."""
        interruption = Interruption()
        with signals_as_interrupt(interruption), Display(self._console) as display:
            course = Course(display, self._execution, interruption, self._check, self._show)
            try:
                with self._launcher.opened(course) as device:
                    return self._run(course, device)
            except KeyboardInterrupt as stop:  # before any cell began
                return Summary(0, 0, [], stop)

    def _run(self, course: Course, device: DeviceModel | None) -> Summary:
        """Run the cells once the launcher is ready."""
        for warning in self._plan.warnings:
            course.display.warn(warning)
        selection = self._select(device, course.display)
        failed = selection.failed
        kept = len(self._plan.cells) - len(selection.todo)
        stop: BaseException | None = None
        try:
            for record in selection.kept:
                course.check_base(record)
            course.end_if_weak()
            self._launcher.run(selection)
            course.end_if_weak()
        except (KeyboardInterrupt, WeakBase) as error:
            stop = error
        ran = course.ran
        failed += [record for record in ran if record.failure]
        return Summary(len(ran), kept, failed, stop, self._lost([*selection.kept, *ran]))

    def _lost(self, records: Sequence[Record]) -> list[str]:
        """Return the cells with records that were removed from the folder during this run."""
        there = {record.cell.id for record in self._store.read().records}
        return [record.cell.id for record in records if record.cell.id not in there]

    def _select(self, device: DeviceModel | None, display: Display) -> Selection:
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
