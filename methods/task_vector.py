"""Task vector: what fine-tuning on the forget class adds to the weights is subtracted from them.

Robust Concept Erasure Using Task Vectors.
Minh Pham, Kelly O. Marshall, Chinmay Hegde, Niv Cohen. arXiv:2404.03631.

    theta_ft = theta_0 after `steps` of Adam on L_eps(x_f, c_f),   tau = theta_ft - theta_0
    theta    = theta_0 - alpha tau

There is no retain term, and no image of a retained class. Task vectors come from language and image models (Ilharco et
al., arXiv:2212.04089); the paper subtracts them from text-to-image models, since the edit knows no prompt.

Deviations:
    - No code of it was found. The formula is the paper's; every setting is chosen.
    - The paper is about text-to-image models, fine-tuned on generated images of a concept; here the fine-tuning is
      ordinary training on the real forget images, a label dropout of 0.1 included.
    - alpha is a setting. The paper finds it with Diverse Inversion, word embeddings that bring the concept back: not
      here.
    - `train` takes the vector of all weights, of those through which the condition reaches the features, or of the
      others (paper: of a part of the layers, chosen with Diverse Inversion).
    - Assumed: the start is the base model that the harness evaluates, and theta_ft the last weights (no average).
"""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval

from unlearnbench import Context, method


@method(
    title="Task vector",
    paper="2404.03631",
    streams=("forget",),
    search={
        "lr": (1e-4, 2e-3),
        "batch": [32, 64],
        "alpha": (0.3, 10.0),
        "train": ["all", "condition", "rest"],
        "label_dropout": [0.0, 0.1],
    },
    tuned={
        "digits": {"steps": 120, "batch": 48, "lr": 1e-3, "alpha": 10.0, "train": "condition", "label_dropout": 0.0},
        "smoke": {"steps": 100, "batch": 32, "lr": 1e-3, "alpha": 10.0, "train": "condition", "label_dropout": 0.0},
    },
)
def task_vector(
    ctx: Context,
    *,
    steps: Annotated[int, Ge(1)] = 1000,  # optimiser steps of the fine-tuning (chosen)
    batch: Annotated[int, Ge(1)] = 128,  # forget images per step (chosen)
    lr: Annotated[float, Gt(0)] = 1e-4,  # Adam (chosen)
    alpha: Annotated[float, Ge(0)] = 1.0,  # strength of the edit, in task vectors (chosen)
    train: Literal["all", "condition", "rest"] = "all",  # weights that have a task vector (chosen)
    label_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.1,  # share of labels dropped (as in training)
    clip: Annotated[float, Gt(0)] = 1.0,  # global gradient norm (chosen)
):
    part = ctx.part(train)
    for name, parameter in ctx.model.named_parameters():
        parameter.requires_grad_(name in part)
    moving = [parameter for parameter in ctx.model.parameters() if parameter.requires_grad]
    start = [parameter.detach().clone() for parameter in moving]
    optimizer = torch.optim.Adam(moving, lr=lr, fused=True)
    for _ in ctx.steps(steps):
        forget_loss = ctx.eps_loss(*ctx.forget.draw(batch), label_dropout=label_dropout)
        optimizer.zero_grad()
        forget_loss.backward()
        torch.nn.utils.clip_grad_norm_(moving, clip)
        optimizer.step()
        ctx.log(forget_loss=forget_loss)
    with torch.no_grad():
        for parameter, origin in zip(moving, start, strict=True):
            parameter.copy_(origin - alpha * (parameter - origin))
