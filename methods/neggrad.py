"""NegGrad: gradient ascent on the forget class.

Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep Networks.
Aditya Golatkar, Alessandro Achille, Stefano Soatto. arXiv:1911.04933, CVPR 2020.
Also: Unrolling SGD: Understanding Factors Influencing Machine Unlearning.
Anvith Thudi, Gabriel Deza, Varun Chandrasekaran, Nicolas Papernot. arXiv:2109.13398, EuroS&P 2022.

    L = -L_eps(x_f, c_f)

Nothing bounds L from below and nothing holds the retained classes, so clipping, few steps and a small step size are
part of the method. A run whose weights or loss become infinite is a failed run.

Deviations:
    - The papers are about classifiers. Here the loss is that of noise prediction, summed over pixels and averaged over
      images.
    - Unknown for diffusion, chosen: Adam 1e-5, 100 steps, batch 128, gradient norm 1.
    - No retain term, as the name says; `neggrad_plus` has one.
    - Labels are not dropped, so that there is no ascent on the null class, which guidance needs.
    - Assumed: the start is the base model that the harness evaluates, and the result the last weights (no average).
"""

from typing import Annotated

import torch
from annotated_types import Ge, Gt

from unlearnbench import Context, method


@method(
    title="NegGrad",
    paper="1911.04933",
    streams=("forget",),
    groups=("baselines",),
    tuned={
        "digits": {"steps": 45, "batch": 48, "lr": 2e-5},
        "smoke": {"steps": 30, "batch": 32, "lr": 3e-5},
    },
    search={
        "lr": (3e-6, 6e-5),
        "batch": [32, 64],
    },
)
def neggrad(
    ctx: Context,
    *,
    steps: Annotated[int, Ge(1)] = 100,  # optimiser steps (unknown for diffusion: chosen)
    batch: Annotated[int, Ge(1)] = 128,  # forget images per step (unknown for diffusion: chosen)
    lr: Annotated[float, Gt(0)] = 1e-5,  # Adam (unknown for diffusion: chosen)
    clip: Annotated[float, Gt(0)] = 1.0,  # global gradient norm (unknown for diffusion: chosen)
):
    optimizer = torch.optim.Adam(ctx.model.parameters(), lr=lr, fused=True)
    for _ in ctx.steps(steps):
        forget_loss = ctx.eps_loss(*ctx.forget.draw(batch))
        optimizer.zero_grad()
        (-forget_loss).backward()
        torch.nn.utils.clip_grad_norm_(ctx.model.parameters(), clip)
        optimizer.step()
        ctx.log(forget_loss=forget_loss)
