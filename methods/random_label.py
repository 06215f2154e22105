"""Random labels: the forget class predicts the noise of other classes.

Eternal Sunshine of the Spotless Net: Selective Forgetting in Deep Networks.
Aditya Golatkar, Alessandro Achille, Stefano Soatto. arXiv:1911.04933, CVPR 2020.

    L = mean (eps_theta(x_t, c_f) - sg[eps_base(x_t, c')])^2 + alpha L_eps(x_r, c_r),   c' uniform over retained classes

The first term is a mean over pixels, the second a sum over them (as in SalUn's code), so that alpha = 1e-3 at 3,072
pixels weighs 3.07 on the scale of mean squared errors, and alpha means the same here as in `salun`.

Deviations:
    - The paper is about classifiers, where a forget image gets a random label. For a conditional generator that would
      train the condition c' on forget images and leave c_f alone; so the condition stays c_f, and the target changes.
    - c' is drawn afresh for each image at each step, from the retained classes only (classifier code: once per image,
      from all classes, the true one included).
    - The target comes from the frozen base model in eval mode, so that it cannot drift with the model (SalUn's code,
      whose loss this is but for the mask and a fixed c': the model being trained, in train mode).
    - Unknown for diffusion, taken from SalUn's settings: Adam 1e-4, 1000 steps, batch 128, alpha 1e-3, gradient norm 1,
      retained labels dropped with 0.1.
    - Forget labels are not dropped, so that no term but the retain loss trains the null class.
    - One backward pass per term, so that one graph lives at a time; `passes=joint` sends forget and retained images
      through the network as one batch.
    - Assumed: the start is the base model that the harness evaluates, and the result the last weights (no average).
"""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval

from unlearnbench import Context, Term, backward, method, predict_noise


@method(
    title="Random label",
    paper="1911.04933",
    streams=("forget", "retain"),
    groups=("baselines",),
    tuned={
        "digits": {"steps": 120, "batch": 48, "lr": 5e-4, "alpha": 0.06},
        "smoke": {"steps": 100, "batch": 32, "lr": 3e-4},
    },
    search={
        "lr": (1e-4, 2e-3),
        "batch": [32, 64],
        "alpha": (3e-3, 0.3),
    },
)
def random_label(
    ctx: Context,
    *,
    steps: Annotated[int, Ge(1)] = 1000,  # optimiser steps (unknown for diffusion: SalUn's)
    batch: Annotated[int, Ge(1)] = 128,  # images of each kind per step (unknown for diffusion: SalUn's)
    lr: Annotated[float, Gt(0)] = 1e-4,  # Adam (unknown for diffusion: SalUn's)
    alpha: Annotated[float, Ge(0)] = 1e-3,  # weight of the summed retain loss against the mean forget loss (SalUn's)
    label_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.1,  # share of retained labels dropped (SalUn's)
    clip: Annotated[float, Gt(0)] = 1.0,  # global gradient norm (SalUn's)
    passes: Literal["separate", "joint"] = "separate",  # both terms one after the other, or as one batch (chosen)
):
    others = torch.tensor(ctx.retained_classes, device=ctx.generator.device)
    optimizer = torch.optim.Adam(ctx.model.parameters(), lr=lr, fused=True)
    for _ in ctx.steps(steps):
        (x_f, y_f), (x_r, y_r) = ctx.forget.draw(batch), ctx.retain.draw(batch)
        pseudo = others[torch.randint(len(others), (batch,), generator=ctx.generator, device=others.device)]
        t = ctx.timesteps(batch)
        x_t = ctx.schedule.add_noise(x_f, ctx.noise_like(x_f), t)
        with torch.no_grad():
            target = predict_noise(ctx.base, x_t, t, pseudo)
        forget = Term(x_t, t, y_f, target, pixels="mean")
        retain = ctx.eps_term(x_r, y_r, label_dropout=label_dropout)
        optimizer.zero_grad()
        forget_loss, retain_loss = backward(ctx.model, [forget, retain], [1, alpha], passes=passes)
        torch.nn.utils.clip_grad_norm_(ctx.model.parameters(), clip)
        optimizer.step()
        ctx.log(forget_loss=forget_loss, retain_loss=retain_loss)
