"""The sampler, readable on one screen: DDIM and DDPM with labels, guidance and per-image noise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unlearnbench.models.diffusion import Schedule, evaluating, half_precision, predict_noise, to_uint8
from unlearnbench.models.transfer import upload

CPU_PIXELS = 2**14  # of both guidance branches; above this, sequential passes are faster on a CPU (tests/benchmarks)


def _stacked_noise(generators: Sequence[torch.Generator], shape: Sequence[int], device: torch.device) -> Tensor:
    """Draw one image of noise from each generator, on the CPU so that every device starts from the same bits."""
    return upload(torch.stack([torch.randn(tuple(shape), generator=g) for g in generators]), device)


@dataclass(frozen=True)
class Start:
    """Where sampling begins: by default with standard noise at the sampler's first, the noisiest timestep."""

    x0: Tensor | None = None  # (N, C, H, W) to add the noise to; None: pure noise
    t: int | None = None  # start at the sampler's largest timestep that does not exceed it
    scale: float = 1.0  # factor on the noise

    def timesteps(self, total: int, steps: int) -> range:
        """Return the remaining timesteps of a sampler with `steps` steps over `total` timesteps."""
        every = range(0, total, total // steps)[::-1]
        return every if self.t is None else every[-1 - self.t * steps // total :]

    def x_t(self, schedule: Schedule, noise: Tensor, t: int, first: int) -> Tensor:
        """Return the initial x_t of the images from index `first` on, given their noise (B, C, H, W)."""
        if self.x0 is None:
            return self.scale * noise
        x0 = self.x0[first : first + len(noise)].to(noise)
        return schedule.add_noise(x0, self.scale * noise, torch.full((len(noise),), t, device=noise.device))


def sample(
    model: nn.Module, schedule: Schedule, labels: Tensor, seeds: Sequence[int], shape: Sequence[int], *,
    steps: int, eta: float, guidance: float, null_class: int | None, batch_size: int,
    clip_x0: bool = False, bf16: bool = False, dropout: bool = False, start: Start = Start(),
    progress: Callable[[int], None] = lambda done: None, decode: Callable[[Tensor], Tensor] = to_uint8,
) -> Tensor:  # fmt: skip
    """Sample one image per label with DDIM (Song et al. 2021, eq. 12) and guidance.

    Args:
        model: noise predictor; it runs in eval mode and is left in the mode it had.
        schedule: the forward process.
        labels: (N,) int64 classes, on any device.
        seeds: N seeds, one per image: an image depends on its own seed, not on the batch.
        shape: (C, H, W) of x0.
        steps: sampling steps; must divide T. Timesteps are 0, T/steps, 2 T/steps, ... in reverse.
        eta: 0 is deterministic DDIM, 1 ancestral sampling with the small posterior variance.
        guidance: w of Ho & Salimans 2022, (1 + w) eps(c) - w eps(null_class); 0 is conditional only.
        null_class: the label of the unconditional branch; None where the model has none, which requires guidance 0.
        batch_size: images per forward pass (twice as many rows with guidance).
        clip_x0: clip the prediction of x0 to [-1, 1] at every step and let eps follow; the reference code does not.
        bf16: let CUDA run the model in bfloat16; the updates of x stay in its own precision.
        dropout: leave the model's dropout on; then an image depends on the batch size.
        start: where to begin, if not with standard noise at the first timestep.
        progress: called with the number of finished image-steps.
        decode: returns uint8 images of x0.

    Returns:
        (N, C, H, W) uint8 on the CPU.

    Raises:
        ValueError: steps does not divide T, labels and seeds differ in length, or guidance lacks a null class.
    """
    if schedule.timesteps % steps:
        raise ValueError(f"{steps} sampling steps do not divide the {schedule.timesteps} timesteps")
    if len(labels) != len(seeds):
        raise ValueError(f"{len(labels)} labels but {len(seeds)} seeds")
    if guidance and null_class is None:
        raise ValueError(f"guidance {guidance} needs the null class, which the model lacks")
    device, dtype = schedule.alphas_cumprod.device, next(model.parameters()).dtype
    timesteps, images = start.timesteps(schedule.timesteps, steps), []
    with evaluating(model, dropout=dropout):
        for first in range(0, len(labels), batch_size):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[first : first + batch_size]]
            y = upload(labels[first : first + batch_size], device)
            x = start.x_t(schedule, _stacked_noise(generators, shape, device).to(dtype), timesteps[0], first)
            for index, (t, before) in enumerate(zip(timesteps, [*timesteps[1:], None], strict=True)):
                with half_precision(device, bf16):
                    eps = _guided_noise(model, x, t, y, guidance, null_class)
                fresh = None if eta == 0 or before is None else _stacked_noise(generators, shape, device)
                x = ddim_step(schedule, x, eps, t, before, eta, fresh, clip_x0)
                progress(first * len(timesteps) + (index + 1) * len(y))
            images.append(decode(x).cpu())
    return torch.cat(images)


def ddim_step(
    schedule: Schedule,
    x: Tensor,
    eps: Tensor,
    t: int,
    previous_t: int | None,
    eta: float,
    noise: Tensor | None,
    clip_x0: bool = False,
) -> Tensor:
    """Return x at the timestep before t, None standing for clean images (Song et al. 2021, eq. 12)."""
    alpha = schedule.alphas_cumprod[t]
    previous = torch.ones_like(alpha) if previous_t is None else schedule.alphas_cumprod[previous_t]
    sigma = eta * ((1 - previous) / (1 - alpha) * (1 - alpha / previous)).sqrt()
    x0 = (x - (1 - alpha).sqrt() * eps) / alpha.sqrt()
    if clip_x0:
        x0 = x0.clamp(-1, 1)
        eps = (x - alpha.sqrt() * x0) / (1 - alpha).sqrt()
    x = previous.sqrt() * x0 + (1 - previous - sigma**2).clamp(min=0).sqrt() * eps
    return x if noise is None else x + sigma * noise.to(x.dtype)


def _guided_noise(model: nn.Module, x: Tensor, t: int, y: Tensor, guidance: float, null_class: int | None) -> Tensor:
    """Return the guided prediction in the precision of x.

    Both branches run as one batch, except large ones on a CPU.
    """
    times = torch.full_like(y, t)
    if guidance == 0:
        return predict_noise(model, x, times, y).to(x.dtype)
    assert null_class is not None  # as `sample` has checked
    null = torch.full_like(y, null_class)
    if x.device.type == "cpu" and 2 * x[:, 0].numel() > CPU_PIXELS:
        conditional, unconditional = (predict_noise(model, x, times, labels).to(x.dtype) for labels in (y, null))
    else:
        both = predict_noise(model, torch.cat([x, x]), torch.cat([times, times]), torch.cat([y, null])).to(x.dtype)
        conditional, unconditional = both.chunk(2)
    return (1 + guidance) * conditional - guidance * unconditional
