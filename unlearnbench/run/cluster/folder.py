"""The folder of a run on a cluster: what was asked, how the cells are divided, what each job wrote.

    RESULTS/.cluster/RUN/run.json           what was asked, and the cells of each part
    RESULTS/.cluster/RUN/jobs.jsonl         what was submitted
    RESULTS/.cluster/RUN/prepared.json      the device, once base models and judges are made
    RESULTS/.cluster/RUN/part-3/41_3.0/     an attempt: its journal, and its records as in a folder of results

What jobs write has one writer each, and the rest one launcher at a time, so that no lock needs to hold between nodes.
"""

import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from typing import Any

import msgspec

from unlearnbench.datasets import Source
from unlearnbench.errors import UsageError
from unlearnbench.run.cluster.config import ClusterConfig, config_of
from unlearnbench.run.execution import Execution
from unlearnbench.store.records import DeviceModel, Reading, Record, ResultStore, device_model

HIDDEN = ".cluster"  # in a folder of results
PREPARE = "prepare"  # the part that makes base models, judges and shared priors
LAUNCHER = "launcher"  # the attempt with what the launcher records of cells that vanished
JOURNAL = "journal.jsonl"


@dataclass(frozen=True)
class Request:
    """What was asked of a run: each job plans from it again, since plugins' functions cannot be sent."""

    asked: dict[str, Any]  # arguments of `make_plan`
    source: Source
    execution: Execution
    folder: Path  # the current folder, which relative paths start from


@dataclass(frozen=True)
class Attempt:
    """What one job wrote."""

    folder: Path

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of its journal that are whole."""
        return list(_json_lines(self.folder / JOURNAL))

    def last(self, what: str) -> dict[str, Any]:
        """Return the last line of a kind; empty where there is none."""
        return next((line for line in reversed(self.lines) if line["what"] == what), {})

    @property
    def begun(self) -> list[str]:
        """The ids of the cells that it began, in order."""
        return [line["cell"] for line in self.lines if line["what"] == "begin"]

    @property
    def ended(self) -> set[str]:
        """The ids of the cells that it finished."""
        return {line["cell"] for line in self.lines if line["what"] == "end"}

    @property
    def skipped(self) -> set[str]:
        """The ids of the cells that had a record already."""
        return {line["cell"] for line in self.lines if line["what"] == "skip"}

    @property
    def refusal(self) -> str:
        """Why it refused to work; empty where it did not."""
        return str(self.last("refused").get("reason", ""))

    @property
    def running(self) -> list[str]:
        """The ids of the cells that it is at, or died at."""
        is_over = any(line["what"] in ("done", "stop", "refused") for line in self.lines)
        return [] if is_over else [name for name in self.begun if name not in self.ended]

    def began(self, cell: str) -> float:
        """Return when it began a cell, in seconds since the epoch; now where it has not."""
        begun = [line for line in self.lines if line["what"] == "begin" and line["cell"] == cell]
        return float(begun[-1]["at"]) if begun else time.time()

    @property
    def node(self) -> str:
        """The name of its node; empty where it has not said."""
        return str(self.last("start").get("node", ""))

    @property
    def job(self) -> str:
        """The id of its job; empty where it has not said."""
        return str(self.last("start").get("job", ""))


class Journal:
    """The journal of an attempt: a line for everything that it begins and ends, on the disk at once."""

    def __init__(self, attempt: Path) -> None:
        """Begin a journal in an attempt's folder, which is made."""
        attempt.mkdir(parents=True, exist_ok=True)
        self._path = attempt / JOURNAL

    def write(self, what: str, **facts: Any) -> None:
        """Add a line."""
        _append(self._path, {"what": what, "at": time.time(), **facts})


