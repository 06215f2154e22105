"""Base models in diffusers' format: written by `train`, read and checked by `--base`.

A checkpoint is a folder of diffusers, or its name on the Hugging Face Hub. Never a pickle. What each kind of model
allows in its configs stands in its module; here is what they have in common.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from unlearnbench.datasets import WEIGHTS
from unlearnbench.errors import UsageError, one_line, spell_error
from unlearnbench.models.diffusion import NOISE
from unlearnbench.store.hashing import read_object
from unlearnbench.store.scratch import moved, owned, refusal, remove_at_once, sweep

if TYPE_CHECKING:
    from torch import nn

    from unlearnbench.datasets import Dataset
    from unlearnbench.models.denoiser import Denoiser
    from unlearnbench.store.artifacts import Tensors

    Model = TypeVar("Model", bound=nn.Module)

SCHEDULE: dict[str, Any] = {**NOISE, "prediction_type": "epsilon"}
SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler")
SOLVERS = (  # of pipelines: whatever samples, only the forward process counts
    "DPMSolverMultistepScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler",
    "UniPCMultistepScheduler",
)  # fmt: skip
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
MOST_IN_CONFIG = 2**20  # upper limit of numbers in a config
FILES = ("*.json", "*.safetensors", "*.txt")  # that are fetched from the Hub: configs, weights, vocabularies


def write_checkpoint(folder: Path, denoiser: "Denoiser") -> None:
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
            denoiser.write(new)
            for part in sorted(new.iterdir()):
                while not moved(part, folder / part.name):
                    remove_at_once(folder / part.name)
    except (OSError, SafetensorError) as error:
        raise UsageError(
            f"cannot write {folder} ({refusal(error)}): free space or give another folder with --out"
        ) from error


def write_scheduler(folder: Path, noise: Mapping[str, Any] = NOISE, prediction: str = "epsilon") -> None:
    """Write a noise schedule in diffusers' format."""
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(**noise, prediction_type=prediction, clip_sample=False, variance_type="fixed_small")
    scheduler.save_pretrained(folder)


