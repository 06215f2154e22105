"""The content-addressed cache of expensive artifacts: base models, judges, priors.

An artifact's key is the hash of everything that affects its bytes. Its folder holds `payload.safetensors` and
`artifact.json` (the key's JSON, the payload's checksum, the cost of making it). Folders appear by rename, hence
complete; a payload that fails its checksum is rebuilt with a warning. Deleting the cache is always safe. A lock avoids
duplicate work; where locks do not work, the first builder wins and the others use its result. What is removed to free
space is decided in `cache`.
"""

import errno
import importlib.metadata
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unlearnbench.errors import one_line
from unlearnbench.store.cache import NOTE, PAYLOAD, mark_used, unwritable
from unlearnbench.store.hashing import digest, file_digest
from unlearnbench.store.scratch import beside, fsync, moved, remove, remove_at_once, sweep

SHORT = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)  # errors of the system, not of the file
TRIES = 5  # attempts to move an artifact to its place, each after removing something damaged

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Artifact:
    """A cached result of an expensive computation."""

    kind: str
    key: str  # 64 hex digits
    payload_digest: str  # SHA-256 of the payload file
    tensors: Tensors  # on the CPU
    facts: Mapping[str, Any]  # recorded by its builder: cost, accuracy
    reused: bool  # False when this call built it

    @property
    def reference(self) -> dict[str, str]:
        """Its reference in a record: key and payload checksum."""
        return {"key": self.key, "sha256": self.payload_digest}


def key_of(kind: str, inputs: Mapping[str, Any]) -> str:
    """Return the key of an artifact: 64 hex digits."""
    return digest({"kind": kind, "inputs": inputs})


def software() -> dict[str, str]:
    """Return the library versions that affect trained bytes, for artifact keys."""
    return {"torch": torch.__version__, "diffusers": importlib.metadata.version("diffusers")}


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
            kind: of artifact; each kind has a folder.
            inputs: JSON of everything that affects the payload's bytes.
            build: returns the tensors and the facts to record.

        Raises:
            UsageError: the cache cannot be written.
        """
        key = key_of(kind, inputs)
        folder = self._folder(kind, key)
        with self._writable():
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder.with_suffix(".lock"))
            lock.acquire()
        try:
            with self._writable():
                artifact = self._read(kind, key, folder)
            if artifact is not None:
                mark_used(folder)
                return artifact
            began = time.monotonic()
            tensors, facts = build()  # its errors pass through
            seconds = round(time.monotonic() - began, 3)  # of this attempt: an earlier one may have left a checkpoint
            with self._writable():
                artifact = self._write(kind, key, folder, inputs, tensors, facts, seconds)
                shutil.rmtree(self.workspace(kind, inputs), ignore_errors=True)
                return artifact
        finally:
            lock.release()

    def find(self, kind: str, key: str) -> Artifact | None:
        """Return the artifact of a key (`key_of`); None where it is missing or damaged.

        Raises:
            UsageError: the cache cannot be read.
        """
        with self._writable():
            found = self._read(kind, key, self._folder(kind, key))
        if found is not None:
            mark_used(self._folder(kind, key))
        return found

    def discard(self, kind: str, inputs: Mapping[str, Any]) -> None:
        """Remove the artifact of these inputs, if there is one."""
        with self._writable():
            remove_at_once(self._folder(kind, key_of(kind, inputs)))

    def put(
        self, kind: str, inputs: Mapping[str, Any], tensors: Tensors, facts: Mapping[str, Any], seconds: float
    ) -> Artifact:
        """Keep an artifact in place of an earlier one of these inputs.

        Args:
            kind: as of `get`.
            inputs: likewise.
            tensors: the payload.
            facts: to record.
            seconds: that it took to make.

        Raises:
            UsageError: the cache cannot be written.
        """
        key = key_of(kind, inputs)
        self.discard(kind, inputs)
        with self._writable():
            return self._write(kind, key, self._folder(kind, key), inputs, tensors, facts, round(seconds, 3))

    def fetch(self, what: str) -> None:
        """Announce a download to a place other than this cache; `Look` refuses it."""

    def workspace(self, kind: str, inputs: Mapping[str, Any]) -> Path:
        """Return the folder for checkpoints of this artifact's build."""
        return self._folder(kind, key_of(kind, inputs)).with_suffix(".work")

    def _folder(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:24]

    def reference(self, kind: str, inputs: Mapping[str, Any]) -> dict[str, str] | None:
        """Return the reference of an artifact if it seems to exist; only `get` validates it."""
        try:
            note = json.loads(_file(self._folder(kind, key_of(kind, inputs)) / NOTE).read_text(encoding="utf-8"))
            return {"key": note["key"], "sha256": note["sha256"]}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    @contextmanager
    def _writable(self) -> Iterator[None]:
        """Turn the system's errors into a UsageError."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise unwritable(f"the cache {self.root} cannot be used", error) from error

    def _read(self, kind: str, key: str, folder: Path) -> Artifact | None:
        """Return the artifact in a folder, or None (with a warning where it is damaged)."""
        if not os.path.lexists(folder):
            return None
        try:
            payload, note = _file(folder / PAYLOAD), json.loads(_file(folder / NOTE).read_text(encoding="utf-8"))
            if note["key"] != key:
                raise ValueError("its key does not match")
            if note.pop("checksum") != digest(note):
                raise ValueError("its artifact.json was changed")
            if file_digest(payload) != note["sha256"]:
                raise ValueError("its checksum does not match")
            return Artifact(kind, key, note["sha256"], load_file(payload), note["facts"], reused=True)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
            if isinstance(error, OSError) and error.errno in SHORT:
                raise
            if not os.path.lexists(folder):
                return None  # removed meanwhile, to free space
            reason = one_line(str(error)) or type(error).__name__
            warnings.warn(f"cached {kind} in {folder} is damaged ({reason}); it is built again", stacklevel=3)
            remove_at_once(folder)
            return None

    def _write(
        self, kind: str, key: str, folder: Path, inputs: Mapping[str, Any], tensors: Tensors, facts: Mapping[str, Any],
        seconds: float,
    ) -> Artifact:  # fmt: skip
        sweep(folder.parent, f".{folder.name}-*")
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        scratch = beside(folder)
        try:
            scratch.mkdir(parents=True)
            save_file(tensors, scratch / PAYLOAD)
            checksum = file_digest(scratch / PAYLOAD)
            note = {
                "kind": kind, "key": key, "inputs": inputs, "sha256": checksum, "facts": facts, "seconds": seconds,
            }  # fmt: skip
            note["checksum"] = digest(note)
            (scratch / NOTE).write_text(json.dumps(note, indent=1, allow_nan=False), encoding="utf-8")
            for path in (scratch / PAYLOAD, scratch / NOTE, scratch):
                fsync(path)
            for _ in range(TRIES):
                if moved(scratch, folder):
                    fsync(folder.parent)
                    return Artifact(kind, key, checksum, tensors, facts, reused=False)
                if (artifact := self._read(kind, key, folder)) is not None:  # by another builder, without working locks
                    return replace(artifact, reused=False)
            raise FileExistsError(errno.EEXIST, "the existing entry cannot be removed", str(folder))
        finally:
            remove(scratch)


def _file(path: Path) -> Path:
    """Return a path if it is a regular file: opening a pipe would block."""
    if path.exists() and not path.is_file():
        raise ValueError(f"{path.name} is not a file")
    return path
