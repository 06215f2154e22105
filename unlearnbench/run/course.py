"""The course of a run: what its launcher reports, and the moments to show it and to look whether it ends."""

import threading
import time
from collections.abc import Callable, Sequence

from unlearnbench.run.execution import Execution
from unlearnbench.run.progress import Display, Task
from unlearnbench.run.showing import Showing
from unlearnbench.run.stopping import Interruption, OutOfTime
from unlearnbench.store.cell import Cell
from unlearnbench.store.records import Record

WEAK = (
    "The untouched model fails the sanity checks. If the base model is too weak: train it longer (--base-steps), use "
    "more images, or give one with --base."
)
STOP_HINT = " --stop-if-weak ends a run here."
Check = Callable[[Record], Sequence[str]]


class WeakBase(Exception):
    """The untouched model fails its checks, and --stop-if-weak ends the run."""


class Course:
    """The course of a run. `finish` may be called by any thread, the rest by the run's main thread."""

    def __init__(
        self, display: Display, execution: Execution, interruption: Interruption, check: Check | None = None,
        show: Callable[[], object] | None = None,
    ) -> None:  # fmt: skip
        """Begin a run; for `check` and `show` see `Benchmark`."""
        self.display, self.ran = display, list[Record]()
        self._execution, self._interruption, self._check, self._show = execution, interruption, check, show
        self._deadline = None if execution.minutes is None else time.monotonic() + 60 * execution.minutes
        self._weak, self._lock = False, threading.Lock()
        self.showing = Showing([], None, display.warn)

    def expect(self, cells: Sequence[Cell]) -> None:
        """Take the cells to come, in order."""
        self.display.expect([cell.method for cell in cells])
        self.showing = Showing(cells, self._show, self.display.warn)

    def finish(self, record: Record, task: Task, seconds: float) -> None:
        """Take the record of a finished cell, and print its outcome."""
        verdict = headline(record) if record.status == "ok" else f"{record.status} ({record.reason})"
        self.display.finish(task, record.cell.method, seconds, verdict)
        with self._lock:
            self.ran.append(record)
            self.check_base(record)

    def check_base(self, record: Record) -> None:
        """Warn at once where a record of the untouched model fails the sanity checks, as in the report."""
        if self._check is None or record.status != "ok" or record.method.get("role") != "reference":
            return
        alarms = self._check(record)
        if alarms and not self._weak:
            self.display.say(f"{WEAK}{'' if self._execution.stop_if_weak else STOP_HINT}")
        for alarm in alarms:
            self.display.say(f"- {alarm}")
        self._weak |= bool(alarms)

    @property
    def is_over(self) -> bool:
        """Whether no further cell should begin, since the base model is too weak."""
        return self._weak and self._execution.stop_if_weak

    def turn(self) -> None:
        """Show how far the run is.

        Raises:
            WeakBase: it ends, as the base model is too weak.
            OutOfTime: its time is up.
        """
        self.end_if_weak()
        self.showing.tick()
        self.tick()

    def tick(self) -> None:
        """Show how far the run is while it is prepared.

        Raises:
            OutOfTime: its time is up.
        """
        self.display.tick()
        self.check_time()

    def end_if_weak(self) -> None:
        """Raise WeakBase where the run is over."""
        if self.is_over:
            raise WeakBase("the base model is too weak (--stop-if-weak)")

    def check_time(self) -> None:
        """Raise OutOfTime once when the run's time is up."""
        if self._deadline is not None and time.monotonic() > self._deadline:
            self._interruption.begin(OutOfTime("the run's time was up (--minutes)"))


def headline(record: Record) -> str:
    """Return the headline numbers of a good record."""
    values = [
        f"{entry['title']} {entry['value']:{entry['format']}}{'%' if entry['unit'] == '%' else ''}"
        if entry["value"] is not None
        else f"{entry['title']} not measurable"
        for entry in record.metrics.values()
        if entry["headline"]
    ]
    return f"ok ({', '.join(values)})" if values else "ok"
