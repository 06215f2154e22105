"""Progress display: a live line in a terminal, regular plain lines elsewhere."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from unlearnbench.errors import one_line, printable

LINE_SECONDS = (5.0, 10.0)  # between plain lines: in the first minute, and later
NARROW = 40  # columns below which the text is shortened
KNOWN_SECONDS, KNOWN_SHARE = 5.0, 0.05  # of a step, before its time left is shown
MOST_LABELS = 4  # of tasks at once in a line
LEAST_PART = 6  # columns: a part of the line is left out if it has less


def spell(seconds: float) -> str:
    """Return a duration in words: 42s, 3m05s, 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Estimate:
    """Time left, from the durations of finished cells of each method."""

    def __init__(self, methods: Sequence[str]) -> None:
        """Take the methods of the cells to come, in order."""
        self._waiting = list(methods)
        self._spent: dict[str, list[float]] = {}

    def finish(self, method: str, seconds: float) -> None:
        """Record the duration of the next cell, of this method."""
        self._waiting.remove(method)
        self._spent.setdefault(method, []).append(seconds)

    def leave_out(self, methods: Sequence[str]) -> None:
        """Expect cells of these methods no more."""
        for method in methods:
            self._waiting.remove(method)

    def left(self, running_seconds: float = 0.0) -> float | None:
        """Return the seconds left, or None while no cell has finished.

        Args:
            running_seconds: how long the first waiting cell has been running.
        """
        if not self._spent:
            return None
        means = {method: sum(times) / len(times) for method, times in self._spent.items()}
        typical = sum(means.values()) / len(means)
        expected = [means.get(method, typical) for method in self._waiting]
        if expected:
            expected[0] = max(expected[0] - running_seconds, 0.0)
        return sum(expected)


