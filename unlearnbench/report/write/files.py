"""Writes the files of a report without touching other files in its folder."""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path, PurePosixPath

from filelock import FileLock

from unlearnbench.errors import UsageError
from unlearnbench.store.hashing import file_digest

MANIFEST, LOCK = ".files.json", ".write.lock"
REPLACED = ("tables", "figures")  # folders where files of an earlier report are removed


def publish(files: Mapping[str, str | bytes], out: Path, boards: Collection[str] = ()) -> None:
    """Write the files of a report into its folder, each atomically.

    A file of an earlier report that this one lacks is removed if it is unchanged by the manifest's checksums. Nothing
    else is removed, and nothing is written through a link.

    Args:
        files: {path within the folder: content}.
        out: the folder, made where it is missing.
        boards: names of the boards that are written as a whole.

    Raises:
        UsageError: the folder cannot be written, or holds a link or something else in the place of a file.
    """
    contents = {name: text.encode() if isinstance(text, str) else text for name, text in files.items()}
    try:
        out.mkdir(parents=True, exist_ok=True)
        _refuse_links(out, [LOCK, MANIFEST, *contents])
        with FileLock(out / LOCK):  # two runs that end at the same time write in turn
            known = _read_manifest(out)
            old = [name for name in known if name not in contents and _is_of(name, boards)]
            _refuse_links(out, old)
            for name, content in contents.items():
                _write(out / name, content)
            for name in old:
                _remove(out / name, known.pop(name))
            known |= {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
            _write(out / MANIFEST, f"{json.dumps(known, indent=0, sort_keys=True)}\n".encode())
    except OSError as error:
        raise UsageError(
            f"cannot write {out} ({error.strerror or error}): free space or give another folder with --out"
        ) from error


def _refuse_links(out: Path, names: Iterable[str]) -> None:
    """Raise UsageError where a link or something else is in the place of a folder or file."""
    for name in dict.fromkeys(names):
        path = out / name
        within = [path, *path.parents]
        for place in within[: within.index(out)]:
            if place.is_symlink():
                raise UsageError(
                    f"{place} is a link, and a report is not written through links: remove it or give another folder "
                    f"with --out"
                )
            if place.exists() and (place.is_file() if place != path else not place.is_file()):
                kind = "folder" if place != path else "file"
                raise UsageError(
                    f"{place} is not a {kind}, which the report needs there: move it away or give another folder with "
                    f"--out"
                )


def _is_of(name: str, boards: Collection[str]) -> bool:
    """Say whether a path of the manifest is one of these boards' tables or figures."""
    parts = PurePosixPath(name).parts
    return len(parts) == 3 and parts[0] in boards and parts[1] in REPLACED and parts[2] != ".."


def _read_manifest(out: Path) -> dict[str, str]:
    """Return the manifest of a folder, {path: SHA-256}; empty where it cannot be read."""
    try:
        found = json.loads((out / MANIFEST).read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    entries = found.items() if isinstance(found, dict) else ()
    return {name: known for name, known in entries if isinstance(known, str) and "\0" not in name}


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically by a rename; hard links to the old file keep its content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with scratch.open("xb") as file:
            file.write(content)
        scratch.replace(path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _remove(path: Path, known: str) -> None:
    """Remove a file if a report wrote it and it is unchanged."""
    if path.is_file() and file_digest(path) == known:
        path.unlink()
