"""What belongs to a dataset and is made once: images, base model, judge, feature extractor; all cached."""

import hashlib
import math
import shutil
import time
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unlearnbench.datasets import BaseRecipe, Dataset, Images, Split, SvmRecipe
from unlearnbench.errors import UsageError, spell_error
from unlearnbench.judges.features import extractor_for, inception
from unlearnbench.judges.judges import (
    Found,
    Judge,
    build_classifier,
    classifier,
    classifier_key,
    making,
    rejecting_judge,
    second_judge,
    through,
    worth,
)
from unlearnbench.models.checkpoints import read_checkpoint
from unlearnbench.models.diffusion import Schedule, to_float
from unlearnbench.models.networks import Classifier, build_unet, frozen, placed, unet_config
from unlearnbench.models.training import DenoiserTraining, Draw, flipped, global_rng_kept
from unlearnbench.run.workers import Progress
from unlearnbench.store.artifacts import Artifact, ArtifactStore, Tensors, software, unwritable
from unlearnbench.store.scratch import beside, fsync, sweep

FIRST_CHECKPOINT_SECONDS, CHECKPOINT_SECONDS = 10.0, 60.0  # after the start of a training, and between two
UNGUIDED = "the base model has no null class: it is sampled without guidance, and methods drop no labels"
CURVE_POINTS = 100  # of a base model's training loss
FEATURES = "compute features of the training images"
OTHER_JUDGES: Mapping[str, tuple[tuple[str, ...], Callable[..., Found]]] = {  # name -> endings of needs, and its maker
    "second": (("_second",), second_judge),
    "rejecting": (("_verdicts", "attacker"), rejecting_judge),
}


@dataclass(frozen=True)
class Prepared:
    """What belongs to a dataset, in memory: frozen networks in eval mode, and where their weights come from.

    The base is on the device; judge and extractor stay on the CPU until they are needed, so that they are no part of a
    method's memory.
    """

    train: Split
    notes: tuple[str, ...]  # on how the images were read
    base: nn.Module
    unet: Mapping[str, Any]  # the arguments of the base model's network
    judge: Classifier
    extractor: nn.Module | None  # None where no metric asks for features
    train_features: Tensor | None  # (N, D) float32 of the training images, likewise
    second: Judge | None  # one of another kind, None where no metric asks for it
    rejecting: Judge | None  # one that may reject, likewise
    worth: Mapping[str, Any]  # of the judge on test images: test_accuracy, n, and the other judges' by their names
    artifacts: dict[str, dict[str, Any]]


def prepare(
    dataset: Dataset, store: ArtifactStore, device: torch.device, progress: Progress, needs: Collection[str]
) -> Prepared:
    """Return what belongs to a dataset, made on first use and cached.

    Args:
        dataset: says what it is and how it is made.
        store: the cache.
        device: trains and computes.
        progress: shows how far the making is.
        needs: of the metrics to come; they say which judges are wanted, and whether the feature extractor is.

    Raises:
        UsageError: images or weights are not here and cannot be had, or do not fit.
    """
    images = dataset.load(store, progress)
    sources = image_digests(images)
    features = any(need.endswith("_features") for need in needs)
    extractor: nn.Module | None = None
    features_artifact = None
    artifacts: dict[str, dict[str, Any]] = {"images": {"sha256": sources["train"]}}
    if dataset.checkpoint:  # what may turn out to be impossible comes before long trainings
        base_artifact(dataset, images.train, sources["train"], store, device, progress)
    if features and dataset.extractor is None:
        extractor, artifacts["extractor"] = inception(dataset.inception_weights)
    progress = _numbered(_wanted(dataset, needs, sources, store, device, artifacts.get("extractor")), store, progress)
    made = (dataset, images, sources, store, device, progress)
    judge = classifier(dataset, "judge", dataset.judge, *made[1:])
    others = _other_judges(needs, *made)
    if features and dataset.extractor is not None:
        extractor, artifacts["extractor"] = _own_extractor(*made)
    if extractor is not None:
        features_artifact = train_features(extractor, artifacts["extractor"], *made[1:])
    base = base_artifact(dataset, images.train, sources["train"], store, device, progress)
    artifacts |= {"base": base_reference(dataset, base), "judge": judge.reference}
    artifacts |= {name: found.reference for name, found in others.items()}
    return Prepared(
        train=images.train,
        notes=(*images.notes, *([UNGUIDED] if dataset.unguided else [])),
        base=frozen(build_unet(base.facts["unet"]), base.tensors, device),
        unet=base.facts["unet"],
        judge=frozen(build_classifier(dataset, dataset.judge), judge.tensors, torch.device("cpu")),
        extractor=extractor,
        train_features=features_artifact.tensors["features"] if features_artifact is not None else None,
        second=others["second"].judge if "second" in others else None,
        rejecting=others["rejecting"].judge if "rejecting" in others else None,
        worth={**worth(judge.facts), **{name: found.facts for name, found in others.items()}},
        artifacts=artifacts,
    )


