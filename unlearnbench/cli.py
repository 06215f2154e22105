"""The command line: parse, select, dispatch. Heavy imports stay inside commands, so --help is instant."""

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unlearnbench import __version__
from unlearnbench.errors import PluginError, UsageError, spell_error
from unlearnbench.grid import Rerun

if TYPE_CHECKING:
    from unlearnbench.benchmark import Summary

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Run unlearning methods for diffusion models under one harness, and compare them.",
    epilog="Example: unlearnbench run --methods all --classes 0-9",
)

Listing = Literal["methods", "metrics", "datasets"]
ResultsOption = Annotated[Path, typer.Option("--results", help="Folder of records.", metavar="DIR")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for tables and figures.", metavar="DIR")]
PluginOption = Annotated[
    list[Path] | None, typer.Option("--plugin", help="A file with a method or metric; may be repeated.", metavar="FILE")
]


@app.command()
def run(
    methods: Annotated[str, typer.Option(help="all, a group such as paper, or names with commas between")],
    classes: Annotated[str, typer.Option(help="Classes to forget, one at a time: 0-9 or 0,3,5-7")],
    dataset: Annotated[str, typer.Option(help="Dataset; see 'unlearnbench list datasets'.")] = "digits",
    seeds: Annotated[str, typer.Option(help="Seeds of unlearning and sampling: 0-2")] = "0",
    metrics: Annotated[str, typer.Option(help="all, or names: ua,fid")] = "all",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="A setting, swept over its values; may be repeated.", metavar="METHOD.NAME=V1,V2"),
    ] = None,
    rerun: Annotated[Rerun, typer.Option(help="Which recorded cells to measure again.")] = "missing",
    results: ResultsOption = Path("results"),
    out: OutOption = Path("reports"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps")] = "auto",
    plugin: PluginOption = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds after which a cell is stopped.", min=1, metavar="SECONDS")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the cells and stop.")] = False,
) -> None:
    """Run every method on every class, then render the report."""
    from rich.console import Console

    from unlearnbench.process import Workers

    console = Console()
    console.print(f"unlearnbench {__version__}: loading plugins", highlight=False)
    workers = None if dry_run else Workers()  # its imports run while ours do
    from unlearnbench.artifacts import default_cache
    from unlearnbench.benchmark import Benchmark, make_plan
    from unlearnbench.registry import Registry
    from unlearnbench.results import ResultStore

    plugin_files = [path.absolute() for path in plugin or []]
    registry = Registry(plugin_files)
    plan = make_plan(
        registry, methods=methods, classes=classes, dataset=dataset, seeds=seeds, metrics=metrics, sweeps=set_ or []
    )
    if workers is None:
        for cell in plan.cells:
            console.print(cell.id, highlight=False, soft_wrap=True)
        console.print(f"{len(plan.cells)} cells", highlight=False)
        return
    _check_writable(results, "--results")
    _check_writable(out, "--out")
    store = ResultStore(results)
    benchmark = Benchmark(
        plan, workers, store, console, cache=default_cache(), device=device, plugin_files=plugin_files, timeout=timeout
    )
    summary = benchmark.run(rerun)
    _conclude(summary, len(plan.cells), results, out, registry.source_hashes())


@app.command("list")
def list_(
    what: Annotated[Listing | None, typer.Argument(help="Only these.")] = None,
    plugin: PluginOption = None,
) -> None:
    """Show what there is: methods with paper ids, metrics, datasets; broken plugins with their reason."""
    from unlearnbench.datasets import DATASETS, load_dataset
    from unlearnbench.plugin import MethodSpec
    from unlearnbench.registry import Registry

    registry = Registry(plugin or [])
    for kind in ("methods", "metrics"):
        if what not in (None, kind):
            continue
        typer.echo(f"{kind}:")
        for found in registry.plugins("method" if kind == "methods" else "metric"):
            try:
                spec = found.spec
            except PluginError as error:
                typer.echo(f"  {found.name:22} BROKEN ({found.origin}): {error}")
                continue
            if isinstance(spec, MethodSpec):
                paper = f"arXiv:{spec.paper}" if spec.paper else ""
                note = {"gold": "runs only when named", "reference": "reference row"}.get(spec.role, "")
                typer.echo(f"  {spec.name:22} {spec.title:20} {paper:18} {note}".rstrip())
            else:
                unit = f"[{spec.unit}]" if spec.unit else ""
                typer.echo(f"  {spec.name:22} {spec.title:20} {unit:8} {spec.better} is better  {spec.source}".rstrip())
    if what in (None, "datasets"):
        typer.echo("datasets:")
        for name in DATASETS:
            typer.echo(f"  {name:22} {load_dataset(name).title}")


@app.command()
def report(results: ResultsOption = Path("results"), out: OutOption = Path("reports")) -> None:
    """Render tables (.md, .tex, .csv) and figures (.png, .pdf) from the records."""
    from unlearnbench.registry import Registry

    if not results.is_dir():
        raise UsageError(
            f"there is no results folder {results}: run 'unlearnbench run' first or name one with --results"
        )
    _check_writable(out, "--out")
    _finish(results, out, Registry().source_hashes())


def _conclude(summary: "Summary", cells: int, results: Path, out: Path, source_hashes: dict[str, str]) -> None:
    """Say how a run ended, render its report, and exit with its status."""
    from rich.console import Console

    console = Console()
    if summary.interrupted:
        console.print(
            f"Stopped. {summary.ran} cells of this run are recorded in {results}; the same command goes on from there.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        raise typer.Exit(130)
    console.print("rendering the report", highlight=False)
    _finish(results, out, source_hashes)
    for record in summary.failed:
        console.print(
            f"{record.status}: {record.cell.id}: {record.reason}", highlight=False, markup=False, soft_wrap=True
        )
    if summary.failed:
        console.print(
            f"{len(summary.failed)} of {cells} cells failed; --rerun failed tries them again. "
            "Tracebacks are in the records.", highlight=False, soft_wrap=True,
        )  # fmt: skip
        raise typer.Exit(1)


def _finish(results: Path, out: Path, source_hashes: dict[str, str]) -> None:
    """Render the report, print its main table, and say where it is."""
    from unlearnbench.report import render

    rendering = render(results, out, source_hashes)
    for line in rendering.notes:
        typer.echo(f"note: {line}")
    for text in rendering.terminal:
        typer.echo(f"\n{text}")
    for path in rendering.pages:
        typer.echo(f"\nReport: {path}")


def _check_writable(folder: Path, option: str) -> None:
    """Raise UsageError unless a folder is there, or can be made, to write in. Makes nothing."""
    try:
        path = folder.absolute()
    except FileNotFoundError as error:
        raise UsageError("the folder you are in no longer exists: change to another one") from error
    existing = next(parent for parent in [path, *path.parents] if parent.exists())
    if not existing.is_dir():
        raise UsageError(f"{option} {folder}: {existing} is a file, give a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"{option} {folder}: {existing} cannot be written, give another folder")


def main() -> None:
    """Run the command line; a UsageError is one sentence on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without arrows must not stop a run
    try:
        app(prog_name="unlearnbench")
    except UsageError as error:
        typer.echo(f"unlearnbench: {error}", err=True)
        sys.exit(2)
    except OSError as error:  # a name too long, a full disk, a folder that went away
        typer.echo(f"unlearnbench: the system refused: {spell_error(error)}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
