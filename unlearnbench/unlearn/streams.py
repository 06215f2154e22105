"""Streams of training images that methods draw from, and counts of a method's work."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unlearnbench.models.codec import PIXELS, Codec
from unlearnbench.models.training import coins
from unlearnbench.models.transfer import upload


class Stream:
    """Training images of the forget class or of the retained classes, as `(x0, y)`: float32 and int64.

    x0 are images in [-1, 1], or latents where the model works on latents.
    """

    def __init__(
        self, name: str, images: Tensor, labels: Tensor, generator: torch.Generator, flip: bool, drawn: dict[str, int],
        codec: Codec = PIXELS,
    ) -> None:  # fmt: skip
        """Make a stream.

        Args:
            name: of the stream.
            images: as the codec keeps them.
            labels: (N,) of the images.
            generator: of the order, and of flips.
            flip: whether an image is mirrored with probability 1/2.
            drawn: counts images by stream.
            codec: returns x0 of the images.
        """
        self.name, self._codec = name, codec
        self._images, self._labels, self._generator, self._flip, self._drawn = images, labels, generator, flip, drawn
        self._order: Tensor = torch.empty(0, dtype=torch.long, device=images.device)

    def __len__(self) -> int:
        return len(self._images)

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Return the next n images (n, C, H, W) and labels (n,); each epoch is shuffled anew."""
        if not len(self):
            raise ValueError(f"the stream {self.name} has no image to draw")
        while len(self._order) < n:
            self._order = torch.cat([self._order, self._shuffle()])
        chosen, self._order = self._order[:n], self._order[n:]
        return self._take(chosen)

    def epoch(self, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield every image once, in a fresh order; the last batch may be smaller."""
        for chosen in torch.split(self._shuffle(), batch):
            yield self._take(chosen)

    def _shuffle(self) -> Tensor:
        return upload(torch.randperm(len(self), generator=self._generator), self._images.device)

    def _take(self, chosen: Tensor) -> tuple[Tensor, Tensor]:
        self._drawn[self.name] = self._drawn.get(self.name, 0) + len(chosen)
        mirrored = upload(coins(len(chosen), self._generator), chosen.device) if self._flip else None
        return self._codec.x0(self._images[chosen], mirrored), self._labels[chosen]


@dataclass
class Counts:
    """Counts by the harness while the method ran, priors included."""

    optimizer_steps: int = 0
    forward_images: int = 0
    backward_images: int = 0
    sampled_images: int = 0  # from the base model, by the protocol's sampler
    drawn: dict[str, int] = field(default_factory=dict)  # stream -> images

    def watch(self, model: nn.Module) -> RemovableHandle:
        """Count the images that go forward and backward through a model, until the handle is removed."""

        def forward(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            n = len(args[0])
            self.forward_images += n
            if output.sample.requires_grad:
                output.sample.register_hook(lambda gradient: self._backward(n))

        return model.register_forward_hook(forward)

    def _backward(self, n: int) -> None:
        self.backward_images += n

    def copy(self) -> "Counts":
        """Return a copy of the counts."""
        return replace(self, drawn=dict(self.drawn))

    def add(self, other: "Counts", sign: int = 1) -> None:
        """Add counts from another run, such as the first build of a cached prior."""
        self.optimizer_steps += sign * other.optimizer_steps
        self.forward_images += sign * other.forward_images
        self.backward_images += sign * other.backward_images
        self.sampled_images += sign * other.sampled_images
        for stream, images in other.drawn.items():
            self.drawn[stream] = self.drawn.get(stream, 0) + sign * images

    def since(self, before: "Counts") -> "Counts":
        """Return the difference to an earlier copy."""
        difference = self.copy()
        difference.add(before, sign=-1)
        return difference