Wanted = list[tuple[str, tuple[str, Mapping[str, Any]] | None]]  # a step as progress names it, what it makes


def _wanted(
    dataset: Dataset, needs: Collection[str], sources: Mapping[str, str], store: ArtifactStore, device: torch.device,
    extractor: Mapping[str, str] | None,
) -> Wanted:  # fmt: skip
    """Return what the cache is to hold, in the order of its making; None for what nobody can name yet.

    Args:
        dataset: says how it is made.
        needs: of the metrics to come.
        sources: digests of the images.
        store: the cache.
        device: trains.
        extractor: Inception's weights, where they are to be used.
    """
    recipes: dict[str, Any] = {"judge": dataset.judge}
    recipes |= {f"{name} judge": getattr(dataset, name) for name in _other_judge_names(needs)}
    features = any(need.endswith("_features") for need in needs)
    if features and dataset.extractor is not None:
        recipes["extractor"] = dataset.extractor
    wanted: Wanted = [
        (making(kind, recipe), classifier_key(dataset, kind, recipe, sources, device))
        for kind, recipe in recipes.items()
        if not isinstance(recipe, SvmRecipe)  # which is fitted anew each time
    ]
    if features:
        if dataset.extractor is not None:
            key = classifier_key(dataset, "extractor", dataset.extractor, sources, device)
            extractor = store.reference(*key)
        made = None if extractor is None else ("features", _features_inputs(extractor, sources, device))
        wanted.append((FEATURES, made))
    base = "read the base model" if dataset.checkpoint else "train the base model"
    return [*wanted, (base, ("base", _base_inputs(dataset, sources["train"], device)))]


def _numbered(wanted: Wanted, store: ArtifactStore, progress: Progress) -> Progress:
    """Say what of it is to be made, and return a progress that counts it: `train the judge (1 of 3)`."""
    missing = [step for step, made in wanted if made is None or store.reference(*made) is None]
    if missing:
        others = f", and {len(wanted) - len(missing)} are in the cache" if len(missing) < len(wanted) else ""
        progress(f"{len(missing)} of {len(wanted)} steps to do ({', '.join(missing)}){others}", 0, 0)

    def show(what: str, done: int, total: int) -> None:
        if what in missing:
            what = f"{what} ({missing.index(what) + 1} of {len(missing)})"
        progress(what, done, total)

    return show


def _other_judge_names(needs: Collection[str]) -> list[str]:
    """Return the judges that metrics ask for beside the first one."""
    return [name for name, (endings, _) in OTHER_JUDGES.items() if any(need.endswith(endings) for need in needs)]


def _other_judges(
    needs: Collection[str], dataset: Dataset, images: Images, sources: Mapping[str, str], store: ArtifactStore,
    device: torch.device, progress: Progress,
) -> dict[str, Found]:  # fmt: skip
    """Return the judges that metrics ask for beside the first one, by name."""
    return {
        name: OTHER_JUDGES[name][1](dataset, images, sources, store, device, progress)
        for name in _other_judge_names(needs)
    }


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
    """Return the base model: trained, or read from a checkpoint and checked. Its facts hold the UNet's arguments."""
    inputs = _base_inputs(dataset, source, device)
    if dataset.checkpoint:

        def read() -> tuple[Tensors, dict[str, Any]]:
            progress("read the base model", 0, 0)
            config, weights = read_checkpoint(dataset.checkpoint, dataset)
            return weights, {"unet": config}

        return store.get("base", inputs, read)
    workspace = store.workspace("base", inputs)

    def build() -> tuple[Tensors, dict[str, Any]]:
        return _train_base(dataset, train, workspace, device, progress)

    with global_rng_kept(device):
        return store.get("base", inputs, build)


def base_reference(dataset: Dataset, base: Artifact) -> dict[str, Any]:
    """Return what a record says of the base model, and what priors rest on."""
    timed = {} if dataset.base.minutes is None else {"steps": base.facts["steps"]}  # that its recipe does not tell
    return {**base.reference, **timed}


def _base_inputs(dataset: Dataset, source: str, device: torch.device) -> dict[str, Any]:
    """Return what a base model depends on."""
    if dataset.checkpoint:
        return {
            "checkpoint": dataset.choices["base"], "classes": dataset.num_classes, "image_shape": dataset.image_shape,
            "revision": 2,
        }  # fmt: skip
    return {
        "classes": dataset.num_classes, "images": source, "flip": dataset.flip, "recipe": dataset.base.to_json(),
        "device": device.type, "software": software(),
    }  # fmt: skip


