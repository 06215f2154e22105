"""One model unlearned into a folder, without a folder of records."""

import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from unlearnbench.errors import UsageError
from unlearnbench.run.benchmark import Benchmark
from unlearnbench.run.execution import Execution
from unlearnbench.run.plan import Plan
from unlearnbench.run.workers import Workers
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
            summary = Benchmark(plan, workers, store, console, replace(execution, models=models)).run()
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
