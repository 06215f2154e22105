"""Folders of unlearned models: staged by a cell's process, published by the process that records the cell."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from unlearnbench.datasets import WEIGHTS
from unlearnbench.errors import UsageError, one_line, spell_error
from unlearnbench.models.checkpoints import write_scheduler
from unlearnbench.models.saved import CARD, FACTS
from unlearnbench.run.model_card import _null_class, _protocol, card
from unlearnbench.store.cell import Cell
from unlearnbench.store.hashing import file_digest
from unlearnbench.store.records import Record, records_digest
from unlearnbench.store.scratch import moved, owned, refusal, remove, remove_at_once, sweep

if TYPE_CHECKING:
    from torch import nn

STAGED = ".writing-"  # prefix of incomplete folders


PROBES = (0, 333, 666, 999)  # timesteps at which a saved model must predict the same as the unlearned one


TOLERANCE = 1e-3  # of these predictions on CUDA; exact on a CPU


def staging(models: Path, cell: Cell) -> Path:
    """Return the staging folder of a cell's model; called by the process that records the cell."""
    return models / owned(f"{STAGED}{cell.id}")


def stage(folder: Path, cell: Cell, model: "nn.Module", image_shape: Sequence[int]) -> dict[str, str]:
    """Write a cell's unlearned model to its staging folder, for `publish`.

    Args:
        folder: returned by `staging` in the process that records the cell.
        cell: of the model.
        model: as the method left it.
        image_shape: (C, H, W).

    Returns:
        Its entry in the record: the SHA-256 of its weights, or the `reason` why it cannot be saved: its weights do not
        determine its predictions, as with hooks or a replaced forward.

    Raises:
        UsageError: the folder cannot be written.
    """
    from diffusers import UNet2DModel
    from torch import device

    from unlearnbench.models.networks import build_unet, frozen, is_plain, placed
    from unlearnbench.models.training import global_rng_kept

    config = {key: value for key, value in dict(getattr(model, "config", {})).items() if not key.startswith("_")}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    try:
        with global_rng_kept(device("cpu")):  # its first weights are random
            written: Any = frozen(build_unet(config), weights, device("cpu"))
    except (RuntimeError, TypeError, ValueError) as error:
        return {"reason": f"its weights do not fit a UNet2DModel of its config ({one_line(spell_error(error), 120)})"}
    try:
        sweep(folder.parent, f"{STAGED}*")
        remove(folder)
        written.save_pretrained(folder, safe_serialization=True)
        write_scheduler(folder / "scheduler")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise _unwritable(folder.parent, error) from error
    with global_rng_kept(device("cpu")):
        read = UNet2DModel.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
    if is_plain(model) and _predict_alike(model, placed(read, next(model.parameters()).device), cell, image_shape):
        return {"sha256": file_digest(folder / WEIGHTS)}
    shutil.rmtree(folder, ignore_errors=True)
    return {"reason": "its weights alone do not determine its predictions"}


def _predict_alike(model: "nn.Module", other: Any, cell: Cell, image_shape: Sequence[int]) -> bool:
    """Say whether two models predict the same noise for the forget class, the null class, and one in between."""
    import torch

    from unlearnbench.models.diffusion import evaluating, predict_noise

    device = next(model.parameters()).device
    x = torch.randn((len(PROBES), *image_shape), generator=torch.Generator().manual_seed(0)).to(device)
    t = torch.tensor(PROBES, device=device)
    null = int(other.config["num_class_embeds"]) - 1
    y = torch.tensor([cell.forget_class, null, (cell.forget_class + 1) % null, cell.forget_class], device=device)
    with evaluating(model), evaluating(other):
        ours, theirs = predict_noise(model, x, t, y), predict_noise(other, x, t, y)
    return torch.equal(ours, theirs) if device.type == "cpu" else torch.allclose(ours, theirs, TOLERANCE, TOLERANCE)


def publish(models: Path, record: Record) -> None:
    """Move a successful record's staged model to its place, with card and facts; remove that of any other record.

    Raises:
        UsageError: the folder cannot be written.
    """
    staged, folder = staging(models, record.cell), models / record.cell.id
    if record.status != "ok" or "sha256" not in record.artifacts.get("model", {}):
        shutil.rmtree(staged, ignore_errors=True)
        return
    try:
        (staged / FACTS).write_text(json.dumps(_facts(record), indent=2) + "\n", encoding="utf-8")
        (staged / CARD).write_text(card(record), encoding="utf-8")
        while not moved(staged, folder):
            remove_at_once(folder)
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise _unwritable(models, error) from error


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
