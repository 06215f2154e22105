"""The store of records: one JSON line per cell, appended and fsynced by one writer under a file lock.

Reports read nothing else, so it imports neither torch nor plugins.
"""

import gc
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
from filelock import FileLock

from unlearnbench.errors import UsageError, one_line
from unlearnbench.store.cell import Cell
from unlearnbench.store.fields import PLAIN_JSON, check_plain, check_record
from unlearnbench.store.hashing import canonical_json, digest

SCHEMA = 2  # 1 had no checksum
MOST_PROBLEMS = 5  # unreadable lines named per file
LONGEST_LINE = 64 * 10**6  # bytes
B4 = "-b4"  # suffix of protocols that differ from another one only by FID's reference set
Status = Literal["ok", "failed", "oom", "timeout", "interrupted"]


class NewerSchema(ValueError):
    """A record of a newer version, which this one cannot read."""


@dataclass(frozen=True)
class Record:
    """The results of one cell.

    `metrics` maps a metric's name to value, n, unit, direction, format and source hash; `cost` maps a phase to
    `cost.phases.Cost` as JSON. A failed cell has a `reason` and no metrics. `wall_seconds` are the seconds of `cost`
    without reused ones (of `forget`, the first of its repeats), plus those of `outside`.
    """

    cell: Cell
    method: Mapping[str, Any]  # title, paper, role, overrides, track, source_hash, inference
    status: Status
    reason: str | None = None
    traceback: str | None = None
    metrics: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    cost: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    wall_seconds: float | None = None
    outside: Mapping[str, float] = field(default_factory=dict)  # untimed seconds: start, load, wait, ...
    priors: Mapping[str, Any] = field(default_factory=dict)  # name -> seconds, shared, reused, key of the artifact
    probes: Mapping[str, str] = field(default_factory=dict)  # memory probe -> why it is missing
    disturbances: Sequence[Mapping[str, str]] = field(default_factory=list)  # phase, and what disturbed it
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
    revisions: Mapping[str, int] = field(default_factory=dict)  # of the parts of the harness that it rests on
    tuning: Mapping[str, Any] = field(default_factory=dict)  # of a trial: its number, list, space, budget and metrics

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object without its checksum; empty fields except `metrics` are left out.

        So new fields do not change the digests of records that lack them.
        """
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        filled = {name: value for name, value in fields.items() if value not in (None, {}, []) or name == "metrics"}
        return {"schema": SCHEMA, "cell_id": self.cell.id, **filled, "cell": self.cell.to_json()}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the record's canonical JSON: the checksum that is written beside it."""
        return digest(json.loads(canonical_json(self.to_json())))  # as after reading, where number keys are text

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, is_plain: bool = False) -> "Record":
        """Return the record that `to_json` wrote.

        Args:
            value: JSON.
            is_plain: whether it is known to pass `check_plain`.

        Raises:
            NewerSchema: a newer version wrote it.
            ValueError: an unknown schema version, or a missing or invalid field.
        """
        schema = value.get("schema")
        if type(schema) is int and schema > SCHEMA:
            raise NewerSchema(f"it has schema {schema}, of a newer version of unlearnbench; this one reads {SCHEMA}")
        if type(schema) is not int or schema < 1:
            raise ValueError(f"it has schema {schema!r}, this version reads 1 to {SCHEMA}")
        if not is_plain:
            check_plain(value)
        check_record(value)
        try:
            fields = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
            record = cls(**{**fields, "cell": Cell.from_json(value["cell"])})
        except TypeError as error:
            raise ValueError(f"a field is unknown or of the wrong type ({error})") from error
        if record.cell.id != value.get("cell_id"):
            raise ValueError("its cell id does not match its cell")
        return record

    @property
    def failure(self) -> str:
        """The reason of the cell, or of one of its attacks, for having failed; empty where nothing did."""
        if self.status != "ok":
            return f"{self.status}: {self.cell.id}: {self.reason}"
        lost = [entry for entry in self.metrics.values() if entry.get("failed")]
        return "; ".join(f"{entry['failed']}: {self.cell.id}, {entry['title']}: {entry['reason']}" for entry in lost)

    @cached_property
    def device_model(self) -> "DeviceModel":
        """The model of the device; devices of one model share a table."""
        return device_model(self.provenance.get("device", {}))


class DeviceModel(NamedTuple):
    """The identity of a model of device."""

    type: str
    name: str
    processor: str = ""  # family and model of a CPU, as names are ambiguous; old records lack it

    def matches(self, other: "DeviceModel") -> bool:
        """Say whether both are the same model, as far as known."""
        known = {self.processor, other.processor} - {""}
        return self[:2] == other[:2] and len(known) < 2


def device_model(identity: Mapping[str, Any]) -> DeviceModel:
    """Return the model of a device; a device without a name is identified by its UUID."""
    name = str(identity.get("name") or identity.get("uuid"))
    return DeviceModel(str(identity.get("type")), name, str(identity.get("processor") or ""))


