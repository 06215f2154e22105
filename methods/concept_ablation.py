"""Concept ablation: the concept is predicted as its anchor, another concept that takes its place.

Ablating Concepts in Text-to-Image Diffusion Models.
Nupur Kumari, Bingliang Zhang, Sheng-Yu Wang, Eli Shechtman, Richard Zhang, Jun-Yan Zhu. arXiv:2303.13516, ICCV 2023.

    L = mean (eps_theta(x_t, c_f) - sg[eps_theta(x_t, c_a)])^2 + prior_weight mean (eps - eps_theta(x_t', c_a))^2

x_t and x_t' are noised images of the anchor c_a, sampled from the base model: no real image is used. Both terms are
means over pixels and images. This is the paper's model-based variant; its second term is off unless asked for.

Deviations:
    - "Code" is nupurkmr9/concept-ablation at c11fb1b, its `diffusers/train.py` as the commands of its README start it
      for styles and objects. Where the second term is on, its weight is 1 (in `compvis/`, the older code: 0.2).
    - Prompts are those of the labels (code: captions of the anchor, the concept's name put into each of them). Images
      are not resized, padded or flipped (code: resized unless `--noaug`, with words for it in the prompt; its loss
      leaves out what is padded, and a border of one latent pixel).
    - Anchor images are sampled by the protocol's sampler (code: DPM-Solver, 25 steps, guidance 6), and drawn with
      replacement (code: in epochs), for both terms from the same ones.
    - Paper and code are about text-to-image models, where `train="condition"` trains the cross-attention. The code
      trains its keys and values, and blocks the gradient through those of a prompt's first token; here it passes. In a
      class-conditional model it trains the weights through which the class reaches the features.
    - `target="model"` is the code's, the model being trained, in train mode; `"base"` the frozen base model.
    - Each forget class has its own anchor, and `images` are shared among them (code: one anchor for all).
    - t is uniform, as in the code, but drawn in pairs t and T - 1 - t.
    - lr and batch are those of the code's two GPUs together, as `--scale_lr` makes them: 2e-6 times 4 times 2. The code
      doubles lr where the second term is on; here it stays.
    - One backward pass per term, so that one graph lives at a time (code: one batch of both, as `passes=joint`).
    - Assumed: the start is the base model that the harness evaluates, and the result the last weights (no average).
    - Not here: the noise-based variant (a caption's noise as the target) and the removal of memorised images.
"""

from dataclasses import replace
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt

from unlearnbench import Context, Term, backward, method, predict_noise


def anchor_images(ctx: Context, *, images: int):
    """Return x0 (N, C, H, W) of the anchors, sampled from the base model, and the labels y and anchor (N,) of each."""
    gone = ctx.forget_classes
    y = [gone[k % len(gone)] for k in range(images)]
    anchor = torch.tensor([ctx.anchor(c) for c in y])
    return {"x0": ctx.sample(anchor), "y": torch.tensor(y), "anchor": anchor}


@method(
    title="Concept ablation",
    paper="2303.13516",
    tuned={
        "digits": {"steps": 120, "batch": 48, "lr": 2e-4, "images": 200, "target": "base"},
        "digits-dit": {"lr": 5e-5},
        "smoke": {"steps": 100, "batch": 32, "lr": 3e-4, "images": 50},
    },
    search={
        "lr": (2e-4, 4e-3),
        "batch": [32, 64],
        "images": (20, 200),
        "target": ["model", "base"],
    },
)
def concept_ablation(
    ctx: Context,
    *,
    steps: Annotated[int, Ge(1)] = 100,  # optimiser steps (code: styles and objects)
    batch: Annotated[int, Ge(1)] = 8,  # anchor images of each term per step (code: 4 on each of two GPUs)
    lr: Annotated[float, Gt(0)] = 1.6e-5,  # AdamW (code: 2e-6 per image of the batch)
    weight_decay: Annotated[float, Ge(0)] = 0.01,  # of AdamW (code)
    images: Annotated[int, Ge(1)] = 1000,  # anchor images that are sampled (code)
    prior_weight: Annotated[float, Ge(0)] = 0.0,  # of the anchor's own noise loss (code: off, else 1)
    target: Literal["model", "base"] = "model",  # whose prediction for the anchor is the target (code: model)
    train: Literal["condition", "all"] = "condition",  # weights that move (code: cross-attn, full-weight)
    clip: Annotated[float, Gt(0)] = 1.0,  # global gradient norm (code)
    passes: Literal["separate", "joint"] = "separate",  # both terms one after the other, or as one batch (code: joint)
):
    prior = ctx.prior("anchors", anchor_images, images=images)
    part = ctx.part(train)
    for name, parameter in ctx.model.named_parameters():
        parameter.requires_grad_(name in part)
    moving = [parameter for parameter in ctx.model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(moving, lr=lr, weight_decay=weight_decay, fused=True)
    teacher = ctx.model if target == "model" else ctx.base

    for _ in ctx.steps(steps):
        chosen = torch.randint(images, (batch,), generator=ctx.generator, device=ctx.generator.device)
        x0, y, anchor = (prior[name][chosen] for name in ("x0", "y", "anchor"))
        t = ctx.timesteps(batch)
        x_t = ctx.schedule.add_noise(x0, ctx.noise_like(x0), t)
        with torch.no_grad():
            wanted = predict_noise(teacher, x_t, t, anchor)
        terms = [Term(x_t, t, y, wanted, pixels="mean")]
        if prior_weight:
            other = torch.randint(images, (batch,), generator=ctx.generator, device=ctx.generator.device)
            terms.append(replace(ctx.eps_term(prior["x0"][other], prior["anchor"][other]), pixels="mean"))
        optimizer.zero_grad()
        losses = backward(ctx.model, terms, [1.0, prior_weight][: len(terms)], passes=passes)
        torch.nn.utils.clip_grad_norm_(moving, clip)
        optimizer.step()
        ctx.log(**dict(zip(("forget_loss", "prior_loss")[: len(terms)], losses, strict=True)))