class RunFolder:
    """A run on a cluster, as its folder has it."""

    def __init__(self, path: Path) -> None:
        """Use a folder that `create` made."""
        self.path, self.name = path, path.name

    @classmethod
    def create(
        cls, results: Path, request: Request, config: ClusterConfig, parts: Sequence[Sequence[str]], *, by_hand: bool
    ) -> "RunFolder":
        """Make the folder of a new run.

        Args:
            results: folder of records.
            request: what was asked.
            config: of the cluster.
            parts: ids of the cells of each part.
            by_hand: whether the user submits its jobs.
        """
        started = time.strftime("%Y%m%d-%H%M%S")
        value: dict[str, Any] = {
            "request": msgspec.to_builtins(request, enc_hook=str), "config": config.to_json(),
            "parts": {f"part-{number}": list(cells) for number, cells in enumerate(parts)}, "by_hand": by_hand,
            "started": time.time(), "host": socket.gethostname(),
        }  # fmt: skip
        for number in range(1, 1000):
            path = results.absolute() / HIDDEN / (started if number == 1 else f"{started}-{number}")
            try:
                path.mkdir(parents=True)
            except FileExistsError:
                continue
            except OSError as error:
                raise UsageError(f"cannot write {path} ({error.strerror or error}): choose other --results") from error
            for part in (PREPARE, *value["parts"]):
                (path / part).mkdir()  # here, so that no other machine remembers that it is missing
            write_json(path / "run.json", value)
            return cls(path)
        raise UsageError(f"there are a thousand runs of this second in {results / HIDDEN}: try again")

    @cached_property
    def _value(self) -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads((self.path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{self.path} holds no run that can be read ({error})") from error
        return value

    @cached_property
    def request(self) -> Request:
        """What was asked."""
        return msgspec.convert(self._value["request"], Request, dec_hook=lambda kind, value: kind(value))

    @cached_property
    def config(self) -> ClusterConfig:
        """The cluster file, as it was."""
        return config_of(self._value["config"], str(self.path / "run.json"))

    @property
    def parts(self) -> dict[str, list[str]]:
        """The ids of the cells of each part, in the order of their run."""
        parts: dict[str, list[str]] = self._value["parts"]
        return parts

    @property
    def is_by_hand(self) -> bool:
        """Whether the user submits its jobs."""
        return bool(self._value["by_hand"])

    @property
    def host(self) -> str:
        """The name of the machine that started it."""
        return str(self._value.get("host", ""))

    @property
    def results(self) -> Path:
        """The folder of records that it belongs to."""
        return self.path.parent.parent

    @property
    def prepared(self) -> dict[str, Any] | None:
        """The device that base models and judges were made on; None where they are not made yet."""
        try:
            found: dict[str, Any] = json.loads((self.path / "prepared.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found

    @property
    def device(self) -> DeviceModel | None:
        """The model of the device, once it is known."""
        prepared = self.prepared
        return None if prepared is None else device_model(prepared["identity"])

    def attempts(self, part: str) -> list[Attempt]:
        """Return what the jobs of a part wrote, in order."""
        found = [Attempt(path.parent) for path in (self.path / part).glob(f"*/{JOURNAL}")]
        return sorted(found, key=lambda attempt: (attempt.last("start").get("at", 0.0), attempt.folder.name))

    def finished(self, part: str, attempts: Sequence[Attempt] | None = None) -> set[str]:
        """Return the ids of the cells of a part that no further attempt is to run; `attempts` saves reading them.

        They have ended, had a record already, or died so that the launcher recorded them.
        """
        blamed = ResultStore(self.path / part / LAUNCHER).read().records
        attempts = self.attempts(part) if attempts is None else attempts
        over = {name for attempt in attempts for name in attempt.ended | attempt.skipped}
        return over | {one.cell.id for one in blamed}

    def idle_attempts(self, part: str) -> int:
        """Return how many attempts at a part in a row, the last ones, finished no cell."""
        return len(list(takewhile(lambda attempt: not attempt.ended, reversed(self.attempts(part)))))

    def records(self, part: str) -> list[Record]:
        """Return the records of a part, the last one of each cell."""
        found: dict[str, Record] = {}
        for folder in self.stores(part, self.attempts(part)):
            found |= {
                record.cell.id: record
                for record in ResultStore(folder).read().records
                if record.status != "interrupted" or record.cell.id not in found
            }
        return list(found.values())

    def stores(self, part: str, attempts: Sequence[Attempt]) -> list[Path]:
        """Return the folders of records that a part has."""
        return [*(attempt.folder for attempt in attempts), self.path / part / LAUNCHER]

    def look_again(self, part: str = "") -> None:
        """Let a network file system forget what it remembers of the folder of a part, or of the run."""
        path = self.path / part / f".look-{os.getpid()}"
        path.touch()
        path.unlink()

    def jobs(self) -> dict[str, list[str]]:
        """Return the jobs that were submitted for each part, in order."""
        found: dict[str, list[str]] = {}
        for line in _json_lines(self.path / "jobs.jsonl"):
            found.setdefault(line["part"], []).append(line["job"])
        return found

    def note_jobs(self, jobs: Mapping[str, str]) -> None:
        """Note {part: job} that were submitted."""
        for part, job in jobs.items():
            _append(self.path / "jobs.jsonl", {"part": part, "job": job, "at": time.time()})

    @property
    def exists(self) -> bool:
        """Whether its folder is there."""
        return (self.path / "run.json").exists()

    @property
    def is_closed(self) -> bool:
        """Whether it is over: all is gathered, or it was cancelled."""
        return (self.path / "closed").exists()

    def close(self) -> None:
        """Note that it is over."""
        (self.path / "closed").touch()


class PartStore(ResultStore):
    """The records of a part: what an attempt appends, and, to read, those of the run's folder as well."""

    def __init__(self, run: RunFolder, part: str, attempt: Path) -> None:
        """Append to an attempt's folder."""
        super().__init__(attempt)
        self._run, self._part = run, part

    def _alone(self) -> AbstractContextManager[object]:
        return nullcontext()  # nobody else writes to an attempt, so that no lock has to hold between nodes

    def read(self) -> Reading:
        """Return the last record of each cell, of the folder of results or of this part."""
        latest = {record.cell.id: record for record in ResultStore(self._run.results).read().records}
        for record in self._run.records(self._part):
            if record.status != "interrupted" or record.cell.id not in latest:
                latest[record.cell.id] = record
        return Reading(self.root, list(latest.values()), [])


def runs(results: Path) -> list[RunFolder]:
    """Return the runs of a folder of results, the newest first."""
    found = sorted((results / HIDDEN).glob("*/run.json"), key=lambda path: path.parent.name, reverse=True)
    return [RunFolder(path.parent.absolute()) for path in found]


def find_run(results: Path, name: str = "") -> RunFolder:
    """Return a run by its name; without one, the newest that is not over, or the newest.

    Raises:
        UsageError: there is none.
    """
    there = runs(results)
    if name:
        there = [run for run in there if run.name == name]
    if not there:
        known = ", ".join(run.name for run in runs(results)[:5])
        hint = f": there are {known}" if known else ": name the folder of a run --cluster with --results"
        raise UsageError(f"there is no run {name or 'on a cluster'} in {results}{hint}")
    return next((run for run in there if not run.is_closed), there[0])


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file that appears whole."""
    scratch = path.with_name(f".{path.name}-{os.getpid()}")
    with scratch.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def _append(path: Path, value: Any) -> None:
    with path.open("ab+") as file:
        torn = bool(file.tell()) and path.read_bytes()[-1:] != b"\n"  # a writer was killed within its line
        file.write((b"\n" if torn else b"") + json.dumps(value).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a file without torn ones, of writers that were killed; nothing where it is missing."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return
    for line in content.split(b"\n")[:-1]:
        with suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield value
