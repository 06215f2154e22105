"""Base models, judges and feature extractors: their networks, their training, their cached weights."""

import copy
import hashlib
import importlib.metadata
import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from unlearnbench.artifacts import Artifact, ArtifactStore, Tensors
from unlearnbench.datasets import ClassifierRecipe, Dataset, Split
from unlearnbench.diffusion import Schedule, eps_loss, evaluating, to_float
from unlearnbench.process import Progress

Model = TypeVar("Model", bound=nn.Module)
Draw = Callable[[int], tuple[Tensor, Tensor]]  # number of images -> (x0, y)


class Ema:
    """Exponential moving average of a model's parameters; with warm-up the decay is min(decay, (1 + k) / (10 + k))."""

    def __init__(self, model: nn.Module, decay: float, *, warm_up: bool = True) -> None:
        """Start from a copy of the model's present weights."""
        self.decay, self.warm_up, self.updates = decay, warm_up, 0
        self.shadow = [parameter.detach().clone() for parameter in model.parameters()]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model's weights."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates)) if self.warm_up else self.decay
        self.updates += 1
        torch._foreach_lerp_(self.shadow, list(model.parameters()), 1 - decay)

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Write the average into the model."""
        torch._foreach_copy_(list(model.parameters()), self.shadow)


def drop_labels(y: Tensor, share: float, null_class: int, generator: torch.Generator) -> Tensor:
    """Return labels of which a random share is replaced by the null class (classifier-free guidance training)."""
    dropped = torch.rand(y.shape, generator=generator, device=y.device) < share
    return torch.where(dropped, null_class, y)


def antithetic_timesteps(n: int, timesteps: int, generator: torch.Generator) -> Tensor:
    """Return n timesteps in [0, T), in pairs t and T - 1 - t, as the DDIM code and its descendants draw them."""
    half = torch.randint(0, timesteps, (n // 2 + 1,), generator=generator, device=generator.device)
    return torch.cat([half, timesteps - 1 - half])[:n]


def fit_denoiser(
    model: nn.Module,
    schedule: Schedule,
    draw: Draw,
    steps: Iterable[int],
    *,
    total: int,
    batch: int,
    lr: float,
    cosine: bool,
    label_dropout: float,
    ema: float,
    clip: float,
    null_class: int,
    generator: torch.Generator,
) -> None:
    """Train a noise predictor in place with L_eps (Ho et al. 2020, eq. 14) and leave its averaged weights in it.

    Args:
        model: class-conditional noise predictor.
        schedule: the forward process.
        draw: returns n images (n, C, H, W) in [-1, 1] and labels (n,).
        steps: yields 0, 1, ...; whoever passes it owns progress and clock.
        total: how many steps will come, for the annealing.
        batch: images per step.
        lr: Adam's step size.
        cosine: anneal it to zero along half a cosine.
        label_dropout: share of labels replaced by the null class.
        ema: decay of the averaged weights.
        clip: global gradient norm.
        null_class: label of the unconditional branch.
        generator: randomness of timesteps, noise and label dropout.
    """
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    average = Ema(model, ema)
    for step in steps:
        if cosine:
            optimizer.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / total))
        x0, y = draw(batch)
        t = antithetic_timesteps(batch, schedule.timesteps, generator)
        eps = torch.empty_like(x0).normal_(generator=generator)
        labels = drop_labels(y, label_dropout, null_class, generator)
        loss = eps_loss(model, schedule, x0, labels, t, eps).mean() / x0[0].numel()
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        average.update(model)
    average.copy_to(model)


def reinitialise(model: nn.Module) -> None:
    """Give every layer fresh random weights, as its constructor did."""
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if reset is not None:
            reset()


def build_unet(dataset: Dataset) -> nn.Module:
    """Return the dataset's denoiser with random weights; its label `num_classes` is the null class."""
    from diffusers import UNet2DModel  # takes seconds to import, and only a cell's process needs it

    model: nn.Module = UNet2DModel(**dataset.base.unet, num_class_embeds=dataset.num_classes + 1)
    return model


