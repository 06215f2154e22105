"""Diffusion, readable on one screen: noise schedule, noise prediction and its loss.

Notation of the DDPM papers: `x0` are clean images, `eps` Gaussian noise, `t` a 0-based timestep, and
`x_t = sqrt(alphas_cumprod[t]) x0 + sqrt(1 - alphas_cumprod[t]) eps`. Images are `(B, C, H, W) float32 in [-1, 1]`.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.errors import PluginError

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t, t, y) -> the noise (B, C, H, W)
Guide = Callable[[Predict, Tensor, Tensor, Tensor], Tensor]  # (predict, x_t, t, y) -> the noise in its place

NOISE: Mapping[str, Any] = MappingProxyType(  # linear betas of Ho et al. 2020, section 4, in diffusers' words
    {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02, "num_train_timesteps": 1000}
)


@dataclass(frozen=True)
class Schedule:
    """The forward process: by default linear betas from 1e-4 to 0.02 over T steps (Ho et al. 2020, section 4)."""

    alphas_cumprod: Tensor  # (T,) float32

    @classmethod
    def of(cls, noise: Mapping[str, Any] = NOISE, device: torch.device | str = "cpu") -> "Schedule":
        """Return a schedule on a device; products are taken in float64.

        Args:
            noise: `beta_schedule` (`linear`; `scaled_linear`: linear in the square root), `beta_start`, `beta_end` and
                `num_train_timesteps`, as in diffusers.
            device: of the schedule.
        """
        root = 2 if noise["beta_schedule"] == "scaled_linear" else 1
        ends = (noise["beta_start"] ** (1 / root), noise["beta_end"] ** (1 / root))
        betas = torch.linspace(*ends, noise["num_train_timesteps"], dtype=torch.float64, device="cpu") ** root
        return cls(torch.cumprod(1 - betas, dim=0).to(device, torch.float32))

    @property
    def timesteps(self) -> int:
        """T, the number of timesteps."""
        return len(self.alphas_cumprod)

    def _at(self, t: Tensor, like: Tensor) -> Tensor:
        return self.alphas_cumprod[t].to(like.dtype).view(-1, *[1] * (like.ndim - 1))

    def add_noise(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """Return x_t for clean images and noise of shape (B, C, H, W) and timesteps (B,)."""
        alpha = self._at(t, x0)
        return alpha.sqrt() * x0 + (1 - alpha).sqrt() * eps

    def terminal_noise(self, eps: Tensor, fresh: Tensor, t: Tensor) -> Tensor:
        """Return the noise of x_T on the Markov trajectory that passes through x_t with noise eps.

        eps_T = rho_t eps + sqrt(1 - rho_t^2) fresh, with rho_t^2 = abar_T (1 - abar_t) / (abar_t (1 - abar_T)); at the
        last timestep it is eps itself.
        """
        alpha, last = self._at(t, eps), self.alphas_cumprod[-1].to(eps.dtype)
        rho_squared = last * (1 - alpha) / (alpha * (1 - last))
        return rho_squared.sqrt() * eps + (1 - rho_squared).clamp(min=0).sqrt() * fresh


def predict_noise(model: nn.Module, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Return the model's noise prediction, shaped as x_t, for timesteps (B,) and labels (B,).

    A model's guide, if it has one, decides: it is called with the model's own prediction as a function.

    Raises:
        PluginError: the guide returns something else.
    """
    guide: Guide | None = getattr(model, "guide", None)
    if guide is None:
        return _own_noise(model, x_t, t, y)
    eps = guide(partial(_own_noise, model), x_t, t, y)
    if not isinstance(eps, Tensor) or eps.shape != x_t.shape:
        found = tuple(eps.shape) if isinstance(eps, Tensor) else type(eps).__name__
        raise PluginError(f"the method's guide returns {found} for x_t of shape {tuple(x_t.shape)}: return the noise")
    return eps


def _own_noise(model: nn.Module, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Return the noise that the model itself predicts."""
    prediction: Tensor = model(x_t, t, y).sample
    return prediction


def eps_loss(model: nn.Module, schedule: Schedule, x0: Tensor, y: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """Return the noise-prediction loss per image, shape (B,): squared error **summed** over C, H, W.

    The sum, not the mean, is the scale of the SA and SalUn code: C*H*W times the mean squared error.
    """
    error = eps - predict_noise(model, schedule.add_noise(x0, eps, t), t, y)
    return error.square().flatten(1).sum(dim=1)


def to_uint8(x: Tensor) -> Tensor:
    """Return images of any range in float as uint8: clamp to [-1, 1], then round; no per-image stretching."""
    return ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_float(images: Tensor) -> Tensor:
    """Return uint8 images as float32 in [-1, 1]."""
    return images.to(torch.float32) / 127.5 - 1


@contextmanager
def evaluating(model: nn.Module, *, dropout: bool = False) -> Iterator[None]:
    """Put a model into eval mode and turn TF32 off, and restore both; dropout runs only if requested."""
    was_training, tf32 = model.training, torch.backends.cudnn.allow_tf32
    model.train(dropout)
    torch.backends.cudnn.allow_tf32 = False
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
        torch.backends.cudnn.allow_tf32 = tf32


def half_precision(device: torch.device, wanted: bool) -> AbstractContextManager[Any]:
    """Return a context in which CUDA computes convolutions and matrix products in bfloat16, if wanted.

    Weights may be trained inside: each forward pass rounds them again, since autocast's cache is off.
    """
    if not wanted or device.type != "cuda":
        return nullcontext()
    return torch.autocast("cuda", torch.bfloat16, cache_enabled=False)
