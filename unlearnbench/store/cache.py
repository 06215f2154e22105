"""The size of the cache: its entries, its limit, what is removed first and what a run in progress keeps.

Works without torch. Only folders with the layout of an artifact are ever touched: `KIND/KEY24/` with a payload and a
note and nothing else, `KIND/KEY24.work/` with the checkpoint of an unfinished one, and their locks. An artifact's note
has the time of its last use as its time of modification, its payload the time when it was made. Each run in progress
has a file in `.runs/` with the time of its start.
"""

import math
import os
import re
import secrets
import shutil
import stat
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from unlearnbench.errors import UsageError
from unlearnbench.store.cell import UNLEARNED
from unlearnbench.store.hashing import read_object
from unlearnbench.store.scratch import OLD_SECONDS, owned, refusal, remove_at_once, sweep

PAYLOAD, NOTE = "payload.safetensors", "artifact.json"
LIMIT = "UNLEARNBENCH_CACHE_LIMIT"
DEFAULT_BYTES = 50 * 10**9
DIGITS = 24  # of the key in a folder's name
KEY = f"[0-9a-f]{{{DIGITS}}}"
ENTRY, LOCK = re.compile(rf"{KEY}(\.work)?"), re.compile(rf"{KEY}\.lock")
SCRATCH = f".{'[0-9a-f]' * DIGITS}*-*"  # pattern of what `scratch.beside` names
SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT])(i?)B?", re.IGNORECASE)
RUNS = ".runs"
PRODUCTS = (UNLEARNED, "samples")  # kinds that only the cell itself needs while a run is in progress
REFRESH_SECONDS = 3600.0  # between signs of life of a run
UNFINISHED_SECONDS = 30 * 24 * 3600  # after which nobody resumes from a checkpoint


