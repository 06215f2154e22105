"""The command line: parse, select, dispatch. Heavy imports stay inside commands, so --help is instant."""

import io
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from unlearnbench import __version__
from unlearnbench.errors import PluginError, UsageError, spell_error
from unlearnbench.grid import Controls, Rerun

if TYPE_CHECKING:
    from rich.console import Console

    from unlearnbench.benchmark import Summary
    from unlearnbench.plan import Plan
    from unlearnbench.process import Workers
    from unlearnbench.registry import Plugin, Registry
    from unlearnbench.report import Rendering

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Run unlearning methods for diffusion models under one harness, and compare them.",
    epilog="Example: unlearnbench run --methods all --classes 0-9",
)

Listing = Literal["methods", "metrics", "datasets"]

MethodsOption = Annotated[str, typer.Option(help="all, a group such as paper, or names with commas between")]
ClassesOption = Annotated[
    str, typer.Option(help="Classes to forget, one at a time: 0-9 or 0,cat; several at once: 0+1")
]
SequenceOption = Annotated[str, typer.Option(help="Classes to forget one after another, instead: 0,1,2")]
DatasetOption = Annotated[str, typer.Option(help="Dataset; see 'unlearnbench list datasets'.", metavar="NAME")]
ProtocolOption = Annotated[
    str, typer.Option(help="Rules of evaluation; see 'unlearnbench list datasets'.", metavar="NAME")
]
DataRootOption = Annotated[
    Path | None, typer.Option(help="Folder of the images, or where to download them.", metavar="DIR")
]
ImageSizeOption = Annotated[
    int | None, typer.Option(help="Side in pixels to resize a folder's images to.", metavar="N")
]
BaseOption = Annotated[
    str, typer.Option(help="A trained model, instead of training one: diffusers folder or Hub name.", metavar="DIR|ID")
]
BaseStepsOption = Annotated[
    int | None, typer.Option(help="Train the base model for so many steps.", min=1, metavar="N")
]
JudgeOption = Annotated[str, typer.Option(help="Another judge than the protocol's.", metavar="NAME")]
ExtractorOption = Annotated[str, typer.Option(help="Features of FID: inception or own.", metavar="NAME")]
InceptionOption = Annotated[
    Path | None, typer.Option(help="torch-fidelity's Inception weights, where there is no network.", metavar="FILE")
]
BatchSizeOption = Annotated[
    int | None, typer.Option(help="Images per sampling forward pass, to fit the memory.", min=1, metavar="N")
]
SeedsOption = Annotated[str, typer.Option(help="Replicates, each with its own base model and sampling noise: 0-2")]
BaseSeedsOption = Annotated[
    str, typer.Option(help="Base models of their own seeds: with every seed, instead of the same one.", metavar="SEEDS")
]
SamplingSeedsOption = Annotated[str, typer.Option(help="Sampling noise of its own seeds: likewise.", metavar="SEEDS")]
ControlsOption = Annotated[
    Controls, typer.Option(help="Shams of known outcome, which check the suite: for the first class, every one, none.")
]
MetricsOption = Annotated[str, typer.Option(help="all, a group such as attacks, or names: all,attacks or ua,fid")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting, swept over its values; may be repeated.", metavar="METHOD.NAME=V1,V2"),
]
RerunOption = Annotated[Rerun, typer.Option(help="Which recorded cells to measure again.")]
ResultsOption = Annotated[Path, typer.Option("--results", help="Folder of records.", metavar="DIR")]
OutOption = Annotated[Path, typer.Option("--out", help="Folder for tables and figures.", metavar="DIR")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1")]
PluginOption = Annotated[
    list[Path] | None, typer.Option("--plugin", help="A file with a method or metric; may be repeated.", metavar="FILE")
]
TimeoutOption = Annotated[
    float | None, typer.Option(help="Seconds after which a cell is stopped.", min=1, metavar="SECONDS")
]
MinutesOption = Annotated[
    float | None,
    typer.Option(help="Stop after so long; the same command goes on from there.", min=0.01, metavar="MINUTES"),
]
RepeatsOption = Annotated[
    int, typer.Option(help="Time each cell's unlearning so often; tables show the median.", min=1, metavar="N")
]
JobsOption = Annotated[
    int, typer.Option(help="Cells at once; each is timed alone all the same.", min=1, max=64, metavar="N")
]
SaveModelsOption = Annotated[
    Path | None, typer.Option("--save-models", help="Folder for the unlearned models, one each.", metavar="DIR")
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print the cells and stop.")]


@app.command()
def run(
    methods: MethodsOption,
    classes: ClassesOption = "",
    sequence: SequenceOption = "",
    dataset: DatasetOption = "digits",
    protocol: ProtocolOption = "",
    data_root: DataRootOption = None,
    image_size: ImageSizeOption = None,
    base: BaseOption = "",
    base_steps: BaseStepsOption = None,
    judge: JudgeOption = "",
    extractor: ExtractorOption = "",
    inception_weights: InceptionOption = None,
    batch_size: BatchSizeOption = None,
    seeds: SeedsOption = "0",
    base_seeds: BaseSeedsOption = "",
    sampling_seeds: SamplingSeedsOption = "",
    controls: ControlsOption = "first",
    metrics: MetricsOption = "all",
    set_: SetOption = None,
    rerun: RerunOption = "missing",
    results: ResultsOption = Path("results"),
    out: OutOption = Path("reports"),
    device: DeviceOption = "auto",
    plugin: PluginOption = None,
    timeout: TimeoutOption = None,
    minutes: MinutesOption = None,
    repeats: RepeatsOption = 1,
    jobs: JobsOption = 1,
    save_models: SaveModelsOption = None,
    dry_run: DryRunOption = False,
) -> None:
    """Run every method on every class, then render the report."""
    console, workers = _start(start_workers=not dry_run)
    from unlearnbench.artifacts import default_cache
    from unlearnbench.benchmark import Benchmark
    from unlearnbench.datasets import Source
    from unlearnbench.plan import make_plan
    from unlearnbench.registry import Registry
    from unlearnbench.results import ResultStore

    plugin_files = [path.absolute() for path in plugin or []]
    registry = Registry(plugin_files)
    source = Source(
        dataset, protocol, data_root, image_size, base, base_steps, judge, extractor, inception_weights, batch_size
    )
    plan = make_plan(
        registry, methods=methods, classes=classes, source=source, metrics=metrics, sweeps=set_ or [], seeds=seeds,
        base_seeds=base_seeds, sampling_seeds=sampling_seeds, controls=controls, sequence=sequence,
    )  # fmt: skip
    if workers is None:
        _show_plan(plan, console)
        return
    for option, folder in (("--results", results), ("--out", out), ("--save-models", save_models)):
        if folder is not None:
            _check_writable(folder, option)
    benchmark = Benchmark(
        plan, workers, ResultStore(results), console, cache=default_cache(), device=device, plugin_files=plugin_files,
        timeout=timeout, minutes=minutes, repeats=repeats, jobs=jobs, controls=controls, models=save_models,
    )  # fmt: skip
    key = (plan.dataset.name, plan.dataset.protocol.name)
    _conclude(benchmark.run(rerun), len(plan.cells), key, results, out, registry)


def _show_plan(plan: "Plan", console: "Console") -> None:
    for cell in plan.cells:
        console.print(cell.id, highlight=False, soft_wrap=True)
    checks = f", {len(plan.controls)} of them to check the suite (--controls)" if plan.controls else ""
    console.print(f"{len(plan.cells)} cells{checks}", highlight=False)


def _start(start_workers: bool = True) -> "tuple[Console, Workers | None]":
    """Greet, and start the process server, whose imports run while ours do."""
    from rich.console import Console

    from unlearnbench.process import Workers

    console = Console()
    console.print(f"unlearnbench {__version__}: loading", highlight=False)
    return console, Workers() if start_workers else None


@app.command()
def train(
    out: Annotated[Path, typer.Option("--out", help="Folder for the model.", metavar="DIR")],
    dataset: DatasetOption = "digits",
    protocol: ProtocolOption = "",
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, if not the recipe's.", min=1, metavar="N")] = None,
    data_root: DataRootOption = None,
    image_size: ImageSizeOption = None,
    device: DeviceOption = "auto",
    minutes: MinutesOption = None,
) -> None:
    """Train a dataset's base model and write it as a diffusers folder; a stopped training goes on where it was."""
    console, workers = _start()
    assert workers is not None
    from unlearnbench.artifacts import default_cache
    from unlearnbench.benchmark import train_base
    from unlearnbench.datasets import Source, load_dataset

    chosen = load_dataset(Source(dataset, protocol, data_root, image_size, base_steps=steps))
    _check_writable(out, "--out")
    losses = train_base(workers, chosen, console, cache=default_cache(), device=device, out=out, minutes=minutes)
    if losses is None:
        console.print("Stopped. The same command goes on from the last checkpoint.", highlight=False)
        raise typer.Exit(130)
    if losses:
        step, loss = losses[-1]
        console.print(
            f"{step} steps, training loss {loss:.4f} per pixel at the end (1 is predicting zero)", highlight=False
        )
    console.print(f"Base model: {out} (use it with --base {out})", highlight=False, soft_wrap=True)


@app.command()
def sample(
    model: Annotated[
        Path,
        typer.Argument(help="A folder of --save-models, or another UNet2DModel with class labels.", metavar="MODEL"),
    ],
    classes: Annotated[str, typer.Option("--class", help="Class by number or name; several, 0-9, a row for each.")],
    out: Annotated[Path, typer.Option("--out", help="The picture.", metavar="FILE.png")],
    n: Annotated[int, typer.Option("--n", help="Images of each class.", min=1, max=10_000)] = 16,
    seed: Annotated[
        int | None, typer.Option(help="Of the noise; without it the one of the model's evaluation, or 0.", min=0)
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="w, if not the protocol's.", metavar="W")] = None,
    steps: Annotated[int | None, typer.Option(help="DDIM steps, if not the protocol's.", min=1, max=1000)] = None,
    device: DeviceOption = "auto",
) -> None:
    """Sample a saved model into a grid: by default the first of the very images that its record judged."""
    console, _ = _start(start_workers=False)
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: give a name that ends in .png")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: give a file in it, such as {out}/grid.png")
    _check_writable(out.parent, "--out")
    if out.exists() and not os.access(out, os.W_OK):
        raise UsageError(f"--out {out} cannot be written: give another name")
    if guidance is not None and not math.isfinite(guidance):
        raise UsageError(f"--guidance takes a finite number, not {guidance}")
    import torch

    from unlearnbench.grid import parse_classes
    from unlearnbench.product import draw, grid, open_model
    from unlearnbench.progress import Display
    from unlearnbench.runner import identify

    with Display(console) as display, display.task(f"sample {model}") as task:
        saved = open_model(model, torch.device(identify(device, task.progress)["device"]))
        chosen = parse_classes(classes, saved.class_names)
        images = draw(saved, chosen, n, seed=seed, steps=steps, guidance=guidance, progress=task.progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    grid(images).save(out, format="PNG")
    console.print(f"{images.shape[0] * n} images: {out}", highlight=False, soft_wrap=True)


@app.command("list")
def list_(
    what: Annotated[Listing | None, typer.Argument(help="Only these.")] = None,
    plugin: PluginOption = None,
    cards: Annotated[bool, typer.Option("--cards", help="Of methods or metrics: what their files say, whole.")] = False,
) -> None:
    """Show what there is: methods with paper ids, metrics, datasets; broken plugins with their reason."""
    from unlearnbench.datasets import DATASETS, protocol_names, title_of
    from unlearnbench.registry import Registry

    registry = Registry(plugin or [])
    if cards:
        from unlearnbench.cards import cards as page

        if what not in ("methods", "metrics"):
            raise UsageError("--cards shows methods or metrics: write 'unlearnbench list metrics --cards'")
        typer.echo(page(registry, "method" if what == "methods" else "metric"), nl=False)
        return
    for kind in ("methods", "metrics"):
        if what not in (None, kind):
            continue
        typer.echo(f"{kind}:")
        for found in registry.plugins("method" if kind == "methods" else "metric"):
            try:
                typer.echo(_listed(found))
            except PluginError as error:
                typer.echo(f"  {found.name:22} BROKEN ({found.origin}): {error}")
    if what in (None, "datasets"):
        typer.echo("datasets:")
        for name in DATASETS:
            typer.echo(f"  {name:22} {title_of(name):42} protocols {', '.join(protocol_names(name))}")


def _listed(found: "Plugin") -> str:
    """Return a plugin's line of the list; raises PluginError where it cannot be used."""
    declared = found.declared
    begin = f"  {found.name:22} {declared['title']:20}"
    if found.kind == "method":
        paper = f"arXiv:{declared['paper']}" if declared.get("paper") else ""
        notes = {"gold": "runs only when named", "reference": "reference row", "control": "checks the suite"}
        return f"{begin} {paper:18} {notes.get(declared.get('role', ''), '')}".rstrip()
    unit = f"[{declared['unit']}]" if declared["unit"] else ""
    better = "description" if declared["better"] == "neither" else f"{declared['better']} is better"
    named = "  ".join(["only when named", *declared.get("groups", ()), ""]) if declared.get("optional") else ""
    return f"{begin} {unit:8} {better:17} {named}{declared.get('source', '')}".rstrip()


@app.command()
def new(
    kind: Annotated[Literal["method"], typer.Argument(help="What to write.")],
    name: Annotated[str, typer.Argument(help="Its name: a Python name in lower case.", metavar="NAME")],
    package: Annotated[bool, typer.Option("--package", help="With entry point, test and README, to install.")] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder to write into.", metavar="DIR")] = Path(),
) -> None:
    """Write a method file that runs as it is, to be made your own."""
    from unlearnbench.kit.scaffold import new_method

    _check_writable(out, "--out")
    written = new_method(name, out, package=package)
    for path in written.files:
        typer.echo(f"wrote {path}")
    typer.echo("\nNext:")
    for line in written.commands:
        typer.echo(f"  {line}")


@app.command()
def check(
    target: Annotated[str, typer.Argument(help="A method's name, or the file it is in.", metavar="NAME|FILE")],
) -> None:
    """Try a method on the embedded digits and say which promises it keeps; a broken one says what to change."""
    import time

    began = time.monotonic()
    from unlearnbench.kit.conformance import check as check_methods

    whole = True
    for method, promises in check_methods(target).items():
        typer.echo(f"{method}:")
        for promise in promises:
            typer.echo(f"  {promise}")
        kept = sum(promise.kept is True for promise in promises)
        typer.echo(f"{kept} of {len(promises)} promises kept ({time.monotonic() - began:.0f} s)")
        whole &= kept == len(promises)
    if not whole:
        raise typer.Exit(1)


@app.command()
def report(results: ResultsOption = Path("results"), out: OutOption = Path("reports")) -> None:
    """Render tables (.md, .tex, .csv) and figures (.png, .pdf) from the records."""
    from unlearnbench.registry import Registry

    _check_results(results)
    _check_writable(out, "--out")
    _finish(results, out, Registry())


@app.command()
def compare(
    source: Annotated[str, typer.Argument(help="Whose published numbers: spartalis2025")],
    results: ResultsOption = Path("results"),
    out: OutOption = Path("reports"),
) -> None:
    """Set published numbers beside the measured ones, with what may and may not be compared."""
    from unlearnbench.registry import Registry
    from unlearnbench.report.compare import compare as compare_with

    _check_results(results)
    _check_writable(out, "--out")
    _show(compare_with(source, results, out, _hashes(Registry(), results)), "Comparison")


@app.command()
def validate(results: ResultsOption = Path("results")) -> None:
    """Show the controls, and how well each metric separates those that forget from those that do not."""
    from unlearnbench.registry import Registry
    from unlearnbench.report import validation

    _check_results(results)
    found = validation(results, _hashes(Registry(), results))
    _show(found, "Validation")
    if found.alarms:
        raise typer.Exit(1)


@app.command()
def verify(
    table: Annotated[Path, typer.Argument(help="A .tex or .md file with tables of a report.", metavar="TABLE")],
    results: ResultsOption = Path("results"),
) -> None:
    """Check that every number of a table follows from the records its caption names."""
    from unlearnbench.registry import Registry
    from unlearnbench.report.verify import verify as verify_table

    _check_results(results)
    verdict = verify_table(table, results, _hashes(Registry(), results))
    for line in verdict.lines:
        typer.echo(line)
    if not verdict.holds:
        raise typer.Exit(1)


def _check_results(results: Path) -> None:
    if not results.is_dir():
        raise UsageError(
            f"there is no results folder {results}: run 'unlearnbench run' first or name one with --results"
        )


def _conclude(
    summary: "Summary", cells: int, key: tuple[str, str], results: Path, out: Path, registry: "Registry"
) -> None:
    """Say how a run of `key`, a dataset and a protocol, ended, render its report, and exit with its status."""
    from rich.console import Console

    console = Console()
    if summary.interrupted:
        console.print(
            f"Stopped. {summary.ran} cells of this run are recorded in {results}; the same command goes on from there.",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        if summary.out_of_time and summary.ran:
            _finish(results, out, registry)
        raise typer.Exit(130)
    console.print("rendering the report", highlight=False)
    alarmed = key in _finish(results, out, registry).alarms
    for record in summary.failed:
        console.print(
            f"{record.status}: {record.cell.id}: {record.reason}", highlight=False, markup=False, soft_wrap=True
        )
    if summary.failed:
        console.print(
            f"{len(summary.failed)} of {cells} cells failed; --rerun failed tries them again. "
            "Tracebacks are in the records.", highlight=False, soft_wrap=True,
        )  # fmt: skip
    if summary.failed or alarmed:
        raise typer.Exit(1)


def _hashes(registry: "Registry", results: Path) -> dict[str, str]:
    """Return the hashes of everything records rest on, as it is now, to tell stale records."""
    from unlearnbench.results import ResultStore

    return registry.current_hashes(ResultStore(results).read().records)


def _finish(results: Path, out: Path, registry: "Registry") -> "Rendering":
    """Render the report, print its main table, and say where it is."""
    from unlearnbench.report import render

    rendering = render(results, out, _hashes(registry, results))
    _show(rendering, "Report")
    return rendering


def _show(rendering: "Rendering", what: str) -> None:
    for line in rendering.notes:
        typer.echo(f"note: {line}")
    for text in rendering.terminal:
        typer.echo(f"\n{text}")
    for path in rendering.pages:
        typer.echo(f"\n{what}: {path}")
    if rendering.alarms:
        typer.secho("\nThe suite fails its own checks: trust none of these numbers until it is known why.", fg="red")
    for alarm in [sentence for found in rendering.alarms.values() for sentence in found]:
        typer.secho(f"- {alarm}", fg="red")


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
