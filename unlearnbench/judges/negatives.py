"""Images without an object, from which a judge learns to reject: noise, shuffles, blanks and blends.

Each kind maps real images (B, C, H, W) in [-1, 1] and their labels (B,) to as many no-object images.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from unlearnbench.models.transfer import upload

PATCHES = 4  # along each side, of an image whose patches are shuffled
Kind = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def gaussian(x0: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Return Gaussian noise; mean and standard deviation differ from image to image."""
    mean, deviation = _uniform(x0, generator, -1.0, 1.0), _uniform(x0, generator, 0.2, 2.0)
    return (mean + deviation * _gaussian(x0, generator)).clamp(-1, 1)


def uniform(x0: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Return noise that is uniform between two levels, which differ from image to image."""
    low = _uniform(x0, generator, -1.0, 0.5)
    width = (1 - low) * _uniform(x0, generator, 0.3, 1.0)
    return low + width * upload(torch.rand(x0.shape, generator=generator), x0.device)


def two_level(x0: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Return noise of black and white pixels, as sampled from a model that predicts nothing."""
    share = _uniform(x0, generator, 0.1, 0.9)
    return torch.where(upload(torch.rand(x0.shape, generator=generator), x0.device) < share, 1.0, -1.0)


def smooth(x0: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Return noise of low frequency: coarse noise, enlarged."""
    channels, side = x0.shape[1], max(2, x0.shape[-1] // 2)
    coarse = upload(torch.randn(len(x0), channels, side, side, generator=generator), x0.device)
    coarse = coarse * _uniform(x0, generator, 0.3, 2.0)
    return functional.interpolate(coarse, size=x0.shape[-2:], mode="bilinear").clamp(-1, 1)


def shuffled_pixels(x0: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Return images with their pixels shuffled, each image by a different permutation."""
    return _shuffled(x0, 1, generator)


def shuffled_patches(x0: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Return images with their square patches, 4 by 4 of them, shuffled."""
    return _shuffled(x0, max(1, x0.shape[-1] // PATCHES), generator)


def blank(x0: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Return images of one colour with a trace of noise."""
    level = upload(torch.rand(*x0.shape[:2], 1, 1, generator=generator), x0.device) * 2 - 1
    trace = _uniform(x0, generator, 0.0, 0.1) * _gaussian(x0, generator)
    return (level + trace).clamp(-1, 1)


def blend(x0: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Return even blends of two images of different classes; noise for an image without a partner of another class."""
    order = upload(torch.randperm(len(x0), generator=generator), x0.device)
    share = _uniform(x0, generator, 0.4, 0.6)
    blended = share * x0 + (1 - share) * x0[order]
    same = (y == y[order]).view(-1, 1, 1, 1)
    return torch.where(same, gaussian(x0, y, generator), blended)


KINDS: Mapping[str, Kind] = MappingProxyType({
    kind.__name__: kind
    for kind in (gaussian, uniform, two_level, smooth, shuffled_pixels, shuffled_patches, blank, blend)
})  # fmt: skip
"""All kinds by name."""


def negatives(x0: Tensor, y: Tensor, generator: torch.Generator) -> Tensor:
    """Return as many no-object images as there are real ones; all randomness is drawn on the CPU.

    Each kind gets an equal part of them. Where a blend's partner has the same class, noise replaces it, so small
    batches have fewer blends.

    Args:
        x0: real images (B, C, H, W) in [-1, 1], in random order.
        y: their labels (B,).
        generator: the randomness, of the CPU.
    """
    kinds = list(KINDS.values())
    images, labels = (torch.tensor_split(part, len(kinds)) for part in (x0, y))
    drawn = [kind(x, c, generator) for kind, x, c in zip(kinds, images, labels, strict=True) if len(x)]
    return torch.cat(drawn)


def _uniform(x0: Tensor, generator: torch.Generator, low: float, high: float) -> Tensor:
    """Return one number for each image, (B, 1, 1, 1)."""
    return low + (high - low) * upload(torch.rand(len(x0), 1, 1, 1, generator=generator), x0.device)


def _gaussian(x0: Tensor, generator: torch.Generator) -> Tensor:
    """Return standard Gaussian noise shaped as the images."""
    return upload(torch.randn(x0.shape, generator=generator), x0.device)


def _shuffled(x0: Tensor, patch: int, generator: torch.Generator) -> Tensor:
    size = x0.shape[-2] // patch * patch, x0.shape[-1] // patch * patch
    inner = x0[..., : size[0], : size[1]]
    patches = functional.unfold(inner, patch, stride=patch)  # (B, C patch^2, number of patches)
    order = upload(torch.rand(len(x0), 1, patches.shape[-1], generator=generator).argsort(dim=-1), x0.device)
    shuffled = x0.clone()
    shuffled[..., : size[0], : size[1]] = functional.fold(
        patches.gather(2, order.expand_as(patches)), size, patch, stride=patch
    )
    return shuffled
