"""The runs of a folder of records: what is under way in them, what they have, and their end."""

import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from unlearnbench.errors import UsageError
from unlearnbench.run.cluster.config import ClusterConfig
from unlearnbench.run.cluster.engine import engine_of
from unlearnbench.run.cluster.folder import HIDDEN, RunFolder, runs
from unlearnbench.run.cluster.gathering import Gathering
from unlearnbench.store.records import DeviceModel, ResultStore

END_SECONDS, CANCEL_SECONDS = 60.0, 1.0  # for cancelled jobs to end, and between looks at them
LENGTHS = ("time", "mem", "signal_delay_s")  # options of jobs that say nothing on the device


def command(verb: str, run: RunFolder) -> str:
    """Return the command that does something to a run, from any folder."""
    return f"unlearnbench cluster {verb} {run.name} --results {shlex.quote(str(run.results))}"


def device_of_earlier(results: Path, config: ClusterConfig) -> DeviceModel | None:
    """Return the device that the last run with the same options of jobs found; None where there is none."""
    for run in runs(results):
        same = [(one.launcher, _without_lengths(one.slurm)) for one in (run.config, config)]
        if same[0] == same[1] and (device := run.device) is not None:
            return device
    return None


def _without_lengths(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options of jobs without those that say nothing on the device."""
    return {name: value for name, value in options.items() if name not in LENGTHS}


def under_way(run: RunFolder) -> set[str]:
    """Return the ids of the cells that jobs in the queue, or of unknown state, have still to finish."""
    if run.is_closed:
        return set()
    queue, jobs = engine_of(run).queue(), run.jobs()
    live = [name for name in run.parts if queue is None or any(job in queue for job in jobs.get(name, []))]
    return {cell for name in live for cell in run.parts[name]} - {cell for name in live for cell in run.finished(name)}


def cancel(run: RunFolder, store: ResultStore) -> int:
    """Cancel the jobs of a run, wait for their end and gather what they have; return the number of records gathered.

    Raises:
        UsageError: the scheduler does not answer.
    """
    engine = engine_of(run)
    jobs = [job for several in run.jobs().values() for job in several]
    engine.cancel(jobs)
    run.close()
    end = time.monotonic() + (0.0 if run.is_by_hand else END_SECONDS)
    while ((queue := engine.queue()) is None or set(queue) & set(jobs)) and time.monotonic() < end:
        time.sleep(CANCEL_SECONDS)
    return gather_all(run, store, lambda text: None, is_over=True)


def gather_all(run: RunFolder, store: ResultStore, warn: Callable[[str], None], *, is_over: bool) -> int:
    """Move the records of a run to the results; return the number of new ones.

    Args:
        run: to gather.
        store: takes them.
        warn: called with a sentence on lines that cannot be read.
        is_over: whether those of interrupted cells count, since nothing runs again.
    """
    gathering, count = Gathering(run, store), 0
    for part in run.parts:
        for record in gathering.new(part, run.attempts(part), warn):
            count += (is_over or record.status != "interrupted") and gathering.keep(record)
    return count


@contextmanager
def submitting(results: Path) -> Iterator[None]:
    """Let one launcher at a time choose its cells."""
    folder = results / HIDDEN
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {folder} ({error.strerror or error}): choose other --results") from error
    with FileLock(folder / "submit.lock"):
        yield


@contextmanager
def watching(run: RunFolder) -> Iterator[None]:
    """Be the only launcher of a run.

    Raises:
        UsageError: another one is.
    """
    try:
        held = FileLock(run.path / "watch.lock").acquire(timeout=0)
    except Timeout:
        raise UsageError(f"another process watches run {run.name} already: it gathers the records") from None
    with held:
        yield