def scheduler_code(sampler: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return Python code for a model card: diffusers' class of a sampler, its arguments, and those of a step."""
    if sampler["solver"] == "ddim":
        return "DDIMScheduler", f"clip_sample={sampler['clip_x0']}", f", eta={sampler['eta']}"
    return "DPMSolverMultistepScheduler", 'timestep_spacing="linspace", steps_offset=0', ""


def read_checkpoint(name: str, dataset: "Dataset", option: str = "--base ") -> "Denoiser":
    """Return the model of a checkpoint, on the CPU, after checking that it fits the dataset.

    Args:
        name: a folder, or a name on the Hub.
        dataset: gives the kind of model, its labels, and the size of images.
        option: precedes the name in error messages.

    Raises:
        UsageError: it cannot be read or does not fit.
    """
    from unlearnbench.datasets import kind_in
    from unlearnbench.models.denoiser import denoiser_class

    what = f"{option}{name}"
    folder = Path(name) if Path(name).is_dir() else _from_hub(name)
    kind = kind_in(folder)
    if kind != dataset.base.kind:
        raise UsageError(
            f"{what}: it is a model of kind {kind}, but {dataset.name} is run with {dataset.base.kind}: give --model "
            f"{kind}, or another folder"
        )
    found = denoiser_class(kind)
    if dataset.labels and not found.has_more_labels:
        raise UsageError(f"{what}: --labels is for a DiTPipeline, and this is a model of kind {kind}: leave it out")
    return found.read(what, folder, dataset.conditions)


def read_config(what: str, folder: Path, path: str) -> Mapping[str, Any] | None:
    """Return the object in a JSON file of a folder, None where there is no such file.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return read_object(folder / path) if (folder / path).is_file() else None
    except (OSError, ValueError) as error:
        raise UsageError(f"{what}: its {path} cannot be read ({spell_error(error)})") from error


def read_component(
    what: str, folder: Path, place: str, class_name: str, weights: str = WEIGHTS
) -> "tuple[Mapping[str, Any], Tensors]":
    """Return config and weights of a network in a diffusers folder.

    Args:
        what: begins the error messages.
        folder: of the model.
        place: of the network in it.
        class_name: of diffusers or transformers, for the messages.
        weights: name of the file.

    Raises:
        UsageError: a file is missing or cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    files = [str(Path(place) / name) for name in ("config.json", weights)]
    for path in files:
        if not (folder / path).is_file():
            pickles = [found.name for found in (folder / path).parent.glob("*.bin")]
            convert = (
                f": its weights are a pickle ({one_line(pickles[0], 60)}), which is not opened here: where it was "
                f"made, write it again with save_pretrained(FOLDER, safe_serialization=True)"
                if pickles
                else ""
            )
            raise UsageError(f"{what}: it lacks {path} of a diffusers {class_name}{convert}")
    config = read_config(what, folder, files[0])
    assert config is not None
    try:
        return config, {name: tensor.float() for name, tensor in load_file(folder / files[1]).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"{what}: its {files[1]} cannot be read ({spell_error(error)})") from error


def arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a network in its config. None is one: of attention_head_dim it means one head."""
    return {key: value for key, value in config.items() if not key.startswith("_")}


def check_arguments(
    what: str, network: Callable[..., Any], config: Mapping[str, Any], allowed: Mapping[str, Sequence[Any]],
    tensors: int, exact: Sequence[str] = (),
) -> None:  # fmt: skip
    """Check the arguments of an untrusted network before it is built.

    Args:
        what: begins the error messages.
        network: class of diffusers.
        config: of the network.
        allowed: values of some arguments, the usual one first.
        tensors: number of its weights: no list is longer, and no network has more layers.
        exact: names of arguments that must be whole numbers from 1 to `tensors`, and present.

    Raises:
        UsageError: the config is incompatible with the benchmark, or too large to build.
    """
    from inspect import signature

    name, known = config.get("_class_name"), signature(network).parameters
    if name != network.__name__:
        raise UsageError(f"{what}: its _class_name is {shown(name)}, but a {network.__name__} is needed here")
    for key, value in config.items():
        if key.startswith("_") or value is None:
            continue
        sizes = value if isinstance(value, list) else [value]
        huge = any(isinstance(size, int | float) and abs(size) > MOST_IN_CONFIG for size in sizes)
        if key not in known or huge or len(sizes) > tensors:
            raise UsageError(f"{what}: its config has {key} {shown(value)}, which is not supported here")
    for key, values in allowed.items():
        if key in config and config[key] not in values:
            raise UsageError(f"{what}: its config has {key} {shown(config[key])}, but needs {shown(values[0])}")
    odd = [key for key in exact if type(config.get(key)) is not int or not 0 < config[key] <= max(tensors, 1)]
    if odd:
        words = " and ".join(f"{key} {shown(config.get(key))}" for key in odd)
        raise UsageError(
            f"{what}: its config has {words}, which does not fit its {tensors} weights: give another checkpoint"
        )


def shown(value: Any) -> str:
    """Return a value of an untrusted file for an error message."""
    return one_line(repr(value), 60)


def build_checked(what: str, build: "Callable[[], Model]", weights: "Tensors") -> "Model":
    """Return a network with untrusted weights, after checking that they are all it has, and finite.

    Args:
        what: begins the error messages.
        build: returns the network.
        weights: by name.

    Raises:
        UsageError: they do not fit each other.
    """
    import torch

    try:
        with torch.device("meta"):  # takes no memory at any size
            wanted = {key: tensor.shape for key, tensor in build().state_dict().items()}
        for key in (*wanted, *weights):
            if key not in wanted or key not in weights or wanted[key] != weights[key].shape:
                raise ValueError(f"{key} is missing, unexpected or of a different shape")
            if not torch.isfinite(weights[key]).all():
                raise UsageError(f"{what}: its weights in {key} are not all finite: give another checkpoint")
        model = build()
        model.load_state_dict(weights)
        return model.eval()
    except UsageError:
        raise
    except Exception as error:  # diffusers and torch raise various errors on a mismatch
        raise UsageError(f"{what}: its weights do not fit its config ({spell_error(error)})") from error


def check_prediction(what: str, denoiser: "Denoiser", last: int) -> None:
    """Raise UsageError unless an untrusted model predicts finite noise for label 0 and the last one."""
    import torch

    x, t = torch.zeros(2, *denoiser.shape), torch.tensor([0, denoiser.noise["num_train_timesteps"] - 1])
    try:
        with torch.no_grad():
            predicted = denoiser.eval()(x, t, torch.tensor([0, last])).sample
    except Exception as error:  # diffusers and torch raise various errors on a mismatch
        raise UsageError(f"{what}: its weights do not fit its config ({spell_error(error)})") from error
    if predicted.shape != x.shape or not torch.isfinite(predicted).all():
        raise UsageError(f"{what}: it does not predict finite noise of the shape of an image: give another checkpoint")


def _from_hub(name: str) -> Path:
    """Return the local copy of a model on the Hub."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(FILES)))
    except Exception as error:  # the Hub's client raises its own and its network library's errors
        raise UsageError(
            f"--base {name} is not a folder and cannot be fetched from the Hugging Face Hub ({spell_error(error)}): "
            f"give a folder in diffusers' format"
        ) from error


def check_schedule(what: str, schedule: Mapping[str, Any] | None) -> None:
    """Raise UsageError where a model's config names a noise schedule other than the benchmark's."""
    if schedule is None:
        return
    _check_class(what, schedule, SCHEDULERS)
    for key, value in schedule.items():
        if key.startswith("_") or key in SAMPLER_KEYS or value in SCHEDULER_VALUES.get(key, (None,)):
            continue
        usual = f"but the benchmark's is {SCHEDULER_VALUES[key][0]!r}" if key in SCHEDULER_VALUES else "unknown here"
        raise UsageError(
            f"{what}: its noise schedule has {key} {shown(value)}, {usual}: give a model trained with the benchmark's"
        )


def own_schedule(what: str, schedule: Mapping[str, Any] | None) -> tuple[dict[str, Any], str]:
    """Return a pipeline's forward process, as `Schedule.of` takes it, and what its network predicts.

    Raises:
        UsageError: it is none of linear or scaled-linear betas over 1,000 steps, or the network predicts something else
            than epsilon or v.
    """
    schedule = {} if schedule is None else schedule
    if schedule:
        _check_class(what, schedule, (*SCHEDULERS, *SOLVERS))
    found = {key: schedule.get(key, usual) for key, usual in SCHEDULE.items()}
    ends = [found["beta_start"], found["beta_end"]]
    wanted = {key: SCHEDULER_VALUES[key] for key in ("trained_betas", "rescale_betas_zero_snr", "num_train_timesteps")}
    wanted |= {"beta_schedule": ("linear", "scaled_linear"), "prediction_type": ("epsilon", "v_prediction")}
    for key, values in wanted.items():
        if (value := schedule.get(key, values[0])) not in values:
            raise UsageError(f"{what}: its noise schedule has {key} {shown(value)}, but needs {shown(values[0])}")
    if not all(isinstance(end, float | int) and 0 < end < 1 for end in ends) or ends[0] > ends[1]:
        raise UsageError(f"{what}: its noise schedule has betas from {shown(ends[0])} to {shown(ends[1])}")
    return {key: found[key] for key in NOISE}, str(found["prediction_type"])


def _check_class(what: str, schedule: Mapping[str, Any], known: Sequence[str]) -> None:
    if schedule.get("_class_name") not in known:
        raise UsageError(
            f"{what}: its noise schedule is of the class {shown(schedule.get('_class_name'))}, but the benchmark's is "
            f"a DDPMScheduler: give a model trained with it"
        )
