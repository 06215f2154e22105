"""The engines that run jobs: Slurm through submitit, submitit's own processes on this machine, or the user by hand."""

import io
import os
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from unlearnbench.errors import UsageError, one_line
from unlearnbench.run.cluster.config import LONGEST_LOCAL, for_submitit, import_submitit
from unlearnbench.run.cluster.folder import PREPARE, RunFolder
from unlearnbench.run.cluster.task import ALL_GPUS, GPUS, is_process, work

PATIENCE = 60.0  # seconds for a command of Slurm
JOB_NAME = "unlearnbench"
SIGNAL_SECONDS = 90  # before the end of a job's time, when it is told to stop
LOGS = "logs"


@dataclass(frozen=True)
class Queued:
    """A job in the queue."""

    state: str  # PENDING, RUNNING, COMPLETING, ...
    why: str  # reason of waiting
    node: str


class Engine(Protocol):
    """Runs the jobs of a run."""

    def submit(self, parts: Sequence[str], options: Mapping[str, Any], after: str = "") -> dict[str, str]:
        """Submit a job per part, all of which wait for the job `after` to succeed; return {part: job}."""

    def queue(self) -> dict[str, Queued] | None:
        """Return the user's jobs in the queue by id; None where that cannot be known now."""

    def ending(self, job: str) -> str:
        """Return the engine's word on a job that has left the queue, such as TIMEOUT; empty where it has none."""

    def cancel(self, jobs: Sequence[str]) -> None:
        """Cancel jobs; some may be over."""


class SlurmEngine:
    """Jobs of Slurm, submitted as arrays."""

    def __init__(self, run: RunFolder) -> None:
        """Submit the jobs of a run."""
        self._run = run

    def submit(self, parts: Sequence[str], options: Mapping[str, Any], after: str = "") -> dict[str, str]:
        """Submit jobs."""
        submitit = import_submitit()
        for name in [name for name in os.environ if name.startswith("SLURM_ARRAY_")]:
            del os.environ[name]  # of a job that this process runs in: ours would take them for their own
        try:
            executor = submitit.SlurmExecutor(self._run.path / LOGS)
            executor.update_parameters(**_parameters(options, after, self._run.config.workers))
            with redirect_stderr(io.StringIO()):  # the error says it again
                return _submitted(self._run, executor, parts)
        except (submitit.core.utils.FailedJobError, RuntimeError, ValueError, TypeError, OSError) as error:
            raise UsageError(f"Slurm did not take the jobs: {_words(error)}") from error

    def queue(self) -> dict[str, Queued] | None:
        """Ask squeue."""
        answer = _ask("squeue", "--me", "--noheader", "--array", "--format", "%i|%T|%r|%N")
        if answer is None:
            return None
        rows = [line.split("|") for line in answer.splitlines() if line.count("|") == 3]
        return {job: Queued(state, why, node) for job, state, why, node in rows}

    def ending(self, job: str) -> str:
        """Ask the accounting, or the controller where there is none."""
        answer = _ask("sacct", "-n", "-P", "-X", "-j", job, "-o", "JobID,State") or ""
        found = [line.split("|") for line in answer.splitlines() if line.startswith(f"{job}|")]
        if found:
            return found[-1][1]
        shown = _ask("scontrol", "-o", "show", "job", job) or ""
        return next((word.removeprefix("JobState=") for word in shown.split() if word.startswith("JobState=")), "")

    def cancel(self, jobs: Sequence[str]) -> None:
        """Cancel jobs."""
        if jobs and _ask("scancel", "--quiet", *jobs) is None and self.queue() is None:
            raise UsageError(f"Slurm does not answer: cancel with 'scancel {' '.join(jobs)}'")


