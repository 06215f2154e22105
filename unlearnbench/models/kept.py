"""Training images as denoisers use them: pixels, or latents that are encoded once and cached."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unlearnbench.datasets import Dataset, Split
from unlearnbench.models.codec import Codec
from unlearnbench.protocols import Progress
from unlearnbench.store.artifacts import ArtifactStore, Tensors, software
from unlearnbench.store.revisions import later


@dataclass(frozen=True)
class Kept:
    """The training images of a dataset, as a codec keeps them, on the CPU."""

    codec: Codec
    images: Tensor  # (N, ...), an entry per image
    labels: Tensor  # (N,) int64

    @classmethod
    def make(cls, codec: Codec, train: Split, *, mirrors: bool, device: torch.device) -> "Kept":
        """Return training images for a codec, which encodes on a device; without a cache."""
        images, labels = torch.from_numpy(train.images), torch.from_numpy(train.labels)
        if codec.identity:
            images = codec.keep(images.to(device), mirrors=mirrors).cpu()
        return cls(codec, images, labels)

    def of(self, classes: Collection[int]) -> tuple[Tensor, Tensor]:
        """Return images and labels of some classes, on the CPU."""
        chosen = torch.from_numpy(np.isin(self.labels.numpy(), list(classes)))
        return self.images[chosen], self.labels[chosen]

    def x0(self, chosen: Tensor) -> Tensor:
        """Return x0 of the images with these numbers, on the CPU."""
        return self.codec.x0(self.images[chosen])


def keep(
    dataset: Dataset, train: Split, source: str, codec: Codec, store: ArtifactStore, device: torch.device,
    progress: Progress,
) -> Kept:  # fmt: skip
    """Return the training images for a codec; latents are an artifact.

    Args:
        dataset: says whether images are mirrored.
        train: the images.
        source: their hash.
        codec: of the base model.
        store: the cache.
        device: encodes.
        progress: shows that it encodes.
    """
    if not codec.identity:
        return Kept.make(codec, train, mirrors=dataset.flip, device=device)
    inputs = {
        "codec": codec.identity, "images": source, "mirrors": dataset.flip, "device": device.type,
        "software": software(), **later("base"),
    }  # fmt: skip

    def encode() -> tuple[Tensors, dict[str, object]]:
        progress("encode the training images", 0, 0)
        return {"latents": Kept.make(codec, train, mirrors=dataset.flip, device=device).images}, {}

    latents = store.get("latents", inputs, encode).tensors["latents"]
    return Kept(codec, latents, torch.from_numpy(train.labels))