@dataclass(frozen=True)
class State:
    """The state of a run: one line that fits the window, the most important parts first."""

    parts: Sequence[str]
    position: str = ""  # of the cell among all
    left: str = ""  # time left

    def fit(self, width: int, ellipsis: str = "…") -> str:
        """Return a line of at most `width` columns: parts that do not fit are cut or left out, from the end."""
        line = _cut(self.position, width, ellipsis)
        space = width - cell_len(line) - 1
        forms = [f"about {self.left} left"] * (width >= NARROW) + [f"{self.left} left", self.left]
        lefts = [text for text in forms if cell_len(text) <= space]
        for part in [*(lefts[:1] if self.left else []), *map(one_line, self.parts)]:
            separator = "" if not line else " " if line == self.position else " | "
            space = width - cell_len(line) - len(separator)
            if line and cell_len(part) > space and space < LEAST_PART:
                break
            line += separator + _cut(part, space, ellipsis)
        return line

    def __str__(self) -> str:
        """Return the whole line, for a log."""
        return self.fit(sys.maxsize)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the line for the present width of the window."""
        yield Text(self.fit(options.max_width, "..." if options.ascii_only else "…"), no_wrap=True, overflow="crop")


def _cut(text: str, width: int, ellipsis: str) -> str:
    """Return a text of at most `width` columns, with an ellipsis where it is cut."""
    if cell_len(text) <= width:
        return text
    return f"{set_cell_size(text, max(width - len(ellipsis), 0)).rstrip()}{ellipsis}"[:width]


class Task:
    """A running task, as displayed."""

    def __init__(self, label: str, tick: Callable[[bool], None], announce: bool = False) -> None:
        """Start a task without progress so far.

        Args:
            label: its name.
            tick: refreshes the display; at once if its argument is True.
            announce: show each new step at once, also in a log.
        """
        self.label, self.detail, self.started, self.estimate = label, "", time.monotonic(), ""
        self._tick, self._announce = tick, announce
        self._pace = Pace("")

    def progress(self, what: str, done: int, total: int) -> None:
        """Show progress; total 0 where unknown."""
        new = what != self._pace.what
        if new:
            self._pace = Pace(what)
        left = self._pace.left(done, total, time.monotonic())
        self.detail = f"{what} {100 * done // total}%" if total else what
        self.estimate = "" if left is None else f", about {spell(left)} for this step"
        self._tick(new and self._announce)


class Pace:
    """The pace of a step, without its first part, which may compile or wait for a disk."""

    def __init__(self, what: str) -> None:
        """Begin a step."""
        self.what = what
        self._first: tuple[int, float] | None = None  # amount and time of the first progress

    def left(self, done: int, total: int, now: float) -> float | None:
        """Return the seconds left, or None while too little is known."""
        if not 0 < done < total:
            return None
        if self._first is None or done < self._first[0]:
            self._first = done, now
        steps, seconds = done - self._first[0], now - self._first[1]
        if seconds < KNOWN_SECONDS or steps < KNOWN_SHARE * total:
            return None
        return seconds * (total - done) / steps


class Display:
    """Shows one line of state, and a line per finished cell. Thread-safe."""

    def __init__(self, console: Console) -> None:
        """Show progress; `expect` sets the cells."""
        self._console, self._lock = console, threading.RLock()
        self._total, self._done, self._spent = 0, 0, 0.0
        self._estimate = Estimate([])
        self._tasks: list[Task] = []
        self._holder = ""  # of the lock that is waited for
        self.note = ""  # what is going on besides the tasks
        self._started = self._first_cell = time.monotonic()
        self._last_line = 0.0
        # a log is not a window, even where FORCE_COLOR enables colours
        window = console.is_interactive and not console.is_dumb_terminal and console.file.isatty()
        self._live = Live(console=console, refresh_per_second=4, transient=True) if window else None

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def expect(self, methods: Sequence[str]) -> None:
        """Take the methods of the cells to come, in order."""
        self._total, self._estimate = len(methods), Estimate(methods)

    def leave_out(self, methods: Sequence[str]) -> None:
        """Expect cells of these methods no more."""
        with self._lock:
            self._total -= len(methods)
            self._estimate.leave_out(methods)

    @contextmanager
    def task(self, label: str, announce: bool = False) -> Iterator[Task]:
        """Show a task during the context; with `announce`, each of its steps at once, also in a log."""
        task = Task(label, self.tick, announce)
        with self._lock:
            self._tasks.append(task)
            self.tick(force=True)
        try:
            yield task
        finally:
            with self._lock:
                self._tasks.remove(task)

    def wait(self, what: str, holder: str) -> None:
        """Show what the run waits for, and the holder; in a log the latter once."""
        known, self._holder = holder == self._holder, holder
        parts = [what, f"{spell(time.monotonic() - self._started)} so far"]
        if self._live or not known:
            parts.insert(1, f"held by {holder}")
        self._show(State(parts), force=not known)

    def tick(self, force: bool = False) -> None:
        """Refresh; without a terminal, print a line when the last one is old enough."""
        with self._lock:
            if self._tasks or self.note:
                self._show(self._state(time.monotonic()), force)

    def _show(self, state: State, force: bool) -> None:
        now = time.monotonic()
        with self._lock:
            if self._live:
                self._live.update(state)
            elif force or now - self._last_line >= LINE_SECONDS[now - self._started > 60]:
                self._last_line = now
                self._print(str(state))

    def _state(self, now: float) -> State:
        left = self._estimate.left(now - self._tasks[0].started if self._tasks else 0.0)
        alone = len(self._tasks) == 1
        steps = [task.detail + (task.estimate if alone and left is None else "") for task in self._tasks]
        step = " + ".join(text or "start" for text in steps) if any(steps) else ""
        more = len(self._tasks) - MOST_LABELS
        labels = " + ".join(task.label for task in self._tasks[:MOST_LABELS]) + (f" + {more} more" if more > 0 else "")
        parts = [*filter(None, [step, labels, self.note]), f"{spell(now - self._started)} so far"]
        if not self._total:  # a training, without cells
            return State(parts)
        at_once = max(1.0, self._spent / max(now - self._first_cell, 1e-9))  # cells that ran side by side
        position = f"[{min(self._done + 1, self._total)}/{self._total}]"
        return State(parts, position, spell(left / at_once) if left is not None else "")

    def finish(self, task: Task, method: str, seconds: float, verdict: str) -> None:
        """Print the outcome of a cell."""
        with self._lock:
            if not self._done:
                self._first_cell = task.started
            self._done += 1
            self._spent += seconds
            self._estimate.finish(method, seconds)
            self.say(f"[{self._done}/{self._total}] {task.label}: {verdict} in {spell(seconds)}")

    def say(self, text: str) -> None:
        """Print a line above the live one."""
        with self._lock:
            self._last_line = time.monotonic()
            self._print(text)

    def warn(self, text: str) -> None:
        """Print a warning above the live line."""
        self.say(f"warning: {text}")

    def _print(self, text: str) -> None:
        self._console.print(printable(text), highlight=False, soft_wrap=True, markup=False, emoji=False)
