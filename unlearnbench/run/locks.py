"""Locks that keep the runs on one machine off each other's devices, and the count of a run's devices at work."""

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
from unlearnbench.store.provenance import allowed_cores
from unlearnbench.store.records import natural

MOST_READ, MOST_SHOWN = 1000, 160  # bytes and characters of a lock holder's note
FIRST_WORDS = 3  # words of the holder's command in the note
TRY_SECONDS = 1.0  # for a held lock, before the holder is shown


class Beside:
    """Counts a run's devices at work at the same time, since a timed cell is alone only on its own device."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._working: set[int] = set()
        self._most: dict[int, int] = {}  # device -> largest number of others at work since its last query

    @contextmanager
    def working(self, device: int) -> Iterator[None]:
        """Count a device as at work during the context.

        Args:
            device: a unique number.
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
        """Return the largest number of others at work at once since this device's last query."""
        with self._lock:
            most, self._most[device] = self._most.get(device, 0), len(self._working - {device})
            return most


@contextmanager
def device_lock(
    identities: Sequence[Mapping[str, Any]],
    waiting: Callable[[str], None],
    warn: Callable[[str], None] = lambda text: None,
) -> Iterator[None]:
    """Lock the devices of a run against other runs of any user on this machine.

    For a CPU, its cores are locked, or those that this process may use, so that runs on disjoint cores work in
    parallel.

    Args:
        identities: of the devices.
        waiting: called every TRY_SECONDS with the holder while another run holds a device.
        warn: called with a sentence where other users' locks do not work.

    Raises:
        UsageError: a lock cannot be acquired.
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
    """Return the locks of devices, sorted to avoid deadlocks between runs."""
    names: set[str] = set()
    for identity in identities:
        if identity["type"] == "cpu":
            names |= {f"cpu-{core}" for core in identity.get("cores", allowed_cores())}
        else:
            names.add(f"{identity['type']}-{identity['uuid']}")
    return sorted(names, key=natural)


def _first_that_works(name: str) -> tuple[BaseFileLock, list[str]]:
    """Return a usable lock, acquired if it is free, and the reasons why others are unusable."""
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
    """Hold a lock, with a note on the holder in its file."""
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
    """Return the folder shared by all users, and this user's folder in case the first is unusable."""
    common = Path("/tmp")  # not TMPDIR, which may differ per user
    if not os.access(common, os.W_OK):
        common = Path(tempfile.gettempdir())
    return [common / "unlearnbench-locks", common / f"unlearnbench-locks-{getattr(os, 'getuid', int)()}"]


def _made(folder: Path) -> Path:
    """Return a folder, made for every user if it is missing.

    Raises:
        OSError: something else is there.
    """
    with suppress(FileExistsError):
        folder.mkdir()
        folder.chmod(0o1777)  # like /tmp
    if folder.is_symlink() or not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    return folder


def _acquired(lock: BaseFileLock) -> bool:
    """Try to take a lock for TRY_SECONDS."""
    try:
        lock.acquire(timeout=TRY_SECONDS)
    except Timeout:
        return False
    return True


def _open_plain(path: Path, flags: int) -> int:
    """Open a lock's file in a shared folder, where a link to another file may have been placed.

    Raises:
        OSError: it is a link, a pipe, or has several hard links.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EPERM, "not a plain file", str(path))
    return descriptor


def _write_note(path: Path, text: str) -> None:
    """Write a note on the holder into a lock's file, in place."""
    with suppress(OSError), os.fdopen(_open_plain(path, os.O_WRONLY), "wb") as file:  # the lock holds without it
        file.truncate()
        file.write(text.encode("utf-8", "replace"))


def _holder(path: Path) -> str:
    """Return the holder's note in a lock's file."""
    text = ""
    with suppress(OSError), os.fdopen(_open_plain(path, os.O_RDONLY), "rb") as file:
        text = one_line(file.read(MOST_READ).decode("utf-8", "replace"), MOST_SHOWN)
    return text or "another run"


def _self_description() -> str:
    """Return a note on this process: user, process, start time and the first words of its command."""
    program, *arguments = sys.argv or [""]
    command = " ".join([Path(program).name, *arguments[:FIRST_WORDS]])
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"{psutil.Process().username()}, process {os.getpid()} on {socket.gethostname()}, since {since} ({command})"