def default_cache() -> Path:
    """Return the cache folder: `UNLEARNBENCH_CACHE`, or `unlearnbench` in the user's cache folder."""
    if chosen := os.environ.get("UNLEARNBENCH_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "unlearnbench"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unlearnbench"


def unwritable(what: str, error: Exception) -> UsageError:
    """Return the error for a cache that cannot be read or written."""
    return UsageError(f"{what} ({refusal(error)}): free space there or set UNLEARNBENCH_CACHE to another folder")


@dataclass(frozen=True)
class Entry:
    """An artifact in the cache, or the checkpoint of one that is not finished."""

    path: Path  # its folder
    kind: str
    size: int  # bytes
    used: int  # nanoseconds since the epoch
    made: int  # nanoseconds since the epoch

    @property
    def key(self) -> str:
        """The first digits of its key."""
        return self.path.name[:DIGITS]

    @property
    def is_finished(self) -> bool:
        """Whether it is an artifact, not a checkpoint."""
        return not self.path.suffix

    @property
    def seconds(self) -> float | None:
        """The seconds that it took to make; None where an older version made it."""
        try:
            seconds = read_object(self.path / NOTE).get("seconds")
        except (OSError, ValueError):  # unfinished, damaged or removed meanwhile
            return None
        return seconds if isinstance(seconds, float) else None


@dataclass(frozen=True)
class Freed:
    """What was removed from the cache, and what was not."""

    removed: list[Entry]
    in_use: list[Entry]  # due, but used by a run in progress or being made or read
    refused: dict[Path, str]  # due, but the system refused: its reason
    over: int = 0  # bytes above the limit that remain


def entries(root: Path) -> list[Entry]:
    """Return the entries of a cache, the least recently used first.

    Raises:
        UsageError: the cache is not a folder, or cannot be read.
    """
    found = [entry for folder in _kinds(root) for path in _listed(folder) if (entry := _entry(path)) is not None]
    return sorted(found, key=lambda entry: (entry.used, entry.path))


def _kinds(root: Path) -> list[Path]:
    """Return the folders of the kinds; links are not followed."""
    try:
        found = sorted(root.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise unwritable(f"the cache {root} cannot be used", error) from error
    return [path for path in found if not path.name.startswith(".") and path.is_dir() and not path.is_symlink()]


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (PermissionError, FileNotFoundError):  # somebody else's, in a folder of many things, or removed meanwhile
        return []


def _entry(path: Path) -> Entry | None:
    """Return the entry in a folder, or None where there is something else."""
    if ENTRY.fullmatch(path.name) is None or path.is_symlink():
        return None
    try:
        files = {file.name: file.lstat() for file in path.iterdir()}
        changed = path.lstat().st_mtime_ns
    except OSError:  # not a folder, or removed meanwhile
        return None
    if not path.suffix and (not files or not all(map(stat.S_ISREG, (file.st_mode for file in files.values())))):
        return None
    if not path.suffix and not files.keys() <= {PAYLOAD, NOTE}:
        return None
    times = {name: file.st_mtime_ns for name, file in files.items()}
    used = times[NOTE] if NOTE in times else max([changed, *times.values()])
    size = sum(file.st_size for file in files.values())
    return Entry(path, path.parent.name, size, used, times.get(PAYLOAD, changed))


def limit(root: Path, size: int) -> int | None:
    """Return the limit of a cache in bytes, or None for no limit.

    `UNLEARNBENCH_CACHE_LIMIT` sets it. The default is DEFAULT_BYTES, or half of the disk that the cache could fill
    where that is less.

    Args:
        root: of the cache.
        size: of the cache at present, in bytes.

    Raises:
        UsageError: the variable holds something else than a size.
    """
    if text := _given():
        return parse_limit(text)
    there = next(folder for folder in (root, *root.absolute().parents) if folder.exists())
    return min(DEFAULT_BYTES, (size + shutil.disk_usage(there).free) // 2)


def check_limit() -> None:
    """Raise UsageError where `UNLEARNBENCH_CACHE_LIMIT` holds something else than a size."""
    if text := _given():
        parse_limit(text)


def _given() -> str:
    return os.environ.get(LIMIT, "").strip()


def parse_limit(text: str) -> int | None:
    """Return the bytes of a size such as `50G`, `1.5TB` or `500 MiB`; None for `none`.

    Raises:
        UsageError: the text is something else.
    """
    if text.lower() == "none":
        return None
    match = SIZE.fullmatch(text)
    thousand = 1024 if match and match[3] else 1000
    size = int(float(match[1]) * thousand ** ("KMGT".index(match[2].upper()) + 1)) if match else 0
    if size <= 0:
        raise UsageError(f"{LIMIT} takes a size such as 50G or 500M, or none, not {text!r}")
    return size


def mark_used(folder: Path) -> None:
    """Note that the artifact in a folder is used now."""
    with suppress(OSError):  # it can be used without, in a cache that cannot be written
        os.utime(folder / NOTE)


def pin(root: Path, references: Iterable[Mapping[str, str]]) -> None:
    """Mark artifacts as used, so that `trim` keeps them while this run is in progress.

    Args:
        root: of the cache.
        references: of artifacts, as `Artifact.reference` returns them and records have them; those without a key, or
            not in the cache, are passed over.
    """
    folders = _kinds(root)
    for key in [reference["key"] for reference in references if reference.get("key")]:
        for folder in folders:  # the key covers the kind
            mark_used(folder / key[:DIGITS])


class Run:
    """A run in progress, registered by a file that holds the times since when it needs what it has used."""

    def __init__(self, path: Path) -> None:
        """Write the file."""
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self._start = self._cells = path.stat().st_mtime_ns  # by the clock that also stamps artifacts
        self._write()

    def needs_cells_since(self, moment: int) -> None:
        """Declare that weights and samples last used before a moment belong to finished cells.

        Args:
            moment: in nanoseconds since the epoch.
        """
        self._cells = max(moment, self._start)
        with suppress(OSError):  # more than necessary is kept
            self._write()

    def _write(self) -> None:
        scratch = self._path.with_name(f".{self._path.name}")
        scratch.write_text(f"{self._start} {self._cells}", encoding="utf-8")
        scratch.replace(self._path)

    def refresh(self, ended: threading.Event) -> None:
        """Give signs of life until the run has ended: another machine cannot see its process."""
        while not ended.wait(REFRESH_SECONDS):
            with suppress(OSError):  # the next one may succeed
                self._write()


@contextmanager
def in_use(root: Path) -> Iterator[Run]:
    """Register a run: inside the context, nothing that it needs is removed from the cache.

    That is what was used since its start, but for the products of its finished cells.

    Raises:
        UsageError: the cache cannot be written, or its limit is not a size.
    """
    check_limit()  # before the work, not after it
    path = root / RUNS / f"{owned('run')}-{secrets.token_hex(4)}"
    try:
        run = Run(path)
    except OSError as error:
        raise unwritable(f"the cache {root} cannot be used", error) from error
    ended = threading.Event()
    refresher = threading.Thread(target=run.refresh, args=(ended,), daemon=True)
    refresher.start()
    try:
        yield run
    finally:
        ended.set()
        refresher.join()
        path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Running:
    """The runs in progress: since when the oldest needs what it has used, in nanoseconds since the epoch."""

    since: float = math.inf
    cells: float = math.inf  # likewise of the products of cells

    def needs(self, entry: Entry) -> bool:
        """Say whether a run may still need an entry."""
        return entry.used >= (self.cells if entry.kind in PRODUCTS else self.since)


def running(root: Path) -> Running:
    """Return the runs in progress."""
    sweep(root / RUNS, "*run-*")
    found = [(math.inf, math.inf)]
    for path in (root / RUNS).glob("run-*"):
        with suppress(FileNotFoundError):  # it has just ended
            words = path.read_text(encoding="utf-8").split()
            start, cells = words if len(words) == 2 else [str(path.stat().st_mtime_ns)] * 2  # it has just begun
            found.append((int(start), int(cells)))
    return Running(*map(min, zip(*found, strict=True)))


def trim(root: Path) -> Freed:
    """Remove leftovers, and the least recently used entries until the cache is within its limit.

    Entries that a run in progress has used, or that are being made or read, stay.

    Raises:
        UsageError: the cache cannot be read, or its limit is not a size.
    """
    _tidy(root)
    found = entries(root)
    size = sum(entry.size for entry in found)
    most = limit(root, size)
    forgotten = time.time_ns() - UNFINISHED_SECONDS * 10**9
    old = [entry for entry in found if not entry.is_finished and entry.used < forgotten]
    freed = _remove(root, old)
    size -= sum(entry.size for entry in freed.removed)
    if most is None or size <= most:
        return freed
    more = _remove(root, [entry for entry in found if entry not in old], size - most)
    over = max(size - most - sum(entry.size for entry in more.removed), 0)
    return Freed(freed.removed + more.removed, freed.in_use + more.in_use, {**freed.refused, **more.refused}, over)


def clean(root: Path, due: Iterable[Entry], *, dry_run: bool = False) -> Freed:
    """Remove entries that are not in use, and leftovers.

    Args:
        root: of the cache.
        due: the entries to remove, of `entries`.
        dry_run: whether to only return what would be removed.
    """
    if not dry_run:
        _tidy(root)
        return _remove(root, due)
    chosen, runs = list(due), running(root)
    kept = [entry for entry in chosen if runs.needs(entry)]
    return Freed([entry for entry in chosen if entry not in kept], kept, {})


def _remove(root: Path, due: Iterable[Entry], needed: float = float("inf")) -> Freed:
    """Remove entries that are not in use, in this order, until the needed bytes are free."""
    runs, freed = running(root), Freed([], [], {})
    for entry in due:
        if needed <= 0:
            break
        if runs.needs(entry):
            freed.in_use.append(entry)
            continue
        try:
            if _removed(entry):
                freed.removed.append(entry)
                needed -= entry.size
            else:
                freed.in_use.append(entry)
        except OSError as error:
            freed.refused[entry.path] = refusal(error)
    return freed


def _removed(entry: Entry) -> bool:
    """Remove an entry unless somebody makes it, reads it or has used it since it was listed."""
    lock = FileLock(entry.path.with_suffix(".lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return False
    try:
        now = _entry(entry.path)
        if now is not None and now.used != entry.used:
            return False
        remove_at_once(entry.path)
        _remove_lock(entry.path.with_suffix(".lock"))
        return True
    finally:
        lock.release()


def _remove_lock(path: Path) -> None:
    """Remove a held lock's file where it guards nothing: whoever waits for it makes a new one."""
    if not any(os.path.lexists(path.with_suffix(suffix)) for suffix in ("", ".work")):
        path.unlink(missing_ok=True)


def _tidy(root: Path) -> None:
    """Remove scratch of ended processes, and old locks that guard nothing."""
    for folder in _kinds(root):
        sweep(folder, SCRATCH)
        for path in _listed(folder):
            if LOCK.fullmatch(path.name) is None or os.path.lexists(path.with_suffix("")):
                continue
            with suppress(OSError, Timeout):  # harmless; the next run tries again
                if time.time() - path.lstat().st_mtime > OLD_SECONDS:
                    with FileLock(path, timeout=0):
                        _remove_lock(path)
