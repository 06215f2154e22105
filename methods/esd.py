"""ESD: erased stable diffusion, for a class instead of a prompt.

Erasing Concepts from Diffusion Models.
Rohit Gandikota, Joanna Materzynska, Jaden Fiotto-Kaufman, David Bau. arXiv:2303.07345, ICCV 2023.

    target = eps_base(x_t, null) - eta (eps_base(x_t, c_f) - eps_base(x_t, null))
    L      = mean (eps_theta(x_t, c_f) - target)^2

A mean over pixels and images. eta = 0 means: predict the unconditional noise. There is no retain term.

Deviations:
    - Paper and code are about Stable Diffusion; in class-conditional models the prompt is the class label.
    - eta is that of the formula and of the original script (default 1). The current script writes eps_base(c) - eta'
      (eps_base(c) - eps_base(null)) with eta' = eta + 1 and default 2: the same target.
    - x_t are noised real forget images with t uniform (code: samples of class c_f, after a random number of denoising
      steps with guidance 3): no sampling in the loop, but data of the class is needed.
    - `train="class"` trains the weights through which the condition reaches the features: cross-attention where the
      model has prompts (code: `esd-x`), else the class embedding and its projections, which carry the timestep as well;
      `train="rest"` trains all others (code: `esd-u`), `train="all"` both.
    - Batch 128 (code: 1) and gradient norm 1: chosen, unknown for class-conditional models.
    - eps_theta(x_t, null) is not trained and may drift with the shared weights, as in the code.
    - Assumed: the start is the base model that the harness evaluates, and the result the last weights (no average).
"""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt

from unlearnbench import Context, method, predict_noise


@method(
    title="ESD",
    paper="2303.07345",
    streams=("forget",),
    tuned={
        "digits": {"steps": 120, "batch": 48, "lr": 2.5e-4, "train": "class"},
        "digits-dit": {"lr": 4e-5},
        "smoke": {"steps": 100, "batch": 32, "lr": 5e-5},
    },
    search={
        "lr": (1e-4, 2e-3),
        "batch": [32, 64],
        "eta": (0.3, 10.0),
        "train": ["all", "class", "rest"],
    },
)
def esd(
    ctx: Context,
    *,
    steps: Annotated[int, Ge(1)] = 1000,  # optimiser steps (code: original script)
    batch: Annotated[int, Ge(1)] = 128,  # forget images per step (unknown for class-conditional models: chosen)
    lr: Annotated[float, Gt(0)] = 1e-5,  # Adam (code: original script)
    eta: Annotated[float, Ge(0)] = 1.0,  # strength of the negative guidance (paper)
    train: Literal["all", "class", "rest"] = "all",  # weights that move (unknown for class-conditional models: chosen)
    clip: Annotated[float, Gt(0)] = 1.0,  # global gradient norm (unknown for class-conditional models: chosen)
):
    chosen = ctx.part("condition" if train == "class" else train)
    for name, parameter in ctx.model.named_parameters():
        parameter.requires_grad_(name in chosen)
    moving = [parameter for parameter in ctx.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(moving, lr=lr, fused=True)
    for _ in ctx.steps(steps):
        x0, y = ctx.forget.draw(batch)
        t = ctx.timesteps(batch)
        x_t = ctx.schedule.add_noise(x0, ctx.noise_like(x0), t)
        with torch.no_grad():  # one pass for both predictions of the base
            both = torch.cat([y, torch.full_like(y, ctx.null_class)])
            conditional, null = predict_noise(ctx.base, torch.cat([x_t, x_t]), torch.cat([t, t]), both).chunk(2)
            target = null - eta * (conditional - null)
        forget_loss = (predict_noise(ctx.model, x_t, t, y) - target).square().mean()
        optimizer.zero_grad()
        forget_loss.backward()
        torch.nn.utils.clip_grad_norm_(moving, clip)
        optimizer.step()
        ctx.log(forget_loss=forget_loss)
