"""The store of records: one JSON line per cell, appended and fsynced by one writer under a file lock.

Reports read this and nothing else, so it imports neither torch nor a plugin.
"""

import base64
import gc
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from filelock import FileLock

from unlearnbench.errors import UsageError
from unlearnbench.grid import Cell
from unlearnbench.hashing import canonical_json, digest

SCHEMA = 1
MOST_PROBLEMS = 5  # unreadable lines named per file
PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")  # names that become folders or files
B4 = "-b4"  # ends the names of protocols that differ from another one by FID's reference set alone
SPACED = (b'": ', b', "')  # between the parts of a line that something else than `append` wrote
Status = Literal["ok", "failed", "oom", "timeout", "interrupted"]


class NewerSchema(ValueError):
    """A record of a version that this one cannot read."""


@dataclass(frozen=True)
class Record:
    """What is known of one cell.

    `metrics` maps a metric's name to value, n, unit, direction, format and source hash; `cost` maps a phase to a
    `cost.Cost` as JSON. A failed cell has a `reason` and no metrics. `wall_seconds` are the seconds of `cost` that were
    not reused (of `forget`, the first of its repeats), and those of `outside`.
    """

    cell: Cell
    method: Mapping[str, Any]  # title, paper, role, overrides, source_hash
    status: Status
    reason: str | None = None
    traceback: str | None = None
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cost: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    wall_seconds: float | None = None
    outside: Mapping[str, float] = field(default_factory=dict)  # seconds in no phase: start, load, wait, ...
    priors: Mapping[str, Any] = field(default_factory=dict)  # name -> seconds, shared, reused, key of the artifact
    probes: Mapping[str, str] = field(default_factory=dict)  # memory probe -> why it is not there
    disturbances: Sequence[Mapping[str, str]] = field(default_factory=list)  # phase, and what else was going on
    counts: Mapping[str, Any] = field(default_factory=dict)  # of prior and forget, by the harness
    flops: Mapping[str, Any] = field(default_factory=dict)  # forward and backward per image, peak per second
    curves: Mapping[str, Any] = field(default_factory=dict)
    timestep_loss: Mapping[str, Any] = field(default_factory=dict)  # edges, forget, retain, n
    protocol: Mapping[str, Any] = field(default_factory=dict)
    dataset: Mapping[str, Any] = field(default_factory=dict)  # title, class names, extractor
    judge: Mapping[str, Any] = field(default_factory=dict)  # test accuracy, n
    artifacts: Mapping[str, Any] = field(default_factory=dict)
    images: Mapping[str, Any] = field(default_factory=dict)  # strips of samples as base64 PNG
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object, schema version and cell id first; empty fields are left out.

        So a field that is added later changes no digest of records that lack it.
        """
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        filled = {name: value for name, value in fields.items() if value not in (None, {}, [])}
        return {"schema": SCHEMA, "cell_id": self.cell.id, **filled, "cell": self.cell.to_json()}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the record's canonical JSON."""
        return digest(self.to_json())

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Record":
        """Return the record that `to_json` wrote.

        Raises:
            NewerSchema: a newer version wrote it.
            ValueError: another schema version, an unknown status, or missing fields.
        """
        schema = value.get("schema")
        if type(schema) is int and schema > SCHEMA:
            raise NewerSchema(f"it has schema {schema}, of a newer version of unlearnbench; this one reads {SCHEMA}")
        if schema != SCHEMA:
            raise ValueError(f"it has schema {schema!r}, this version reads {SCHEMA}")
        if value.get("status") not in get_args(Status):
            raise ValueError(f"it has the unknown status {value.get('status')!r}")
        fields = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
        try:
            record = cls(**{**fields, "cell": Cell.from_json(value["cell"])})
            _check(record)
        except (TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ValueError(f"a field is missing or of the wrong type ({error})") from error
        if record.cell.id != value.get("cell_id"):
            raise ValueError("its cell id does not match its cell")
        return record

    @property
    def device_model(self) -> tuple[str, str]:
        """Type and name of the device: devices of one model share a table. One without a name stands for itself."""
        return device_model(self.provenance.get("device", {}))

    def is_stale(self, source_hashes: Mapping[str, str]) -> bool:
        """Say whether method, metric or dataset (recipes, judge, protocol) is another now than when this was measured.

        Args:
            source_hashes: {"method:NAME", "metric:NAME", "dataset:DIGEST" or "panel:DIGEST": hash as it is now}; what
                it does not name is not judged.
        """
        measured = {f"method:{self.cell.method}": self.method.get("source_hash")}
        digest = self.dataset.get("digest")
        measured[f"dataset:{digest}"] = digest
        if panel := self.dataset.get("panel"):  # records of before there were several judges rest on one alone
            measured[f"panel:{panel}"] = panel
        measured |= {f"metric:{name}": entry.get("source_hash") for name, entry in self.metrics.items()}
        return any(key in source_hashes and source_hashes[key] != value for key, value in measured.items())


Hashes = Mapping[str, str] | Callable[[Iterable[Record]], Mapping[str, str]]  # or what finds them for records


def hashes_of(source_hashes: Hashes, records: Iterable[Record]) -> Mapping[str, str]:
    """Return the hashes of what records rest on, as it is now."""
    return source_hashes(records) if callable(source_hashes) else source_hashes


def device_model(identity: Mapping[str, Any]) -> tuple[str, str]:
    """Return type and name of a device; without a name its UUID."""
    return str(identity.get("type")), str(identity.get("name") or identity.get("uuid"))


@dataclass(frozen=True)
class Reading:
    """The last finished record of each cell (or its interruption), and what could not be read, one sentence each."""

    records: list[Record]
    problems: list[str]


class ResultStore:
    """A folder of records: `DATASET/METHOD.jsonl`."""

    def __init__(self, root: Path) -> None:
        """Use a folder, made on first write."""
        self.root = root

    def append(self, record: Record) -> None:
        """Add a record durably: it is on the disk when this returns.

        Raises:
            UsageError: the folder cannot be written.
            ValueError, TypeError, RecursionError: the record is no sound JSON.
        """
        path = self.root / record.cell.dataset / f"{record.cell.method}.jsonl"
        line = canonical_json(record.to_json()).encode() + b"\n"
        Record.from_json(json.loads(line))  # never write what could not be read
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.root / ".write.lock"), path.open("ab+") as file:
                if file.tell() and _last_byte(path) != b"\n":
                    line = b"\n" + line  # a writer was killed within its line: leave the torn one alone
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UsageError(
                f"cannot write {path} ({error.strerror or error}): free space or give another folder with --results"
            ) from error

    def read(self) -> Reading:
        """Return the last record of every cell; lines that are torn or of another schema are named and skipped.

        Raises:
            UsageError: a file that cannot be read.
        """
        latest: dict[str, Record] = {}
        problems: list[str] = []
        with _uncollected():
            for path in sorted(self.root.glob("*/*.jsonl"), key=lambda path: natural(str(path))):
                if not path.is_file():
                    problems.append(f"{path} is skipped: it is not a file")
                    continue
                try:
                    content = path.read_bytes()
                except OSError as error:
                    raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
                for record in _read_lines(path, content, problems):
                    if record.status == "interrupted" and record.cell.id in latest:
                        continue  # a measurement that was not finished takes no earlier one away
                    latest.pop(record.cell.id, None)  # so that order follows the last line
                    latest[record.cell.id] = record
        return Reading(list(latest.values()), problems)


