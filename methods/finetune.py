"""Fine-tuning on the retained data.

Machine Unlearning of Features and Labels.
Alexander Warnecke, Lukas Pirch, Christian Wressnegger, Konrad Rieck. arXiv:2108.11577, NDSS 2023.

    L = L_eps(x_r, c_r)

No term touches the forget class: its row of the class embedding has no gradient and never moves, so that forgetting can
only come from the drift of the weights that the classes share. Expect little forgetting
from a short run; this follows from the formula and is not a measurement.

Deviations:
    - The paper is about classifiers; it is usually cited for this baseline (as is arXiv:1911.04933). Here the
      loss is that of noise prediction, summed over pixels and averaged over images.
    - Unknown for diffusion, chosen as for the other methods: Adam 1e-4, batch 128, gradient norm 1, 1000 steps.
    - The 120 steps tuned for digits are few, and their step size lies at the edge of its grid: with 600 steps Forgotten
      goes from 50 to 88 (class 5), 41 to 71 (class 2) and 52 to 31 (class 8), and FID falls in all three.
    - Label dropout 0.1, as in ordinary training, so that the null class is trained on the retained data.
    - Assumed: the start is the base model that the harness evaluates, and the result the last weights (no average).
"""

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval

from unlearnbench import Context, method


@method(
    title="Fine-tuning",
    paper="2108.11577",
    streams=("retain",),
    groups=("baselines",),
    tuned={
        "digits": {"steps": 120, "batch": 48, "lr": 2e-3},
        "smoke": {"steps": 100, "batch": 32, "lr": 3e-4},
    },
    search={
        "lr": (3e-4, 6e-3),
        "batch": [32, 64],
    },
)
def finetune(
    ctx: Context,
    *,
    steps: Annotated[int, Ge(1)] = 1000,  # optimiser steps (unknown for diffusion: chosen)
    batch: Annotated[int, Ge(1)] = 128,  # retained images per step (unknown for diffusion: chosen)
    lr: Annotated[float, Gt(0)] = 1e-4,  # Adam (unknown for diffusion: chosen)
    label_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.1,  # share of labels dropped (as in training)
    clip: Annotated[float, Gt(0)] = 1.0,  # global gradient norm (unknown for diffusion: chosen)
):
    optimizer = torch.optim.Adam(ctx.model.parameters(), lr=lr, fused=True)
    for _ in ctx.steps(steps):
        retain_loss = ctx.eps_loss(*ctx.retain.draw(batch), label_dropout=label_dropout)
        optimizer.zero_grad()
        retain_loss.backward()
        torch.nn.utils.clip_grad_norm_(ctx.model.parameters(), clip)
        optimizer.step()
        ctx.log(retain_loss=retain_loss)
