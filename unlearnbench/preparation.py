"""What belongs to a dataset and is made once: images, base model, judge, feature extractor; all cached."""

import hashlib
import importlib.metadata
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unlearnbench.artifacts import Artifact, ArtifactStore, Tensors
from unlearnbench.checkpoints import read_checkpoint
from unlearnbench.datasets import ClassifierRecipe, Dataset, Images, Split
from unlearnbench.diffusion import Schedule, evaluating, to_float
from unlearnbench.features import extractor_for, inception
from unlearnbench.networks import CLASSIFIERS, Classifier, build_unet, unet_config
from unlearnbench.process import Progress
from unlearnbench.training import DenoiserTraining, fit_classifier, flipped, global_rng_kept

Model = TypeVar("Model", bound=nn.Module)
JUDGE_BATCH = 500  # images per forward pass of a judge or extractor
CHECKPOINT_SECONDS = 60.0  # between two checkpoints of a base model in training
CURVE_POINTS = 100  # of a base model's training loss


@dataclass(frozen=True)
class Prepared:
    """What belongs to a dataset, in memory: frozen networks in eval mode, and where their weights come from.

    The base is on the device; judge and extractor stay on the CPU until they are needed, so that they are no part of a
    method's memory.
    """

    train: Split
    notes: tuple[str, ...]  # on how the images were read
    base: nn.Module
    judge: Classifier
    extractor: nn.Module | None  # None where no metric asks for features
    train_features: Tensor | None  # (N, D) float32 of the training images, likewise
    judge_accuracy: float  # share of test images the judge names correctly, 0 to 1
    judge_n: int  # number of those test images
    artifacts: dict[str, dict[str, str]]


def prepare(
    dataset: Dataset, store: ArtifactStore, device: torch.device, progress: Progress, *, features: bool = True
) -> Prepared:
    """Return what belongs to a dataset, made on first use and cached.

    Args:
        dataset: says what it is and how it is made.
        store: the cache.
        device: trains and computes.
        progress: shows how far the making is.
        features: whether the feature extractor is needed.

    Raises:
        UsageError: images or weights are not here and cannot be had, or do not fit.
    """
    images = dataset.load(store, progress)
    sources = _digests(images)
    extractor, features_artifact, artifacts = None, None, {"images": {"sha256": sources["train"]}}
    if features:  # first, for it may turn out to be impossible
        extractor, artifacts["extractor"] = _extractor(dataset, images, sources, store, device, progress)
        features_artifact = _train_features(extractor, artifacts["extractor"], images, sources, store, device, progress)
    judge = _classifier(dataset, "judge", dataset.judge, images, sources, store, device, progress)
    base = base_artifact(dataset, images.train, sources["train"], store, device, progress)
    artifacts |= {"base": base.reference, "judge": judge.reference}
    return Prepared(
        train=images.train,
        notes=images.notes,
        base=frozen(build_unet(base.facts["unet"]), base.tensors, device),
        judge=frozen(_build_classifier(dataset, dataset.judge), judge.tensors, torch.device("cpu")),
        extractor=extractor,
        train_features=features_artifact.tensors["features"] if features_artifact is not None else None,
        judge_accuracy=float(judge.facts["test_accuracy"]),
        judge_n=int(judge.facts["test_n"]),
        artifacts=artifacts,
    )


def prepare_base(dataset: Dataset, store: ArtifactStore, device: torch.device, progress: Progress) -> Artifact:
    """Return the base model alone, as `train` makes it."""
    images = dataset.load(store, progress)
    return base_artifact(dataset, images.train, _digests(images)["train"], store, device, progress)


def frozen(model: Model, weights: Tensors, device: torch.device) -> Model:
    """Return a network with these weights, on a device, in eval mode, for no one to train."""
    model.load_state_dict(weights)
    return placed(model, device).eval().requires_grad_(False)


def placed(model: Model, device: torch.device) -> Model:
    """Return a network on a device, in the memory layout that its convolutions prefer there."""
    model = model.to(device)
    return model.to(memory_format=torch.channels_last) if device.type == "cuda" else model


def software() -> dict[str, str]:
    """Return the library versions that affect trained bytes, for artifact keys."""
    return {"torch": torch.__version__, "diffusers": importlib.metadata.version("diffusers")}


