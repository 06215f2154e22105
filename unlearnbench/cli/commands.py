"""The command line: parse, select, dispatch. Heavy imports stay inside commands, so --help is instant."""

import codecs
import io
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from unlearnbench.cli import options
from unlearnbench.cli.cluster import app as cluster_app
from unlearnbench.cli.cluster import check_options, run_on_cluster
from unlearnbench.cli.running import (
    absolute,
    asked_of,
    check_results,
    check_run,
    check_writable,
    echo,
    execution_of,
    opened,
    plan_of,
    render_all,
    run_here,
    say,
    say_dry_run,
    source_of,
    start,
)
from unlearnbench.cli.tune import TUNE_EXAMPLES, tune
from unlearnbench.errors import PluginError, UsageError, one_line, plural, spell_error
from unlearnbench.version import __version__

if TYPE_CHECKING:
    from rich.console import Console

    from unlearnbench.plugins.registry import Plugin
    from unlearnbench.run.execution import Execution
    from unlearnbench.run.plan import Plan
    from unlearnbench.run.workers import Workers

app = typer.Typer(
    add_completion=False,
    context_settings={"help_option_names": ["--help", "-h"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Run unlearning methods for diffusion models under one harness, and compare them.",
    epilog="Example: unlearnbench run --methods all --classes 0-9",
)

EXAMPLES = """\b
Examples:
  unlearnbench run --methods all --classes 0-9
  unlearnbench run --methods paper --classes 0,3 --seeds 0-2
  unlearnbench run --methods all --classes 0-9 --dry-run
"""
ESTIMATE_EXAMPLES = """\b
Examples:
  unlearnbench estimate --methods all --classes 0-9
  unlearnbench estimate --methods paper --dataset cifar10 --protocol paper
"""
EVALUATE_EXAMPLES = """\b
Examples:
  unlearnbench evaluate mine --class 3
  unlearnbench evaluate a b --dataset cifar10 --base mybase --class cat
"""
UNLEARN_EXAMPLES = """\b
Examples:
  unlearnbench unlearn --method safemax --class 3 --out forgot3
  unlearnbench unlearn --base mine --method salun --class 0+1 --out forgot01
"""
Listing = Literal["methods", "metrics", "datasets"]
Kinds = Literal["method"]  # what `new` writes
Actions = Literal["show", "clean"]  # on the cache

LONGEST = 4000  # characters of an error
# replacements for characters that an output cannot show, of the same width, so that tables stay aligned
SPELLED = {"↓": "v", "↑": "^", "†": "!", "±": "~", "→": ">", "…": "."}


app.add_typer(cluster_app, name="cluster")


@app.callback(invoke_without_command=True)
def unlearnbench(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Show the version, or the help where no command is named."""
    if version:
        typer.echo(f"unlearnbench {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command(cls=options.Sections, epilog=EXAMPLES)
def run(
    context: typer.Context,
    methods: options.Methods = "",
    classes: options.Classes = "",
    sequence: options.Sequence = "",
    retained: options.Retained = "",
    metrics: options.Metrics = "all",
    set_: options.Set = None,
    track: options.Track = "tuned",
    seeds: options.Seeds = "0",
    base_seeds: options.BaseSeeds = "",
    sampling_seeds: options.SamplingSeeds = "",
    controls: options.Controls = "first",
    plugin: options.Plugin = None,
    dataset: options.Dataset = "digits",
    protocol: options.Protocol = "",
    data_root: options.DataRoot = None,
    image_size: options.ImageSize = None,
    model: options.Model = "",
    base: options.Base = "",
    labels: options.Labels = "",
    concepts: options.Concepts = None,
    base_steps: options.BaseSteps = None,
    base_minutes: options.BaseMinutes = None,
    judge: options.Judge = "",
    judge_weights: options.JudgeWeights = None,
    second_judge: options.SecondJudge = "",
    second_judge_weights: options.SecondJudgeWeights = None,
    extractor: options.Extractor = "",
    inception_weights: options.Inception = None,
    device: options.Device = "auto",
    devices: options.Devices = "",
    batch_size: options.BatchSize = None,
    precision: options.Precision = "fp32",
    compile_: options.Compile = False,
    repeats: options.Repeats = 1,
    rerun: options.Rerun = "missing",
    timeout: options.Timeout = None,
    minutes: options.Minutes = None,
    stop_if_weak: options.StopIfWeak = False,
    cluster: options.Cluster = None,
    detach: options.Detach = False,
    print_jobs: options.PrintJobs = False,
    dry_run: options.DryRun = False,
    no_report: options.NoReport = False,
    results: options.Results = Path("results"),
    out: options.Out = Path("reports"),
    save_models: options.SaveModels = None,
) -> None:
    """Run every method on every class, and render the report."""
    check_options(cluster, {"--detach": detach, "--print-jobs": print_jobs, "--minutes": minutes, "--dry-run": dry_run})
    console, workers = start(start_workers=not dry_run and cluster is None)
    asked = asked_of(context)
    registry, plan = plan_of(plugin, source_of(context), **asked)
    check_run(plan, {"--results": results, "--out": out, "--save-models": save_models}, stop_if_weak)
    execution, place = execution_of(context), None if no_report else out
    if cluster is not None:
        run_on_cluster(context, asked, plan, execution, results, place, registry, console)
    elif workers is None:
        say_dry_run(console, plan, results, execution)
    else:
        run_here(console, plan, workers, execution, results, place, registry)


@app.command(cls=options.Sections, epilog=ESTIMATE_EXAMPLES)
def estimate(
    context: typer.Context,
    methods: options.Methods = "",
    classes: options.Classes = "",
    sequence: options.Sequence = "",
    retained: options.Retained = "",
    metrics: options.Metrics = "all",
    set_: options.Set = None,
    track: options.Track = "tuned",
    seeds: options.Seeds = "0",
    base_seeds: options.BaseSeeds = "",
    sampling_seeds: options.SamplingSeeds = "",
    controls: options.Controls = "first",
    plugin: options.Plugin = None,
    dataset: options.Dataset = "digits",
    protocol: options.Protocol = "",
    data_root: options.DataRoot = None,
    image_size: options.ImageSize = None,
    model: options.Model = "",
    base: options.Base = "",
    labels: options.Labels = "",
    concepts: options.Concepts = None,
    base_steps: options.BaseSteps = None,
    base_minutes: options.BaseMinutes = None,
    judge: options.Judge = "",
    judge_weights: options.JudgeWeights = None,
    second_judge: options.SecondJudge = "",
    second_judge_weights: options.SecondJudgeWeights = None,
    extractor: options.Extractor = "",
    inception_weights: options.Inception = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = None,
    precision: options.Precision = "fp32",
    compile_: options.Compile = False,
    repeats: options.Repeats = 1,
    rerun: options.Rerun = "missing",
    results: options.Results = Path("results"),
    save_models: options.SaveModels = None,
) -> None:
    """Measure the time a run with these options would take here.

    It takes a minute or two and writes nothing. Without --classes, all classes count.
    """
    console, workers = start()
    assert workers is not None
    every = not (classes or sequence)
    _, plan = plan_of(plugin, source_of(context), **asked_of(context), every_class=every)
    check_run(plan, {"--results": results, "--save-models": save_models}, stop_if_weak=False)
    _say_estimate(console, plan, workers, results, execution_of(context))


app.command(cls=options.Sections, epilog=TUNE_EXAMPLES)(tune)


def _say_estimate(console: "Console", plan: "Plan", workers: "Workers", results: Path, execution: "Execution") -> None:
    """Print what a run would take."""
    from unlearnbench.cli.estimate import lines
    from unlearnbench.run.estimate import estimate as measure
    from unlearnbench.run.workers import ignore_stopping
    from unlearnbench.store.records import ResultStore

    try:
        outlook = measure(plan, workers, ResultStore(results), console, execution)
    except KeyboardInterrupt:
        ignore_stopping()
        say(console, "Stopped. Nothing was written.")
        raise typer.Exit(130) from None
    for line in lines(outlook):
        say(console, line)


@app.command(cls=options.Sections, epilog=EVALUATE_EXAMPLES)
def evaluate(
    context: typer.Context,
    models: Annotated[
        list[Path],
        typer.Argument(
            help="Folders in diffusers' format: of --save-models, of convert, or your own.", metavar="MODEL"
        ),
    ],
    classes: options.Forgotten = "",
    retained: options.Retained = "",
    name: options.RowName = "",
    metrics: options.Metrics = "all",
    seed: options.Seed = None,
    plugin: options.Plugin = None,
    dataset: options.Dataset = "digits",
    protocol: options.Protocol = "",
    data_root: options.DataRoot = None,
    image_size: options.ImageSize = None,
    model: options.Model = "",
    base: options.Base = "",
    labels: options.Labels = "",
    concepts: options.Concepts = None,
    base_steps: options.BaseSteps = None,
    base_minutes: options.BaseMinutes = None,
    judge: options.Judge = "",
    judge_weights: options.JudgeWeights = None,
    second_judge: options.SecondJudge = "",
    second_judge_weights: options.SecondJudgeWeights = None,
    extractor: options.Extractor = "",
    inception_weights: options.Inception = None,
    device: options.Device = "auto",
    batch_size: options.BatchSize = None,
    rerun: options.Rerun = "missing",
    timeout: options.Timeout = None,
    no_report: options.NoReport = False,
    results: options.Results = Path("results"),
    out: options.Out = Path("reports"),
) -> None:
    """Measure models that were unlearned elsewhere.

    MODEL is a folder in diffusers' format: of --save-models, convert or your own. It becomes a row of the same tables.
    The untouched base model is measured beside it. The cost of unlearning is not known, so it is not shown.
    """
    from unlearnbench.plugins.registry import Registry
    from unlearnbench.run.given import Given, plan_of_given

    if name and len(models) > 1:
        raise UsageError("--name names one row: give one model, or let folders name the rows")
    given = [Given.read(model, name) for model in models]
    console, workers = start()
    registry = Registry(absolute(plugin))
    plan = plan_of_given(
        registry, given, classes=classes, source=source_of(context), metrics=metrics, seed=seed, retained=retained
    )
    check_run(plan, {"--results": results, "--out": out}, stop_if_weak=False)
    assert workers is not None
    execution, place = execution_of(context, controls="none", models=None), None if no_report else out
    run_here(console, plan, workers, execution, results, place, registry)


@app.command(cls=options.Sections, epilog=UNLEARN_EXAMPLES)
def unlearn(
    context: typer.Context,
    out: Annotated[Path, typer.Option("--out", help="Folder for the unlearned model.", metavar="DIR")],
    method: Annotated[str, typer.Option("--method", help="Name of the method.", metavar="NAME")],
    classes: options.ToForget,
    model: options.Model = "",
    base: options.Base = "",
    labels: options.Labels = "",
    concepts: options.Concepts = None,
    set_: options.Set = None,
    seed: options.OneSeed = 0,
    plugin: options.Plugin = None,
    dataset: options.Dataset = "digits",
    protocol: options.Protocol = "",
    data_root: options.DataRoot = None,
    image_size: options.ImageSize = None,
    base_steps: options.BaseSteps = None,
    base_minutes: options.BaseMinutes = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    compile_: options.Compile = False,
    timeout: options.Timeout = None,
) -> None:
    """Unlearn a class of one model.

    One model in, one model out, with its card; nothing is measured. Without --base, the dataset's base model is
    trained.
    """
    console, workers = start()
    assert workers is not None
    from unlearnbench.plugins.registry import Registry
    from unlearnbench.run.given import plan_of_unlearning
    from unlearnbench.run.single import unlearn_to
    from unlearnbench.run.workers import ignore_stopping

    registry = Registry(absolute(plugin))
    plan = plan_of_unlearning(
        registry, method, classes=classes, source=source_of(context), sweeps=set_ or [], seed=seed
    )
    check_run(plan, {"--out": out}, stop_if_weak=False)
    execution = execution_of(context, controls="none", models=None)
    record = unlearn_to(out, plan, workers, console, execution)
    if record is None:
        ignore_stopping()
        say(console, "Stopped. Nothing was written.")
        raise typer.Exit(130)
    if record.status != "ok":
        say(console, record.failure)
        raise typer.Exit(1)
    say(console, f"Model: {out} (measure it with 'unlearnbench evaluate {out}')")


@app.command(cls=options.Command)
def train(
    out: Annotated[Path, typer.Option("--out", help="Folder for the model.", metavar="DIR")],
    dataset: options.Dataset = "digits",
    protocol: options.Protocol = "",
    steps: Annotated[int | None, typer.Option(help="Optimiser steps, if not the recipe's.", min=1, metavar="N")] = None,
    data_root: options.DataRoot = None,
    image_size: options.ImageSize = None,
    device: options.Device = "auto",
    minutes: options.BaseMinutes = None,
    model: options.Model = "",
    concepts: options.Concepts = None,
) -> None:
    """Train a base model and write it as a diffusers folder.

    Run the same command again to resume.
    """
    if steps is not None and minutes is not None:
        raise UsageError("--steps and --minutes both set the length of training: give one of them")
    console, workers = start()
    assert workers is not None
    from unlearnbench.datasets import Source, load_dataset
    from unlearnbench.run.single import train_base
    from unlearnbench.run.workers import ignore_stopping
    from unlearnbench.store.cache import default_cache

    chosen = load_dataset(
        Source(
            dataset,
            protocol,
            data_root,
            image_size,
            base_steps=steps,
            base_minutes=minutes,
            model=model,
            concepts=concepts,
        )
    )
    check_writable(out, "--out")
    losses = train_base(workers, chosen, console, cache=default_cache(), device=device, out=out)
    if losses is None:
        ignore_stopping()
        say(console, "Stopped. Run the same command again to resume from the last checkpoint.")
        raise typer.Exit(130)
    if losses:
        step, loss = losses[-1]
        say(console, f"{plural(step, 'step')}, training loss {loss:.4f} per pixel at the end (1 is predicting zero)")
    say(console, f"Base model: {out} (use it with --base {out})")


@app.command(cls=options.Command)
def convert(
    checkpoint: Annotated[
        Path, typer.Argument(help="A ckpt.pth of the SA, SalUn, SFRon or EraseDiff code.", metavar="CHECKPOINT")
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the model.", metavar="DIR")],
    ema: Annotated[
        bool | None,
        typer.Option("--ema/--no-ema", help="Take the averaged weights; by default if the file has them."),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(help="Pixels, where the network does not tell.", min=8, max=256, metavar="N"),
    ] = None,
) -> None:
    """Write a checkpoint of the reference code as a diffusers folder.

    Weights alone are read, no code in the file is run, and the model predicts the same noise.
    """
    check_writable(out, "--out")
    console, _ = start(start_workers=False)
    from unlearnbench.models.convert import convert as write_converted

    found = write_converted(checkpoint, out, averaged=ema, side=image_size)
    say(
        console,
        f"{'averaged' if found.averaged else 'last'} weights, {found.parameters / 1e6:.1f} M; "
        f"{plural(found.classes, 'label')} and the null class; {found.side} px",
    )
    say(console, f"Model: {out} (use it with --base {out})")


@app.command(cls=options.Command)
def sample(
    model: Annotated[
        Path,
        typer.Argument(help="A folder of --save-models, or any UNet2DModel with class labels.", metavar="MODEL"),
    ],
    classes: Annotated[
        str, typer.Option("--class", help="Class by number or name; several (0-9) give a row each.", metavar="CLASSES")
    ],
    out: Annotated[Path, typer.Option("--out", help="The picture to write.", metavar="FILE.png")],
    n: Annotated[int, typer.Option("--n", help="Images of each class.", min=1, max=10_000, metavar="N")] = 16,
    seed: Annotated[
        int | None,
        typer.Option(help="Seed of the noise; default: that of the model's evaluation, or 0.", min=0, metavar="N"),
    ] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance w, if not the protocol's.", metavar="W")] = None,
    steps: Annotated[
        int | None, typer.Option(help="Sampling steps, if not the protocol's.", min=1, max=1000, metavar="N")
    ] = None,
    device: options.Device = "auto",
) -> None:
    """Sample a saved model into a picture, a grid of images.

    By default these are the first images of the model's evaluation.
    """
    if not model.is_dir():
        raise UsageError(f"there is no model folder {model}: 'unlearnbench run --save-models DIR' writes them")
    if out.suffix.lower() != ".png":
        raise UsageError(f"--out {out}: give a name that ends in .png")
    if out.is_dir():
        raise UsageError(f"--out {out} is a folder: give a file in it, such as {out}/grid.png")
    check_writable(out.parent, "--out")
    if out.exists() and not os.access(out, os.W_OK):
        raise UsageError(f"--out {out} cannot be written: give another name")
    if guidance is not None and not math.isfinite(guidance):
        raise UsageError(f"--guidance takes a finite number, not {guidance}")
    console, _ = start(start_workers=False)
    import torch

    from unlearnbench.models.saved import draw, image_grid, open_model
    from unlearnbench.run.arguments import parse_classes
    from unlearnbench.run.jobs import resolve_device
    from unlearnbench.run.progress import Display

    with Display(console) as display, display.task(f"sample {model}") as task:
        saved = open_model(model, torch.device(resolve_device(device, task.progress)["device"]))
        chosen = parse_classes(classes, saved.class_names)
        images = draw(saved, chosen, n, seed=seed, steps=steps, guidance=guidance, progress=task.progress)
    out.parent.mkdir(parents=True, exist_ok=True)
    image_grid(images).save(out, format="PNG")
    say(console, f"{plural(images.shape[0] * n, 'image')}: {out}")


def _listing(text: str) -> str:
    """Read what to list, in the plural or the singular."""
    return options.one_of(Listing)(f"{text}s" if f"{text}s" in get_args(Listing) else text)


@app.command("list", cls=options.Command)
def list_(
    what: Annotated[
        Listing | None,
        typer.Argument(help="Show only methods, metrics or datasets.", metavar="WHAT", parser=_listing),
    ] = None,
    plugin: options.Plugin = None,
    cards: Annotated[bool, typer.Option("--cards", help="Print the cards of methods or metrics in full.")] = False,
) -> None:
    """List methods, metrics and datasets.

    Methods have the ids of their papers, broken plugins the reason.
    """
    from unlearnbench.datasets import DATASETS, protocol_names, title_of
    from unlearnbench.plugins.registry import Registry

    registry = Registry(plugin or [])
    if cards:
        from unlearnbench.plugins.cards import cards as page

        if what not in ("methods", "metrics"):
            raise UsageError("--cards shows methods or metrics: write 'unlearnbench list metrics --cards'")
        echo(page(registry, "method" if what == "methods" else "metric"), nl=False)
        return
    for kind in ("methods", "metrics"):
        if what not in (None, kind):
            continue
        echo(f"{kind}:")
        for entry in registry.plugins("method" if kind == "methods" else "metric"):
            try:
                echo(_listed(entry))
            except PluginError as error:
                echo(f"  {entry.name:22} BROKEN ({one_line(entry.origin)}): {one_line(str(error))}")
    if what in (None, "datasets"):
        echo("datasets:")
        for name in DATASETS:
            echo(f"  {name:22} {title_of(name):42} protocols {', '.join(protocol_names(name))}")


def _listed(plugin: "Plugin") -> str:
    """Return a plugin's line of the list; raises PluginError where it cannot be used."""
    declared = {
        name: one_line(text) if isinstance(text, str) else text for name, text in plugin.declared.items()
    }  # a title may hold anything until it is imported
    begin = f"  {plugin.name:22} {declared['title']:20}"
    if plugin.kind == "method":
        paper = f"arXiv:{declared['paper']}" if declared.get("paper") else ""
        notes = {"gold": "runs only when named", "reference": "reference row", "control": "control"}
        return f"{begin} {paper:18} {notes.get(declared.get('role', ''), '')}".rstrip()
    unit = f"[{declared['unit']}]" if declared["unit"] else ""
    better = "description" if declared["better"] == "neither" else f"{declared['better']} is better"
    named = "  ".join(["only when named", *declared.get("groups", ()), ""]) if declared.get("optional") else ""
    return f"{begin} {unit:8} {better:17} {named}{declared.get('source', '')}".rstrip()


@app.command(cls=options.Command)
def new(
    kind: Annotated[
        Kinds, typer.Argument(help="What to create: method.", metavar="KIND", parser=options.one_of(Kinds))
    ],
    name: Annotated[str, typer.Argument(help="A Python name in lower case.", metavar="NAME")],
    package: Annotated[
        bool, typer.Option("--package", help="Write an installable package with entry point, test and README.")
    ] = False,
    inference: Annotated[
        bool, typer.Option("--inference", help="Write a method without training, which acts while samples are drawn.")
    ] = False,
    out: Annotated[Path, typer.Option("--out", help="Folder to write into.", metavar="DIR")] = Path(),
) -> None:
    """Create a runnable method file from a template."""
    from unlearnbench.kit.scaffold import new_method

    check_writable(out, "--out")
    written = new_method(name, out, package=package, inference=inference)
    for path in written.files:
        echo(f"wrote {path}")
    echo("\nNext:")
    for line in written.commands:
        echo(f"  {line}")


@app.command(cls=options.Command)
def check(
    target: Annotated[str, typer.Argument(help="The method's name, or its file.", metavar="NAME|FILE")],
    model: Annotated[str, typer.Option("--model", help="Kind of model: unet, dit or text.", metavar="KIND")] = "",
) -> None:
    """Run the conformance tests on a method, on digits.

    A test that fails says what to change.
    """
    import time

    began = time.monotonic()
    from unlearnbench.kit.conformance import check as check_methods

    whole = True
    for method, promises in check_methods(target, model).items():
        echo(f"{method}:")
        for promise in promises:
            echo(f"  {promise}")
        kept = sum(promise.kept is True for promise in promises)
        echo(f"{kept} of {len(promises)} promises kept ({time.monotonic() - began:.0f} s)")
        whole &= kept == len(promises)
    if not whole:
        raise typer.Exit(1)


@app.command(cls=options.Command)
def report(
    results: options.Results = Path("results"),
    out: options.Out = Path("reports"),
    methods: options.PaperMethods = "",
    open_: Annotated[bool, typer.Option("--open", help="Open the page in a browser, where there is one.")] = False,
) -> None:
    """Render the report from the records: page, tables and figures.

    A page of everything (.html), and for each dataset tables (.md, .tex, .csv) and figures (.png, .pdf). With --methods
    the paper's two tables, a group of columns per method, show these; else all methods where they are four at most.
    """
    from unlearnbench.cli.console import make_console, open_page, say_where
    from unlearnbench.plugins.registry import Registry

    check_results(results)
    check_writable(out, "--out")
    console = make_console()
    registry = Registry()
    chosen = [spec.name for spec in registry.select_methods(methods)] if methods else []
    rendering = render_all(results, out, registry, console, chosen)
    say_where(rendering, "Report", console)
    if open_:
        open_page(rendering.html or rendering.pages[0], console)


@app.command(cls=options.Command)
def compare(
    source: Annotated[str, typer.Argument(help="Published numbers: spartalis2025.", metavar="SOURCE")],
    results: options.Results = Path("results"),
    out: options.Out = Path("reports"),
) -> None:
    """Compare published numbers with measured ones.

    The pages say which numbers are comparable, and why others are not.
    """
    from unlearnbench.cli.console import make_console, say_where, show
    from unlearnbench.cli.plotting import import_matplotlib

    import_matplotlib()
    from unlearnbench.report.compare import compare as compare_with
    from unlearnbench.report.data.published import load_source

    load_source(source)  # errors of the command come before missing files
    check_results(results)
    check_writable(out, "--out")
    console = make_console()
    with opened(results) as (reading, stale):
        rendering = compare_with(source, reading, out, stale)
    show(rendering, console)
    say_where(rendering, "Comparison", console)


@app.command(cls=options.Command)
def validate(results: options.Results = Path("results")) -> None:
    """Show the controls, and how well each metric separates them.

    Controls are methods with a known outcome: some forget, some do not.
    """
    from unlearnbench.cli.console import make_console, show
    from unlearnbench.cli.plotting import import_matplotlib
    from unlearnbench.report.render import validation

    import_matplotlib()
    check_results(results)
    with opened(results) as (reading, stale):
        checked = validation(reading, stale)
    show(checked, make_console())
    if checked.alarms:
        raise typer.Exit(1)


@app.command(cls=options.Command)
def verify(
    table: Annotated[Path, typer.Argument(help="A .tex or .md file with tables of a report.", metavar="TABLE")],
    results: options.Results = Path("results"),
) -> None:
    """Check that a table's numbers follow from its records.

    The table's caption names the records.
    """
    from unlearnbench.cli.plotting import import_matplotlib

    import_matplotlib()
    from unlearnbench.report.verify import verify as verify_table

    with opened(results) as (reading, stale):
        verdict = verify_table(table, reading, stale)
    for line in verdict.lines:
        echo(line)
    if not verdict.holds:
        raise typer.Exit(1)


@app.command(cls=options.Command)
def cache(
    action: Annotated[
        Actions,
        typer.Argument(
            help="show (the default) what lies there, or clean it.", metavar="ACTION", parser=options.one_of(Actions)
        ),
    ] = "show",
    kind: Annotated[
        list[str] | None,
        typer.Option(help="Only this kind, or 'prior-*'. May be repeated.", metavar="KIND"),
    ] = None,
    unused_for: Annotated[
        float | None,
        typer.Option(help="Only what was not used for so long.", min=0, metavar="DAYS", callback=options.finite),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With clean: show what it would free.")] = False,
) -> None:
    """Show what lies in the cache and what it cost, or clean it.

    Cleaning removes everything that no run in progress uses; what is needed again is made again.
    """
    from unlearnbench.cli.cache import chosen, cleaned, shown
    from unlearnbench.store.cache import default_cache

    if dry_run and action != "clean":
        raise UsageError("--dry-run goes with 'unlearnbench cache clean': without clean, nothing is removed")
    root = default_cache()
    entries = chosen(root, kind or [], unused_for)
    lines, whole = (shown(root, entries), True) if action == "show" else cleaned(root, entries, dry_run)
    for line in lines:
        echo(line)
    if not whole:
        raise typer.Exit(1)


def _spell(error: UnicodeError) -> tuple[str, int]:
    """Replace the characters that an output cannot encode."""
    assert isinstance(error, UnicodeEncodeError)
    return "".join(SPELLED.get(letter, "?") for letter in error.object[error.start : error.end]), error.end


def main() -> None:
    """Run the command line; a UsageError is one sentence on stderr and exit status 2."""
    codecs.register_error("spell", _spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            plain = stream.isatty() and os.environ.get("LC_ALL") in ("C", "POSIX")  # which Python treats as UTF-8
            stream.reconfigure(encoding="ascii" if plain else None, errors="spell")
    try:
        app(prog_name="unlearnbench")
    except UsageError as error:
        echo(one_line(f"unlearnbench: {error}", LONGEST), err=True)
        sys.exit(2)
    except (OSError, MemoryError, ImportError) as error:  # a name too long, a full disk; no memory to load torch
        echo(f"unlearnbench: the operating system refused: {spell_error(error)}", err=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
