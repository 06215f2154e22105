"""EraseDiff: unlearning as a bi-level problem.

Erasing Undesirable Influence in Diffusion Models (first: EraseDiff: Erasing Data Influence in Diffusion Models).
Jing Wu, Trung Le, Munawar Hayat, Mehrtash Harandi. arXiv:2401.05779, CVPR 2025.

    min L_eps(x_r, c_r) subject to q = L_forget(theta) - min over phi of L_forget(phi) <= 0
    inner loop: phi from theta, `inner_steps` of descent on L_forget; then back to theta
    outer step: descend L_eps(x_r, c_r) + lambda (L_forget(theta) - mean inner loss)
    adaptive:   lambda = max(0, eta - <g_r, g_f> / ||g_f||^2), g being the gradients of the two losses (as in BOME)
    L_forget = mean (target - eps_theta(x_t, c_f))^2, target one of
        random_class:  sg[eps_theta(x_t, c')], c' one random retained class per batch
        uniform_noise: u, uniform in [0, 1)

Both losses are means over pixels and images, L_eps too (code: `F.mse_loss`, `MSELoss`). It matters: one Adam takes
the inner steps unclipped and the outer ones clipped to norm 1, so that a scale of the losses changes their shares in
its moments.

The inner loss is a constant to the outer gradient: with a first-order method the inner loop moves a weight only through
the moments of Adam that it leaves behind (`keep_moments`), and otherwise only says how far q is from 0.

Deviations:
    - "Code" is JingWu321/EraseDiff at 14f4e98, which cannot run: its README's mode is unknown to it, and its forget
      loss has no criterion (elsewhere in the file: `MSELoss`). `uniform_noise` is the target of the version before
      (dfc5b21). There the uniform noise was also added to the images, whose labels were kept and whose t was their
      own; here x_t has Gaussian noise, and `forget_dropout=0` with `share_t=false` does the rest.
    - c' is a retained class, whichever are forgotten (code: 1 to 9, so class 0 must be the forget class).
    - The target of `random_class` is computed without a graph (code: builds and discards one); as in the code, it comes
      from the model being trained, in train mode.
    - The adaptive lambda divides by ||g_f||^2, as in BOME; the code divides by both norms, a cosine.
    - `keep_moments=false` gives each inner loop an Adam of its own (code: weights go back, moments stay).
    - The mean inner loss is that of the whole inner loop (code: of its last epoch); it is only logged, as `gap`.
    - In an outer step one backward pass per term, so that one graph lives at a time (code: one for both, over two
      graphs); `passes=joint` sends both kinds of images through the network as one batch. The adaptive lambda needs the
      gradients apart and always takes two passes.
    - `steps` counts outer steps. An inner loop comes before every `round_steps` of them, its steps unclipped (code).
    - `ema=0` takes the last weights. The average starts from the base model, whose weights are averaged already.
    - Horizontal flips are fresh at every draw; every batch is full, across epochs.
"""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval

from unlearnbench import Context, Ema, Term, backward, method, predict_noise


def draw_forget_term(ctx: Context, t, forget_target: str, dropout: float):
    """Return L_forget on fresh forget images, one per timestep (B,): a mean over pixels and images."""
    x0, y = ctx.forget.draw(len(t))
    x_t = ctx.schedule.add_noise(x0, ctx.noise_like(x0), t)
    y = ctx.drop_labels(y, dropout)
    if forget_target == "random_class":
        retained = torch.tensor(ctx.retained_classes, device=y.device)
        chosen = torch.randint(len(retained), (1,), generator=ctx.generator, device=y.device)
        pseudo = ctx.drop_labels(retained[chosen].expand(len(t)), dropout)
        with torch.no_grad():
            target = predict_noise(ctx.model, x_t, t, pseudo)
    else:
        target = torch.empty_like(x0).uniform_(generator=ctx.generator)
    return Term(x_t, t, y, target, pixels="mean")


def adaptive_penalty(g_r, g_f, eta: float):
    """Return lambda, a scalar, for the gradients: the least one with which a step lowers both losses enough."""
    product = sum((a * b).sum() for a, b in zip(g_r, g_f, strict=True))
    return (eta - product / sum(b.square().sum() for b in g_f)).clamp(min=0)


