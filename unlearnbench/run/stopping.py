"""How a run is stopped: by a signal, or because its time is up."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from unlearnbench.run.workers import STOPPING


class Signalled(KeyboardInterrupt):
    """The run was stopped by a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"the run was stopped by {signal.Signals(number).name}")
        self.number = number


class OutOfTime(KeyboardInterrupt):
    """The run's time is up (--minutes): it stops as on Ctrl-C."""


class Interruption:
    """The state of stopping a run: the first cause stops it, further ones are ignored."""

    def __init__(self) -> None:
        self._begun = False

    def begin(self, cause: KeyboardInterrupt) -> None:
        """Raise the cause, if it is the first."""
        if not self._begun:
            self._begun = True
            raise cause


@contextmanager
def signals_as_interrupt(interruption: Interruption) -> Iterator[None]:
    """Stop the run in order on a terminating signal: finished cells stay, the running one is `interrupted`.

    Signals that are ignored already (SIGHUP after nohup, SIGINT in a script's background) stay ignored.
    """

    def interrupt(number: int, _: Any) -> None:
        interruption.begin(Signalled(number))

    kept = {number: signal.getsignal(number) for number in STOPPING}
    heard = {number: handler for number, handler in kept.items() if handler not in (signal.SIG_IGN, None)}
    for number in heard:
        signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in heard.items():
            signal.signal(number, handler)
