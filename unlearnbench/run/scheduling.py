"""Who works when several cells run side by side: one of a device alone while it is timed, all others together.

Also the locks that keep the runs of one machine apart, and the count of a run's devices at work.
"""

import errno
import os
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import BaseFileLock, FileLock, Timeout

from unlearnbench.errors import UsageError, one_line
from unlearnbench.protocols import Slot
from unlearnbench.store.provenance import allowed_cores
from unlearnbench.store.records import natural

WAIT_SECONDS = 0.5  # between two looks at whether the run was stopped
MOST_READ, MOST_SHOWN = 1000, 160  # bytes and letters of what the holder of a lock wrote
FIRST_WORDS = 3  # of the holder's command, which the note shows


class Scheduler:
    """Gives each cell of a device its slot.

    A cell that wants to be timed waits until nobody works and is then alone. Work that is not timed starts only when no
    cell is timed or on its way there: so all cells of a batch are timed one after another, and then sample together.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working: dict[int, Slot] = {}  # cell -> what it does
        self._waiting: dict[int, Slot] = {}  # cell -> what it wants to do, oldest first

    def acquire(self, cell: int, kind: Slot, tick: Callable[[], None] = lambda: None) -> int:
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

    def release(self, cell: int) -> None:
        """Note that a cell has ended, in whatever way."""
        with self._changed:
            self._working.pop(cell, None)
            self._changed.notify_all()

    def _free(self, cell: int, kind: Slot) -> bool:
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


class Beside:
    """Counts the devices of a run that work beside each other: a cell is timed alone on its own device only."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._working: set[int] = set()
        self._most: dict[int, int] = {}  # device -> the most others at work at once since it asked last

    @contextmanager
    def working(self, device: int) -> Iterator[None]:
        """Note that a device is at work.

        Args:
            device: any number of its own.
        """
        with self._lock:
            self._working.add(device)
            for one in self._working:
                self._most[one] = max(self._most.get(one, 0), len(self._working) - 1)
        try:
            yield
        finally:
            with self._lock:
                self._working.discard(device)

    def most(self, device: int) -> int:
        """Return how many others worked at once, at most, since this was asked last for this device."""
        with self._lock:
            most, self._most[device] = self._most.get(device, 0), len(self._working - {device})
            return most


@contextmanager
def device_lock(
    identities: Sequence[Mapping[str, Any]],
    waiting: Callable[[str], None],
    warn: Callable[[str], None] = lambda text: None,
) -> Iterator[None]:
    """Hold the devices of a run: no two runs, of any user on this machine, work on one at once.

    Of a CPU, the cores are held that belong to it, or that this process may use, so that runs on cores apart go on side
    by side.

    Args:
        identities: of the devices.
        waiting: called once a second while another run holds one, with who that is.
        warn: called with a sentence where other users' runs cannot be seen.

    Raises:
        UsageError: a lock cannot be had.
    """
    note, spoilt = _self_description(), []
    with ExitStack() as held:
        for name in _lock_names(identities):
            lock, problems = _first_that_works(name)
            spoilt += problems
            held.enter_context(_holding(lock, note, waiting))
        if spoilt:
            warn(f"runs of other users are not waited for, because the locks cannot be used ({spoilt[0]})")
        yield


def _lock_names(identities: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the locks of devices, in the one order that keeps two runs from waiting for each other."""
    names: set[str] = set()
    for identity in identities:
        if identity["type"] == "cpu":
            names |= {f"cpu-{core}" for core in identity.get("cores", allowed_cores())}
        else:
            names.add(f"{identity['type']}-{identity['uuid']}")
    return sorted(names, key=natural)


def _first_that_works(name: str) -> tuple[BaseFileLock, list[str]]:
    """Return a lock that this user can open, held if nobody else does, and why others cannot be used."""
    problems: list[str] = []
    for folder in _lock_folders():
        try:
            lock = FileLock(_made(folder) / f"{name}.lock", mode=0o666)
            with suppress(Timeout):
                lock.acquire(timeout=0)
            return lock, problems
        except OSError as error:
            problems.append(f"{folder}: {error.strerror or error}")
    raise UsageError(f"the device cannot be locked ({'; '.join(problems)}): remove what is in the way there")


@contextmanager
def _holding(lock: BaseFileLock, note: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock; who holds it stands in its file."""
    path = Path(lock.lock_file)
    while not (lock.is_locked or _acquired(lock)):
        waiting(_holder(path))
    try:
        _write_note(path, note)
        yield
    finally:
        _write_note(path, "")
        lock.release()


def _lock_folders() -> list[Path]:
    """Return the folder where every user's runs meet, and one of this user's own for where that is spoilt."""
    common = Path("/tmp")  # TMPDIR may be a user's own
    if not os.access(common, os.W_OK):
        common = Path(tempfile.gettempdir())
    return [common / "unlearnbench-locks", common / f"unlearnbench-locks-{getattr(os, 'getuid', int)()}"]


def _made(folder: Path) -> Path:
    """Return a folder after making it, where it is missing, for every user.

    Raises:
        OSError: something else is there.
    """
    with suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(0o1777)  # like the folder it lies in
    if folder.is_symlink() or not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    return folder


def _acquired(lock: BaseFileLock) -> bool:
    """Try for a second to take a lock."""
    try:
        lock.acquire(timeout=1)
    except Timeout:
        return False
    return True


def _open_plain(path: Path, flags: int) -> int:
    """Open a lock's file, where anybody may have put something else that has another file's content at stake.

    Raises:
        OSError: it is a link, a pipe, or the file has another name too.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EPERM, "not a plain file", str(path))
    return descriptor


def _write_note(path: Path, text: str) -> None:
    """Write who holds a lock into its file, which stays the file that others wait for."""
    with suppress(OSError), os.fdopen(_open_plain(path, os.O_WRONLY), "wb") as file:  # the lock holds without it
        file.truncate()
        file.write(text.encode("utf-8", "replace"))


def _holder(path: Path) -> str:
    """Return who holds a lock, as the holder wrote it."""
    text = ""
    with suppress(OSError), os.fdopen(_open_plain(path, os.O_RDONLY), "rb") as file:
        text = one_line(file.read(MOST_READ).decode("utf-8", "replace"), MOST_SHOWN)
    return text or "another run"


def _self_description() -> str:
    """Return who this is, since when, and the first words of the command."""
    program, *arguments = sys.argv or [""]
    command = " ".join([Path(program).name, *arguments[:FIRST_WORDS]])
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"{psutil.Process().username()}, process {os.getpid()} on {socket.gethostname()}, since {since} ({command})"
