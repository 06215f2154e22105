"""LoTUS, adapted: a teacher's answer for the forget class is softened by a temperature.

LoTUS: Large-Scale Machine Unlearning with a Taste of Uncertainty.
Christoforos N. Spartalis, Theodoros Semertzidis, Efstratios Gavves, Petros Daras. arXiv:2503.18314, CVPR 2025.

    L   = mean (target - eps_theta(x_t, c_f))^2 + retain_weight mean (eps_0(x_t', c_r) - eps_theta(x_t', c_r))^2
    target = eps_0(x_t, null) + (eps_0(x_t, c_f) - eps_0(x_t, null)) / tau,   tau = exp(alpha max(0, gap))
    gap = a_forget - a_unseen

eps_0 is the base model, the teacher. a is an accuracy, the share of images whose noise is predicted better with the
label c_f than by the teacher without a label: a_forget of forget images and the model being trained, measured before
every `round_steps` steps, a_unseen of retained images and the teacher, measured once. The more the model still knows
of the class, the softer its next target; once a later gap is -0.01 or less, unlearning ends. At best the class is drawn
as if no label were given, so that a few samples still show it.

Deviations:
    - **An adaptation, ours.** Paper and code (cspartalis/LoTUS at 35ae25e, `src/unlearning_methods/lotus_class.py`) are
      about classifiers, which are trained on the teacher's softmax at temperature tau. Here the classifier is the one
      inside a conditional denoiser: eps_0(x_t, c) - eps_0(x_t, null) is -sqrt(1 - abar_t) times the gradient of
      log p(c | x_t), so that dividing it by tau is the temperature, p(c | x_t)^(1 / tau), without its normalisation. At
      tau = 1 the target is the teacher's own answer, at a high one its average over all classes, the null class.
    - As in the code: tau, its alpha = 32 for classes, the end at -0.01, the teacher, AdamW and its settings, accuracies
      in eval mode. For classes the code sets a_unseen to 0, which its accuracy reaches; this one, of two answers, is
      near 1/2 for a model that ignores the label, so a_unseen is measured (code for single images: the teacher's
      accuracy on validation images). The first gap ends nothing, and no gap sharpens a target (code: both may).
    - Accuracies come from `images` images, with t and noise of their own (code: all forget images, once per epoch).
    - The code sharpens the teacher's answer on retained images to one class; here it stays as it is. Its targets are
      drawn with Gumbel noise unless told otherwise; here they are not.
    - Each step has as many forget as retained images, and `retain_weight` stands for the code's mixture: all forget
      images and 30 % of the retained ones, 2.7 to 1 with ten classes. `steps` are ten epochs of 5,000 forget images.
    - Cross-entropy becomes a squared error, a mean over pixels and images. It is unclipped, as in the code.
    - `label_dropout` keeps the null class, which guidance needs (code: no labels).
    - One backward pass per term, so that one graph lives at a time (code: one for both, as `passes=joint`).
    - Assumed: the start is the base model that the harness evaluates, and the result the last weights (no average).
"""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval

from unlearnbench import Context, Term, backward, method, predict_noise


@torch.no_grad()
def accuracy(ctx: Context, model, x0, y):
    """Return the share of images x0 whose noise `model` predicts better as y (B,) than the base without a label."""
    t, eps = ctx.timesteps(len(x0)), ctx.noise_like(x0)
    x_t = ctx.schedule.add_noise(x0, eps, t)
    labelled = (eps - predict_noise(model, x_t, t, y)).square().flatten(1).sum(dim=1)
    null = (eps - predict_noise(ctx.base, x_t, t, torch.full_like(y, ctx.null_class))).square().flatten(1).sum(dim=1)
    return (labelled < null).to(x0.dtype).mean()


def unseen(ctx: Context, *, images: int):
    """Return the accuracy of the base model on retained images that are labelled as forget classes."""
    x0, y = ctx.retain.draw(images)
    gone = torch.tensor([ctx.forget_classes[k % len(ctx.forget_classes)] for k in range(images)])
    return {"accuracy": accuracy(ctx, ctx.base, x0, gone.to(y.device))}


@method(
    title="LoTUS, adapted",
    paper="2503.18314",
    streams=("forget", "retain"),
    search={
        "lr": (1e-4, 2e-3),
        "batch": [32, 64],
        "alpha": (1.0, 32.0),
        "retain_weight": (0.3, 10.0),
        "round_steps": (5, 40),
        "images": [100, 200],
    },
    tuned={
        "digits": {"steps": 80, "batch": 16, "lr": 1e-3, "round_steps": 20, "images": 200},
        "smoke": {"steps": 50, "batch": 32, "lr": 5e-4, "round_steps": 10, "images": 100},
    },
)
def lotus(
    ctx: Context,
    *,
    steps: Annotated[int, Ge(1)] = 391,  # optimiser steps, at most (code: 10 epochs)
    batch: Annotated[int, Ge(1)] = 128,  # images of each kind per step (code: of both together)
    lr: Annotated[float, Gt(0)] = 1e-4,  # AdamW (code)
    weight_decay: Annotated[float, Ge(0)] = 5e-4,  # of AdamW (code)
    alpha: Annotated[float, Ge(0)] = 32.0,  # of the temperature (code: its script for classes)
    retain_weight: Annotated[float, Ge(0)] = 2.7,  # of the retained images (code: their share)
    round_steps: Annotated[int, Ge(1)] = 39,  # steps between two measurements of a_forget (code: an epoch)
    images: Annotated[int, Ge(1)] = 500,  # of each measurement of an accuracy (chosen)
    label_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.1,  # share of retained labels dropped (as in training)
    passes: Literal["separate", "joint"] = "separate",  # both terms one after the other, or as one batch (code: joint)
):
    a_unseen = ctx.prior("unseen", unseen, images=images)["accuracy"]
    optimizer = torch.optim.AdamW(ctx.model.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    for step in ctx.steps(steps):
        if step % round_steps == 0:
            ctx.model.eval()
            gap = accuracy(ctx, ctx.model, *ctx.forget.draw(images)) - a_unseen
            ctx.model.train()
            if step and gap <= -0.01:
                break
            tau = torch.exp(alpha * gap.clamp(min=0))
        x0, y = ctx.forget.draw(batch)
        t = ctx.timesteps(batch)
        x_t = ctx.schedule.add_noise(x0, ctx.noise_like(x0), t)
        retain = ctx.eps_term(*ctx.retain.draw(batch), label_dropout=label_dropout)
        with torch.no_grad():
            own, null = (predict_noise(ctx.base, x_t, t, c) for c in (y, torch.full_like(y, ctx.null_class)))
            kept = predict_noise(ctx.base, retain.x_t, retain.t, retain.y)
        terms = [
            Term(x_t, t, y, null + (own - null) / tau, pixels="mean"),
            Term(retain.x_t, retain.t, retain.y, kept, pixels="mean"),
        ]
        optimizer.zero_grad()
        forget_loss, retain_loss = backward(ctx.model, terms, [1.0, retain_weight], passes=passes)
        optimizer.step()
        ctx.log(forget_loss=forget_loss, retain_loss=retain_loss, gap=gap)
