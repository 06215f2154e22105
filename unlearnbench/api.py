"""For notebooks and scripts: run a cell, unlearn or measure one model, load records as a frame, draw figures.

    from unlearnbench import api

Bad input raises `UsageError`, which says what to do instead. Heavy imports wait for the first call.
"""

import threading
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.datasets import Source
from unlearnbench.errors import UsageError, suggest
from unlearnbench.plugins.registry import Registry
from unlearnbench.store.cell import Rerun, Scalar
from unlearnbench.store.records import Record, ResultStore

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    from unlearnbench.report.data.board import Board
    from unlearnbench.run.execution import Execution
    from unlearnbench.run.plan import Plan

__all__ = ["Record", "Source", "UsageError", "draw", "evaluate", "load", "run_cell", "unlearn"]


def run_cell(
    method: str,
    forget_class: int | str,
    *,
    dataset: str | Source = "digits",
    seed: int = 0,
    settings: Mapping[str, Scalar] | None = None,
    metrics: str = "all",
    plugin: str | Path | None = None,
    results: str | Path = "results",
    save_models: str | Path | None = None,
    device: str = "auto",
    repeats: int = 1,
    timeout: float | None = None,
    rerun: Rerun = "missing",
) -> Record:
    """Run one cell in a separate process, as `unlearnbench run` does; return its record, with a reason if it failed.

    Base model and judges are trained first, where they are missing; a recorded cell is not run again, unless `rerun`
    says so. The arguments are the options of `unlearnbench run`.

    Args:
        method: its name.
        forget_class: number or name of a class; `"0+1"` for several at once.
        dataset: its name, or a `Source` with protocol, data root, base model and so on.
        seed: of base model, unlearning and sampling.
        settings: of the method, where they differ from the defaults.
        metrics: `all`, or names separated by commas.
        plugin: a file with your method or metric.
        results: folder that takes the record.
        save_models: folder that takes the unlearned model.
        device: `auto`, `cpu`, `cuda`, `cuda:1`.
        repeats: timing repeats of unlearning.
        timeout: seconds after which the cell is stopped.
        rerun: `missing`, `failed` or `always`.

    Raises:
        UsageError: an argument is unknown, malformed or out of range, or gives more than one cell.
        KeyboardInterrupt: it was interrupted; that is recorded too.
    """
    from unlearnbench.run.execution import Execution
    from unlearnbench.store.cache import default_cache

    plugins = _plugins(plugin)
    plan = _plan_of_one(Registry(plugins), method, forget_class, _source(dataset), metrics, seed, settings or {})
    execution = Execution(
        default_cache(), device, plugin_files=plugins, rerun=rerun, repeats=repeats, controls="none", timeout=timeout,
        models=None if save_models is None else Path(save_models).absolute(),
    )  # fmt: skip
    return _records(plan, Path(results), execution)[plan.cells[0].id]


def evaluate(
    model: str | Path,
    forget_class: int | str = "",
    *,
    dataset: str | Source = "digits",
    name: str = "",
    metrics: str = "all",
    seed: int | None = None,
    plugin: str | Path | None = None,
    results: str | Path = "results",
    device: str = "auto",
    timeout: float | None = None,
    rerun: Rerun = "missing",
) -> Record:
    """Measure an unlearned model, as `unlearnbench evaluate` does; return its record.

    The untouched base model is measured beside it, so that the report compares both.

    Args:
        model: a folder in diffusers' format.
        forget_class: that the model forgot, as for `run_cell`; by default that for which it was saved.
        dataset: as for `run_cell`.
        name: of its row; by default that of the folder.
        metrics: as for `run_cell`.
        seed: of noise and attacks; by default that of the cell for which the model was saved, or 0.
        plugin: a file with your metric.
        results: folder that takes the records.
        device: as for `run_cell`.
        timeout: seconds after which the cell is stopped.
        rerun: as for `run_cell`.

    Raises:
        UsageError: the model does not fit the dataset, or an argument is unknown or malformed.
        KeyboardInterrupt: it was interrupted.
    """
    from unlearnbench.run.execution import Execution
    from unlearnbench.run.given import Given, plan_of_given
    from unlearnbench.store.cache import default_cache

    plugins = _plugins(plugin)
    plan = plan_of_given(
        Registry(plugins), [Given.read(Path(model), name)], classes=_class(forget_class), source=_source(dataset),
        metrics=metrics, seed=seed,
    )  # fmt: skip
    execution = Execution(default_cache(), device, plugin_files=plugins, rerun=rerun, controls="none", timeout=timeout)
    return _records(plan, Path(results), execution)[plan.cells[-1].id]


