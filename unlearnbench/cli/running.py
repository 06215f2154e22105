"""What commands that run cells, or show their records, have in common."""

import os
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from unlearnbench.errors import UsageError, plural, printable
from unlearnbench.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from rich.console import Console

    from unlearnbench.datasets import Source
    from unlearnbench.plugins.registry import Registry
    from unlearnbench.report.data.rendering import Rendering
    from unlearnbench.run.benchmark import Launcher, Summary
    from unlearnbench.run.execution import Execution
    from unlearnbench.run.plan import Plan
    from unlearnbench.run.workers import Workers
    from unlearnbench.store.records import Reading, Record

SPELLED_OPTIONS = {"compile_": "compiled", "set_": "sweeps"}  # parameters with another name than elsewhere


def start(start_workers: bool = True) -> "tuple[Console, Workers | None]":
    """Print the version, and start the process server, which imports in parallel."""
    from unlearnbench.cli.console import make_console
    from unlearnbench.run.workers import Workers

    console = make_console()
    say(console, f"unlearnbench {__version__}: loading")
    return console, Workers() if start_workers else None


def source_of(context: typer.Context) -> "Source":
    """Return the dataset that a command's options choose."""
    from unlearnbench.datasets import Source

    options = _spelled(context)
    return Source(**{field.name: options[field.name] for field in fields(Source) if field.name in options})


def asked_of(context: typer.Context) -> dict[str, Any]:
    """Return the arguments of `make_plan` that a command's options give, without the dataset."""
    from unlearnbench.run.plan import make_plan

    options = _spelled(context)
    asked = {name: options[name] for name in signature(make_plan).parameters if name in options}
    return {**asked, "sweeps": asked["sweeps"] or []}


def _spelled(context: typer.Context) -> dict[str, Any]:
    """Return {name: value} of a command's options, by the names that they have elsewhere."""
    return {SPELLED_OPTIONS.get(name, name): value for name, value in context.params.items()}


def plan_of(plugin: "Sequence[Path] | None", source: "Source", **asked: Any) -> "tuple[Registry, Plan]":
    """Return the plugins and the plan of a run.

    Args:
        plugin: files of plugins.
        source: the dataset.
        **asked: the other arguments of `make_plan`.
    """
    from unlearnbench.plugins.registry import Registry
    from unlearnbench.run.plan import make_plan

    registry = Registry(absolute(plugin))
    return registry, make_plan(registry, source=source, **asked)


def absolute(paths: "Sequence[Path] | None") -> tuple[Path, ...]:
    """Return absolute paths."""
    return tuple(path.absolute() for path in paths or [])


def execution_of(context: typer.Context, **fixed: Any) -> "Execution":
    """Return the execution options of a command, and those that it fixes; paths become absolute."""
    from unlearnbench.run.execution import Execution
    from unlearnbench.store.cache import default_cache

    options = context.params
    chosen = {field.name: options[field.name] for field in fields(Execution) if field.name in options}
    _check_devices(chosen["device"], chosen.get("devices", ""))
    models, files = options.get("save_models"), absolute(options.get("plugin"))
    paths = {"cache": default_cache(), "plugin_files": files, "models": models and models.absolute()}
    return Execution(**{**chosen, **paths, **fixed})


def _check_devices(device: str, devices: str) -> None:
    """Raise UsageError for options on devices that contradict each other."""
    if devices and device != "auto":
        raise UsageError("--device names one device and --devices several: give one of them")


def check_run(plan: "Plan", folders: "Mapping[str, Path | None]", stop_if_weak: bool) -> None:
    """Raise UsageError for problems that would stop a run later, such as a folder that cannot be written."""
    from unlearnbench.store.cache import check_limit, default_cache

    check_limit()
    if stop_if_weak and not any(spec.role == "reference" for spec in plan.methods.values()):
        raise UsageError("--stop-if-weak checks the untouched model: add original to --methods")
    for option, folder in {**folders, "UNLEARNBENCH_CACHE": default_cache()}.items():
        if folder is not None:
            check_writable(folder, option)


def check_writable(folder: Path, option: str) -> None:
    """Raise UsageError unless a folder can be written or made. Makes nothing."""
    try:
        path = folder.absolute()
    except FileNotFoundError as error:
        raise UsageError("the current folder no longer exists: change to another one") from error
    existing = next(parent for parent in [path, *path.parents] if parent.exists())
    if not existing.is_dir():
        raise UsageError(f"{option} {folder}: {existing} is a file, give a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {folder}: {existing} cannot be written, give another folder")


def check_results(results: Path) -> None:
    """Raise UsageError unless the folder of records exists."""
    if results.exists() and not results.is_dir():
        raise UsageError(f"--results {results} is a file: give the folder that holds the records")
    if not results.is_dir():
        raise UsageError(
            f"there is no results folder {results}: run 'unlearnbench run' first or name one with --results"
        )


def benchmark(
    console: "Console", plan: "Plan", launcher: "Launcher", results: Path, execution: "Execution",
    show: "Callable[[], object] | None",
) -> "Summary":  # fmt: skip
    """Run a plan and return how it went."""
    from unlearnbench.run.benchmark import Benchmark
    from unlearnbench.store.records import ResultStore

    return Benchmark(plan, launcher, ResultStore(results), console, execution, check_untouched, show).run()


