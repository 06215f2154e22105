"""The base model: trained with checkpoints, or read from a given one; cached."""

import hashlib
import math
import shutil
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unlearnbench.datasets import Dataset, Images, Split
from unlearnbench.datasets.recipes import BaseRecipe
from unlearnbench.errors import UsageError, spell_error
from unlearnbench.models.autoencoder import trained_codec
from unlearnbench.models.checkpoints import read_checkpoint
from unlearnbench.models.codec import Codec
from unlearnbench.models.denoiser import Denoiser, denoiser_class, described, untrained
from unlearnbench.models.networks import placed
from unlearnbench.models.training import DenoiserTraining, Draw, coins, global_rng_kept
from unlearnbench.protocols import Progress
from unlearnbench.store.artifacts import Artifact, ArtifactStore, Tensors, software
from unlearnbench.store.cache import unwritable
from unlearnbench.store.revisions import later
from unlearnbench.store.scratch import beside, fsync, sweep

FIRST_CHECKPOINT_SECONDS, CHECKPOINT_SECONDS = 10.0, 60.0  # after the start of training, and between two checkpoints


UNGUIDED = "the base model has no null class: it is sampled without guidance, and methods drop no labels"


CURVE_POINTS = 100  # of a base model's training loss


def prepare_base(dataset: Dataset, store: ArtifactStore, device: torch.device, progress: Progress) -> Artifact:
    """Return the base model alone, as `train` makes it."""
    images = dataset.load(store, progress)
    return base_artifact(dataset, images.train, image_digests(images)["train"], store, device, progress)


def image_digests(images: Images) -> dict[str, str]:
    """Return the SHA-256 of pixels and labels of both parts."""
    digests = {}
    for part, split in (("train", images.train), ("test", images.test)):
        content = hashlib.sha256(np.ascontiguousarray(split.images).data)
        content.update(np.ascontiguousarray(split.labels).data)
        digests[part] = content.hexdigest()
    return digests


def base_artifact(
    dataset: Dataset, train: Split, source: str, store: ArtifactStore, device: torch.device, progress: Progress
) -> Artifact:
    """Return the base model, as `denoiser.restored` takes it: trained, or read from a checkpoint and checked."""
    inputs = _base_inputs(dataset, source, device)
    if dataset.checkpoint:

        def read() -> tuple[Tensors, dict[str, Any]]:
            progress("read the base model", 0, 0)
            return _payload(read_checkpoint(dataset.checkpoint, dataset))

        return store.get("base", inputs, read)
    workspace = store.workspace("base", inputs)

    def build() -> tuple[Tensors, dict[str, Any]]:
        codec = trained_codec(dataset, train, source, store, device, progress)
        return train_denoiser(dataset, train, codec, workspace, device, progress)

    with global_rng_kept(device):
        return store.get("base", inputs, build)


def base_reference(dataset: Dataset, base: Artifact) -> dict[str, Any]:
    """Return the reference of the base model for records and for keys of priors."""
    timed = {} if dataset.base.minutes is None else {"steps": base.facts["steps"]}  # unknown from the recipe
    return {**base.reference, **timed}


def _base_inputs(dataset: Dataset, source: str, device: torch.device) -> dict[str, Any]:
    """Return the inputs of a base model's cache key."""
    if dataset.checkpoint:
        return {
            "checkpoint": dataset.choices["base"], "classes": dataset.num_classes, "image_shape": dataset.image_shape,
            "revision": 3, **_given(dataset),
        }  # fmt: skip
    return {
        "classes": dataset.num_classes, "images": source, "flip": dataset.flip, "recipe": dataset.base.to_json(),
        "device": device.type, "software": software(), **_given(dataset), **later("base"),
    }  # fmt: skip


def _given(dataset: Dataset) -> dict[str, Any]:
    """Return prompts and labels, and the names that find labels in a given model, for the key of a base model."""
    found_by_name = bool(dataset.checkpoint) and denoiser_class(dataset.base.kind).has_more_labels
    parts = {
        "prompts": dataset.prompts and dataset.prompts.to_json(), "labels": dataset.labels,
        "names": dataset.class_names if found_by_name else (),
    }  # fmt: skip
    return {name: part for name, part in parts.items() if part}


def _payload(denoiser: Denoiser) -> tuple[Tensors, dict[str, Any]]:
    """Return the tensors and facts of an artifact, from which `denoiser.restored` makes the denoiser again."""
    return {**denoiser.shared, **denoiser.tensors()}, described(denoiser)


