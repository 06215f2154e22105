"""Files and folders that appear whole: written beside their place under a name of their own, then moved there.

Names hold machine and process, so that nobody takes the scratch of somebody at work for a leftover, also where the
locks of a network file system hold nothing.
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

OLD_SECONDS = 24 * 3600  # what another machine's process has not touched for so long is a leftover
OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)  # why a folder cannot be moved to its place
OWNED = re.compile(r"-([0-9a-f]{8})-([0-9]+)(?:-\w{8})?$")  # ends a name: machine, process, token


def owned(name: str) -> str:
    """Return a name that ends in this machine and this process."""
    return f"{name}-{_machine()}-{os.getpid()}"


def beside(target: Path) -> Path:
    """Return a path beside a target that nobody else writes to; nothing is there yet."""
    return target.with_name(f"{owned(f'.{target.name}')}-{secrets.token_hex(4)}")


def sweep(folder: Path, pattern: str) -> None:
    """Remove what processes that are gone left behind, by a pattern of names."""
    for leftover in folder.glob(pattern):
        if _abandoned(leftover):
            with suppress(OSError):  # it harms nobody, and the next one sweeps again
                remove(leftover)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder; what is gone already is well."""
    if path.is_dir() and not path.is_symlink():
        with suppress(FileNotFoundError):  # another process removes it too
            shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_at_once(path: Path) -> None:
    """Remove something by moving it out of sight first, so that nobody finds half of it."""
    aside = beside(path)
    with suppress(FileNotFoundError):
        path.rename(aside)
        remove(aside)


def moved(new: Path, place: Path) -> bool:
    """Move a folder to its place, and say whether that was free."""
    try:
        new.rename(place)
    except OSError as error:
        if error.errno in OCCUPIED:
            return False
        raise
    return True


def refusal(error: Exception) -> str:
    """Return the system's reason for not reading or writing, in its own words where they are known."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    number = re.search(r"os error ([0-9]+)", str(error))  # safetensors has an error of its own for a full disk
    return os.strerror(int(number[1])) if number else one_line(str(error)) or type(error).__name__


def fsync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _machine() -> str:
    """Return eight hex digits of the machine, as far as numbers of processes mean the same."""
    namespace = Path("/proc/self/ns/pid")  # containers may share a host's name and count processes on their own
    with suppress(OSError):
        namespace = namespace.readlink()
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def _abandoned(path: Path) -> bool:
    owner = OWNED.search(path.name)
    if owner is None:
        return True  # of a version that named no process
    if owner[1] == _machine() and not psutil.pid_exists(int(owner[2])):
        return True
    with suppress(FileNotFoundError):
        return time.time() - path.lstat().st_mtime > OLD_SECONDS
    return False