def _train_base(
    dataset: Dataset, train: Split, workspace: Path, device: torch.device, progress: Progress
) -> tuple[Tensors, dict[str, Any]]:
    """Train the base model, from its last checkpoint where a training was stopped."""
    recipe, config = dataset.base, unet_config(dataset)
    torch.manual_seed(recipe.seed)  # initial weights and dropout, which take no generator
    model = placed(build_unet(config), device)
    generator = torch.Generator(device).manual_seed(recipe.seed)
    images, labels = torch.from_numpy(train.images).to(device), torch.from_numpy(train.labels).to(device)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(0, len(images), (n,), generator=generator, device=device)
        x0 = to_float(images[chosen])
        return (flipped(x0, generator) if dataset.flip else x0), labels[chosen]

    training = DenoiserTraining(
        model.train(), Schedule.linear(device=device), total=recipe.steps, batch=recipe.batch, lr=recipe.lr,
        cosine=recipe.cosine, label_dropout=recipe.label_dropout, ema=recipe.ema, clip=recipe.clip,
        null_class=dataset.num_classes, generator=generator, bf16=recipe.precision == "bf16",
    )  # fmt: skip
    path, before = workspace / "checkpoint.safetensors", 0.0
    if path.is_file():
        try:
            state = load_file(path)
            training.restore(state)
            before = float(state["seconds"]) if recipe.minutes is not None else 0.0
        except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
            warnings.warn(
                f"the checkpoint {path} is damaged ({spell_error(error)}); training starts anew", stacklevel=1
            )
            path.unlink()
            return _train_base(dataset, train, workspace, device, progress)
    _train(training, draw, recipe, path, before, progress)
    training.average.copy_to(model)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return weights, {"unet": config, "steps": training.step, "loss": _curve(training.losses[: training.step])}


def _train(
    training: DenoiserTraining, draw: Draw, recipe: BaseRecipe, path: Path, before: float, progress: Progress
) -> None:
    """Take a recipe's steps, or as many as its minutes hold, with a checkpoint now and then.

    Where minutes end the training, its step size is annealed along the time, so that both reach their end together.

    Args:
        training: new, or restored from a checkpoint.
        draw: returns images and labels.
        recipe: of the base model.
        path: of the checkpoint.
        before: seconds that the training took up to that checkpoint, where minutes end it.
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
    """Refuse to keep a training whose loss or weights are no longer finite."""
    weights = torch.stack(torch._foreach_norm(list(training.model.parameters())))
    if not (torch.isfinite(training.losses[: training.step]).all() and torch.isfinite(weights).all()):
        shutil.rmtree(workspace, ignore_errors=True)
        raise UsageError(
            f"the training of the base model diverged by step {training.step} (NaN or infinite): its recipe does not "
            f"suit these images; give a trained model with --base"
        )


def save_checkpoint(path: Path, tensors: Tensors) -> None:
    """Write tensors so that a reader finds the old file or the new one, never half of one.

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
            return  # a builder whom a lock that holds nothing did not stop is done, and has cleared up
        raise unwritable(f"the checkpoint {path} cannot be written", error) from error
    finally:
        scratch.unlink(missing_ok=True)


def _curve(losses: Tensor) -> list[tuple[int, float]]:
    """Return (step, mean loss up to it since the point before), at most CURVE_POINTS of them."""
    size = -(-len(losses) // CURVE_POINTS)
    return [
        (min((k + 1) * size, len(losses)), float(part.mean())) for k, part in enumerate(torch.split(losses.cpu(), size))
    ]


def _own_extractor(
    dataset: Dataset, images: Images, sources: Mapping[str, str], store: ArtifactStore, device: torch.device,
    progress: Progress,
) -> tuple[nn.Module, dict[str, str]]:  # fmt: skip
    """Return the dataset's own extractor behind torch-fidelity's interface, and what a record says of its weights."""
    assert dataset.extractor is not None
    found = classifier(dataset, "extractor", dataset.extractor, images, sources, store, device, progress)
    network = frozen(build_classifier(dataset, dataset.extractor), found.tensors, torch.device("cpu"))
    return extractor_for(f"unlearnbench-{dataset.name}", network), found.reference


def train_features(
    extractor: nn.Module, reference: Mapping[str, str], images: Images, sources: Mapping[str, str],
    store: ArtifactStore, device: torch.device, progress: Progress,
) -> Artifact:  # fmt: skip
    """Return the features of all training images, of which every forget class takes its reference."""

    def build() -> tuple[Tensors, dict[str, Any]]:
        progress(FEATURES, 0, 0)
        return {"features": through(extractor, images.train.images, device).float()}, {}

    return store.get("features", _features_inputs(reference, sources, device), build)


def _features_inputs(extractor: Mapping[str, str], sources: Mapping[str, str], device: torch.device) -> dict[str, Any]:
    """Return what features of the training images depend on."""
    return {"extractor": dict(extractor), "images": sources["train"], "device": device.type, "software": software()}
