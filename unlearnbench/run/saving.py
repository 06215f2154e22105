"""Folders of unlearned models: staged by a cell's process, published by the process that records the cell."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from unlearnbench.datasets import WEIGHTS
from unlearnbench.errors import UsageError
from unlearnbench.models.checkpoints import write_scheduler
from unlearnbench.models.saved import CARD, FACTS
from unlearnbench.run.model_card import _null_class, _protocol, card
from unlearnbench.store.cell import Cell
from unlearnbench.store.hashing import file_digest
from unlearnbench.store.records import Record, records_digest
from unlearnbench.store.scratch import beside, moved, owned, refusal, remove, remove_at_once, sweep

if TYPE_CHECKING:
    from unlearnbench.models.weights import Weights

STAGED = ".writing-"  # prefix of incomplete folders


def staging(models: Path, cell: Cell) -> Path:
    """Return the staging folder of a cell's model; called by the process that records the cell."""
    return models / owned(f"{STAGED}{cell.id}")


def stage(folder: Path, weights: "Weights") -> dict[str, str]:
    """Write an unlearned model to its staging folder, for `publish`; return its entry in the record.

    Args:
        folder: returned by `staging` in the process that records the cell.
        weights: of the model.

    Raises:
        UsageError: the folder cannot be written.
    """
    from torch import device

    written: Any = weights.build(device("cpu"))
    try:
        sweep(folder.parent, f"{STAGED}*")
        remove(folder)
        written.save_pretrained(folder, safe_serialization=True)
        write_scheduler(folder / "scheduler")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise _unwritable(folder.parent, error) from error
    return {"sha256": file_digest(folder / WEIGHTS)}


def publish(models: Path, record: Record) -> None:
    """Move a successful record's staged model to its place, with card and facts; remove that of any other record.

    Where it was published before, as when attacks are added to the record, card and facts are written anew.

    Raises:
        UsageError: the folder cannot be written.
    """
    staged, folder = staging(models, record.cell), models / record.cell.id
    if record.status != "ok" or "sha256" not in record.artifacts.get("model", {}):
        shutil.rmtree(staged, ignore_errors=True)
        return
    try:
        if not staged.is_dir() and folder.is_dir():
            _describe(folder, record)
            return
        _describe(staged, record)
        while not moved(staged, folder):
            remove_at_once(folder)
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise _unwritable(models, error) from error


def _describe(folder: Path, record: Record) -> None:
    """Write card and facts of a model into its folder."""
    for name, text in ((FACTS, json.dumps(_facts(record), indent=2) + "\n"), (CARD, card(record))):
        scratch = beside(folder / name)
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(folder / name)


def is_saved(models: Path, record: Record) -> bool:
    """Say whether a record's model is published; True for a model that cannot be saved."""
    if "reason" in record.artifacts.get("model", {}):
        return True
    folder = models / record.cell.id
    try:
        facts = json.loads((folder / FACTS).read_text("utf-8"))
        return (folder / WEIGHTS).is_file() and bool(facts["record"] == records_digest([record]))
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _unwritable(models: Path, error: Exception) -> UsageError:
    return UsageError(f"cannot write {models} ({refusal(error)}): free space or give another folder with --save-models")


def _facts(record: Record) -> dict[str, Any]:
    """Return the facts of a model that `unlearnbench sample` needs."""
    names = ("title", "class_names", "image_shape")
    return {
        "cell_id": record.cell.id, "cell": record.cell.to_json(), "record": records_digest([record]),
        "dataset": {name: record.dataset[name] for name in names}, "sampler": _protocol(record).sampler,
        "null_class": _null_class(record),
    }  # fmt: skip
