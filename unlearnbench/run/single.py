"""One model trained or unlearned into a folder, without a folder of records."""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.console import Console

from unlearnbench.datasets import Dataset
from unlearnbench.errors import UsageError
from unlearnbench.run.benchmark import Benchmark
from unlearnbench.run.execution import Execution
from unlearnbench.run.lanes import Lanes
from unlearnbench.run.locks import device_lock
from unlearnbench.run.plan import Plan
from unlearnbench.run.progress import Display
from unlearnbench.run.stopping import Interruption, signals_as_interrupt
from unlearnbench.run.workers import Workers, expect
from unlearnbench.store.records import Record, ResultStore
from unlearnbench.store.scratch import moved, owned, refusal, remove_at_once, sweep


def unlearn_to(out: Path, plan: Plan, workers: Workers, console: Console, execution: Execution) -> Record | None:
    """Unlearn a plan's only cell, and move its model to a folder, in place of an earlier one.

    Returns:
        The record, with a reason if the cell failed; None where it was stopped.

    Raises:
        UsageError: the folder cannot be written, or weights alone do not hold the model.
    """
    try:
        out.absolute().parent.mkdir(parents=True, exist_ok=True)
        sweep(out.absolute().parent, f".{out.name}-unlearning-*")
        with tempfile.TemporaryDirectory(
            prefix=f"{owned(f'.{out.name}-unlearning')}-", dir=out.absolute().parent
        ) as name:
            scratch = Path(name)
            store, models = ResultStore(scratch / "results"), scratch / "models"
            execution = replace(execution, models=models)
            lanes = Lanes(plan, workers, store, execution)
            summary = Benchmark(plan, lanes, store, console, execution).run()
            if summary.interrupted:
                return None
            (record,) = store.read().records
            if record.status == "ok":
                if "reason" in record.artifacts["model"]:
                    raise UsageError(f"no folder can hold the model: {record.artifacts['model']['reason']}")
                while not moved(models / record.cell.id, out):
                    remove_at_once(out)
            return record
    except OSError as error:
        raise UsageError(
            f"cannot write {out} ({refusal(error)}): free space or give another folder with --out"
        ) from error


def train_base(
    workers: Workers, dataset: Dataset, console: Console, *, cache: Path, device: str, out: Path
) -> list[tuple[int, float]] | None:
    """Train a dataset's base model in a separate process and write it to `out`.

    Returns:
        The loss curve, (step, loss per pixel); None when it was stopped.
    """
    with signals_as_interrupt(Interruption()), Display(console) as display:
        try:
            device_info = expect(workers.run("unlearnbench.run.jobs:resolve_device", device))
            with (
                device_lock([device_info["identity"]], partial(display.wait, "wait for the device"), display.warn),
                display.task(f"{dataset.name}: base model", announce=True) as task,
            ):
                outcome = workers.run(
                    "unlearnbench.run.jobs:train_base", dataset, cache, device_info["device"], out,
                    on_progress=task.progress, on_warning=display.warn, on_tick=display.tick,
                )  # fmt: skip
        except KeyboardInterrupt:
            return None
    losses: list[tuple[int, float]] = expect(outcome)
    return losses