class LocalEngine:
    """Processes on this machine, for trying a cluster file: all of them start at once, and devices keep their locks."""

    def __init__(self, run: RunFolder) -> None:
        """Start the jobs of a run."""
        self._run = run

    def submit(self, parts: Sequence[str], options: Mapping[str, Any], after: str = "") -> dict[str, str]:
        """Start processes, which outlive this one and its terminal."""
        executor = import_submitit().LocalExecutor(self._run.path / LOGS)
        os.environ[GPUS] = os.environ.get("CUDA_VISIBLE_DEVICES", ALL_GPUS)  # submitit hides them
        chosen = {"setup": options["setup"]} if "setup" in options else {}
        minutes = options.get("time", LONGEST_LOCAL)
        delay = min(int(options.get("signal_delay_s", SIGNAL_SECONDS)), 60 * minutes // 2)
        executor.update_parameters(timeout_min=minutes, signal_delay_s=delay, stderr_to_stdout=True, **chosen)
        with _apart():
            return _submitted(self._run, executor, parts)

    def queue(self) -> dict[str, Queued] | None:
        """Look for the processes, which only their own machine sees."""
        if self._run.host != socket.gethostname():
            return None
        jobs = [job for several in self._run.jobs().values() for job in several]
        return {job: Queued("RUNNING", "", socket.gethostname()) for job in jobs if is_process(job)}

    def ending(self, job: str) -> str:
        """Nobody keeps the ends of processes."""
        return ""

    def cancel(self, jobs: Sequence[str]) -> None:
        """Tell the processes to stop: also those behind a shell, which would not pass it on."""
        for job in filter(is_process, jobs):
            with suppress(psutil.Error):
                every = [psutil.Process(int(job)), *psutil.Process(int(job)).children(recursive=True)]
                for process in every:
                    if any("submitit" in word for word in process.cmdline()):
                        process.send_signal(signal.SIGTERM)


class HandEngine:
    """Jobs that the user submits to any scheduler: what they write is all that is known of them."""

    def __init__(self, run: RunFolder) -> None:
        """Watch the jobs of a run."""
        self._run = run

    def submit(self, parts: Sequence[str], options: Mapping[str, Any], after: str = "") -> dict[str, str]:
        """Leave that to the user."""
        return {}

    def queue(self) -> dict[str, Queued] | None:
        """Nothing can be asked."""
        return None

    def ending(self, job: str) -> str:
        """Nothing can be asked."""
        return ""

    def cancel(self, jobs: Sequence[str]) -> None:
        """Leave that to the user, who is told the ids."""


def engine_of(run: RunFolder) -> Engine:
    """Return the engine of a run."""
    if run.is_by_hand:
        return HandEngine(run)
    return LocalEngine(run) if run.config.launcher == "local" else SlurmEngine(run)


def write_scripts(run: RunFolder) -> list[Path]:
    """Write a job script for what is prepared and one for an array of the parts, for those who submit by hand."""
    written = []
    for preparing in (True, False):
        options = run.config.options(preparing=preparing)
        setup, arguments = options.pop("setup", []), options.pop("srun_args", [])
        delay = options.pop("signal_delay_s", SIGNAL_SECONDS)
        path = run.path / ("prepare.sh" if preparing else "parts.sh")
        flags = {
            "job_name": JOB_NAME, "output": run.path / LOGS / ("%j.log" if preparing else "%A_%a.log"),
            "open_mode": "append", "signal": f"USR2@{delay}", "requeue": True, **options,
        }  # fmt: skip
        if not preparing:
            flags |= {"array": f"0-{len(run.parts) - 1}%{run.config.workers}", "kill_on_invalid_dep": "yes"}
        part = PREPARE if preparing else "part-$SLURM_ARRAY_TASK_ID"
        command = [sys.executable, "-m", "unlearnbench.cli", "cluster", "task", str(run.path)]
        lines = [
            "#!/bin/bash",
            *(_flag(name, value) for name, value in flags.items()),
            *setup, f"{shlex.join(['srun', *arguments, *command])} {part}",
        ]  # fmt: skip
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        written.append(path)
    (run.path / LOGS).mkdir(exist_ok=True)
    return written


def _flag(name: str, value: object) -> str:
    return f"#SBATCH --{name.replace('_', '-')}{'' if value is True else f'={shlex.quote(str(value))}'}"


def _parameters(options: Mapping[str, Any], after: str, workers: int) -> dict[str, Any]:
    """Return the options of jobs as submitit takes them."""
    chosen = {"signal_delay_s": SIGNAL_SECONDS, **for_submitit(options)}
    more = {"requeue": True, **chosen["additional_parameters"]}
    if after:
        more |= {"dependency": f"afterok:{after}", "kill_on_invalid_dep": "yes"}
    return {
        **chosen, "job_name": JOB_NAME, "array_parallelism": workers, "stderr_to_stdout": True,
        "additional_parameters": more,
    }  # fmt: skip


def _submitted(run: RunFolder, executor: Any, parts: Sequence[str]) -> dict[str, str]:
    """Submit a job per part through an executor of submitit, and note them."""
    jobs = executor.map_array(work, [str(run.path)] * len(parts), list(parts))
    submitted = {part: job.job_id for part, job in zip(parts, jobs, strict=True)}
    run.note_jobs(submitted)
    return submitted


def _words(error: Exception) -> str:
    """Return the reason of a command's error in one line."""
    return one_line(str(error), 500) or type(error).__name__


def _ask(*command: str) -> str | None:
    """Return what a command of Slurm prints; None where it fails or does not end."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, errors="replace")
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


@contextmanager
def _apart() -> Iterator[None]:
    """Start processes that outlive Ctrl-C and their terminal, and that keep no pipe of this process open."""
    kept = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGHUP)}
    streams = {stream: os.dup(stream) for stream in (0, 1, 2)}
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        for stream in streams:
            os.dup2(nothing, stream)
        yield
    finally:
        for stream, copy in streams.items():
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nothing)
        for number, handler in kept.items():
            signal.signal(number, handler)
