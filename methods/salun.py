"""SalUn: saliency unlearning.

Empowering Machine Unlearning via Gradient-based Weight Saliency in Both Image Classification and Generation.
Chongyu Fan, Jiancheng Liu, Yihua Zhang, Eric Wong, Dennis Wei, Sijia Liu. arXiv:2310.12508, ICLR 2024.

    mask = top `mask_ratio` of |sum over batches of the loss gradient on forget images|, over all weights at once
    L    = mean (eps_theta(x_t, c_f) - sg[eps_theta(x_t, c')])^2 + alpha L_eps(x_r, c_r),   masked weights only
    or, with `forget_loss="ga"`,   L = -L_eps(x_f, c_f) + alpha L_eps(x_r, c_r)

The first term is a mean over pixels, the second a sum over them (as in the code), so that alpha = 1e-3 at 3,072 pixels
weighs 3.07 on the scale of mean squared errors. With "ga" both terms are sums: there alpha = 1 weighs them alike.

Deviations:
    - The mask is boolean and stays on the device (code: int64 on the CPU, copied at each step).
    - `mask_loss="guided"` is the code's: guided prediction with w = 2 and batch gradients clipped to norm 1 before they
      are added; `"plain"` is the training loss, unclipped, as the paper's formula reads.
    - Ties at the mask's threshold are all kept out (code: broken by an unstable sort).
    - The target is computed without a graph, with the labels as they are (code: builds and discards a graph, and drops
      10 % of the labels of source and target independently); `source_dropout=0.1` brings back that of the source,
      nothing that of the target. As in the code, it comes from the model being trained, in train mode.
    - c' is the `pseudo_offset`-th retained class after c_f, or before it if negative, cyclically (code: (c_f + 1) mod
      10, which is the first one where a single class is forgotten).
    - `clip_then_mask` is the code's order; off, the norm is taken over unmasked weights only.
    - Horizontal flips are fresh at every draw; the code freezes them once.
    - Every batch is full, across epochs (code: each epoch ends with a short batch; so does the mask's pass, here too).
    - One backward pass per term, so that one graph lives at a time (code: one for both, over two graphs);
      `passes=joint` sends forget and retained images through the network as one batch.
    - The start is the base model that the harness evaluates, its averaged weights (code: raw weights). The result is
      the last weights: no average (EMA), as in the code.
    - Not here: the code's run without a mask (`mask_ratio=1` lets every weight move).
"""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval

from unlearnbench import Context, backward, method, predict_noise


def saliency_mask(ctx: Context, *, mask_ratio: float, mask_loss: str, guidance: float, batch: int):
    """Return {parameter name: boolean mask}; True where the weight may move. The model is in eval mode."""
    parameters = dict(ctx.model.named_parameters())
    total = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    for x0, y in ctx.forget.epoch(batch):
        t, eps = ctx.timesteps(len(x0)), ctx.noise_like(x0)
        x_t = ctx.schedule.add_noise(x0, eps, t)
        prediction = predict_noise(ctx.model, x_t, t, y)
        if mask_loss == "guided":
            null = predict_noise(ctx.model, x_t, t, torch.full_like(y, ctx.null_class))
            prediction = (1 + guidance) * prediction - guidance * null
        ctx.model.zero_grad()
        (eps - prediction).square().flatten(1).sum(dim=1).mean().backward()
        if mask_loss == "guided":
            torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        for name, parameter in parameters.items():
            if parameter.grad is not None:
                total[name] += parameter.grad
    saliency = torch.cat([gradient.abs().flatten() for gradient in total.values()])
    kept = round(mask_ratio * len(saliency))
    if kept == len(saliency):
        return {name: torch.ones_like(gradient, dtype=torch.bool) for name, gradient in total.items()}
    threshold = saliency.kthvalue(len(saliency) - kept).values  # the largest one that is left out
    return {name: gradient.abs() > threshold for name, gradient in total.items()}


