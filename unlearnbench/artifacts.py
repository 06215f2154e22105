"""The content-addressed cache of what is expensive to make: base models, judges, priors.

An artifact's key is the hash of everything that affects its bytes. Its folder holds `payload.safetensors` and
`artifact.json` (the key's JSON, the payload's checksum, what its making cost). Folders appear by rename, so a reader
never sees half of one; a payload that fails its checksum is rebuilt with a warning. Deleting the cache is always safe.
"""

import importlib.metadata
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from unlearnbench.errors import UsageError
from unlearnbench.hashing import digest, file_digest

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Artifact:
    """A cached product."""

    kind: str
    key: str  # 64 hex digits
    payload_digest: str  # SHA-256 of the payload file
    tensors: Tensors  # on the CPU
    facts: Mapping[str, Any]  # what its maker recorded: cost, accuracy
    reused: bool  # False when this call built it

    @property
    def reference(self) -> dict[str, str]:
        """What a record says of it: key and payload checksum."""
        return {"key": self.key, "sha256": self.payload_digest}


def software() -> dict[str, str]:
    """Return the library versions that affect trained bytes, for artifact keys."""
    return {"torch": torch.__version__, "diffusers": importlib.metadata.version("diffusers")}


def default_cache() -> Path:
    """Return the cache folder: `UNLEARNBENCH_CACHE`, or `unlearnbench` in the user's cache folder."""
    if chosen := os.environ.get("UNLEARNBENCH_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "unlearnbench"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unlearnbench"


class ArtifactStore:
    """A folder of artifacts, safe for several processes at a time."""

    def __init__(self, root: Path) -> None:
        """Use a folder, made on first write."""
        self.root = root

    def get(
        self, kind: str, inputs: Mapping[str, Any], build: Callable[[], tuple[Tensors, Mapping[str, Any]]]
    ) -> Artifact:
        """Return the artifact of these inputs, building it when it is missing or damaged.

        Args:
            kind: a word for the sort of artifact, one folder each.
            inputs: JSON of everything that affects the payload's bytes.
            build: makes the tensors and the facts to record beside them.

        Raises:
            UsageError: the cache cannot be written.
        """
        key = digest({"kind": kind, "inputs": inputs})
        folder = self._folder(kind, inputs)
        with self._writable():
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder.with_suffix(".lock"))
            lock.acquire()
        try:
            with self._writable():
                found = self._read(kind, key, folder)
            if found is not None:
                return found
            tensors, facts = build()  # its errors are its own
            with self._writable():
                artifact = self._write(kind, key, folder, inputs, tensors, facts)
                shutil.rmtree(self.workspace(kind, inputs), ignore_errors=True)
                return artifact
        finally:
            lock.release()

    def fetch(self, what: str) -> None:
        """Take note that something is about to be downloaded, into another place than this cache."""

    def workspace(self, kind: str, inputs: Mapping[str, Any]) -> Path:
        """Return the folder in which the build of this artifact may keep what it needs to go on after a stop."""
        return self._folder(kind, inputs).with_suffix(".work")

    def _folder(self, kind: str, inputs: Mapping[str, Any]) -> Path:
        return self.root / kind / digest({"kind": kind, "inputs": inputs})[:24]

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """Turn the system's refusal into a sentence for the user."""
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"the cache {self.root} cannot be used ({error.strerror or error}): free space there or set "
                f"UNLEARNBENCH_CACHE to another folder"
            ) from error

    def _read(self, kind: str, key: str, folder: Path) -> Artifact | None:
        """Return the artifact in a folder, or None (with a warning where something damaged lies there)."""
        if not folder.exists():
            return None
        payload = folder / "payload.safetensors"
        try:
            note = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
            if note["key"] != key:
                raise ValueError("its key is another's")
            if note.pop("checksum") != digest(note):
                raise ValueError("its note was changed")
            if file_digest(payload) != note["sha256"]:
                raise ValueError("its checksum fails")
            return Artifact(kind, key, note["sha256"], load_file(payload), note["facts"], reused=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.warn(f"cached {kind} in {folder} is damaged ({error}); it is built again", stacklevel=3)
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
            return None

    def _write(
        self,
        kind: str,
        key: str,
        folder: Path,
        inputs: Mapping[str, Any],
        tensors: Tensors,
        facts: Mapping[str, Any],
    ) -> Artifact:
        for leftover in folder.parent.glob(f".{folder.name}-*"):  # of a process that was killed; we hold the lock
            shutil.rmtree(leftover, ignore_errors=True)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        payload = scratch / "payload.safetensors"
        save_file(tensors, payload)
        checksum = file_digest(payload)
        note = {"kind": kind, "key": key, "inputs": inputs, "sha256": checksum, "facts": facts}
        note["checksum"] = digest(note)
        (scratch / "artifact.json").write_text(json.dumps(note, indent=1, allow_nan=False), encoding="utf-8")
        for path in (payload, scratch / "artifact.json", scratch):
            fsync(path)
        scratch.rename(folder)
        fsync(folder.parent)
        return Artifact(kind, key, checksum, tensors, facts, reused=False)


def fsync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
