"""Restricted gradient: forgetting and retaining without conflicting gradients.

Boosting Alignment for Post-Unlearning Text-to-Image Generative Models.
Myeongseob Ko, Henry Li, Zhun Wang, Jonathan Patsenker, Jiachen T. Wang, Qinbin Li, Ming Jin, Dawn Song, Ruoxi Jia.
arXiv:2412.07808, NeurIPS 2024.

    g_f = d/dtheta of - mean sum_i min(||eps - eps_theta(x_t, c_f)||_i^2, bound),   g_r = d/dtheta of L_eps(x_r, c_r)
    g   = (g_f - [a]_- / ||g_r||^2 g_r) + alpha (g_r - [a]_- / ||g_f||^2 g_f),   a = <g_f, g_r>, [a]_- = min(a, 0)

From each gradient the component that opposes the other is removed, so that a small step along g lowers both losses. The
bound stops the ascent at a pixel i once the error of its x0 reaches sqrt(truncate).

Chosen among recent methods because the paper unlearns classes of a conditional CIFAR-10 model, and because it needs
neither text encoder nor cross-attention.

Deviations:
    - The code is for an EDM model (denoising loss, its own weights and noise levels); here both losses are L_eps. The
      bound is on the squared error of x0, as there: `truncate` abar_t / (1 - abar_t) on that of the noise.
      `truncate_in=eps` puts it on the squared error of the noise itself, the same at every t.
    - Retained images are fresh at each step. (Code, for the paper's diversity: 50 fixed images of each class, all of
      them at every step; `retain_batch` is their number.)
    - Conflicting parts are projected out only where a < 0 (code; whether the paper's formula has the condition was not
      checked), and over all weights at once (code).
    - Label dropout 0.1 keeps the unconditional branch (assumed: SalUn; the code's model has none).
    - Clipped to norm 1 (assumed: SalUn; code: none).
    - Horizontal flips are those of the dataset (code: EDM's augmentation pipeline).
    - No average of the weights, as in the code.
"""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval

from unlearnbench import Context, method, predict_noise


def without_conflict(gradient, other):
    """Return a flat gradient (P,) without its part against the other one."""
    return gradient - torch.dot(gradient, other).clamp(max=0) / other.square().sum().clamp(min=1e-30) * other


@method(
    title="RG",
    paper="2412.07808",
    streams=("forget", "retain"),
    tuned={
        "digits": {"steps": 120, "batch": 48, "retain_batch": 48, "lr": 2.5e-4, "alpha": 5.0},
        "smoke": {"steps": 100, "batch": 32, "retain_batch": 32, "lr": 3e-4},
    },
    search={
        "lr": (1e-4, 2e-3),
        "batch": [32, 64],
        "retain_batch": [32, 64],
        "alpha": (0.5, 50.0),
    },
)
def restricted_gradient(
    ctx: Context,
    *,
    steps: Annotated[int, Ge(1)] = 782,  # optimiser steps (code: 50,000 images)
    batch: Annotated[int, Ge(1)] = 64,  # forget images per step (code)
    retain_batch: Annotated[int, Ge(1)] = 450,  # retained images per step (code)
    lr: Annotated[float, Gt(0)] = 1e-5,  # Adam (code)
    alpha: Annotated[float, Ge(0)] = 5.0,  # weight of the retained classes' gradient (code)
    truncate: Annotated[float, Gt(0)] = 0.1,  # squared error of a pixel beyond which it is left alone (code)
    truncate_in: Literal["x0", "eps"] = "x0",  # whose error that is (code: x0)
    label_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.1,  # share of retained labels dropped (assumed: SalUn)
    clip: Annotated[float, Gt(0)] = 1.0,  # global gradient norm (assumed: SalUn)
):
    parameters = list(ctx.model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
    for _ in ctx.steps(steps):
        x_f, y_f = ctx.forget.draw(batch)
        t, eps = ctx.timesteps(batch), ctx.noise_like(x_f)
        error = eps - predict_noise(ctx.model, ctx.schedule.add_noise(x_f, eps, t), t, y_f)
        bound = torch.full_like(error, truncate)
        if truncate_in == "x0":
            abar = ctx.schedule.alphas_cumprod[t].to(error.dtype).view(-1, 1, 1, 1)
            bound = bound * abar / (1 - abar)
        forget_loss = -torch.minimum(error.square(), bound).flatten(1).sum(dim=1).mean()
        g_f = torch.cat([g.flatten() for g in torch.autograd.grad(forget_loss, parameters)])  # frees its graph
        retain_loss = ctx.eps_loss(*ctx.retain.draw(retain_batch), label_dropout=label_dropout)
        g_r = torch.cat([g.flatten() for g in torch.autograd.grad(retain_loss, parameters)])
        restricted = without_conflict(g_f, g_r) + alpha * without_conflict(g_r, g_f)
        for parameter, gradient in zip(parameters, restricted.split([p.numel() for p in parameters]), strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(gradient.view_as(parameter))  # in its memory layout
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        ctx.log(forget_loss=forget_loss, retain_loss=retain_loss)
