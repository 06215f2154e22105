"""What a job may say to the process that waits for it."""

from collections.abc import Callable
from typing import Literal, Protocol

Progress = Callable[[str, int, int], None]  # what is done, steps done, steps in all (0: nobody knows)


Slot = Literal["load", "alone", "beside"]  # what a job wants to do next: get ready, be timed, or neither


class JobChannel(Protocol):
    """What a job can say to the process that waits for it."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show progress."""

    def slot(self, kind: Slot) -> int:
        """Wait until the job may go on with this kind of work; return how many jobs share the cores meanwhile."""

    def beside(self) -> int:
        """Return how many other devices of the run worked at once, at most, since this was asked last."""
