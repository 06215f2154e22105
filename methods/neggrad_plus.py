"""NegGrad+: descent on the retained data, ascent on the forget class.

Towards Unbounded Machine Unlearning.
Meghdad Kurmanji, Peter Triantafillou, Jamie Hayes, Eleni Triantafillou. arXiv:2302.09880, NeurIPS 2023.

    L = beta L_eps(x_r, c_r) - (1 - beta) L_eps(x_f, c_f)

The second term is unbounded below, as in NegGrad: for beta < 1 clipping and a limited number of steps are part of the
method. beta = 1 is fine-tuning on the retained data.

Deviations:
    - The paper and its code are about classifiers. Here both losses are those of noise prediction, summed over pixels
      and averaged over images.
    - beta = 0.95 is one of the two values in the code's notebooks (the other: 0.9999); no value for diffusion is known.
    - Unknown for diffusion, chosen: Adam 1e-4 (code: SGD), 1000 steps (code: 5 or 10 epochs), batch 128, gradient
      norm 1.
    - Label dropout 0.1 for the retained labels, as in ordinary training, and none in the ascent, so that the null class
      is trained on the retained data only.
    - One batch of each kind per step, as in the code, with t and noise drawn apart; one backward pass per term, so that
      one graph lives at a time (`passes=joint`: both kinds through the network as one batch).
    - Assumed: the start is the base model that the harness evaluates, and the result the last weights (no average).
"""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval

from unlearnbench import Context, backward, method


@method(
    title="NegGrad+",
    paper="2302.09880",
    streams=("forget", "retain"),
    groups=("baselines",),
    tuned={
        "digits": {"steps": 120, "batch": 48, "lr": 2.5e-4, "beta": 0.93},
        "smoke": {"steps": 100, "batch": 32, "lr": 3e-4},
    },
    search={
        "lr": (1e-4, 2e-3),
        "batch": [32, 64],
        "beta": (0.8, 0.99, "uniform"),
    },
)
def neggrad_plus(
    ctx: Context,
    *,
    steps: Annotated[int, Ge(1)] = 1000,  # optimiser steps (unknown for diffusion: chosen)
    batch: Annotated[int, Ge(1)] = 128,  # images of each kind per step (unknown for diffusion: chosen)
    lr: Annotated[float, Gt(0)] = 1e-4,  # Adam (unknown for diffusion: chosen)
    beta: Annotated[float, Interval(ge=0, le=1)] = 0.95,  # weight of the retain loss; 1 - beta is the ascent's (code)
    label_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.1,  # share of retained labels dropped (as in training)
    clip: Annotated[float, Gt(0)] = 1.0,  # global gradient norm (unknown for diffusion: chosen)
    passes: Literal["separate", "joint"] = "separate",  # both terms one after the other, or as one batch (chosen)
):
    optimizer = torch.optim.Adam(ctx.model.parameters(), lr=lr, fused=True)
    for _ in ctx.steps(steps):
        forget = ctx.eps_term(*ctx.forget.draw(batch))
        retain = ctx.eps_term(*ctx.retain.draw(batch), label_dropout=label_dropout)
        optimizer.zero_grad()
        forget_loss, retain_loss = backward(ctx.model, [forget, retain], [beta - 1, beta], passes=passes)
        torch.nn.utils.clip_grad_norm_(ctx.model.parameters(), clip)
        optimizer.step()
        ctx.log(forget_loss=forget_loss, retain_loss=retain_loss)
