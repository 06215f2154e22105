"""MUNBa: forgetting and retaining bargain over the direction of each step.

MUNBa: Machine Unlearning via Nash Bargaining.
Jing Wu, Mehrtash Harandi. arXiv:2411.15537, ICCV 2025.

    L_r = mean (eps - eps_theta(x_t, c_r))^2,   L_u = beta mean (sg[eps_theta(x_t, c')] - eps_theta(x_t, c_f))^2
    g   = alpha_r g_r + alpha_u g_u + l1 (1 - s/S) sign(theta),   g_r, g_u: gradients of L_r and L_u
    alpha_r = sqrt((R U - P sqrt(R U)) / (R^2 U - R P^2 + 1e-8)),   alpha_u = (1 - R alpha_r^2) / (P alpha_r + 1e-8)
    with R = ||g_r||^2, U = ||g_u||^2, P = <g_r, g_u>;   where not both are above 0: alpha_r, alpha_u = 1, 0.5

c' is the anchor of c_f. Without the two 1e-8 the solution is alpha_i = 1 / (||g_i|| sqrt(1 + cos)), cos being that of
the angle between the gradients: along the bisector of their directions, always of length sqrt(2).

Deviations:
    - "Code" is JingWu321/MUNBa at 70387727, its `SD/MUNBa_cls.py` as `SD/train.sh` starts it, for Stable Diffusion. It
      cannot run: it reads `args.nash` and `args.lam`, which it does not define. (The classifiers' code can; the same
      two lines give the weights there.)
    - `bargain="code"` is these two lines. alpha_u is 0/0 at P = 0 but for the 1e-8, which makes it 1 / (R^2 U); near
      there rounding decides. And 1e-8 is little only beside large gradients: where R^2 U is not far above it, the
      weights shrink, or the fallback takes over. `bargain="exact"` is the solution without the 1e-8, finite at every
      angle (its square root is kept from 0 at opposite gradients).
    - Not here: the paper's iterative solver (CVXPY), which the code has in a comment, and uses for nudity.
    - The gradient is put together from g_r and g_u (code: the weighted loss goes backward once more through both
      graphs): the same numbers, and one graph lives at a time.
    - Norms and product are taken over the weights that move (code), and so is the clipping (code: over all weights,
      also those that do not move, whose gradients it never clears).
    - c' is the concept's anchor: without a declared one the next retained class (code: (c_f + 1) mod 10). As in the
      code, its prediction comes from the model being trained, in train mode.
    - In a class-conditional model `train="condition"` trains the weights through which the class reaches the features
      (code: `xattn`, the cross-attention); `train="all"` is the code's `full`.
    - The L1 penalty falls with each step (code: with each epoch).
    - t is drawn in pairs t and T - 1 - t, apart for both losses (code: not in pairs).
    - `label_dropout` keeps the null class, which guidance needs; the code drops no label.
    - Assumed: the start is the base model that the harness evaluates, and the result the last weights (no average).
"""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval

from unlearnbench import Context, Term, method


def bargaining(g_r, g_u, bargain: str):
    """Return alpha_r and alpha_u, scalars, for flat gradients (P,)."""
    r, u, product = torch.dot(g_r, g_r), torch.dot(g_u, g_u), torch.dot(g_r, g_u)
    both = torch.sqrt(r * u)
    if bargain == "exact":
        shared = (1 + product / both.clamp(min=1e-30)).clamp(min=1e-6).rsqrt()
        return shared / r.clamp(min=1e-30).sqrt(), shared / u.clamp(min=1e-30).sqrt()
    alpha_r = torch.sqrt((r * u - product * both) / (r * r * u - r * product * product + 1e-8))
    alpha_u = (1 - r * alpha_r * alpha_r) / (product * alpha_r + 1e-8)
    agreed = (alpha_r > 0) & (alpha_u > 0)  # not where one is NaN
    return torch.where(agreed, alpha_r, 1.0), torch.where(agreed, alpha_u, 0.5)


@method(
    title="MUNBa",
    paper="2411.15537",
    streams=("forget", "retain"),
    search={
        "lr": (2e-4, 4e-3),
        "batch": [32, 64],
        "train": ["condition", "all"],
        "bargain": ["code", "exact"],
        "l1": [0.0, 1e-4],
        "label_dropout": [0.0, 0.1],
    },
    tuned={
        "digits": {"steps": 75, "batch": 32, "lr": 5e-4, "bargain": "exact", "l1": 0.0, "label_dropout": 0.1},
        "smoke": {"steps": 75, "batch": 32, "lr": 5e-4, "bargain": "exact", "l1": 0.0, "label_dropout": 0.1},
    },
)
def munba(
    ctx: Context,
    *,
    steps: Annotated[int, Ge(1)] = 482,  # optimiser steps (code: 2 epochs of 963 forget images)
    batch: Annotated[int, Ge(1)] = 4,  # images of each kind per step (code)
    lr: Annotated[float, Gt(0)] = 1e-5,  # Adam (code)
    beta: Annotated[float, Gt(0)] = 1.0,  # factor of L_u before the bargaining (code)
    bargain: Literal["code", "exact"] = "code",  # its solution, with the 1e-8 or without (code)
    l1: Annotated[float, Ge(0)] = 1e-4,  # weight of the L1 norm of the weights, at the start (code: its commands)
    train: Literal["condition", "all"] = "condition",  # weights that move (code: xattn)
    label_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.0,  # share of retained labels dropped (code)
    clip: Annotated[float, Gt(0)] = 1.0,  # global gradient norm, the penalty's included (code)
):
    part = ctx.part(train)
    for name, parameter in ctx.model.named_parameters():
        parameter.requires_grad_(name in part)
    moving = [parameter for parameter in ctx.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(moving, lr=lr, fused=True)
    gone = ctx.forget_classes
    anchors = torch.tensor([ctx.anchor(c) if c in gone else c for c in range(ctx.num_classes)])
    anchors = anchors.to(ctx.generator.device)

    for step in ctx.steps(steps):
        retain = replace(ctx.eps_term(*ctx.retain.draw(batch), label_dropout=label_dropout), pixels="mean")
        x0, y = ctx.forget.draw(batch)
        t = ctx.timesteps(batch)
        x_t = ctx.schedule.add_noise(x0, ctx.noise_like(x0), t)
        with torch.no_grad():
            target = ctx.predict(x_t, t, anchors[y])
        losses, gradients = [], []
        for term, weight in ((retain, 1.0), (Term(x_t, t, y, target, pixels="mean"), beta)):
            loss = weight * term.loss(ctx.predict(term.x_t, term.t, term.y))
            gradients.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, moving)]))  # frees its graph
            losses.append(loss)
        alpha_r, alpha_u = bargaining(*gradients, bargain)
        agreed = (alpha_r * gradients[0] + alpha_u * gradients[1]).split([p.numel() for p in moving])
        for parameter, gradient in zip(moving, agreed, strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(gradient.view_as(parameter))  # in its memory layout
            parameter.grad.add_(parameter.detach().sign(), alpha=l1 * (1 - step / steps))
        torch.nn.utils.clip_grad_norm_(moving, clip)
        optimizer.step()
        ctx.log(retain_loss=losses[0], forget_loss=losses[1], alpha_r=alpha_r, alpha_u=alpha_u)