def unlearn(
    base: str | Path | None,
    forget_class: int | str,
    method: str,
    out: str | Path,
    *,
    dataset: str | Source = "digits",
    seed: int = 0,
    settings: Mapping[str, Scalar] | None = None,
    plugin: str | Path | None = None,
    device: str = "auto",
    timeout: float | None = None,
) -> Record:
    """Unlearn a class of a model and write the result, as `unlearnbench unlearn` does; return a record without metrics.

    Args:
        base: a diffusers folder or Hub name; None for that of the dataset, which is trained first.
        forget_class: as for `run_cell`.
        method: its name.
        out: folder for the unlearned model; one that is there is replaced.
        dataset: of the images, as for `run_cell`.
        seed: of unlearning, and of a base model that is trained.
        settings: as for `run_cell`.
        plugin: a file with your method.
        device: as for `run_cell`.
        timeout: seconds after which it is stopped.

    Raises:
        UsageError: an argument is unknown or malformed, or the folder cannot be written.
        KeyboardInterrupt: it was interrupted.
    """
    from dataclasses import replace

    from rich.console import Console

    from unlearnbench.run.execution import Execution
    from unlearnbench.run.given import plan_of_unlearning
    from unlearnbench.run.single import unlearn_to
    from unlearnbench.run.workers import Workers
    from unlearnbench.store.cache import default_cache

    _check_thread()
    plugins, source = _plugins(plugin), _source(dataset)
    if base is not None:
        source = replace(source, base=str(base))
    sweeps = [f"{method}.{name}={value}" for name, value in (settings or {}).items()]
    plan = plan_of_unlearning(
        Registry(plugins), method, classes=_class(forget_class), source=source, sweeps=sweeps, seed=seed
    )
    execution = Execution(default_cache(), device, plugin_files=plugins, controls="none", timeout=timeout)
    record = unlearn_to(Path(out), plan, Workers(), Console(), execution)
    if record is None:
        raise KeyboardInterrupt
    return record


def _check_thread() -> None:
    if threading.current_thread() is not threading.main_thread():
        raise UsageError("cells handle signals: run them from the main thread, and one after another")


def _plugins(plugin: str | Path | None) -> tuple[Path, ...]:
    return () if plugin is None else (Path(plugin).absolute(),)


def _source(dataset: str | Source) -> Source:
    return Source(dataset) if isinstance(dataset, str) else dataset


def _class(chosen: int | str) -> str:
    """Return a class as on the command line: an integer is its number, whatever the names."""
    return f"@{chosen}" if isinstance(chosen, int) else chosen


def _records(plan: "Plan", results: Path, execution: "Execution") -> dict[str, Record]:
    """Run a plan in this thread and return the records of the folder by cell."""
    from rich.console import Console

    from unlearnbench.run.benchmark import Benchmark
    from unlearnbench.run.lanes import Lanes
    from unlearnbench.run.workers import Workers

    _check_thread()
    store = ResultStore(results)
    lanes = Lanes(plan, Workers(), store, execution)
    summary = Benchmark(plan, lanes, store, Console(), execution).run()
    if summary.interrupted:
        raise KeyboardInterrupt
    return {record.cell.id: record for record in store.read().records}


def _plan_of_one(
    registry: Registry, method: str, forget_class: int | str, source: Source, metrics: str, seed: int,
    settings: Mapping[str, Scalar],
) -> "Plan":  # fmt: skip
    from unlearnbench.run.plan import make_plan

    plan = make_plan(
        registry, methods=method, classes=_class(forget_class), source=source, metrics=metrics, seeds=str(seed),
        sweeps=[f"{method}.{name}={value}" for name, value in settings.items()], controls="none",
    )  # fmt: skip
    if len(plan.cells) != 1:
        raise UsageError(f"that makes {len(plan.cells)} cells: give one method, one class and one value per setting")
    return plan


