"""Protocols between a job and the process that waits for it."""

from collections.abc import Callable
from typing import Protocol

Progress = Callable[[str, int, int], None]  # name of the step, steps done, total steps (0: unknown)


class JobChannel(Protocol):
    """A job's channel to the process that waits for it."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show progress."""

    def beside(self) -> int:
        """Return the largest number of other devices at work at once since the last call."""