def _digests(images: Images) -> dict[str, str]:
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
    if dataset.checkpoint:
        inputs: dict[str, Any] = {"checkpoint": dataset.choices["base"], "classes": dataset.num_classes}
        inputs["image_shape"] = dataset.image_shape

        def read() -> tuple[Tensors, dict[str, Any]]:
            progress("read the base model", 0, 0)
            config, weights = read_checkpoint(dataset.checkpoint, dataset)
            return weights, {"unet": config}

        return store.get("base", inputs, read)
    inputs = {
        "dataset": dataset.name,
        "images": source,
        "flip": dataset.flip,
        "recipe": asdict(dataset.base),
        "device": device.type,
        "software": software(),
    }
    workspace = store.workspace("base", inputs)

    def build() -> tuple[Tensors, dict[str, Any]]:
        return _train_base(dataset, train, workspace, device, progress)

    with global_rng_kept(device):
        return store.get("base", inputs, build)


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
    path = workspace / "checkpoint.safetensors"
    if path.is_file():
        training.restore(load_file(path))
    saved = time.monotonic()
    while training.step < recipe.steps:
        progress("train the base model", training.step, recipe.steps)
        training.advance(draw)
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            save_checkpoint(path, training.tensors())
            saved = time.monotonic()
    training.average.copy_to(model)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    return weights, {"unet": config, "steps": recipe.steps, "loss": _curve(training.losses)}


def save_checkpoint(path: Path, tensors: Tensors) -> None:
    """Write tensors so that a reader finds the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".new")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, scratch)
    scratch.replace(path)


def _curve(losses: Tensor) -> list[tuple[int, float]]:
    """Return (step, mean loss up to it since the point before), at most CURVE_POINTS of them."""
    size = -(-len(losses) // CURVE_POINTS)
    return [
        (min((k + 1) * size, len(losses)), float(part.mean())) for k, part in enumerate(torch.split(losses.cpu(), size))
    ]


def _build_classifier(dataset: Dataset, recipe: ClassifierRecipe) -> Classifier:
    return CLASSIFIERS[recipe.network](dataset.image_shape[0], dataset.num_classes)


def _classifier(
    dataset: Dataset, kind: str, recipe: ClassifierRecipe, images: Images, sources: Mapping[str, str],
    store: ArtifactStore, device: torch.device, progress: Progress,
) -> Artifact:  # fmt: skip
    def build() -> tuple[Tensors, dict[str, Any]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            model = _build_classifier(dataset, recipe)
        if recipe.pretrained:
            model.start_from_imagenet()  # type: ignore[operator]
        fit_classifier(
            model.to(device), images.train, recipe, lambda done, total: progress(f"train the {kind}", done, total)
        )
        logits = through(model, images.test.images, device)
        accuracy = float(np.mean(logits.argmax(dim=1).numpy() == images.test.labels))
        return model.state_dict(), {"test_accuracy": accuracy, "test_n": len(images.test.labels)}

    inputs = {
        "dataset": dataset.name,
        "images": dict(sources),
        "recipe": asdict(recipe),
        "device": device.type,
        "software": software(),
    }
    return store.get(kind, inputs, build)


def through(network: nn.Module, images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return a network's output for images, (n, D) on the CPU, computed batch by batch in eval mode."""
    with evaluating(network.to(device)):
        outputs = [network(batch.to(device)) for batch in torch.split(torch.from_numpy(images), JUDGE_BATCH)]
    return torch.cat([output[0] if isinstance(output, tuple) else output for output in outputs]).cpu()


def _extractor(
    dataset: Dataset, images: Images, sources: Mapping[str, str], store: ArtifactStore, device: torch.device,
    progress: Progress,
) -> tuple[nn.Module, dict[str, str]]:  # fmt: skip
    """Return the feature extractor behind torch-fidelity's interface, and what a record says of its weights."""
    if dataset.extractor is None:
        return inception(dataset.inception_weights)
    found = _classifier(dataset, "extractor", dataset.extractor, images, sources, store, device, progress)
    network = frozen(_build_classifier(dataset, dataset.extractor), found.tensors, torch.device("cpu"))
    return extractor_for(f"unlearnbench-{dataset.name}", network), found.reference


def _train_features(
    extractor: nn.Module, reference: Mapping[str, str], images: Images, sources: Mapping[str, str],
    store: ArtifactStore, device: torch.device, progress: Progress,
) -> Artifact:  # fmt: skip
    """Return the features of all training images, of which every forget class takes its reference."""

    def build() -> tuple[Tensors, dict[str, Any]]:
        progress("compute features of the training images", 0, 0)
        return {"features": through(extractor, images.train.images, device).float()}, {}

    inputs = {
        "extractor": dict(reference), "images": sources["train"], "device": device.type, "software": software(),
    }  # fmt: skip
    return store.get("features", inputs, build)