def adaptive_backward(model, retain: Term, forget: Term, eta: float):
    """Fill the gradients as `backward` does, lambda being the adaptive one, and return both losses, scalars."""
    parameters, losses, gradients = list(model.parameters()), [], []
    for term in (retain, forget):
        loss = term.loss(predict_noise(model, term.x_t, term.t, term.y))
        gradients.append(torch.autograd.grad(loss, parameters))
        losses.append(loss.detach())
    weight = adaptive_penalty(*gradients, eta)
    for parameter, g_r, g_f in zip(parameters, *gradients, strict=True):
        parameter.grad = torch.empty_like(parameter).copy_(g_r + weight * g_f)  # in its memory layout
    return losses


@method(
    title="EraseDiff",
    paper="2401.05779",
    streams=("forget", "retain"),
    tuned={
        "digits": {
            "steps": 120,
            "round_steps": 30,
            "inner_steps": 5,
            "batch": 48,
            "lr": 2.5e-4,
            "penalty": 0.5,
            "ema": 0.0,
        },
        "smoke": {"steps": 100, "round_steps": 25, "inner_steps": 10, "batch": 32, "lr": 3e-4, "ema": 0.0},
    },
    search={
        "lr": (1e-4, 2e-3),
        "batch": [32, 64],
        "penalty": (0.05, 5.0),
        "round_steps": (10, 40),
        "inner_steps": (1, 10),
        "ema": [0.0, 0.9],
    },
)
def erasediff(
    ctx: Context,
    *,
    steps: Annotated[int, Ge(1)] = 288,  # outer optimiser steps (code: 4 x 2 rounds)
    round_steps: Annotated[int, Ge(1)] = 36,  # outer steps of one round (code: until 4,500 retained images)
    inner_steps: Annotated[int, Ge(0)] = 80,  # inner steps before each round (code: 2 epochs of 5,000 images)
    batch: Annotated[int, Ge(1)] = 128,  # images of each kind per step (code)
    lr: Annotated[float, Gt(0)] = 1e-4,  # Adam, of both kinds of step (code)
    forget_target: Literal["random_class", "uniform_noise"] = "random_class",  # what replaces the noise (code)
    weighting: Literal["fixed", "adaptive"] = "fixed",  # of the forget loss (code)
    penalty: Annotated[float, Ge(0)] = 0.1,  # lambda, where fixed (code)
    eta: Annotated[float, Ge(0)] = 0.1,  # of the adaptive lambda (code)
    keep_moments: bool = True,  # Adam's moments outlive the inner loop (code)
    label_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.0,  # share of retained labels dropped (code)
    forget_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.1,  # of forget labels, apart for c_f and c' (code)
    share_t: bool = True,  # in outer steps the forget images take the retained images' t (code)
    ema: Annotated[float, Interval(ge=0, lt=1)] = 0.99,  # decay of the averaged weights; 0: the last ones (code)
    clip: Annotated[float, Gt(0)] = 1.0,  # global gradient norm of an outer step (code)
    passes: Literal[
        "separate", "joint"
    ] = "separate",  # both terms one after the other, or as one batch (code: neither)
):
    parameters = list(ctx.model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
    average = Ema(ctx.model, ema, warm_up=False) if ema else None
    inner_loss = 0.0
    for step in ctx.steps(steps):
        if step % round_steps == 0 and inner_steps:
            start = [parameter.detach().clone() for parameter in parameters]
            inner = optimizer if keep_moments else torch.optim.Adam(parameters, lr=lr, fused=True)
            inner_loss = 0.0
            for _ in range(inner_steps):
                term = draw_forget_term(ctx, ctx.timesteps(batch), forget_target, forget_dropout)
                inner.zero_grad()
                (loss,) = backward(ctx.model, [term], [1])
                inner.step()
                inner_loss = inner_loss + loss / inner_steps
            with torch.no_grad():
                for parameter, value in zip(parameters, start, strict=True):
                    parameter.copy_(value)
        retain = replace(ctx.eps_term(*ctx.retain.draw(batch), label_dropout=label_dropout), pixels="mean")
        t = retain.t if share_t else ctx.timesteps(batch)
        forget = draw_forget_term(ctx, t, forget_target, forget_dropout)
        optimizer.zero_grad()
        if weighting == "adaptive":
            retain_loss, forget_loss = adaptive_backward(ctx.model, retain, forget, eta)
        else:
            retain_loss, forget_loss = backward(ctx.model, [retain, forget], [1, penalty], passes=passes)
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        if average:
            average.update(ctx.model)
        ctx.log(forget_loss=forget_loss, retain_loss=retain_loss, gap=forget_loss - inner_loss)
    if average:
        average.copy_to(ctx.model)
