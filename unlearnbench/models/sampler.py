"""The sampler, readable on one screen: DDIM, DDPM and DPM-Solver++ with labels, guidance and per-image noise."""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from unlearnbench.models.diffusion import Schedule, evaluating, half_precision, predict_noise, to_uint8
from unlearnbench.models.transfer import upload
from unlearnbench.store.cell import SolverName

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

    def index(self, timesteps: Sequence[int]) -> int:
        """Return the index of the first of a sampler's falling timesteps to take."""
        if self.t is None:
            return 0
        return next((k for k, t in enumerate(timesteps) if t <= self.t), len(timesteps) - 1)

    def x_t(self, schedule: Schedule, noise: Tensor, t: int, first: int) -> Tensor:
        """Return the initial x_t of the images from index `first` on, given their noise (B, C, H, W)."""
        if self.x0 is None:
            return self.scale * noise
        x0 = self.x0[first : first + len(noise)].to(noise)
        return schedule.add_noise(x0, self.scale * noise, torch.full((len(noise),), t, device=noise.device))


def sample(
    model: nn.Module, schedule: Schedule, labels: Tensor, seeds: Sequence[int], shape: Sequence[int], *,
    steps: int, eta: float, guidance: float, null_class: int | None, batch_size: int,
    solver: SolverName = "ddim", clip_x0: bool = False, bf16: bool = False, dropout: bool = False,
    start: Start = Start(),
    progress: Callable[[int], None] = lambda done: None, decode: Callable[[Tensor], Tensor] = to_uint8,
) -> Tensor:  # fmt: skip
    """Sample one image per label, with guidance.

    Args:
        model: noise predictor; it runs in eval mode and is left in the mode it had.
        schedule: the forward process.
        labels: (N,) int64 classes, on any device.
        seeds: N seeds, one per image: an image depends on its own seed, not on the batch.
        shape: (C, H, W) of x0.
        steps: sampling steps; those of DDIM must divide T.
        eta: of DDIM: 0 is deterministic, 1 ancestral sampling with the small posterior variance.
        guidance: w of Ho & Salimans 2022, (1 + w) eps(c) - w eps(null_class); 0 is conditional only.
        null_class: the label of the unconditional branch; None where the model has none, which requires guidance 0.
        batch_size: images per forward pass (twice as many rows with guidance).
        solver: `ddim`, or `dpm++`, which is deterministic and needs about half as many steps.
        clip_x0: with DDIM, clip the prediction of x0 to [-1, 1] at every step and let eps follow; the reference code
            does not.
        bf16: let CUDA run the model in bfloat16; the updates of x stay in its own precision.
        dropout: leave the model's dropout on; then an image depends on the batch size.
        start: where to begin, if not with standard noise at the first timestep.
        progress: called with the number of finished image-steps.
        decode: returns uint8 images of x0.

    Returns:
        (N, C, H, W) uint8 on the CPU.

    Raises:
        ValueError: steps does not divide T, labels and seeds differ in length, guidance lacks a null class, or the
            solver has no eta or clipping.
    """
    kinds: dict[str, type[Ddim | DpmSolver]] = {"ddim": Ddim, "dpm++": DpmSolver}
    chosen: Solver = kinds[solver](schedule, steps, eta, clip_x0)
    if len(labels) != len(seeds):
        raise ValueError(f"{len(labels)} labels but {len(seeds)} seeds")
    if guidance and null_class is None:
        raise ValueError(f"guidance {guidance} needs the null class, which the model lacks")
    device, dtype = schedule.alphas_cumprod.device, next(model.parameters()).dtype
    begin, images = start.index(chosen.timesteps), list[Tensor]()
    timesteps = chosen.timesteps[begin:]
    with evaluating(model, dropout=dropout):
        for first in range(0, len(labels), batch_size):
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[first : first + batch_size]]
            y = upload(labels[first : first + batch_size], device)
            x = start.x_t(schedule, _stacked_noise(generators, shape, device).to(dtype), timesteps[0], first)
            chosen.begin(begin)
            for done, t in enumerate(timesteps, start=1):
                with half_precision(device, bf16):
                    eps = _guided_noise(model, x, t, y, guidance, null_class)
                fresh = None if eta == 0 or done == len(timesteps) else _stacked_noise(generators, shape, device)
                x = chosen.step(x, eps, begin + done - 1, fresh)
                progress(first * len(timesteps) + done * len(y))
            images.append(decode(x).cpu())
    return torch.cat(images)