class SmallCnn(nn.Module):
    """Three convolutions and 64 features for images of 8x8 pixels; `forward` takes uint8 or float in [-1, 1].

    Normalised by groups within an image: with batch statistics of digits, a judge is nearly certain about noise.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv_block(channels, 32),
            *_conv_block(32, 64),
            nn.MaxPool2d(2),
            *_conv_block(64, 64),
            nn.Flatten(),
            nn.Linear(64 * 4 * 4, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, num_classes)

    def features(self, images: Tensor) -> Tensor:
        """Return (B, 64) features of (B, C, 8, 8) images."""
        x: Tensor = self.body(to_float(images) if images.dtype == torch.uint8 else images)
        return x

    def forward(self, images: Tensor) -> Tensor:
        """Return (B, K) logits of (B, C, 8, 8) images."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _conv_block(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs), nn.ReLU()]


CLASSIFIERS: Mapping[str, Callable[[int, int], SmallCnn]] = {"small_cnn": SmallCnn}


def shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Return images (B, C, H, W) each moved by up to `most` pixels along both axes, the border filled with -1."""
    height, width = x.shape[-2:]
    padded = functional.pad(x, [most] * 4, value=-1.0)
    offsets = torch.randint(0, 2 * most + 1, (2, len(x)), generator=generator)
    rows = (offsets[0, :, None] + torch.arange(height))[:, None, :, None]
    columns = (offsets[1, :, None] + torch.arange(width))[:, None, None, :]
    return padded[torch.arange(len(x))[:, None, None, None], torch.arange(x.shape[1])[:, None, None], rows, columns]


def fit_classifier(
    model: nn.Module, train: Split, recipe: ClassifierRecipe, progress: Callable[[int, int], None]
) -> None:
    """Train a classifier in place (AdamW, one-cycle schedule, cross-entropy)."""
    generator = torch.Generator().manual_seed(recipe.seed)
    images, labels = to_float(torch.from_numpy(train.images)), torch.from_numpy(train.labels)
    batches = len(images) // recipe.batch
    total = recipe.epochs * batches
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=total)
    model.train()
    for step in range(total):
        if step % batches == 0:
            order = torch.randperm(len(images), generator=generator)
        chosen = order[step % batches * recipe.batch :][: recipe.batch]
        logits = model(shifted(images[chosen], recipe.shift, generator))
        loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
        progress(step + 1, total)
    model.eval()


@dataclass(frozen=True)
class Prepared:
    """What belongs to a dataset and is made once: frozen networks in eval mode, and where their weights come from.

    The base is on the device; judge and extractor stay on the CPU until they are needed, so that they are no part of a
    method's memory.
    """

    base: nn.Module
    judge: SmallCnn
    extractor: SmallCnn
    judge_accuracy: float  # share of test images the judge names correctly, 0 to 1
    judge_n: int  # number of those test images
    artifacts: dict[str, dict[str, str]]


def prepare(dataset: Dataset, store: ArtifactStore, device: torch.device, progress: Progress) -> Prepared:
    """Return the dataset's base model, judge and extractor, trained on first use and cached."""
    base = _base_artifact(dataset, store, device, progress)
    judge = _classifier_artifact(dataset, "judge", dataset.judge, store, progress)
    extractor = _classifier_artifact(dataset, "extractor", dataset.extractor, store, progress)
    return Prepared(
        base=_frozen(build_unet(dataset), base.tensors, device),
        judge=_frozen(_build_classifier(dataset, dataset.judge), judge.tensors, torch.device("cpu")),
        extractor=_frozen(_build_classifier(dataset, dataset.extractor), extractor.tensors, torch.device("cpu")),
        judge_accuracy=float(judge.facts["test_accuracy"]),
        judge_n=int(judge.facts["test_n"]),
        artifacts={"base": base.reference, "judge": judge.reference, "extractor": extractor.reference},
    )


