"""Base models as diffusers keeps them on disk: written by `train`, read and checked by `--base`.

A checkpoint is a folder with `unet/` (config.json and safetensors weights) and `scheduler/`, or a bare UNet folder, or
the name of either on the Hugging Face Hub. Never a pickle.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.datasets import WEIGHTS
from unlearnbench.errors import UsageError, spell_error
from unlearnbench.scratch import moved, owned, refusal, remove_at_once, sweep

if TYPE_CHECKING:
    from torch import nn

    from unlearnbench.artifacts import Tensors
    from unlearnbench.datasets import Dataset

SCHEDULE = {
    "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}  # fmt: skip


def write_checkpoint(folder: Path, model: "nn.Module") -> None:
    """Write a base model as a diffusers folder; its parts appear when they are whole.

    Raises:
        UsageError: the folder cannot be written.
    """
    from safetensors import SafetensorError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, ".writing-*")
        with tempfile.TemporaryDirectory(prefix=f"{owned('.writing')}-", dir=folder) as scratch:
            new = Path(scratch)
            model.save_pretrained(new / "unet", safe_serialization=True)  # type: ignore[operator]
            write_scheduler(new / "scheduler")
            for part in ("unet", "scheduler"):
                while not moved(new / part, folder / part):
                    remove_at_once(folder / part)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"cannot write {folder} ({refusal(error)}): free space or give another folder with --out"
        ) from error


def write_scheduler(folder: Path) -> None:
    """Write the benchmark's noise schedule as diffusers keeps it."""
    from diffusers import DDPMScheduler

    DDPMScheduler(**SCHEDULE, clip_sample=False, variance_type="fixed_small").save_pretrained(folder)


def read_checkpoint(name: str, dataset: "Dataset") -> "tuple[dict[str, Any], Tensors]":
    """Return the arguments of a checkpoint's UNet2DModel and its weights, after checking that they fit the dataset.

    Args:
        name: a folder, or a name on the Hub.
        dataset: gives the labels, channels and size the model must have.

    Raises:
        UsageError: it cannot be read or does not fit.
    """
    import torch

    config, weights, schedule = _local(Path(name)) if Path(name).is_dir() else _from_hub(name)
    _check_config(name, config, dataset)
    check_schedule(f"--base {name}", schedule)
    config = {key: value for key, value in config.items() if not key.startswith("_")}
    from unlearnbench.networks import build_unet

    try:
        model = build_unet(config)
        model.load_state_dict(weights)
    except Exception as error:  # whatever diffusers or torch make of a config and weights that do not belong together
        raise UsageError(f"--base {name}: its weights do not fit its config ({spell_error(error)})") from error
    bad = next((key for key, tensor in weights.items() if not torch.isfinite(tensor).all()), None)
    if bad is not None:
        raise UsageError(f"--base {name}: its weights in {bad} are not all finite: give another checkpoint")
    return config, {key: tensor.float() for key, tensor in weights.items()}


def _local(folder: Path) -> "tuple[dict[str, Any], Tensors, Mapping[str, Any] | None]":
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    config, weights, scheduler = unet / "config.json", unet / WEIGHTS, folder / "scheduler" / "scheduler_config.json"
    for path in (config, weights):
        if not path.is_file():
            raise UsageError(f"--base {folder}: it lacks {path.relative_to(folder)} of a diffusers UNet2DModel")
    try:
        schedule = json.loads(scheduler.read_text("utf-8")) if scheduler.is_file() else None
        return json.loads(config.read_text("utf-8")), load_file(weights), schedule
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"--base {folder}: it cannot be read ({spell_error(error)})") from error


def _from_hub(name: str) -> "tuple[dict[str, Any], Tensors, Mapping[str, Any] | None]":
    from huggingface_hub import snapshot_download

    patterns = ["*config.json", f"*{WEIGHTS}"]
    try:
        return _local(Path(snapshot_download(name, allow_patterns=patterns)))
    except UsageError:
        raise
    except Exception as error:  # the Hub's client raises its own and its network library's errors
        raise UsageError(
            f"--base {name} is no folder here and cannot be fetched from the Hugging Face Hub ({spell_error(error)}): "
            f"give a folder with a diffusers UNet2DModel"
        ) from error


def _check_config(name: str, config: Mapping[str, Any], dataset: "Dataset") -> None:
    channels, side, _ = dataset.image_shape
    labels = config.get("num_class_embeds")
    wanted = {
        "_class_name": "UNet2DModel", "in_channels": channels, "out_channels": channels, "sample_size": side,
        "num_class_embeds": dataset.num_classes + 1,
    }  # fmt: skip
    if labels is None and config.get("_class_name") == "UNet2DModel":
        raise UsageError(f"--base {name}: it has no class labels (num_class_embeds), so it has no class to unlearn")
    if labels == dataset.num_classes:
        raise UsageError(
            f"--base {name}: it has labels for the {labels} classes of {dataset.name} but none for the null class of "
            f"guidance: train one with label dropout (num_class_embeds {labels + 1})"
        )
    for key, value in wanted.items():
        if config.get(key) != value:
            raise UsageError(f"--base {name}: its {key} is {config.get(key)!r}, but {dataset.name} needs {value!r}")


def check_schedule(what: str, schedule: Mapping[str, Any] | None) -> None:
    """Raise UsageError where a model says that it was trained with another noise schedule than the benchmark's."""
    for key, value in SCHEDULE.items():
        if schedule is not None and schedule.get(key, value) != value:
            raise UsageError(
                f"{what}: its noise schedule has {key} {schedule[key]!r}, but the benchmark's is {value!r}: "
                f"give a model trained with it"
            )
