"""Atomic files and folders: written next to their place under a unique name, then moved there.

Names contain machine and process, so that running processes' scratch is not removed as a leftover, even where locks of
a network file system do not work.
"""

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from contextlib import suppress
from pathlib import Path

import psutil

from unlearnbench.errors import one_line

OLD_SECONDS = 24 * 3600  # scratch of another machine older than this is a leftover
OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)  # why a folder cannot be moved to its place
OWNED = re.compile(r"-([0-9a-f]{8})-([0-9]+)(?:-\w{8})?$")  # suffix of a name: machine, process, token


def owned(name: str) -> str:
    """Return a name that ends in this machine and this process."""
    return f"{name}-{_machine()}-{os.getpid()}"


def beside(target: Path) -> Path:
    """Return a unique unused path next to a target."""
    return target.with_name(f"{owned(f'.{target.name}')}-{secrets.token_hex(4)}")


def sweep(folder: Path, pattern: str) -> None:
    """Remove leftovers of ended processes, by a pattern of names."""
    for leftover in folder.glob(pattern):
        if _abandoned(leftover):
            with suppress(OSError):  # harmless; the next sweep tries again
                remove(leftover)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder if it exists."""
    if path.is_dir() and not path.is_symlink():
        with suppress(FileNotFoundError):  # another process removes it too
            shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_at_once(path: Path) -> None:
    """Remove something atomically, by moving it away first."""
    aside = beside(path)
    with suppress(FileNotFoundError):
        path.rename(aside)
        remove(aside)


def moved(new: Path, place: Path) -> bool:
    """Move a folder to its place; return False if the place is occupied."""
    try:
        new.rename(place)
    except OSError as error:
        if error.errno in OCCUPIED:
            return False
        raise
    return True


def refusal(error: Exception) -> str:
    """Return the system's reason for a failed read or write."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = re.search(r"os error ([0-9]+)", str(error))  # safetensors wraps the system's error
    return os.strerror(int(number[1])) if number else one_line(str(error)) or type(error).__name__


def fsync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _machine() -> str:
    """Return eight hex digits of the machine and its process namespace."""
    namespace = Path("/proc/self/ns/pid")  # containers may share a host name but not process ids
    with suppress(OSError):
        namespace = namespace.readlink()
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def _abandoned(path: Path) -> bool:
    owner = OWNED.search(path.name)
    if owner is None:
        return True  # of an old version without process ids
    if owner[1] == _machine() and not psutil.pid_exists(int(owner[2])):
        return True
    with suppress(FileNotFoundError):
        return time.time() - path.lstat().st_mtime > OLD_SECONDS
    return False
