"""The code between images and x0, on which denoisers work: pixels, or latents of an autoencoder.

Images are (N, C, H, W) uint8. What streams and trainings keep in memory is a form that each image has once: the pixels,
or the latents, so that an autoencoder encodes the training images once.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from unlearnbench.models.diffusion import evaluating, to_float, to_uint8
from unlearnbench.models.networks import placed
from unlearnbench.store.hashing import digest

BATCH = 64  # images per pass of the autoencoder


class Codec(Protocol):
    """Between images and x0. A denoiser and its copies share one."""

    @property
    def identity(self) -> str:
        """Identifies what is kept of an image; empty for the pixels themselves."""

    def shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """Return (C, H, W) of x0 for that of an image."""

    def keep(self, images: Tensor, *, mirrors: bool) -> Tensor:
        """Return what is kept of images (N, C, H, W) uint8, on their device: one entry per image.

        Args:
            images: to be kept.
            mirrors: whether `x0` will be asked for their mirror images too.
        """

    def x0(self, kept: Tensor, mirrored: Tensor | None = None) -> Tensor:
        """Return x0 (n, ...) float32 of some entries, of the mirror images where `mirrored` (n,) is true."""

    def encode(self, images: Tensor) -> Tensor:
        """Return x0 of images."""

    def decode(self, x0: Tensor) -> Tensor:
        """Return the images (N, C, H, W) uint8 of x0, on its device."""


class Pixels:
    """x0 are the images in [-1, 1]; their bytes are kept."""

    identity = ""

    def __deepcopy__(self, memo: Mapping[int, Any]) -> "Pixels":
        """Return itself: copies of a denoiser share it."""
        return self

    def shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """Return that of the image."""
        return tuple(image_shape)

    def keep(self, images: Tensor, *, mirrors: bool) -> Tensor:
        """Return the images."""
        return images

    def x0(self, kept: Tensor, mirrored: Tensor | None = None) -> Tensor:
        """Return images in [-1, 1]."""
        x0 = to_float(kept)
        return x0 if mirrored is None else torch.where(mirrored.view(-1, 1, 1, 1), x0.flip(-1), x0)

    def encode(self, images: Tensor) -> Tensor:
        """Return images in [-1, 1]."""
        return to_float(images)

    def decode(self, x0: Tensor) -> Tensor:
        """Return images: clamped to [-1, 1], then rounded."""
        return to_uint8(x0)


PIXELS = Pixels()


class Latents:
    """x0 are the means of an autoencoder's posterior, shifted and scaled to unit variance (Rombach et al. 2022)."""

    def __init__(self, autoencoder: nn.Module, identity: str) -> None:
        """Wrap an AutoencoderKL.

        Args:
            autoencoder: of diffusers.
            identity: of its weights.
        """
        self.autoencoder, config = (
            placed(autoencoder, torch.device("cpu")).eval().requires_grad_(False),
            autoencoder.config,
        )
        self.scale, self.shift = float(config["scaling_factor"]), float(config["shift_factor"] or 0.0)  # type: ignore[index]
        self._identity = identity

    def __deepcopy__(self, memo: Mapping[int, Any]) -> "Latents":
        """Return itself: copies of a denoiser share it."""
        return self

    @property
    def identity(self) -> str:
        """Identifies autoencoder and scaling."""
        return digest([self._identity, self.scale, self.shift])

    def shape(self, image_shape: Sequence[int]) -> tuple[int, ...]:
        """Return (C, H, W) of latents."""
        return tuple(self.encode(torch.zeros(1, *image_shape, dtype=torch.uint8)).shape[1:])

    def keep(self, images: Tensor, *, mirrors: bool) -> Tensor:
        """Return latents (N, 1, C, H, W), or with those of the mirror images (N, 2, C, H, W)."""
        both = [images, images.flip(-1)] if mirrors else [images]
        return torch.stack([self.encode(each) for each in both], dim=1)

    def x0(self, kept: Tensor, mirrored: Tensor | None = None) -> Tensor:
        """Return latents."""
        if mirrored is None:
            return kept[:, 0]
        return kept[torch.arange(len(kept), device=kept.device), mirrored.long()]

    def encode(self, images: Tensor) -> Tensor:
        """Return latents, without noise of the posterior."""
        network: Any = self._on(images.device)
        with evaluating(network):
            means = [network.encode(to_float(part)).latent_dist.mode() for part in torch.split(images, BATCH)]
        return (torch.cat(means).float() - self.shift) * self.scale

    def decode(self, x0: Tensor) -> Tensor:
        """Return images."""
        network: Any = self._on(x0.device)
        with evaluating(network):
            parts = [network.decode(part.float() / self.scale + self.shift).sample for part in torch.split(x0, BATCH)]
        return to_uint8(torch.cat(parts))

    def _on(self, device: torch.device) -> nn.Module:
        """Return the autoencoder, moved to a device on first use there."""
        if next(self.autoencoder.parameters()).device != device:
            self.autoencoder = placed(self.autoencoder, device)
        return self.autoencoder
