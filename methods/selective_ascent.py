"""Selective ascent, after a paper of which only the abstract was read: ascent at chosen timesteps and frequencies.

Data Unlearning Beyond Uniform Forgetting via Diffusion Time and Frequency Selection (later: Not Every Time and
Frequency Need to Be Forgotten in Diffusion Unlearning).
Jinseong Park, Mijung Park. arXiv:2510.17917.

    L = alpha L_eps(x_r, c_r) - ||low_pass(eps - eps_theta(x_t, c_f))||^2,   t uniform in [t_low T, t_high T)

low_pass keeps the spatial frequencies up to `cutoff` of the highest one, along both axes. The second term is unbounded
below, as in NegGrad: clipping and a limited number of steps are part of the method.

Deviations:
    - **An adaptation.** The abstract says that forgetting is uneven across time and frequency, and that ascent should
      be confined to ranges of both. Nothing else of the paper was read, and no code of it was found: which ranges, how
      frequencies are selected, what else is in its loss, and all settings are not known here. The formula is ours.
    - The paper removes training images; here a class is forgotten. (It also selects for SISS and for preference
      optimisation, not here.)
    - One interval of t for the ascent, all t for the retained images. A low-pass by the FFT of the error image, square
      in the plane of frequencies; at `cutoff=1` the whole error, as in NegGrad. Where the model works on latents, the
      frequencies are those of latents.
    - Both terms are sums over pixels, averaged over images. Label dropout 0.1 for the retained labels, none in the
      ascent, so that the null class is trained on the retained data only.
    - One backward pass per term, so that one graph lives at a time.
    - Assumed: the start is the base model that the harness evaluates, and the result the last weights (no average).
"""

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval

from unlearnbench import Context, UsageError, method


def low_pass_energy(error, cutoff: float):
    """Return the squared norm (B,) of images (B, C, H, W) without their frequencies above `cutoff` of the highest."""
    rows, columns = (torch.fft.fftfreq(n, device=error.device).abs() for n in error.shape[-2:])
    kept = torch.maximum(rows[:, None], columns) <= cutoff / 2
    spectrum = torch.view_as_real(torch.fft.fft2(error, norm="ortho")).square().sum(dim=-1)
    return (spectrum * kept).flatten(1).sum(dim=1)


@method(
    title="Selective ascent (after 2510.17917)",
    paper="2510.17917",
    streams=("forget", "retain"),
    search={
        "lr": (1e-4, 2e-3),
        "batch": [32, 64],
        "alpha": (3.0, 50.0),
        "t_low": [0.0, 0.2, 0.4],
        "t_high": [0.6, 0.8, 1.0],
    },
    tuned={
        "digits": {"steps": 120, "batch": 24, "lr": 2.5e-4, "alpha": 7.0},
        "smoke": {"steps": 90, "batch": 32, "lr": 3e-4, "alpha": 7.0},
    },
)
def selective_ascent(
    ctx: Context,
    *,
    steps: Annotated[int, Ge(1)] = 1000,  # optimiser steps (chosen)
    batch: Annotated[int, Ge(1)] = 128,  # images of each kind per step (chosen)
    lr: Annotated[float, Gt(0)] = 1e-4,  # Adam (chosen)
    alpha: Annotated[float, Ge(0)] = 19.0,  # weight of the retain loss, that of the ascent being 1 (chosen: NegGrad+'s)
    t_low: Annotated[float, Interval(ge=0, lt=1)] = 0.2,  # start of the ascent's timesteps, as a share of T (chosen)
    t_high: Annotated[float, Interval(gt=0, le=1)] = 0.8,  # their end, not included (chosen)
    cutoff: Annotated[float, Interval(ge=0, le=1)] = 1.0,  # share of the frequencies along an axis (chosen: all)
    label_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.1,  # share of retained labels dropped (as in training)
    clip: Annotated[float, Gt(0)] = 1.0,  # global gradient norm (chosen)
):
    first, end = round(t_low * ctx.schedule.timesteps), round(t_high * ctx.schedule.timesteps)
    if first >= end:
        raise UsageError(f"selective_ascent has no timestep between t_low={t_low} and t_high={t_high}: raise t_high")
    optimizer = torch.optim.Adam(ctx.model.parameters(), lr=lr, fused=True)
    for _ in ctx.steps(steps):
        x_f, y_f = ctx.forget.draw(batch)
        t = torch.randint(first, end, (batch,), generator=ctx.generator, device=x_f.device)
        eps = ctx.noise_like(x_f)
        error = eps - ctx.predict(ctx.schedule.add_noise(x_f, eps, t), t, y_f)
        forget_loss = -low_pass_energy(error, cutoff).mean()
        optimizer.zero_grad()
        forget_loss.backward()
        retain_loss = ctx.eps_loss(*ctx.retain.draw(batch), label_dropout=label_dropout)
        (alpha * retain_loss).backward()
        torch.nn.utils.clip_grad_norm_(ctx.model.parameters(), clip)
        optimizer.step()
        ctx.log(forget_loss=forget_loss, retain_loss=retain_loss)
