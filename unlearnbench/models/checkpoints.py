"""Base models in diffusers' format: written by `train`, read and checked by `--base`.

A checkpoint is a folder with `unet/` (config.json and safetensors weights) and `scheduler/`, or a bare UNet folder, or
the name of either on the Hugging Face Hub. Never a pickle.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.datasets import WEIGHTS
from unlearnbench.errors import UsageError, one_line, spell_error
from unlearnbench.store.hashing import read_object
from unlearnbench.store.scratch import moved, owned, refusal, remove_at_once, sweep

if TYPE_CHECKING:
    from torch import nn

    from unlearnbench.datasets import Dataset
    from unlearnbench.store.artifacts import Tensors

SCHEDULE: dict[str, Any] = {
    "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}  # fmt: skip
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler")
# Allowed values in these schedulers' configs; a missing key has the class's default, which is allowed.
SCHEDULER_VALUES: Mapping[str, Sequence[Any]] = {
    **{key: (value,) for key, value in SCHEDULE.items()},
    "trained_betas": (None,), "rescale_betas_zero_snr": (False, None), "thresholding": (False, None),
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
    "predict_epsilon": (True, None), "timestep_values": (None,), "tensor_format": ("pt", "np", None),  # of old versions
}  # fmt: skip
SAMPLER_KEYS = (  # of the scheduler's sampling, which the protocol's sampler replaces
    "clip_sample", "clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value", "set_alpha_to_one",
    "skip_prk_steps", "steps_offset", "timestep_spacing",
)  # fmt: skip
UNET_VALUES: Mapping[str, Sequence[Any]] = {  # other values expect different images, timesteps or labels
    "center_input_sample": (False, None), "time_embedding_type": ("positional", "learned"), "class_embed_type": (None,),
    "downsample_padding": (0, 1),
}  # fmt: skip
MOST_IN_CONFIG = 2**20  # upper limit of numbers in a config


def write_checkpoint(folder: Path, model: "nn.Module") -> None:
    """Write a base model as a diffusers folder; its parts appear atomically.

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
    """Write the benchmark's noise schedule in diffusers' format."""
    from diffusers import DDPMScheduler

    DDPMScheduler(**SCHEDULE, clip_sample=False, variance_type="fixed_small").save_pretrained(folder)


def read_checkpoint(name: str, dataset: "Dataset", option: str = "--base ") -> "tuple[dict[str, Any], Tensors]":
    """Return the arguments of a checkpoint's UNet2DModel and its weights, after checking that they fit the dataset.

    Args:
        name: a folder, or a name on the Hub.
        dataset: gives the labels, channels and size the model must have.
        option: precedes the name in error messages.

    Raises:
        UsageError: it cannot be read or does not fit.
    """
    what = f"{option}{name}"
    config, weights, schedule = read_folder(what, Path(name)) if Path(name).is_dir() else _from_hub(name)
    _check_config(what, config, dataset)
    check_schedule(what, schedule)
    build_checked(what, config, weights, dataset.image_shape)
    return arguments(config), {key: tensor.float() for key, tensor in weights.items()}