def _build_classifier(dataset: Dataset, recipe: ClassifierRecipe) -> SmallCnn:
    return CLASSIFIERS[recipe.network](dataset.image_shape[0], dataset.num_classes)


def _frozen(model: Model, weights: Tensors, device: torch.device) -> Model:
    model.load_state_dict(weights)
    return model.to(device).eval().requires_grad_(False)


def software() -> dict[str, str]:
    """Return the library versions that affect trained bytes, for artifact keys."""
    return {"torch": torch.__version__, "diffusers": importlib.metadata.version("diffusers")}


def images_digest(split: Split) -> str:
    """Return the SHA-256 of a split's pixels and labels."""
    return hashlib.sha256(split.images.tobytes() + split.labels.tobytes()).hexdigest()


def _base_artifact(dataset: Dataset, store: ArtifactStore, device: torch.device, progress: Progress) -> Artifact:
    recipe, train = dataset.base, dataset.load("train")

    def build() -> tuple[Tensors, dict[str, Any]]:
        torch.manual_seed(recipe.seed)  # initial weights and dropout, which take no generator
        model = build_unet(dataset).to(device)
        generator = torch.Generator(device).manual_seed(recipe.seed)
        images, labels = torch.from_numpy(train.images).to(device), torch.from_numpy(train.labels).to(device)

        def draw(n: int) -> tuple[Tensor, Tensor]:
            chosen = torch.randint(0, len(images), (n,), generator=generator, device=device)
            x0 = to_float(images[chosen])
            return (flipped(x0, generator) if dataset.flip else x0), labels[chosen]

        def steps() -> Iterable[int]:
            for step in range(recipe.steps):
                progress("train the base model", step, recipe.steps)
                yield step

        fit_denoiser(
            model, Schedule.linear(device=device), draw, steps(), total=recipe.steps, batch=recipe.batch, lr=recipe.lr,
            cosine=recipe.cosine, label_dropout=recipe.label_dropout, ema=recipe.ema, clip=recipe.clip,
            null_class=dataset.num_classes, generator=generator,
        )  # fmt: skip
        return model.state_dict(), {"steps": recipe.steps}

    inputs = {
        "dataset": dataset.name,
        "images": images_digest(train),
        "recipe": asdict(recipe),
        "device": device.type,
        "software": software(),
    }
    with global_rng_kept(device):
        return store.get("base", inputs, build)


def _classifier_artifact(
    dataset: Dataset, kind: str, recipe: ClassifierRecipe, store: ArtifactStore, progress: Progress
) -> Artifact:
    train, test = dataset.load("train"), dataset.load("test")

    def build() -> tuple[Tensors, dict[str, Any]]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            model = _build_classifier(dataset, recipe)
        fit_classifier(model, train, recipe, lambda done, total: progress(f"train the {kind}", done, total))
        with evaluating(model):
            predicted = model(torch.from_numpy(test.images)).argmax(dim=1).numpy()
        accuracy = float(np.mean(predicted == test.labels))
        return model.state_dict(), {"test_accuracy": accuracy, "test_n": len(test.labels)}

    inputs = {
        "dataset": dataset.name,
        "images": [images_digest(train), images_digest(test)],
        "recipe": asdict(recipe),
        "software": software(),
    }
    return store.get(kind, inputs, build)


def flipped(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (B, C, H, W) of which a random half is mirrored left to right."""
    mirror = torch.rand(len(x), generator=generator, device=generator.device) < 0.5
    return torch.where(mirror.to(x.device).view(-1, 1, 1, 1), x.flip(-1), x)


def global_rng_kept(device: torch.device) -> AbstractContextManager[None]:
    """Restore torch's global random state: building an artifact and reading it leave the same state behind."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def trainable_copy(model: nn.Module) -> nn.Module:
    """Return a copy whose weights can be trained, in eval mode and without the original's hooks."""
    copied = copy.deepcopy(model).requires_grad_(True)
    copied._forward_hooks.clear()
    return copied
