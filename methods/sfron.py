"""SFRon: saliency forgetting in the remain-preserving manifold, online.

Unified Gradient-Based Machine Unlearning with Remain Geometry Enhancement.
Zhehao Huang, Xinwen Cheng, JingHao Zheng, Haoran Wang, Zhengbao He, Tao Li, Xiaolin Huang. arXiv:2409.19732,
NeurIPS 2024.

    forget step: descend -alpha(s) sum_b w_b l_b, w_b ~ 1 / (l_b^adaptivity + 1e-8), sum_b w_b = 1, its gradient masked
    retain step: descend L_eps(x_r, c_r), all weights
    alpha(s) = alpha (1 + cos(pi s / S)) / 2,   mask = (F_forget + 1e-15) / (F_retain + 1e-15) >= mask_threshold

l_b is L_eps of one forget image, without gradient in w_b; F are squared batch gradients, averaged over the batches of
the forget and of the retained images. The retain steps are how the paper stays on the manifold without its Hessian.

Deviations:
    - The Fishers are the code's: of the guided prediction with w = 2, in eval mode, batch gradients clipped to norm 1
      before they are squared (the paper's is of single images; not checked).
    - `steps` counts pairs of a forget and a retain step (as the code's iterations do), so there are twice as many
      optimiser steps.
    - One Adam takes both kinds of step (code), so in a forget step weights outside the mask move on by its moments.
    - `adaptivity=0` weighs all images alike: plain ascent, the code's `ga`. Its third one, SalUn's, is not here.
    - No average of the weights: the code's keeps 0.01 % of the past at each step, so it is the last weights.
    - Horizontal flips are fresh at every draw; every batch is full, across epochs (but for the Fishers' last one).
    - The start is the base model that the harness evaluates, its averaged weights (code: raw weights).
    - Not here: the code's `joint` variant, whose mask never acts.
"""

import math
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval

from unlearnbench import Context, eps_loss, method, predict_noise


def fisher(ctx: Context, *, stream: str, guidance: float, batch: int):
    """Return {parameter name: mean squared batch gradient} on a stream. The model is in eval mode."""
    parameters = dict(ctx.model.named_parameters())
    total = [torch.zeros_like(parameter) for parameter in parameters.values()]
    batches = 0
    for x0, y in (ctx.forget if stream == "forget" else ctx.retain).epoch(batch):
        t, eps = ctx.timesteps(len(x0)), ctx.noise_like(x0)
        x_t = ctx.schedule.add_noise(x0, eps, t)
        null = predict_noise(ctx.model, x_t, t, torch.full_like(y, ctx.null_class))
        prediction = (1 + guidance) * predict_noise(ctx.model, x_t, t, y) - guidance * null
        ctx.model.zero_grad()
        (eps - prediction).square().flatten(1).sum(dim=1).mean().backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        gradients = [parameter.grad for parameter in parameters.values()]
        torch._foreach_add_(total, torch._foreach_mul(gradients, gradients))
        batches += 1
    return {name: squares / batches for name, squares in zip(parameters, total, strict=True)}


@method(
    title="SFRon",
    paper="2409.19732",
    streams=("forget", "retain"),
    tuned={
        "digits": {"steps": 60, "batch": 48, "lr": 2.5e-4, "alpha": 10.0},
        "smoke": {"steps": 50, "batch": 32, "lr": 3e-4},
    },
    search={
        "lr": (1e-4, 2e-3),
        "batch": [32, 64],
        "alpha": (1.0, 100.0),
    },
)
def sfron(
    ctx: Context,
    *,
    steps: Annotated[int, Ge(1)] = 150,  # pairs of a forget and a retain step (code)
    batch: Annotated[int, Ge(1)] = 128,  # images per step (code)
    lr: Annotated[float, Gt(0)] = 1e-4,  # Adam (code)
    alpha: Annotated[float, Ge(0)] = 10.0,  # weight of the forget loss at the start of the cosine (code's README)
    adaptivity: Annotated[float, Ge(0)] = 0.5,  # lambda, the exponent of an image's loss in its weight (code)
    mask_threshold: Annotated[float, Ge(0)] = 1.0,  # ratio of Fishers from which on a weight may forget (code)
    fisher_guidance: Annotated[float, Ge(0)] = 2.0,  # w of the Fishers' loss (code)
    label_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.1,  # share of labels of both kinds dropped (code)
    clip: Annotated[float, Gt(0)] = 1.0,  # global gradient norm, after masking (code)
):
    options = {"guidance": fisher_guidance, "batch": batch}
    forget_fisher = ctx.prior("fisher_forget", fisher, stream="forget", **options)
    retain_fisher = ctx.prior("fisher_retain", fisher, stream="retain", **options)
    parameters = list(ctx.model.parameters())
    ratios = [(forget_fisher[k] + 1e-15) / (retain_fisher[k] + 1e-15) for k, _ in ctx.model.named_parameters()]
    moves = [(ratio >= mask_threshold).to(ratio.dtype) for ratio in ratios]
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
    for step in ctx.steps(steps):
        x_f, y_f = ctx.forget.draw(batch)
        t, eps = ctx.timesteps(batch), ctx.noise_like(x_f)
        losses = eps_loss(ctx.model, ctx.schedule, x_f, ctx.drop_labels(y_f, label_dropout), t, eps)
        weights = 1 / (losses.detach() ** adaptivity + 1e-8)
        forget_loss = -(weights / weights.sum() * losses).sum()
        optimizer.zero_grad()
        (alpha * (1 + math.cos(math.pi * step / steps)) / 2 * forget_loss).backward()
        torch._foreach_mul_([parameter.grad for parameter in parameters], moves)
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        retain_loss = ctx.eps_loss(*ctx.retain.draw(batch), label_dropout=label_dropout)
        optimizer.zero_grad()
        retain_loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        ctx.log(forget_loss=forget_loss, retain_loss=retain_loss)