@dataclass(frozen=True)
class Reading:
    """The last finished record of each cell (or its interruption), and a sentence on each unreadable line."""

    root: Path  # the folder
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
            ValueError: a field is invalid.
        """
        path = self.root / record.cell.dataset / f"{record.cell.method}.jsonl"
        line = to_line(record)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._alone(), path.open("ab+") as file:
                if file.tell() and _last_byte(path) != b"\n":
                    line = b"\n" + line  # a writer was killed within its line: start a new one
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise UsageError(
                f"cannot write {path} ({error.strerror or error}): free space or give another folder with --results"
            ) from error

    def _alone(self) -> AbstractContextManager[object]:
        """Return a context in which no other process writes."""
        return FileLock(self.root / ".write.lock")

    def read(self) -> Reading:
        """Return the last record of every cell; invalid lines are named and skipped.

        An invalid line also discards earlier records of its cell, which has to be measured again.

        Raises:
            UsageError: a file cannot be read.
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
                _read_lines(path, content, latest, problems)
        if old := sum("digest" not in vars(record) for record in latest.values()):  # `read_line` found no checksum
            problems.append(f"records of an older version, without a checksum to detect edits: {old}")
        return Reading(self.root, list(latest.values()), problems)


@contextmanager
def open_results(root: Path) -> Iterator[Reading]:
    """Read a folder of records, and exclude them from garbage collection inside the context.

    Many records are millions of live objects: scanning them repeatedly would take as long as the rest of a report.
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
    """Disable garbage collection inside the context."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def to_line(record: Record) -> bytes:
    """Return the line of a record in a file.

    Raises:
        ValueError: a field is invalid.
    """
    value = record.to_json()
    check_plain(value)
    line = canonical_json({**value, "checksum": record.digest}).encode() + b"\n"
    read_line(line)  # never write an unreadable line
    return line


def _read_lines(path: Path, content: bytes, latest: dict[str, Record], problems: list[str]) -> None:
    """Add the records of a file; the first invalid lines become problems, further ones are counted."""
    bad, newer = 0, []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            _add(read_line(line), latest)
        except NewerSchema:
            newer.append(number)
        except ValueError as error:
            bad += 1
            latest.pop(_cell_id(line), None)
            torn = isinstance(error, json.JSONDecodeError | UnicodeDecodeError)
            if bad <= MOST_PROBLEMS:
                why = "is torn or not JSON" if torn else one_line(str(error))
                problems.append(f"{path}, line {number} is skipped: {why}")
    if bad > MOST_PROBLEMS:
        problems.append(f"{path}: {bad - MOST_PROBLEMS} more lines are skipped")
    if newer:
        places = ", ".join(map(str, newer[:MOST_PROBLEMS])) + (", ..." if len(newer) > MOST_PROBLEMS else "")
        problems.append(
            f"{path}: {len(newer)} of its records are skipped, as a newer version of unlearnbench wrote them (schema "
            f"above {SCHEMA}, line {places}): update it to see them"
        )


def _add(record: Record, latest: dict[str, Record]) -> None:
    """Replace the earlier record of a cell."""
    if record.status == "interrupted" and record.cell.id in latest:
        return  # an interruption does not replace an earlier record
    latest.pop(record.cell.id, None)  # so that the order is that of the last lines
    latest[record.cell.id] = record


def _cell_id(line: bytes) -> str:
    """Return the cell id in an invalid line; empty where there is none."""
    try:
        found = json.loads(line).get("cell_id")
    except (ValueError, AttributeError, RecursionError):
        return ""
    return found if isinstance(found, str) else ""


def read_line(line: bytes) -> Record:
    """Return the record of a line.

    Raises:
        NewerSchema: a newer version wrote it.
        ValueError: it holds no record, or an altered or invalid one.
    """
    if len(line) > LONGEST_LINE:
        raise ValueError(f"it has {len(line)} bytes, more than {LONGEST_LINE}")
    value, is_plain = _decode(line)
    checksum = value.pop("checksum", None)
    if checksum is None and value.get("schema") == 1:
        return Record.from_json(value, is_plain=is_plain)
    if type(schema := value.get("schema")) is int and schema <= SCHEMA and not _is_untouched(line, value, checksum):
        raise ValueError("it was altered after it was written: its checksum does not match")
    record = Record.from_json(value, is_plain=is_plain)
    vars(record)["digest"] = checksum
    return record


def _decode(line: bytes) -> tuple[dict[str, Any], bool]:
    """Return the JSON object in a line, and whether it is known to pass `check_plain`."""
    with suppress(msgspec.MsgspecError, UnicodeDecodeError):  # Python's decoder reads more, and says what is wrong
        return PLAIN_JSON.decode(line), True
    try:
        value = json.loads(line, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value, False


def _is_untouched(line: bytes, value: Mapping[str, Any], checksum: object) -> bool:
    """Say whether a record's checksum matches its other fields, in any order and spacing."""
    written = line.strip().replace(f'"checksum":"{checksum}",'.encode("utf-8", "replace"), b"", 1)
    if hashlib.sha256(written).hexdigest() == checksum:  # the line is canonical JSON already
        return True
    try:
        return digest(value) == checksum
    except (ValueError, RecursionError):
        return False  # every written record has canonical JSON


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}, which is not a JSON number")


def records_digest(records: Iterable[Record]) -> str:
    """Return 12 hex digits that identify these records, in any order."""
    return digest(sorted(record.digest for record in records))[:12]


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1)


def natural(text: str) -> list[tuple[bool, int, str]]:
    """Return a sort key that compares numbers in text by value."""
    parts = [part for part in re.split(r"([0-9]+)", text) if part]
    return [(False, int(part), "") if part[0] in "0123456789" else (True, 0, part) for part in parts]