def pseudo_classes(ctx: Context, offset: int):
    """Return (K,) labels: c' at each forget class; a retained class stands for itself.

    Raises:
        ValueError: there are fewer retained classes than that.
    """
    classes, retained = range(ctx.num_classes), ctx.retained_classes
    if not 1 <= abs(offset) <= len(retained):
        raise ValueError(f"pseudo_offset {offset} names none of the {len(retained)} retained classes: choose another")
    pseudo = list(classes)
    for c_f in ctx.forget_classes:
        after = [c for c in (*classes[c_f + 1 :], *classes[:c_f]) if c in retained]
        pseudo[c_f] = after[offset - 1 if offset > 0 else offset]
    return torch.tensor(pseudo, device=ctx.generator.device)


@method(
    title="SalUn",
    paper="2310.12508",
    streams=("forget", "retain"),
    groups=("paper",),
    tuned={
        "digits": {"steps": 120, "batch": 48, "lr": 2.5e-4, "alpha": 0.06},
        "smoke": {"steps": 100, "batch": 32, "lr": 3e-4},
    },
    search={
        "lr": (1e-4, 2e-3),
        "batch": [32, 64],
        "alpha": (3e-3, 0.3),
        "mask_ratio": (0.1, 1.0, "uniform"),
    },
)
def salun(
    ctx: Context,
    *,
    steps: Annotated[int, Ge(1)] = 1000,  # optimiser steps (code)
    batch: Annotated[int, Ge(1)] = 128,  # images of each kind per step (code)
    lr: Annotated[float, Gt(0)] = 1e-4,  # Adam (code)
    forget_loss: Literal["next_class", "ga"] = "next_class",  # the noise of c', or gradient ascent (code: rl, ga)
    alpha: Annotated[float, Ge(0)] = 1e-3,  # weight of the summed retain loss against the mean forget loss (README)
    mask_ratio: Annotated[float, Interval(gt=0, le=1)] = 0.5,  # share of weights that may move (code)
    mask_loss: Literal["guided", "plain"] = "guided",  # loss whose gradient is the saliency (code: guided)
    mask_guidance: Annotated[float, Ge(0)] = 2.0,  # w of the guided mask loss (code)
    pseudo_offset: int = 1,  # which retained class after c_f is c' (code)
    label_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.1,  # share of retained labels dropped (code)
    source_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.0,  # share of forget labels dropped (code: 0.1)
    clip: Annotated[float, Gt(0)] = 1.0,  # global gradient norm (code)
    clip_then_mask: bool = True,  # the code's order
    passes: Literal[
        "separate", "joint"
    ] = "separate",  # both terms one after the other, or as one batch (code: neither)
):
    pseudo = pseudo_classes(ctx, pseudo_offset)
    mask = ctx.prior(
        "mask", saliency_mask, mask_ratio=mask_ratio, mask_loss=mask_loss, guidance=mask_guidance, batch=batch
    )
    parameters = list(ctx.model.parameters())
    moves = [mask[name].to(parameter.dtype) for name, parameter in ctx.model.named_parameters()]
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
    for _ in ctx.steps(steps):
        (x_f, y_f), (x_r, y_r) = ctx.forget.draw(batch), ctx.retain.draw(batch)
        forget = ctx.eps_term(x_f, y_f, label_dropout=source_dropout)
        retain = ctx.eps_term(x_r, y_r, label_dropout=label_dropout)
        if forget_loss == "next_class":
            with torch.no_grad():
                target = predict_noise(ctx.model, forget.x_t, forget.t, pseudo[y_f])
            forget = replace(forget, target=target, pixels="mean")
        optimizer.zero_grad()
        sign = -1 if forget_loss == "ga" else 1
        lose, keep = backward(ctx.model, [forget, retain], [sign, alpha], passes=passes)
        if clip_then_mask:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        torch._foreach_mul_([parameter.grad for parameter in parameters], moves)
        if not clip_then_mask:
            torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        ctx.log(forget_loss=sign * lose, retain_loss=keep)
