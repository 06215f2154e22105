"""Runs on a cluster: what `run --cluster` adds to a run, and the commands on such a run."""

import os
import shlex
import signal
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unlearnbench.cli import options
from unlearnbench.cli.running import benchmark, conclude, render_all, say, source_of
from unlearnbench.errors import UsageError, plural

if TYPE_CHECKING:
    from rich.console import Console

    from unlearnbench.plugins.registry import Registry
    from unlearnbench.run.benchmark import Summary
    from unlearnbench.run.cluster.engine import Queued
    from unlearnbench.run.cluster.folder import Attempt, Request, RunFolder
    from unlearnbench.run.cluster.launcher import ClusterLauncher
    from unlearnbench.run.execution import Execution
    from unlearnbench.run.plan import Plan

AGAIN_SECONDS = 3.0  # within which a second Ctrl-C offers to cancel

app = typer.Typer(
    add_completion=False, no_args_is_help=True, rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
    help="See to runs on a cluster.\n\n'unlearnbench run --cluster FILE' starts one.",
)  # fmt: skip
RunName = Annotated[str, typer.Argument(help="Its name; by default the newest that is not over.", metavar="RUN")]


def check_options(cluster: Path | None, chosen: "dict[str, Any]") -> None:
    """Raise UsageError for options of `run` that do not go together with --cluster, or not without it.

    Args:
        cluster: the cluster file, if there is one.
        chosen: {option: its value}, false where it was not given.
    """
    given = [name for name, value in chosen.items() if value]
    for name in given:
        if cluster is None and name in ("--detach", "--print-jobs"):
            raise UsageError(f"{name} goes with --cluster FILE, which says where the jobs run")
        if cluster is not None and name == "--minutes":
            raise UsageError("--minutes ends a run on this machine: the cluster file has minutes and time of its jobs")
        if cluster is not None and name == "--dry-run":
            raise UsageError(
                "--dry-run shows a run on this machine: --print-jobs writes the jobs of a cluster and submits none"
            )
    if {"--detach", "--print-jobs"} <= set(given):
        raise UsageError("--print-jobs submits nothing, so there is nothing to detach from: give one of them")


def run_on_cluster(
    context: typer.Context, asked: "dict[str, Any]", plan: "Plan", execution: "Execution", results: Path,
    out: Path | None, registry: "Registry", console: "Console",
) -> None:  # fmt: skip
    """Run a plan on a cluster: submit what is missing, and watch it or not; or write its job scripts.

    Args:
        context: of the command, with its options.
        asked: the arguments of `make_plan` that gave the plan, without the dataset.
        plan: the cells.
        execution: the options of the run.
        results: folder of records.
        out: folder of the report; None for no report.
        registry: the plugins.
        console: shows progress.
    """
    from unlearnbench.run.cluster.config import read_config
    from unlearnbench.run.cluster.folder import Request
    from unlearnbench.run.cluster.launcher import ClusterLauncher
    from unlearnbench.store.records import ResultStore

    file, detach, by_hand = (context.params[name] for name in ("cluster", "detach", "print_jobs"))
    config, request = read_config(file), Request(asked, source_of(context), execution, Path.cwd())
    if by_hand and config.launcher == "local":
        raise UsageError("--print-jobs writes scripts for a scheduler, which launcher: local has none of: remove one")
    launcher = ClusterLauncher(plan, ResultStore(results), request, config, detach=detach, by_hand=by_hand)
    _follow(launcher, plan, request, results, out, registry, console)


def _follow(
    launcher: "ClusterLauncher", plan: "Plan", request: "Request", results: Path, out: Path | None,
    registry: "Registry", console: "Console",
) -> None:  # fmt: skip
    """Watch a run, and say how it ended, or how to come back to it."""
    show = None if out is None else partial(render_all, results, out, registry, console, is_over=False)
    summary = benchmark(console, plan, launcher, results, request.execution, show)
    run = launcher.run_folder
    if summary.weak and run is not None and not run.is_closed:  # by an earlier record
        _cancel(run, console)
    if run is not None and launcher.scripts:
        for line in _how_to_submit(run, launcher.scripts, out):
            say(console, line)
    elif run is not None and (summary.interrupted or launcher.is_detached):
        _detach(run, summary, console)
    elif not launcher.is_elsewhere:
        conclude(summary, plan, results, out, registry, launcher.problems)


def _detach(run: "RunFolder", summary: "Summary", console: "Console") -> None:
    """Say how to come back to a run; offer to cancel it where Ctrl-C is pressed again."""
    from unlearnbench.run.cluster.standing import command

    say(console, f"Detached: run {run.name} goes on without this process. To see to it:")
    for verb in ("status", "attach", "cancel"):
        say(console, f"  {command(verb, run)}")
    if not summary.interrupted:
        return
    if summary.signal == signal.SIGINT and sys.stdin.isatty():
        try:
            say(console, f"Press Ctrl-C again within {AGAIN_SECONDS:g} seconds to cancel its jobs.")
            time.sleep(AGAIN_SECONDS)
        except KeyboardInterrupt:
            if typer.confirm(f"Cancel the jobs of run {run.name}?"):
                _cancel(run, console)
    raise typer.Exit(130)


def _how_to_submit(run: "RunFolder", scripts: "list[Path]", out: Path | None) -> list[str]:
    """Return what to do with the job scripts of a run."""
    from unlearnbench.run.cluster.standing import command

    prepare, parts = scripts
    report = "--no-report" if out is None else f"--out {shlex.quote(str(out.absolute()))}"
    return [
        f"wrote {prepare}", f"wrote {parts} ({plural(len(run.parts), 'job')})", "", "Next:",
        f"  first=$(sbatch --parsable {shlex.quote(str(prepare))})",
        f"  sbatch --dependency=afterok:$first {shlex.quote(str(parts))}",
        f"  {command('attach', run)} {report}   # gathers the records",
    ]  # fmt: skip