class Solver(Protocol):
    """Takes the steps of the reverse process."""

    timesteps: Sequence[int]  # falling

    def begin(self, index: int) -> None:
        """Make ready for new images, which start at a timestep."""

    def step(self, x: Tensor, eps: Tensor, index: int, noise: Tensor | None) -> Tensor:
        """Return x (B, C, H, W) at the timestep after that of `index`, the clean images after the last.

        Args:
            x: at the timestep.
            eps: predicted there.
            index: of the timestep.
            noise: standard normal, shaped as x; None for none.
        """


class Ddim:
    """DDIM (Song et al. 2021, eq. 12), at timesteps 0, T/steps, 2 T/steps, ... in reverse."""

    def __init__(self, schedule: Schedule, steps: int, eta: float, clip_x0: bool) -> None:
        if schedule.timesteps % steps:
            raise ValueError(f"{steps} sampling steps do not divide the {schedule.timesteps} timesteps")
        self._schedule, self._eta, self._clip_x0 = schedule, eta, clip_x0
        self.timesteps: Sequence[int] = range(0, schedule.timesteps, schedule.timesteps // steps)[::-1]

    def begin(self, index: int) -> None:
        """Do nothing: a step depends on no other."""

    def step(self, x: Tensor, eps: Tensor, index: int, noise: Tensor | None) -> Tensor:
        """Take a step, as `Solver.step`."""
        t, *later = self.timesteps[index : index + 2]
        return ddim_step(self._schedule, x, eps, t, later[0] if later else None, self._eta, noise, self._clip_x0)


class DpmSolver:
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv:2211.01095) of diffusers, at evenly spaced timesteps from T - 1 on."""

    def __init__(self, schedule: Schedule, steps: int, eta: float, clip_x0: bool) -> None:
        from diffusers import DPMSolverMultistepScheduler

        if eta or clip_x0:
            raise ValueError("DPM-Solver++ adds no noise and does not clip x0: use DDIM")
        alphas = schedule.alphas_cumprod.double().cpu()
        betas = 1 - alphas / torch.cat([alphas.new_ones(1), alphas[:-1]])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of NumPy, about how diffusers converts a tensor
            self._fresh = DPMSolverMultistepScheduler(trained_betas=betas.numpy(), num_train_timesteps=len(betas))
            self._fresh.set_timesteps(steps)
        self.timesteps: Sequence[int] = self._fresh.timesteps.tolist()
        if len(set(self.timesteps)) < steps:
            raise ValueError(f"{steps} steps of DPM-Solver++ are too many for {schedule.timesteps} timesteps")

    def begin(self, index: int) -> None:
        """Forget the predictions at earlier timesteps."""
        self._solver = copy.deepcopy(self._fresh)
        self._solver.set_begin_index(index)

    def step(self, x: Tensor, eps: Tensor, index: int, noise: Tensor | None) -> Tensor:
        """Take a step, as `Solver.step`."""
        stepped: Tensor = self._solver.step(eps, self.timesteps[index], x).prev_sample
        return stepped


def ddim_steps(timesteps: int, least: int) -> int:
    """Return the smallest number of DDIM steps, at least `least`, that divides the number of timesteps."""
    return next(steps for steps in range(least, timesteps + 1) if timesteps % steps == 0)


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
