"""Output of `cache`: what lies in the cache and what it cost, and what was freed."""

import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from unlearnbench.cli.tables import table
from unlearnbench.errors import UsageError, one_line, spell_bytes, suggest
from unlearnbench.run.progress import spell
from unlearnbench.store.cache import LIMIT, Entry, clean, entries, limit

HEADERS = ("kind", "number", "size", "made in", "longest unused", "last used")
UNKNOWN = "-"
NO_CACHE = "there is no cache yet: the first run makes {}"
DAY = 24 * 3600


def chosen(root: Path, patterns: Sequence[str], unused_for: float | None) -> list[Entry]:
    """Return the entries of a cache of these kinds (all without any), unused for so many days.

    Raises:
        UsageError: the cache holds nothing of a kind, or cannot be read.
    """
    found = entries(root)
    there = sorted({entry.kind for entry in found})
    for pattern in patterns:
        if found and not any(fnmatchcase(kind, pattern) for kind in there):
            raise UsageError(
                f"the cache {root} holds nothing of kind {pattern!r}{suggest(pattern, there)}: it holds "
                f"{', '.join(there)}"
            )
    latest = None if unused_for is None else time.time() - unused_for * DAY
    return [
        entry for entry in found
        if (not patterns or any(fnmatchcase(entry.kind, pattern) for pattern in patterns))
        and (latest is None or entry.used / 1e9 <= latest)
    ]  # fmt: skip


def shown(root: Path, found: Sequence[Entry]) -> Iterator[str]:
    """Yield the lines on what lies in a cache: a table by kind, the largest first, and the limit."""
    every = entries(root)
    size = sum(entry.size for entry in every)
    most = limit(root, size)
    if not root.exists():
        yield NO_CACHE.format(root)
        return
    groups: dict[str, list[Entry]] = {}
    for entry in found:
        groups.setdefault(entry.kind if entry.is_finished else f"{entry.kind} (unfinished)", []).append(entry)
    if groups:
        rows = sorted(groups.items(), key=lambda group: (-sum(entry.size for entry in group[1]), group[0]))
        yield from table([_row(name, group) for name, group in [*rows, ("total", list(found))]], HEADERS)
        yield ""
    bound = "without a limit" if most is None else f"of at most {spell_bytes(most)}"
    yield f"{root}: {spell_bytes(size)} {bound} ({LIMIT} sets the limit)"


def _row(name: str, group: Sequence[Entry]) -> list[str]:
    """Return a row of the table."""
    known = [seconds for entry in group if (seconds := entry.seconds) is not None]
    made = f"{'over ' * (len(known) < len(group))}{spell(sum(known))}" if known else UNKNOWN
    used = [entry.used / 1e9 for entry in group]
    return [
        one_line(name),
        str(len(group)),
        spell_bytes(sum(entry.size for entry in group)),
        made,
        *map(_spell_time, (min(used), max(used))),
    ]


def _spell_time(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def cleaned(root: Path, due: Sequence[Entry], dry_run: bool) -> tuple[list[str], bool]:
    """Remove entries from a cache; return the lines on what was freed, and whether the system refused nothing."""
    if not root.exists():
        return [NO_CACHE.format(root)], True
    freed = clean(root, due, dry_run=dry_run)
    if not due:
        return [f"there is nothing to free in {root}"], True
    verb = "would free" if dry_run else "freed"
    stay = f"; {_spell_entries(freed.in_use)} stay, in use by a run in progress" if freed.in_use else ""
    lines = [f"{verb} {_spell_entries(freed.removed)} in {root}{stay}"]
    for path, reason in list(freed.refused.items())[:1]:
        lines.append(f"{_spell_number(len(freed.refused))} could not be removed, such as {path} ({reason})")
    return lines, not freed.refused


def _spell_entries(found: Sequence[Entry]) -> str:
    return f"{spell_bytes(sum(entry.size for entry in found))} ({_spell_number(len(found))})"


def _spell_number(number: int) -> str:
    return "1 entry" if number == 1 else f"{number} entries"
