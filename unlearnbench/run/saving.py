"""Folders of unlearned models: staged by a cell's process, published by the process that records the cell."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import save_file

from unlearnbench.datasets import WEIGHTS, Dataset
from unlearnbench.errors import UsageError
from unlearnbench.models.saved import CARD, FACTS
from unlearnbench.run.model_card import CHANGED, card, protocol_of
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


def stage(folder: Path, weights: "Weights", dataset: Dataset, label: int) -> dict[str, str]:
    """Write an unlearned model to its staging folder, for `publish`; return its entry in the record.

    Args:
        folder: returned by `staging` in the process that records the cell.
        weights: of the model.
        dataset: of the cell.
        label: of the class that was unlearned, for the example of the model card.

    Raises:
        UsageError: the folder cannot be written.
    """
    from torch import device

    try:
        sweep(folder.parent, f"{STAGED}*")
        remove(folder)
        folder.mkdir(parents=True)
        denoiser = weights.build(device("cpu"))
        network = denoiser.write(folder)
        _write_changed(folder, weights)
        facts = {
            "conditions": dataset.conditions.to_json(), "model": denoiser.title, "noise": denoiser.noise,
            "use": denoiser.usage(label, dataset.null_class, dataset.protocol.sampler),
        }  # fmt: skip
        (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise _unwritable(folder.parent, error) from error
    return {"sha256": file_digest(network)}


def _write_changed(folder: Path, weights: "Weights") -> None:
    """Write the network's weights that changed, if not all did, under the names that the network gives them."""
    prefix, changed = weights.base.prefix, weights.changed
    ours = {name.removeprefix(prefix): tensor for name, tensor in changed.items() if name.startswith(prefix)}
    if 0 < len(ours) < sum(name.startswith(prefix) for name in weights.tensors):
        save_file(ours, folder / CHANGED, metadata={"format": "pt"})


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
    facts = {**json.loads((folder / FACTS).read_text("utf-8")), **_facts(record)}
    for name, text in ((FACTS, json.dumps(facts, indent=2) + "\n"), (CARD, card(record, facts))):
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
        whole = any(folder.glob(f"*/{WEIGHTS}"))
        return whole and bool(facts["record"] == records_digest([record]))
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _unwritable(models: Path, error: Exception) -> UsageError:
    return UsageError(f"cannot write {models} ({refusal(error)}): free space or give another folder with --save-models")


def _facts(record: Record) -> dict[str, Any]:
    """Return what the record says of a model and `unlearnbench sample` needs."""
    return {
        "cell_id": record.cell.id, "cell": record.cell.to_json(), "record": records_digest([record]),
        "sampler": protocol_of(record).sampler,
    }  # fmt: skip
