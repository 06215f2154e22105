"""The work of one job of a cluster: what the cells share, or one part of them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console

from unlearnbench.errors import UsageError, one_line, spell_error
from unlearnbench.plugins.registry import Registry
from unlearnbench.run.benchmark import Benchmark, Summary
from unlearnbench.run.cluster.folder import PREPARE, Journal, PartStore, RunFolder, write_json
from unlearnbench.run.cluster.packing import kind_of
from unlearnbench.run.lanes import Hooks, Lanes
from unlearnbench.run.plan import Plan, Selection, make_plan
from unlearnbench.run.stopping import Interruption, Signalled, signals_as_interrupt
from unlearnbench.run.workers import Workers
from unlearnbench.store.cell import Cell
from unlearnbench.store.records import device_model

POLL_SECONDS = 0.2  # between looks whether another process has prepared what a part needs
SHARED_NODE = "other jobs may have used the node (timed: shared)"
GPUS, ALL_GPUS = "UNLEARNBENCH_LOCAL_GPUS", "all"  # what jobs of submitit's own engine see: as CUDA_VISIBLE_DEVICES
REFUSED = 2  # exit status of a job that would fail again


@dataclass(frozen=True)
class Job:
    """The job that this process is."""

    id: str
    attempt: str  # name that no other attempt has
    node: str
    is_slurm: bool

    @classmethod
    def here(cls) -> "Job":
        """Read the environment that Slurm or submitit sets."""
        env = os.environ
        array = [env[name] for name in ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID") if name in env]
        is_slurm = "SLURM_JOB_ID" in env and env.get("SUBMITIT_EXECUTOR") != "local"
        slurm = "_".join(array) if len(array) == 2 else env.get("SLURM_JOB_ID", "")
        name = slurm if is_slurm else env.get("SUBMITIT_LOCAL_JOB_ID", f"pid{os.getpid()}")
        node = env.get("SLURMD_NODENAME") or socket.gethostname()
        return cls(name, f"{name}.{env.get('SLURM_RESTART_COUNT', '0')}-{os.getpid()}", node, is_slurm)

    def requeue(self) -> None:
        """Let Slurm run this job again from its start: what is recorded stays."""
        try:
            subprocess.run(["scontrol", "requeue", self.id], check=False, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:  # the launcher submits the rest again
            print(f"job {self.id} could not be requeued: {spell_error(error)}", file=sys.stderr)


def work(folder: str, part: str) -> None:
    """Do the work of one job, in a process of its own.

    Args:
        folder: of the run.
        part: its name, or PREPARE.

    Raises:
        SystemExit: it was stopped, or refused.
    """
    run, job = RunFolder(Path(folder)), Job.here()
    if GPUS in os.environ and not job.is_slurm:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[GPUS]
        if os.environ[GPUS] == ALL_GPUS:
            del os.environ["CUDA_VISIBLE_DEVICES"]
    journal = Journal(run.path / part / job.attempt)
    journal.write("start", node=job.node, job=job.id)
    try:
        with signals_as_interrupt(Interruption()):
            os.chdir(run.request.folder)
            summary = _prepare(run, journal) if part == PREPARE else _run_part(run, part, job, journal)
    except Signalled as stop:
        summary = Summary(0, 0, [], stop)
    except UsageError as error:
        print(f"unlearnbench: {error}", file=sys.stderr)
        journal.write("refused", reason=one_line(str(error), 2000))
        raise SystemExit(REFUSED) from error
    journal.write("stop" if summary.interrupted else "done", signal=summary.signal)
    if summary.interrupted:
        is_late = summary.signal == signal.SIGUSR2  # its time is nearly up
        if is_late and job.is_slurm and run.idle_attempts(part) <= run.config.retries:
            job.requeue()
        raise SystemExit(128 + (summary.signal or signal.SIGINT))  # returning would count as success


def planned(run: RunFolder) -> tuple[Registry, Plan]:
    """Return the plugins and the plan of a run, as they are now.

    Raises:
        UsageError: its cells are not those that were submitted.
    """
    request = run.request
    registry = Registry(request.execution.plugin_files)
    plan = make_plan(registry, source=request.source, **request.asked)
    known = {cell.id for cell in plan.cells}
    if gone := [name for cells in run.parts.values() for name in cells if name not in known]:
        raise UsageError(
            f"the plan of run {run.name} is another one now ({gone[0]} is not in it): a plugin or the dataset has "
            "changed since it was submitted; cancel it, and run the command again"
        )
    return registry, plan


def part_of(plan: Plan, cells: Sequence[str]) -> Plan:
    """Return a plan with these of its cells, in their order, without warnings, which the launcher has shown."""
    of = {cell.id: cell for cell in plan.cells}
    return replace(plan, cells=[of[name] for name in cells], controls=plan.controls & set(cells), warnings=())


class Preparation(Lanes):
    """Makes what cells share, and runs none of them."""

    def run(self, selection: Selection) -> None:
        """Make base models, judges and shared priors."""
        if selection.todo:
            self.prepare(selection.todo)
            for cell in _sharing([cell for cell in selection.todo if self._plan.unlearns(cell)]):
                self.rehearse(cell)


def _sharing(cells: Sequence[Cell]) -> list[Cell]:
    """Return a cell of each method, settings and seeds that several targets have: they may share priors."""
    several = Counter((kind_of(cell), cell.seeds) for cell in cells if not cell.earlier)
    first = {(kind_of(cell), cell.seeds): cell for cell in reversed(cells)}
    return [first[key] for key, count in several.items() if count > 1]


def _prepare(run: RunFolder, journal: Journal) -> Summary:
    """Make what the cells share, and note the device."""
    workers = Workers()
    _, plan = planned(run)
    found: list[Mapping[str, Any]] = []

    def note(infos: Sequence[Mapping[str, Any]]) -> None:
        found.append(infos[0]["identity"])
        journal.write("device", identity=infos[0]["identity"])

    cells = part_of(plan, [name for cells in run.parts.values() for name in cells])
    store, execution = PartStore(run, PREPARE, run.path / PREPARE), run.request.execution
    lanes = Preparation(cells, workers, store, execution, Hooks(on_devices=note))
    summary = Benchmark(cells, lanes, store, _console(), execution).run()
    if not summary.interrupted:
        write_json(run.path / "prepared.json", {"identity": found[0]})
    return summary


def _run_part(run: RunFolder, part: str, job: Job, journal: Journal) -> Summary:
    """Run the cells of a part that no attempt has finished."""
    workers = Workers()
    _, plan = planned(run)
    if not job.is_slurm:
        _await_prepared(run)
    finished = run.finished(part)
    tries = Counter(name for attempt in run.attempts(part) for name in attempt.begun)
    cells = [name for name in run.parts[part] if name not in finished and tries[name] <= run.config.retries]
    chosen = part_of(plan, cells)
    store, execution = PartStore(run, part, run.path / part / job.attempt), run.request.execution
    hooks = Hooks(
        place={"node": job.node},
        disturbance=SHARED_NODE if run.config.timed == "shared" and run.config.launcher == "slurm" else "",
        on_devices=_check_alike(run, journal),
        on_selection=lambda selection: _note_skipped(cells, selection, journal),
        on_begin=lambda cell: journal.write("begin", cell=cell.id),
        on_end=lambda cell: journal.write("end", cell=cell.id),
        is_prepared=True,
    )  # fmt: skip
    lanes = Lanes(chosen, workers, store, execution, hooks)
    return Benchmark(chosen, lanes, store, _console(), execution).run()


def _note_skipped(cells: Sequence[str], selection: Selection, journal: Journal) -> None:
    """Note the cells that have a record: the launcher, which does not know the device beforehand, sends them too."""
    todo = {cell.id for cell in selection.todo}
    for name in cells:
        if name not in todo:
            journal.write("skip", cell=name)


def _check_alike(run: RunFolder, journal: Journal) -> Callable[[Sequence[Mapping[str, Any]]], None]:
    """Return a function that refuses devices of another model than the one that was prepared on."""

    def check(infos: Sequence[Mapping[str, Any]]) -> None:
        here, prepared = infos[0]["identity"], run.device
        journal.write("device", identity=here)
        if prepared is None:
            raise UsageError(f"run {run.name} is not prepared yet: run its prepare job first")
        if not device_model(here).matches(prepared):
            raise UsageError(
                f"this node has {here['name']}, and the run was prepared on {prepared.name}: ask for one kind in the "
                "cluster file (constraint, gres or nodelist), since run times of different models are not comparable"
            )

    return check


def _await_prepared(run: RunFolder) -> None:
    """Wait where no scheduler orders the jobs.

    Raises:
        UsageError: the process that prepares has ended without success.
    """
    while run.prepared is None:
        attempts = run.attempts(PREPARE)
        jobs = run.jobs().get(PREPARE, [])
        has_died = any(not is_process(job) for job in jobs[-1:]) and run.prepared is None
        if has_died or (attempts and (attempts[-1].refusal or attempts[-1].last("stop"))):
            raise UsageError("what the cells share was not made: see the log of the job that prepares")
        time.sleep(POLL_SECONDS)


def is_process(job: str) -> bool:
    """Say whether a job of submitit's own engine is still there."""
    try:
        process = psutil.Process(int(job))
        return process.status() != psutil.STATUS_ZOMBIE and any("submitit" in word for word in process.cmdline())
    except (psutil.Error, ValueError):
        return False


def _console() -> Console:
    """Return a console for the job's log."""
    return Console(color_system=None, highlight=False, width=200)