def run_here(
    console: "Console", plan: "Plan", workers: "Workers", execution: "Execution", results: Path, out: Path | None,
    registry: "Registry",
) -> None:  # fmt: skip
    """Run a plan on the devices of this machine, and conclude; without `out`, render no report."""
    from unlearnbench.run.lanes import Lanes
    from unlearnbench.store.records import ResultStore

    show = None if out is None else partial(render_all, results, out, registry, console, is_over=False)
    lanes = Lanes(plan, workers, ResultStore(results), execution)
    conclude(benchmark(console, plan, lanes, results, execution, show), plan, results, out, registry)


def say_dry_run(console: "Console", plan: "Plan", results: Path, execution: "Execution") -> None:
    """Print what a run would do."""
    from unlearnbench.cli.dry_run import dry_run
    from unlearnbench.store.records import ResultStore

    for line in dry_run(plan, ResultStore(results), execution):
        say(console, line)


def check_untouched(record: "Record") -> list[str]:
    """Return the failed checks of a record of the untouched model."""
    from unlearnbench.report.tables.controls import untouched_alarms

    return untouched_alarms(record)


@contextmanager
def opened(results: Path, registry: "Registry | None" = None) -> "Iterator[tuple[Reading, frozenset[str]]]":
    """Read a folder of records; yield them and the ids of cells with stale records."""
    from unlearnbench.plugins.registry import Registry
    from unlearnbench.run.stale import stale_ids
    from unlearnbench.store.records import open_results

    with open_results(results) as reading:
        yield reading, stale_ids(reading.records, (registry or Registry()).source_hashes())


def render_all(
    results: Path, out: Path, registry: "Registry", console: "Console", methods: "Sequence[str]" = (), *,
    is_over: bool = True,
) -> "Rendering":  # fmt: skip
    """Render the report and print its main tables; before the run is over, without notes."""
    from unlearnbench.cli.console import show
    from unlearnbench.cli.plotting import import_matplotlib
    from unlearnbench.report.render import render

    import_matplotlib()
    with opened(results, registry) as (reading, stale):
        rendering = render(reading, out, stale, methods)
    show(rendering, console, notes=is_over)
    return rendering


def conclude(
    summary: "Summary", plan: "Plan", results: Path, out: Path | None, registry: "Registry",
    problems: "Sequence[str]" = (),
) -> None:  # fmt: skip
    """Print how the run of a plan ended, render its report, and exit with its status.

    Args:
        summary: of the run.
        plan: its cells.
        results: folder of its records.
        out: folder of the report; None for no report.
        registry: the plugins.
        problems: why cells have no result.
    """
    from unlearnbench.cli.console import make_console, say_where
    from unlearnbench.run.workers import ignore_stopping

    console = make_console()
    if lost := summary.lost:
        say(console, _spell_lost(lost, results))
    if summary.interrupted:
        if not summary.out_of_time:
            ignore_stopping()
        there = max(summary.ran - len(lost), 0)
        say(
            console,
            f"Stopped. {plural(there, 'cell')} of this run {'is' if there == 1 else 'are'} recorded in {results}: run "
            "the same command again to resume.",
        )
        if summary.out_of_time and summary.ran and out is not None:
            say_where(render_all(results, out, registry, console), "Report", console)
        raise typer.Exit(130)
    for problem in problems:
        say(console, problem)
    if (lost or problems) and not any(results.glob("*/*.jsonl")):
        raise typer.Exit(1)  # nothing is left to show
    if out is not None:
        say(console, "rendering the report")
    rendering = None if out is None else render_all(results, out, registry, console)
    for record in summary.failed:
        say(console, record.failure)
    if summary.failed:
        say(
            console,
            f"{len(summary.failed)} of {plural(len(plan.cells), 'cell')} failed; --rerun failed tries them again. "
            "Tracebacks are in the records.",
        )
    if summary.weak:
        say(
            console,
            "Stopped: the untouched model fails its checks (--stop-if-weak). Train it longer (--base-steps), use "
            "more images, or give a trained one with --base.",
        )
    if rendering is None:
        say(console, f"The records are in {results}: render them with 'unlearnbench report --results {results}'.")
    else:
        say_where(rendering, "Report", console)
    key = plan.dataset.name, plan.dataset.protocol.name
    if summary.failed or summary.weak or lost or problems or (rendering is not None and key in rendering.alarms):
        raise typer.Exit(1)


def _spell_lost(cells: "Sequence[str]", results: Path) -> str:
    """Return the sentence on records that were removed during the run."""
    named = ", ".join(cells[:3]) + (f" and {len(cells) - 3} more" if len(cells) > 3 else "")
    records = "1 record" if len(cells) == 1 else f"{len(cells)} records"
    return (
        f"{records} of this run can no longer be read in {results}, since files were removed there during the run "
        f"({named}): run the same command again to measure them."
    )


def say(console: "Console", text: str) -> None:
    """Print a line without markup, colours or wrapping."""
    console.print(printable(text), highlight=False, markup=False, emoji=False, soft_wrap=True)


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print lines that may hold text of files, folders or plugins, without control characters."""
    typer.echo(printable(text), err=err, nl=nl)
