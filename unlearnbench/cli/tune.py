"""The command `tune`: the same number of trials for every method, within one budget of images, and a stated choice."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from unlearnbench.cli import options
from unlearnbench.cli.cluster import check_options, run_on_cluster
from unlearnbench.cli.running import (
    absolute,
    benchmark,
    check_run,
    execution_of,
    opened,
    plan_of,
    say,
    say_dry_run,
    source_of,
    start,
)
from unlearnbench.errors import UsageError, plural

if TYPE_CHECKING:
    from rich.console import Console

    from unlearnbench.plugins.registry import Registry
    from unlearnbench.run.benchmark import Summary
    from unlearnbench.run.plan import Plan
    from unlearnbench.run.tuning import Tuning
    from unlearnbench.run.workers import Workers

TUNE_EXAMPLES = """\b
Examples:
  unlearnbench tune --methods all --trials 20 --classes 2,5,8
  unlearnbench tune --methods paper --trials 8 --images 6000 --dry-run
"""


def tune(
    context: typer.Context,
    methods: options.Tuned = "all",
    number: options.Trials = 20,
    images: options.Images = 10_000,
    floor: options.Floor = 95.0,
    classes: options.TuningClasses = "",
    seeds: options.TuningSeeds = "1000",
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
    rerun: options.Rerun = "missing",
    timeout: options.Timeout = None,
    minutes: options.Minutes = None,
    cluster: options.Cluster = None,
    detach: options.Detach = False,
    print_jobs: options.PrintJobs = False,
    dry_run: options.DryRun = False,
    results: options.Results = Path("results/tuning"),
    out: options.Out = Path("reports/tuning"),
) -> None:
    """Try settings of methods, and choose.

    Every method has the same number of trials, points of a fixed quasi-random list over the space that its decorator
    declares, and the same budget of images through the model. Of the settings that retain enough, those that forget
    most are chosen. The report says what to write into the methods' files.
    """
    check_options(cluster, {"--detach": detach, "--print-jobs": print_jobs, "--minutes": minutes, "--dry-run": dry_run})
    _tune(context, context.params)


def _tune(context: typer.Context, chosen: "dict[str, Any]") -> None:
    """Do it, with the options that were chosen."""
    console, workers = start()
    assert workers is not None
    results, out = chosen["results"], chosen["out"]
    asked, tuning = _trials(context, workers, console)
    registry, plan = plan_of(chosen["plugin"], source_of(context), **asked, trials=tuning.to_run())
    execution = execution_of(context, controls="none", models=None)
    if chosen["dry_run"]:
        for name, trials in tuning.not_to_run().items():
            for trial in trials:
                say(console, f"{name}, trial {trial['facts']['trial']}: {trial['problem']}")
        say_dry_run(console, plan, results, execution)
        return
    if chosen["cluster"] is not None:
        asked_of_jobs = {**asked, "trials": tuning.to_run()}
        try:
            run_on_cluster(context, asked_of_jobs, plan, execution, results, None, registry, console)
        except typer.Exit as end:
            if end.exit_code != 1:  # a cell that failed is a trial that failed
                raise
        if chosen["detach"] or chosen["print_jobs"]:
            say(console, "Once the jobs are over, the same command makes the report.")
            return
    else:
        from unlearnbench.run.lanes import Lanes
        from unlearnbench.store.records import ResultStore

        lanes = Lanes(plan, workers, ResultStore(results), execution)
        _end_if_stopped(benchmark(console, plan, lanes, results, execution, None), results, console)
    _complete(context, asked, tuning, plan, workers)
    _conclude(registry, results, out, chosen["floor"], console)


def _trials(context: typer.Context, workers: "Workers", console: "Console") -> "tuple[dict[str, Any], Tuning]":
    """Return the arguments of `make_plan` that all trials share, and the trials with their steps."""
    from unlearnbench.datasets import load_dataset
    from unlearnbench.plugins.registry import Registry
    from unlearnbench.run.arguments import parse_targets
    from unlearnbench.run.plan import check_required
    from unlearnbench.run.progress import Display
    from unlearnbench.run.tuning import draw_trials, rehearsed
    from unlearnbench.run.workers import ignore_stopping
    from unlearnbench.store.cache import default_cache

    chosen, plugins = context.params, absolute(context.params["plugin"])
    registry, dataset = Registry(plugins), load_dataset(source_of(context))
    classes = chosen["classes"] or ",".join(f"@{c}" for c in dataset.tuning_classes)
    if not classes:
        raise UsageError(f"{dataset.name} declares no classes for tuning: name some with --classes")
    targets = parse_targets(classes, dataset.class_names)
    selected = registry.select_methods(chosen["methods"])
    specs = [spec for spec in selected if dataset.offers.issuperset(spec.requires)]
    check_required(selected, [spec.name for spec in specs], chosen["methods"], dataset)
    tuning = draw_trials(registry, specs, chosen["number"], chosen["images"], dataset.tuned_as)
    asked = {
        "methods": chosen["methods"], "classes": classes, "metrics": ",".join(dict.fromkeys(tuning.measures.values())),
        "sweeps": [], "seeds": chosen["seeds"], "controls": "none",
    }  # fmt: skip
    _, unfitted = plan_of(chosen["plugin"], source_of(context), **asked, trials=tuning.to_run())
    check_run(unfitted, {"--results": chosen["results"], "--out": chosen["out"]}, stop_if_weak=False)
    if without := [spec.name for spec in specs if spec.role == "method" and spec.name not in tuning.trials]:
        say(console, f"left out, as they declare no space to search (@method(search=...)): {', '.join(without)}")
    try:
        with Display(console) as display:
            tuning = rehearsed(tuning, registry, dataset, targets[0], plugins, default_cache(), workers, display)
    except KeyboardInterrupt:
        ignore_stopping()
        say(console, "Stopped. Nothing was written.")
        raise typer.Exit(130) from None
    return asked, tuning


def _end_if_stopped(summary: "Summary", results: Path, console: "Console") -> None:
    """Say how to go on, and exit, where the run was stopped."""
    from unlearnbench.run.workers import ignore_stopping

    if not summary.interrupted:
        return
    ignore_stopping()
    say(
        console,
        f"Stopped. {plural(summary.ran, 'cell')} of this run {'is' if summary.ran == 1 else 'are'} recorded in "
        f"{results}: run the same command again to resume.",
    )
    raise typer.Exit(130)


def _complete(
    context: typer.Context, asked: "dict[str, Any]", tuning: "Tuning", plan: "Plan", workers: "Workers"
) -> None:
    """Complete the records of a run: those kept from another list, and the trials that cannot be run."""
    from unlearnbench.run.tuning import record_problems, take_over
    from unlearnbench.store.records import ResultStore

    chosen = context.params
    store = ResultStore(chosen["results"])
    take_over(plan, store)
    if trials := tuning.not_to_run():
        _, others = plan_of(chosen["plugin"], source_of(context), **asked, trials=trials)
        record_problems(tuning, others, store, workers, chosen["device"], chosen["devices"])


def _conclude(registry: "Registry", results: Path, out: Path, floor: float, console: "Console") -> None:
    """Render the report, and print its tables."""
    from unlearnbench.cli.console import say_where, show
    from unlearnbench.cli.plotting import import_matplotlib

    import_matplotlib()
    from unlearnbench.report.tuning import render_tuning

    with opened(results, registry) as (reading, stale):
        rendering = render_tuning(reading, out, stale, floor)
    show(rendering, console)
    say_where(rendering, "Tuning", console)
