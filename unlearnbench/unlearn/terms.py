"""The loss terms of an optimiser step, and their passes through the network: one policy for all methods.

`separate`, the default: one forward and one backward pass per term, so that only one term's graph exists at a time. It
takes about half the memory of `joint`, at about the same time per step (measured: tests/benchmarks/README.md).

`joint`: all terms' images go through the network as one batch, and one backward pass follows. The gradients are the
same, except for dropout, which is drawn per pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from unlearnbench.models.diffusion import predict_noise

Passes = Literal["separate", "joint"]


@dataclass(frozen=True)
class Term:
    """A loss term: the squared error of a noise prediction, reduced over pixels, averaged over B images.

    mean over images of image_weight ||target - eps_theta(x_t, t, y)||^2
    """

    x_t: Tensor  # (B, C, H, W) noised images
    t: Tensor  # (B,) int64 timesteps
    y: Tensor  # (B,) int64 labels
    target: Tensor  # (B, C, H, W) target of the prediction, without a graph
    pixels: Literal["sum", "mean"] = "sum"  # reduction over C, H, W
    image_weight: Tensor | float = 1.0  # (B,) or one for all

    def loss(self, prediction: Tensor) -> Tensor:
        """Return the loss, a scalar, of predictions (B, C, H, W)."""
        error = (self.target - prediction).square().flatten(1)
        return (self.image_weight * (error.sum(dim=1) if self.pixels == "sum" else error.mean(dim=1))).mean()


def backward(
    model: nn.Module, terms: Sequence[Term], weights: Sequence[Tensor | float], *, passes: Passes = "separate"
) -> list[Tensor]:
    """Add the gradient of the weighted sum of terms to that of the model's weights.

    Args:
        model: noise predictor.
        terms: loss terms.
        weights: one factor per term, scalars.
        passes: term by term, or all terms as one batch.

    Returns:
        Each term's loss, a scalar without its weight and without a graph.

    Raises:
        ValueError: terms and weights differ in number.
    """
    if len(terms) != len(weights):
        raise ValueError(f"{len(terms)} terms but {len(weights)} weights")
    if passes == "joint":
        x_t, t, y = (torch.cat([getattr(term, name) for term in terms]) for name in ("x_t", "t", "y"))
        predictions = torch.split(predict_noise(model, x_t, t, y), [len(term.t) for term in terms])
        losses = [term.loss(prediction) for term, prediction in zip(terms, predictions, strict=True)]
        weighted = [weight * loss for weight, loss in zip(weights, losses, strict=True)]
        torch.stack(weighted).sum().backward()  # type: ignore[no-untyped-call]
        return [loss.detach() for loss in losses]
    losses = []
    for term, weight in zip(terms, weights, strict=True):
        loss = term.loss(predict_noise(model, term.x_t, term.t, term.y))
        (weight * loss).backward()  # type: ignore[no-untyped-call]
        losses.append(loss.detach())
    return losses
