"""Datasets: images and labels plus what belongs to them (base-model recipe, judge, extractor, protocol).

One file per dataset. Everything here is data, free of torch; `training.py` builds networks from it.
"""

import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unlearnbench.errors import UsageError
from unlearnbench.hashing import digest
from unlearnbench.plugin import suggest


class Split(NamedTuple):
    """Images (N, C, H, W) uint8 and labels (N,) int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Protocol:
    """The fixed rules of evaluation; recorded in every result, and tables never mix two."""

    name: str
    steps: int  # DDIM sampling steps
    eta: float  # 0 deterministic, 1 ancestral
    guidance: float  # w; 0 is conditional only
    forget_samples: int  # images of the forget class
    retain_samples: int  # images of each retained class
    batch_size: int  # images per sampling forward pass
    weights: str = "final"  # the weights a method leaves in ctx.model
    reference: str = "all training images of the retained classes"

    def to_json(self) -> dict[str, Any]:
        """Return the protocol as a JSON object."""
        return asdict(self)


@dataclass(frozen=True)
class BaseRecipe:
    """How the base model is trained; all of it is part of the artifact's key."""

    unet: dict[str, Any]  # arguments of diffusers.UNet2DModel
    steps: int  # optimiser steps
    batch: int  # images per step
    lr: float  # Adam's step size
    cosine: bool  # anneal lr to zero along half a cosine
    label_dropout: float  # share of labels replaced by the null class
    ema: float  # decay of the averaged weights, min(ema, (1 + k) / (10 + k)) at step k
    clip: float  # global gradient norm
    seed: int = 0
    revision: int = 1  # raise it when training code changes what comes out


@dataclass(frozen=True)
class ClassifierRecipe:
    """How a judge or a feature extractor is trained."""

    network: str  # a name in training.CLASSIFIERS
    epochs: int
    batch: int
    lr: float  # peak of a one-cycle schedule
    weight_decay: float
    label_smoothing: float
    shift: int  # augmentation: random shift of up to this many pixels
    seed: int
    revision: int = 1


@dataclass(frozen=True)
class Dataset:
    """One dataset with all that belongs to it."""

    name: str
    title: str
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (C, H, W)
    protocol: Protocol
    base: BaseRecipe
    judge: ClassifierRecipe
    extractor: ClassifierRecipe
    extractor_name: str  # what FID stands on, as a caption says it
    flip: bool  # whether methods and training see random horizontal flips
    load: Callable[[str], Split]  # "train" or "test"

    @property
    def num_classes(self) -> int:
        """Number of classes; the null class of guidance has this label."""
        return len(self.class_names)

    @property
    def digest(self) -> str:
        """Hash of the recipes and the protocol: records of another digest rest on another base, judge or rules."""
        parts = (self.protocol, self.base, self.judge, self.extractor)
        return digest([self.class_names, self.image_shape, self.flip, *[asdict(part) for part in parts]])


def dataset_digests() -> dict[str, str]:
    """Return {"dataset:NAME": digest} of every dataset, for telling stale records."""
    return {f"dataset:{name}": load_dataset(name).digest for name in DATASETS}


DATASETS = ("digits",)


def load_dataset(name: str) -> Dataset:
    """Return a dataset by name.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in DATASETS:
        raise UsageError(f"there is no dataset {name!r}{suggest(name, DATASETS)}: choose from {', '.join(DATASETS)}")
    dataset: Dataset = importlib.import_module(f"unlearnbench.datasets.{name}").DATASET
    return dataset