def load(results: str | Path = "results", dataset: str = "") -> "pd.DataFrame":
    """Return the numbers of one dataset's report as a tidy frame: one row per cell and metric or cost.

    Columns: dataset, protocol, device, method, title (with the settings that were changed), role, settings (JSON),
    forget_class, target (`3`, or `0+1` for several at once), the seeds, status, stale, metric, name, shows, value,
    unit, better, n. A cell without numbers, because it failed or is stale, has one row with neither metric nor value;
    an attack that failed or is stale, though its cell has numbers, says so in its own row.
    Records that the report leaves out are left out with a warning.

    Args:
        results: folder of records.
        dataset: name of the report's folder, as for `draw`; optional if there is only one. Datasets, protocols, single
            classes, several at once and sequences have separate frames.

    Raises:
        UsageError: there is no such folder, dataset or record, or `dataset` is missing and there are several.
    """
    return _board(Path(results), dataset).every.frame()


def draw(
    name: str, results: str | Path = "results", dataset: str = "", ax: "Axes | None" = None
) -> "Figure | SubFigure":
    """Draw a figure of a report.

    One of tradeoff, pareto, equal-retention, robustness, relearning, sweep, timesteps, heatmaps, phases, confusion,
    samples and samples-all.

    Many have several panels, so the figure replaces the given axes by a `SubFigure`. Your figure gets the constrained
    layout engine if it has none.

    Args:
        name: of the figure.
        results: folder of records.
        dataset: name of the report's folder: the dataset's, with the protocol's where there are several; optional
            if there is only one.
        ax: axes of `plt.subplots` or `Figure.subplots` to replace; None for a new figure.

    Raises:
        UsageError: there is no such figure, dataset or record, nothing to draw, or the axes are not in a grid.
    """
    from unlearnbench.report.figures.drawing import FIGURES
    from unlearnbench.report.figures.style import own_style

    if name not in FIGURES:
        raise UsageError(f"there is no figure {name!r}{suggest(name, FIGURES)}: figures are {', '.join(FIGURES)}")
    board = _board(Path(results), dataset)
    with own_style():
        parent = None if ax is None else _place_of(ax)
        drawn = FIGURES[name](board, parent, ())
        if drawn is None and parent is not None:
            parent.remove()
    if drawn is None:
        raise UsageError(f"the records of {board.title} have nothing for the figure {name}")
    if ax is not None:
        ax.remove()
    return drawn


def _place_of(ax: "Axes") -> "SubFigure":
    """Return a new subfigure in place of the axes."""
    spec, figure = ax.get_subplotspec(), ax.figure
    if figure is None or spec is None or spec.get_topmost_subplotspec() is not spec:
        raise UsageError("the axes are not in a grid of their figure: give axes of plt.subplots or Figure.subplots")
    whole = figure.figure  # of a part of a figure, too
    if whole.get_layout_engine() is None:
        whole.set_layout_engine("constrained")
    return figure.add_subfigure(spec)


def _board(results: Path, name: str) -> "Board":
    """Return the board of a dataset, by the name of its folder in a report; omissions become warnings."""
    from unlearnbench.report.data.board import boards
    from unlearnbench.run.stale import stale_ids

    reading = ResultStore(results).read()
    shown = boards(reading.records, stale_ids(reading.records, Registry().source_hashes()))
    problems = reading.problems
    if not shown:
        why = f" that can be read ({'; '.join(problems[:3])})" if problems else ""
        raise UsageError(f"there is no record in {results}{why}: run a cell first or name another folder")
    if not name and len(shown) > 1:
        raise UsageError(f"{results} holds {_kinds(shown.values())}: give dataset as one of {', '.join(shown)}")
    name = name or next(iter(shown))
    if name not in shown:
        raise UsageError(
            f"there are no records of {name!r}{suggest(name, shown)}: give dataset as one of {', '.join(shown)}"
        )
    for text in (*problems, *shown[name].left_out):
        warnings.warn(text, stacklevel=3)
    return shown[name]


def _kinds(boards: "Collection[Board]") -> str:
    """Return in words how boards differ."""
    datasets = {board.key[0] for board in boards}
    cells = [[record.cell for record in board.records] for board in boards]
    ways = {(any(cell.further for cell in some), any(cell.earlier for cell in some)) for some in cells}
    kinds = {
        "several datasets": len(datasets) > 1,
        "several protocols": len({board.key for board in boards}) > len(datasets),
        "several ways to forget (single classes, some at once, one after another)": len(ways) > 1,
    }
    return " and ".join(kind for kind, there in kinds.items() if there)
