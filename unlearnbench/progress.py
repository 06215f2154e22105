"""What the user sees while cells run: a live bar in a terminal, plain lines elsewhere; never silent for long."""

import time
from collections.abc import Sequence

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


class Display:
    """Shows one line of state, and a line per finished cell."""

    def __init__(self, console: Console, methods: Sequence[str]) -> None:
        """Show progress over the cells of these methods."""
        self._console = console
        self._total = len(methods)
        self._estimate = Estimate(methods)
        self._done = 0
        self._label, self._detail = "start", ""
        self._started = self._job_started = time.monotonic()
        self._last_line = 0.0
        self._live = Live(console=console, refresh_per_second=4, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Display":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live:
            self._live.stop()

    def job(self, label: str) -> None:
        """Name the job that starts now."""
        self._label, self._detail, self._job_started = label, "", time.monotonic()
        self.tick(force=True)

    def progress(self, what: str, done: int, total: int) -> None:
        """Show how far the job is; total 0 where nobody knows."""
        self._detail = f"{what} {100 * done // total}%" if total else what
        if total and self._estimate.left() is None and 0 < done < total:
            elapsed = time.monotonic() - self._job_started
            self._detail += f", about {spell(elapsed * (total - done) / done)} for this step"
        self.tick()

    def tick(self, force: bool = False) -> None:
        """Refresh; without a terminal, print a line when the last one is old enough."""
        now = time.monotonic()
        if self._live:
            self._live.update(Text(self._state(now), overflow="ellipsis", no_wrap=True))
        elif force or now - self._last_line >= LINE_SECONDS:
            self._last_line = now
            self._console.print(self._state(now), highlight=False, soft_wrap=True, markup=False)

    def _state(self, now: float) -> str:
        if not self._total:  # a training of its own, no cells
            return " | ".join(
                part for part in [self._label, self._detail, f"{spell(now - self._started)} so far"] if part
            )
        left = self._estimate.left(now - self._job_started)
        remaining = f"about {spell(left)} left" if left is not None else f"then {self._total - self._done} cells"
        position = f"[{min(self._done + 1, self._total)}/{self._total}]"
        parts = [f"{position} {self._label}", self._detail, f"{spell(now - self._started)} so far", remaining]
        return " | ".join(part for part in parts if part)

    def finish(self, label: str, method: str, seconds: float, verdict: str) -> None:
        """Print what became of a cell."""
        self._done += 1
        self._estimate.finish(method, seconds)
        self.say(f"[{self._done}/{self._total}] {label}: {verdict} in {spell(seconds)}")

    def say(self, text: str) -> None:
        """Print a line above the live one."""
        self._last_line = time.monotonic()
        self._console.print(text, highlight=False, soft_wrap=True, markup=False)