@app.command(cls=options.Command)
def status(name: RunName = "", results: options.Results = Path("results")) -> None:
    """Show how far a run is.

    What its jobs do, what waits for what, and how many cells are finished.
    """
    from unlearnbench.cli.running import echo
    from unlearnbench.run.cluster.folder import find_run

    for line in _status_lines(find_run(results, name)):
        echo(line)


def _status_lines(run: "RunFolder") -> list[str]:
    """Return the description of a run."""
    from unlearnbench.cli.tables import table
    from unlearnbench.run.cluster.engine import engine_of
    from unlearnbench.run.cluster.folder import PREPARE
    from unlearnbench.run.cluster.standing import command

    queue, jobs = engine_of(run).queue(), run.jobs()
    finished = {name: run.finished(name) & set(cells) for name, cells in run.parts.items()}
    done, every = sum(map(len, finished.values())), sum(map(len, run.parts.values()))
    rows, states = [], []
    for name in [PREPARE, *run.parts]:
        job, attempts = jobs.get(name, [""])[-1], run.attempts(name)
        last = attempts[-1] if attempts else None
        cells = f"{len(finished[name])}/{len(run.parts[name])}" if name in finished else ""
        rows.append([name, cells, job or ("" if last is None else last.job), "" if last is None else last.node])
        states.append(_state(last, (queue or {}).get(job), run.is_closed))
    over = "over" if run.is_closed else "under way"
    lines = [f"run {run.name}: {over}, {done} of {plural(every, 'cell')} finished"]
    lines += [f"prepared on {run.device.name}"] if run.device else []
    if done == every and not run.is_closed:
        lines.append(f"'{command('attach', run)}' gathers the records and ends it")
    if run.is_by_hand:
        lines.append("its jobs were submitted by hand: what they wrote is all that is known of them")
    elif queue is None:
        lines.append("the scheduler does not answer: what the jobs wrote is all that is known of them")
    heads = table(rows, ["part", "cells", "job", "node"])
    return [*lines, "", *(f"{line}  {state}" for line, state in zip(heads, ["state", *states], strict=True))]


def _state(last: "Attempt | None", queued: "Queued | None", is_closed: bool) -> str:
    """Return what a part is at: in the queue's words, and in those of its last job."""
    from unlearnbench.run.progress import spell

    words = []
    if queued is not None:
        why = f" ({queued.why})" if queued.why not in ("", "None") else ""
        words.append(f"{queued.state.lower()}{why}")
    if last is not None:
        words += [last.refusal] if last.refusal else []
        words += [f"{cell} for {spell(time.time() - last.began(cell))}" for cell in last.running if not is_closed]
        words += [word for what, word in (("done", "done"), ("stop", "stopped")) if last.last(what)]
    return ", ".join(words) or ("ended" if is_closed else "not begun" if last is None else "begun")


@app.command(cls=options.Command)
def attach(
    name: RunName = "",
    results: options.Results = Path("results"),
    out: options.Out = Path("reports"),
    no_report: options.NoReport = False,
) -> None:
    """Watch a run and gather its records.

    At the end the report is rendered. Cells of jobs that were lost meanwhile are submitted again. Ctrl-C detaches: the
    jobs go on.
    """
    from unlearnbench.cli.console import make_console
    from unlearnbench.run.cluster.folder import find_run
    from unlearnbench.run.cluster.launcher import ClusterLauncher
    from unlearnbench.run.cluster.standing import gather_all
    from unlearnbench.run.cluster.task import planned
    from unlearnbench.store.records import ResultStore

    console, run = make_console(), find_run(results, name)
    store, here = ResultStore(results.absolute()), Path.cwd()
    if run.is_closed:
        count = gather_all(run, store, partial(say, console), is_over=True)
        say(console, f"Run {run.name} is over: {count or 'no'} more of its records went to {results}.")
        return
    os.chdir(run.request.folder)  # where relative paths start from
    try:
        registry, plan = planned(run)
    finally:
        os.chdir(here)
    launcher = ClusterLauncher(plan, store, run.request, run.config, run)
    _follow(launcher, plan, run.request, results, None if no_report else out, registry, console)


@app.command(cls=options.Command)
def cancel(name: RunName = "", results: options.Results = Path("results")) -> None:
    """Cancel the jobs of a run.

    The records of its finished cells stay; the command that started it measures what is left.
    """
    from unlearnbench.cli.console import make_console
    from unlearnbench.run.cluster.folder import find_run

    run = find_run(results, name)
    if run.is_closed:
        raise UsageError(f"run {run.name} is over: there is nothing to cancel")
    _cancel(run, make_console())


def _cancel(run: "RunFolder", console: "Console") -> None:
    """Cancel the jobs of a run."""
    from unlearnbench.run.cluster.standing import cancel
    from unlearnbench.store.records import ResultStore

    count = cancel(run, ResultStore(run.results))
    say(console, f"Cancelled run {run.name}; {plural(count, 'record')} gathered. Run the same command again to go on.")
    if run.is_by_hand:
        say(console, "Its jobs were submitted by hand: cancel them there as well.")


@app.command(hidden=True, cls=options.Command)
def task(
    folder: Annotated[Path, typer.Argument(help="Folder of the run.", metavar="FOLDER")],
    part: Annotated[str, typer.Argument(help="Name of the part.", metavar="PART")],
) -> None:
    """Do the work of one job of a run."""
    from unlearnbench.run.cluster.task import work

    work(str(folder), part)