def read_folder(what: str, folder: Path) -> "tuple[dict[str, Any], Tensors, Mapping[str, Any] | None]":
    """Return config, weights and noise schedule (None if absent) of a model in a diffusers folder.

    Args:
        what: begins the error messages.
        folder: of the UNet, or with `unet/` and `scheduler/` in it.

    Raises:
        UsageError: a file is missing or cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    unet = folder / "unet" if (folder / "unet").is_dir() else folder
    config, weights, scheduler = unet / "config.json", unet / WEIGHTS, folder / "scheduler" / "scheduler_config.json"
    for path in (config, weights):
        if not path.is_file():
            raise UsageError(f"{what}: it lacks {path.relative_to(folder)} of a diffusers UNet2DModel")
    path = config
    try:
        arguments = read_object(config)
        path = scheduler
        schedule = read_object(scheduler) if scheduler.is_file() else None
        path = weights
        return arguments, load_file(weights), schedule
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"{what}: its {path.relative_to(folder)} cannot be read ({spell_error(error)})") from error


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a UNet2DModel in its config. None is one: of attention_head_dim it means one head."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def build_checked(
    what: str, config: Mapping[str, Any], weights: "Tensors", image_shape: Sequence[int]
) -> "nn.Module":  # fmt: skip
    """Return the network of an untrusted config and weights, after checking that it predicts finite numbers.

    Args:
        what: begins the error messages.
        config: of a diffusers UNet2DModel.
        weights: by name.
        image_shape: (C, H, W) of what it predicts.

    Raises:
        UsageError: they do not fit each other, the images or the benchmark.
    """
    import torch

    from unlearnbench.models.networks import build_unet

    _check_unet(what, config, len(weights))
    known = arguments(config)
    try:
        with torch.device("meta"):  # takes no memory at any size
            wanted = {key: tensor.shape for key, tensor in build_unet(known).state_dict().items()}
        for key in (*wanted, *weights):
            if key not in wanted or key not in weights or wanted[key] != weights[key].shape:
                raise ValueError(f"{key} is missing, unexpected or of a different shape")
            if not torch.isfinite(weights[key]).all():
                raise UsageError(f"{what}: its weights in {key} are not all finite: give another checkpoint")
        model = build_unet(known)
        model.load_state_dict(weights)
        x, t = torch.zeros(2, *image_shape), torch.tensor([0, SCHEDULE["num_train_timesteps"] - 1])
        labels = torch.tensor([0, known["num_class_embeds"] - 1])
        with torch.no_grad():
            predicted = model.eval()(x, t, labels).sample
    except UsageError:
        raise
    except Exception as error:  # diffusers and torch raise various errors on a mismatch
        raise UsageError(f"{what}: its weights do not fit its config ({spell_error(error)})") from error
    if predicted.shape != x.shape or not torch.isfinite(predicted).all():
        raise UsageError(f"{what}: it does not predict finite noise of the shape of an image: give another checkpoint")
    return model


def _check_unet(what: str, config: Mapping[str, Any], tensors: int) -> None:
    """Raise UsageError where a network's config is incompatible with the benchmark, or too large to build."""
    from inspect import signature

    from diffusers import UNet2DModel

    known = signature(UNet2DModel.__init__).parameters
    for key, value in config.items():
        if key.startswith("_") or value is None:
            continue
        sizes = value if isinstance(value, list) else [value]
        huge = any(isinstance(size, int | float) and abs(size) > MOST_IN_CONFIG for size in sizes)
        if key not in known or huge or len(sizes) > tensors:
            raise UsageError(f"{what}: its config has {key} {_shown(value)}, which is not supported here")
        if key in UNET_VALUES and value not in UNET_VALUES[key]:
            raise UsageError(f"{what}: its config has {key} {_shown(value)}, but needs {_shown(UNET_VALUES[key][0])}")
    layers, labels = config.get("layers_per_block", 1), config.get("num_class_embeds")
    if type(layers) is not int or layers > tensors or type(labels) is not int or labels < 1:
        raise UsageError(
            f"{what}: its config has layers_per_block {_shown(layers)} and num_class_embeds {_shown(labels)}, which do "
            f"not fit its {tensors} weights: give another checkpoint"
        )


def _shown(value: Any) -> str:
    """Return a value of an untrusted file for an error message."""
    return one_line(repr(value), 60)


def _from_hub(name: str) -> "tuple[dict[str, Any], Tensors, Mapping[str, Any] | None]":
    from huggingface_hub import snapshot_download

    patterns = ["*config.json", f"*{WEIGHTS}"]
    try:
        return read_folder(f"--base {name}", Path(snapshot_download(name, allow_patterns=patterns)))
    except UsageError:
        raise
    except Exception as error:  # the Hub's client raises its own and its network library's errors
        raise UsageError(
            f"--base {name} is not a folder and cannot be fetched from the Hugging Face Hub ({spell_error(error)}): "
            f"give a folder with a diffusers UNet2DModel"
        ) from error


def _check_config(what: str, config: Mapping[str, Any], dataset: "Dataset") -> None:
    channels, side, _ = dataset.image_shape
    labels = config.get("num_class_embeds")
    if labels is None and config.get("_class_name") == "UNet2DModel":
        raise UsageError(f"{what}: it has no class labels (num_class_embeds), so it has no class to unlearn")
    if labels == dataset.num_classes and not dataset.unguided:  # a Hub model, unknown until now
        raise UsageError(
            f"{what}: it has labels for the {labels} classes of {dataset.name} but none for the null class of "
            f"guidance: download it and give its folder, to run it without guidance"
        )
    wanted: dict[str, list[Any]] = {
        "_class_name": ["UNet2DModel"], "in_channels": [channels], "out_channels": [channels],
        "sample_size": [side, [side, side]], "num_class_embeds": [dataset.num_classes + (not dataset.unguided)],
    }  # fmt: skip
    for key, values in wanted.items():
        if config.get(key) not in values:
            raise UsageError(f"{what}: its {key} is {_shown(config.get(key))}, but {dataset.name} needs {values[0]!r}")


def check_schedule(what: str, schedule: Mapping[str, Any] | None) -> None:
    """Raise UsageError where a model's config names a noise schedule other than the benchmark's."""
    if schedule is None:
        return
    if schedule.get("_class_name") not in SCHEDULERS:
        raise UsageError(
            f"{what}: its noise schedule is of the class {_shown(schedule.get('_class_name'))}, but the benchmark's is "
            f"a DDPMScheduler: give a model trained with it"
        )
    for key, value in schedule.items():
        if key.startswith("_") or key in SAMPLER_KEYS or value in SCHEDULER_VALUES.get(key, (None,)):
            continue
        usual = f"but the benchmark's is {SCHEDULER_VALUES[key][0]!r}" if key in SCHEDULER_VALUES else "unknown here"
        raise UsageError(
            f"{what}: its noise schedule has {key} {_shown(value)}, {usual}: give a model trained with the benchmark's"
        )