def train_denoiser(
    dataset: Dataset, train: Split, codec: Codec, workspace: Path, device: torch.device, progress: Progress
) -> tuple[Tensors, dict[str, Any]]:
    """Train the base model, resuming from the last checkpoint if there is one."""
    recipe = dataset.base
    torch.manual_seed(recipe.seed)  # initial weights and dropout use the global generator
    denoiser = untrained(dataset, codec)
    model = placed(denoiser.trainee(), device)
    generator = torch.Generator(device).manual_seed(recipe.seed)
    images = codec.keep(torch.from_numpy(train.images).to(device), mirrors=dataset.flip)
    labels = torch.from_numpy(train.labels).to(device)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(0, len(images), (n,), generator=generator, device=device)
        mirrored = coins(n, generator) if dataset.flip else None
        return codec.x0(images[chosen], mirrored), labels[chosen]

    training = DenoiserTraining(
        model.train(), denoiser.schedule, total=recipe.steps, batch=recipe.batch, lr=recipe.lr,
        cosine=recipe.cosine, label_dropout=recipe.label_dropout, ema=recipe.ema, clip=recipe.clip,
        null_class=dataset.num_classes, generator=generator, bf16=recipe.precision == "bf16",
    )  # fmt: skip
    path, before = workspace / "checkpoint.safetensors", 0.0
    try:
        if (state := _saved(path)) is not None:
            training.restore(state)
            before = float(state["seconds"]) if recipe.minutes is not None else 0.0
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        warnings.warn(f"the checkpoint {path} is damaged ({spell_error(error)}); training starts anew", stacklevel=1)
        path.unlink(missing_ok=True)
        return train_denoiser(dataset, train, codec, workspace, device, progress)
    _train(training, draw, recipe, path, before, progress)
    training.average.copy_to(model)
    denoiser.finish()
    tensors, facts = _payload(denoiser)
    return tensors, {**facts, "steps": training.step, "loss": _curve(training.losses[: training.step])}


def _saved(path: Path) -> Tensors | None:
    """Return a checkpoint; None where there is none, or a concurrent builder (without locks) has cleaned up."""
    try:
        return load_file(path) if path.is_file() else None
    except FileNotFoundError:
        return None


def _train(
    training: DenoiserTraining, draw: Draw, recipe: BaseRecipe, path: Path, before: float, progress: Progress
) -> None:
    """Take a recipe's steps, or as many as fit its minutes, with regular checkpoints.

    Where the recipe gives minutes, the step size is annealed over time instead of steps.

    Args:
        training: new, or restored from a checkpoint.
        draw: returns images and labels.
        recipe: of the base model.
        path: of the checkpoint.
        before: seconds of training up to that checkpoint, where the recipe gives minutes.
        progress: shows how far it is.
    """
    seconds = None if recipe.minutes is None else 60 * recipe.minutes
    began, due = time.monotonic() - before, time.monotonic() + FIRST_CHECKPOINT_SECONDS
    while True:
        spent = time.monotonic() - began
        done, total = (training.step, recipe.steps) if seconds is None else (spent, seconds)
        if done >= total:
            break
        progress("train the base model", int(done), math.ceil(total))
        training.advance(draw, None if seconds is None else done / total)
        if time.monotonic() > due:
            _check_converging(training, path.parent)
            save_checkpoint(path, {**training.tensors(), "seconds": torch.tensor(time.monotonic() - began)})
            due = time.monotonic() + CHECKPOINT_SECONDS
    _check_converging(training, path.parent)


def _check_converging(training: DenoiserTraining, workspace: Path) -> None:
    """Raise UsageError where the loss or the weights are no longer finite."""
    weights = torch.stack(torch._foreach_norm(list(training.model.parameters())))
    if not (torch.isfinite(training.losses[: training.step]).all() and torch.isfinite(weights).all()):
        shutil.rmtree(workspace, ignore_errors=True)
        raise UsageError(
            f"the training of the base model diverged by step {training.step} (NaN or infinite): its recipe does not "
            f"suit these images: give a trained model with --base"
        )


def save_checkpoint(path: Path, tensors: Tensors) -> None:
    """Write tensors to a file atomically.

    Raises:
        UsageError: the cache cannot be written.
    """
    scratch = beside(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    made = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        made = True
        sweep(path.parent, f".{path.name}-*")
        save_file(tensors, scratch)
        fsync(scratch)
        scratch.replace(path)
    except (OSError, SafetensorError) as error:
        if made and not path.parent.exists():
            return  # a concurrent builder (locks are unreliable here) has finished and cleaned up
        raise unwritable(f"the checkpoint {path} cannot be written", error) from error
    finally:
        scratch.unlink(missing_ok=True)


def _curve(losses: Tensor) -> list[tuple[int, float]]:
    """Return (step, mean loss since the previous point), at most CURVE_POINTS of them."""
    size = -(-len(losses) // CURVE_POINTS)
    return [
        (min((k + 1) * size, len(losses)), float(part.mean())) for k, part in enumerate(torch.split(losses.cpu(), size))
    ]