@contextmanager
def open_results(root: Path) -> Iterator[Reading]:
    """Read a folder of records, and let the garbage collector pass over them as long as they are in use.

    Many records are millions of objects, none of them garbage: to look through them again and again would take as long
    as all the rest of a report.
    """
    with _uncollected():
        reading = ResultStore(root).read()
        gc.freeze()
    try:
        yield reading
    finally:
        gc.unfreeze()


@contextmanager
def _uncollected() -> Iterator[None]:
    """Let no garbage be looked for within."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _read_lines(path: Path, content: bytes, problems: list[str]) -> Iterator[Record]:
    """Yield the records of a file; the first lines that hold none become problems, the others are counted."""
    bad, newer = 0, []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            yield _read_line(line)
        except NewerSchema:
            newer.append(number)
        except (ValueError, AttributeError, RecursionError) as error:
            bad += 1
            torn = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
            if bad <= MOST_PROBLEMS:
                problems.append(f"{path}, line {number} is skipped: {'is torn or not JSON' if torn else error}")
    if bad > MOST_PROBLEMS:
        problems.append(f"{path}: {bad - MOST_PROBLEMS} more lines are skipped")
    if newer:
        places = ", ".join(map(str, newer[:MOST_PROBLEMS])) + (", ..." if len(newer) > MOST_PROBLEMS else "")
        problems.append(
            f"{path}: {len(newer)} of its records are skipped, for a newer version of unlearnbench wrote them (schema "
            f"above {SCHEMA}, line {places}): update it to see them"
        )


def _read_line(line: bytes) -> Record:
    value = json.loads(line, parse_constant=_refuse)
    record = Record.from_json(value)
    plain = line.isascii() and not any(mark in line for mark in SPACED) and list(value) == sorted(value)
    if plain and value == record.to_json():  # the line is the record's canonical JSON, as `append` wrote it
        vars(record)["digest"] = hashlib.sha256(line.strip()).hexdigest()
    return record


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is no JSON number")


def _check(record: Record) -> None:
    """Raise ValueError, TypeError, KeyError or AttributeError unless a report can show the record."""
    cell = record.cell
    if not all(isinstance(name, str) and PLAIN.fullmatch(name) for name in (cell.dataset, cell.protocol, cell.method)):
        raise ValueError("its dataset, protocol or method is no plain name")
    if any(type(number) is not int for number in (cell.forget_class, *cell.seeds)):
        raise ValueError("its forget class or a seed is no whole number")
    objects = (
        "method", "metrics", "cost", "outside", "priors", "probes", "counts", "flops", "protocol", "dataset", "judge",
        "artifacts", "images", "provenance",
    )  # fmt: skip
    for name in objects:
        if not isinstance(getattr(record, name), Mapping):
            raise ValueError(f"{name} is not an object")
    for cost in record.cost.values():
        float(cost["seconds"])
        [int(peak) for peak in cost["memory_bytes"].values()]
        [float(seconds) for seconds in cost.get("repeats", ())]
    for prior in record.priors.values():
        float(prior["seconds"]), str(prior["key"])
    [float(seconds) for seconds in record.outside.values()]
    [str(found["phase"]) + str(found["what"]) for found in record.disturbances]
    for entry in record.metrics.values():
        f"{float(entry['value'] or 0):{entry['format']}}"
        for key in ("title", "unit", "better", "shows", "format"):
            if not isinstance(entry[key], str):
                raise ValueError("a metric's title, unit, better, shows or format is not text")
        int(entry["n"])
    for picture in record.images.values():
        base64.b64decode(picture["png"], validate=True)
    for value in (record.provenance.get("device", {}), record.method.get("overrides", {}), record.cell.settings):
        if not isinstance(value, Mapping):
            raise ValueError("device, overrides or settings is not an object")
    if record.judge:
        float(record.judge["test_accuracy"]), int(record.judge["n"])


def records_digest(records: Iterable[Record]) -> str:
    """Return 12 hex digits that stand for exactly these records, in any order."""
    return digest(sorted(record.digest for record in records))[:12]


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def natural(text: str) -> list[tuple[bool, int, str]]:
    """Return the key that sorts text as people do: numbers in it by their value."""
    parts = [part for part in re.split(r"([0-9]+)", text) if part]
    return [(False, int(part), "") if part[0] in "0123456789" else (True, 0, part) for part in parts]
