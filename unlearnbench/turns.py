"""Who works when several cells run side by side: one alone while it is timed, all others together.

Also the lock that keeps the runs of one machine apart.
"""

import os
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unlearnbench.errors import UsageError
from unlearnbench.process import Turn

WAIT_SECONDS = 0.5  # between two looks at whether the run was stopped


class Turns:
    """Gives each cell its turn.

    A cell that wants to be timed waits until nobody works and is then alone. Work that is not timed starts only when no
    cell is timed or on its way there: so all cells of a batch are timed one after another, and then sample together.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working: dict[int, Turn] = {}  # cell -> what it does
        self._waiting: dict[int, Turn] = {}  # cell -> what it wants to do, oldest first

    def take(self, cell: int, kind: Turn, tick: Callable[[], None] = lambda: None) -> int:
        """Give back what the cell does now, and wait until it may do this kind of work.

        Args:
            cell: any number of its own.
            kind: of work.
            tick: called twice a second; what it raises ends the waiting.

        Returns:
            How many cells share the cores now: those at work, and those about to join them.
        """
        with self._changed:
            self._working.pop(cell, None)
            self._waiting[cell] = kind
            self._changed.notify_all()
            try:
                while not self._free(cell, kind):
                    self._changed.wait(WAIT_SECONDS)
                    tick()
                self._working[cell] = kind
                joining = [wish for wish in self._waiting.values() if wish == kind != "alone"]
                return len(self._working) - 1 + len(joining) if kind != "alone" else 1
            finally:
                del self._waiting[cell]
                self._changed.notify_all()

    def leave(self, cell: int) -> None:
        """Note that a cell has ended, in whatever way."""
        with self._changed:
            self._working.pop(cell, None)
            self._changed.notify_all()

    def _free(self, cell: int, kind: Turn) -> bool:
        """Say whether a waiting cell may go on. Loading goes before being timed, being timed before the rest."""
        others = [wish for other, wish in self._waiting.items() if other != cell]
        if kind == "alone":
            oldest = next(other for other, wish in self._waiting.items() if wish == "alone")
            return not self._working and oldest == cell
        if "alone" in self._working.values():
            return False
        if kind == "load":
            return "alone" not in others
        return "load" not in self._working.values() and "alone" not in others and "load" not in others


@contextmanager
def device_lock(identity: Mapping[str, Any], waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a device: no two runs, of any user on this machine, work on it at once.

    Args:
        identity: of the device.
        waiting: called once a second while another run holds it.

    Raises:
        UsageError: the lock cannot be had.
    """
    name = "cpu" if identity["type"] == "cpu" else f"{identity['type']}-{identity['uuid']}"
    try:
        common = Path("/tmp")  # TMPDIR may be a user's own
        folder = (common if os.access(common, os.W_OK) else Path(tempfile.gettempdir())) / "unlearnbench-locks"
        if not folder.exists():
            folder.mkdir(exist_ok=True)
            folder.chmod(0o1777)  # like the folder it lies in: every user's runs meet here
        lock = FileLock(folder / f"{name}.lock", mode=0o666)
        while not _acquired(lock):
            waiting()
    except OSError as error:
        raise UsageError(f"the device cannot be locked ({error}): set TMPDIR to a folder you can write") from error
    try:
        yield
    finally:
        lock.release()


def _acquired(lock: FileLock) -> bool:
    """Try for a second to take a lock."""
    try:
        lock.acquire(timeout=1)
    except Timeout:
        return False
    return True
