"""Availability of a run's artifacts in the cache and on disk, without making any."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from unlearnbench.datasets import Dataset, Images
from unlearnbench.datasets.recipes import ClassifierRecipe
from unlearnbench.judges.features import inception_reference
from unlearnbench.judges.judges import classifier
from unlearnbench.measure.prepared import OTHER_JUDGES, train_features
from unlearnbench.models.base import base_artifact, image_digests
from unlearnbench.models.checkpoints import read_checkpoint
from unlearnbench.store.artifacts import Artifact, ArtifactStore, Tensors, key_of
from unlearnbench.store.hashing import file_digest

DOWNLOAD = "(to download)"  # suffix of the names of downloads


class Missing(Exception):
    """An artifact is missing from a read-only cache."""


class Look(ArtifactStore):
    """A read-only cache."""

    def get(
        self, kind: str, inputs: Mapping[str, Any], build: Callable[[], tuple[Tensors, Mapping[str, Any]]]
    ) -> Artifact:
        """Return a valid artifact.

        Raises:
            Missing: there is none.
        """
        key = key_of(kind, inputs)
        folder = self._folder(kind, key)
        try:
            note = json.loads((folder / "artifact.json").read_text(encoding="utf-8"))
            payload = folder / "payload.safetensors"
            if file_digest(payload) != note["sha256"]:
                raise Missing(kind)
            return Artifact(kind, key, note["sha256"], load_file(payload), note["facts"], reused=True)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            raise Missing(kind) from error

    def fetch(self, what: str) -> None:
        """Stop before a download."""
        raise Missing(f"{what} {DOWNLOAD}")


def at_hand(
    dataset: Dataset, look: Look, device: torch.device, needs: Collection[str], base_seeds: Iterable[int]
) -> tuple[list[str], list[str]]:
    """Return what `measure.prepared.prepare` would find in the cache, and what it would make or download.

    Raises:
        UsageError: the images, or the base model, cannot be read or do not fit.
    """
    if dataset.checkpoint and Path(dataset.checkpoint).is_dir():
        read_checkpoint(dataset.checkpoint, dataset)
    there: list[str] = []
    lacking: list[str] = []
    try:
        images: Images | None = dataset.load(look, _quiet)
        there.append("images")
    except Missing as missing:
        images = None
        lacking.append(str(missing))
    for name, get in _parts(dataset, images, look, device, needs, base_seeds).items():
        try:
            if images is None:
                raise Missing(name)
            get()
            there.append(name)
        except Missing:
            lacking.append(name)
    return there, lacking + _downloads(dataset, lacking, needs)


def _parts(
    dataset: Dataset, images: Images | None, look: Look, device: torch.device, needs: Collection[str],
    base_seeds: Iterable[int],
) -> dict[str, Callable[[], Any]]:  # fmt: skip
    """Return {name: getter} of a dataset's artifacts besides images; without images, only the names count."""
    sources = image_digests(images) if images is not None else {}
    made: Any = (images, sources, look, device, _quiet)
    others = [name for name, (ends, _) in OTHER_JUDGES.items() if any(need.endswith(ends) for need in needs)]
    own, featured = dataset.extractor, any(need.endswith("_features") for need in needs)

    def base(seed: int) -> Artifact:
        return base_artifact(dataset.with_base_seed(seed), made[0].train, sources["train"], look, device, _quiet)

    def extractor() -> Mapping[str, str]:
        if own is None:
            return inception_reference(dataset.inception_weights)
        return classifier(dataset, "extractor", own, *made).reference

    def features() -> Artifact:
        return train_features(torch.nn.Identity(), extractor(), *made)

    minutes = "" if dataset.base.minutes is None else f", {dataset.base.minutes:g} minutes"
    bases = {"base model" if dataset.checkpoint else f"base model (seed {seed}{minutes})": seed for seed in base_seeds}
    return {
        "judge": partial(classifier, dataset, "judge", dataset.judge, *made),
        **{f"{name} judge": partial(OTHER_JUDGES[name][1], dataset, *made) for name in others},
        **({"feature extractor": extractor} if featured and own is not None else {}),
        **({"features of the training images": features} if featured else {}),
        **{name: partial(base, seed) for name, seed in bases.items()},
    }


def _quiet(what: str, done: int, total: int) -> None:
    """Show no progress."""


def _downloads(dataset: Dataset, lacking: Collection[str], needs: Collection[str]) -> list[str]:
    """Return the weights to be downloaded."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3
    from torchvision.models import ResNet34_Weights

    wanted = []
    if isinstance(dataset.judge, ClassifierRecipe) and dataset.judge.pretrained and "judge" in lacking:
        wanted.append(("ImageNet weights of the judge", ResNet34_Weights.IMAGENET1K_V1.url))
    if dataset.extractor is None and not dataset.inception_weights and any(n.endswith("_features") for n in needs):
        wanted.append(("Inception weights of FID", URL_INCEPTION_V3))
    found = [f"{name} {DOWNLOAD}" for name, url in wanted if not _downloaded(url)]
    hub = dataset.checkpoint and "base model" in lacking and not Path(dataset.checkpoint).is_dir()
    return [*found, *([f"{dataset.checkpoint} of the Hugging Face Hub {DOWNLOAD}"] if hub else [])]


def _downloaded(url: str) -> bool:
    """Say whether torch's hub has a file of weights."""
    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name).is_file()


def inception_is_here(dataset: Dataset) -> bool:
    """Say whether FID's Inception network is available without a download."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return bool(dataset.inception_weights) or _downloaded(URL_INCEPTION_V3)
