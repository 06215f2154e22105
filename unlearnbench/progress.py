"""What the user sees while cells run: a live bar in a terminal, plain lines elsewhere; never silent for long."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

LINE_SECONDS = 5.0  # a plain line at least this often


def spell(seconds: float) -> str:
    """Return a duration as people write it: 42s, 3m05s, 2h07m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


class Estimate:
    """Time left, from how long finished cells of each method took."""

    def __init__(self, methods: Sequence[str]) -> None:
        """Take the methods of the cells to come, in order."""
        self._waiting = list(methods)
        self._spent: dict[str, list[float]] = {}

    def finish(self, method: str, seconds: float) -> None:
        """Note that the next cell, of this method, took so long."""
        self._waiting.remove(method)
        self._spent.setdefault(method, []).append(seconds)

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


class Task:
    """Something that is going on, as the display knows it."""

    def __init__(self, label: str, tick: Callable[[], None]) -> None:
        """Start a task of which nothing is known but its name."""
        self.label, self.detail, self.started, self.estimate = label, "", time.monotonic(), ""
        self._tick = tick

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how far it is; total 0 where nobody knows."""
        self.detail, self.estimate = (f"{what} {100 * done // total}%" if total else what), ""
        if 0 < done < total:
            elapsed = time.monotonic() - self.started
            self.estimate = f", about {spell(elapsed * (total - done) / done)} for this step"
        self._tick()

    def spelled(self, with_estimate: bool) -> str:
        """Return label and detail, the label alone before anything is known."""
        detail = self.detail + (self.estimate if with_estimate else "")
        return f"{self.label} | {detail}" if detail else self.label


class Display:
    """Shows one line of state, and a line per finished cell. Any thread may call it."""

    def __init__(self, console: Console) -> None:
        """Show progress; `expect` says over what."""
        self._console, self._lock = console, threading.RLock()
        self._total, self._done, self._spent = 0, 0, 0.0
        self._estimate = Estimate([])
        self._tasks: list[Task] = []
        self._started = self._first_cell = time.monotonic()
        self._last_line = 0.0
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

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

    @contextmanager
    def task(self, label: str) -> Iterator[Task]:
        """Show that something goes on, while the context lasts."""
        task = Task(label, self.tick)
        with self._lock:
            self._tasks.append(task)
            self.tick(force=True)
        try:
            yield task
        finally:
            with self._lock:
                self._tasks.remove(task)

    def note(self, text: str) -> None:
        """Say what is waited for while nothing goes on."""
        self._show(text, force=False)

    def tick(self, force: bool = False) -> None:
        """Refresh; without a terminal, print a line when the last one is old enough."""
        with self._lock:
            if self._tasks:
                self._show(self._state(time.monotonic()), force)

    def _show(self, text: str, force: bool) -> None:
        now = time.monotonic()
        with self._lock:
            if self._live:
                self._live.update(Text(text, overflow="ellipsis", no_wrap=True))
            elif force or now - self._last_line >= LINE_SECONDS:
                self._last_line = now
                self._console.print(text, highlight=False, soft_wrap=True, markup=False)

    def _state(self, now: float) -> str:
        left = self._estimate.left(now - self._tasks[0].started)
        working = " + ".join(task.spelled(left is None and len(self._tasks) == 1) for task in self._tasks)
        if not self._total:  # a training of its own, no cells
            return f"{working} | {spell(now - self._started)} so far"
        at_once = max(1.0, self._spent / max(now - self._first_cell, 1e-9))  # cells that ran side by side
        then = f"then {self._total - self._done} cells"
        remaining = f"about {spell(left / at_once)} left" if left is not None else then
        position = f"[{min(self._done + 1, self._total)}/{self._total}]"
        return f"{position} {working} | {spell(now - self._started)} so far | {remaining}"

    def finish(self, task: Task, method: str, seconds: float, verdict: str) -> None:
        """Print what became of a cell."""
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
            self._console.print(text, highlight=False, soft_wrap=True, markup=False)
