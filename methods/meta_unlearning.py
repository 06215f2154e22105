"""Meta-unlearning: unlearning that resists being undone.

Meta-Unlearning on Diffusion Models: Preventing Relearning Unlearned Concepts.
Hongcheng Gao, Tianyu Pang, Chao Du, Taihang Hu, Zhijie Deng, Min Lin. arXiv:2410.12777, ICCV 2025.

    L = L_forget(theta) + alpha L_eps(x_r, c_r; theta)
        - meta_forget L_eps(x_f, c_f; theta') - meta_retain L_eps(x_r, c_r; theta')
    theta'   = theta after `attack_steps` of Adam on L_eps(x_f, c_f), the attack; d theta' / d theta is taken to be 1
    L_forget = ||eps_0(x_t, null) - eta (eps_0(x_t, c_f) - eps_0(x_t, null)) - eps_theta(x_t, c_f)||^2

Fine-tuning the model on the forgotten class should not recover it, and should damage the other classes. eps_0 is the
base model, and L_forget that of ESD (arXiv:2303.07345), one of the methods that the paper builds on.

Chosen among recent methods because, of those considered, only it is trained against relearning; it wraps any forget
loss and so needs neither text encoder nor cross-attention.

Deviations:
    - "Code" is sail-sg/Meta-Unlearning at 5a2a760, `src/esd_meta.py` as `scripts/esd_meta.sh` starts it: for Stable
      Diffusion, on generated images of three kinds, harmful, related and benign. Here the forget images are the first
      kind, the retained ones stand for both others.
    - **The weights are ours, and the row measures them.** At theta: retain weight 1 (code: 0.1 on related and 0.01 on
      benign images). At theta': 0.1 and 0.01 (the script sets the harmful weight three times, to 0.1, 0.1 and 0.01, and
      the other two never; read here as 0.1 for harmful, 0.1 for related and 0.01 for benign images. As it runs: 0.01, 1
      and 1). Weights near the code's ruin digits: FID 11.7 and 26.7 on two classes, where ours have 1.6 and 3.3.
    - All terms are sums over pixels, averaged over a batch (code: means over pixels, and the meta terms summed over the
      batches of a whole set). The sum scales all terms alike, so only the clipping sees it.
    - eta = 1, as in ESD (code: `concept_scale` 3, which is eta = 3 in this formula).
    - The code's attack is one epoch of its harmful images at the unlearning's learning rate, with AdamW, each
      step clipped to norm 1; here `attack_steps` unclipped batches at `attack_lr`. Its moments start at 0 each time.
    - First order, as in the code: the gradients at theta' are added to those at theta.
    - t is uniform in all terms, as in the code (only its other script, `meta.sh`, fixes t = 1, 2, 5, 10).
    - Adam (code: AdamW, weight decay 1e-4). The code drops no label; label dropout 0.1 for retained images at theta
      keeps the null class, which guidance needs.
    - x_t are noised real forget images (ESD, and the code: samples taken half-way).
    - One backward pass per term, so that one graph lives at a time; `passes=joint` sends the two terms at theta through
      the network as one batch, and the two at theta' as another.
    - Not here: the code's other way, meta terms alone on a model that is unlearned already (`meta.sh`, 100 steps).
"""

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval

from unlearnbench import Context, Term, backward, method, predict_noise


def esd_term(ctx: Context, x0, y, eta: float):
    """Return L_forget, summed over pixels, averaged over the batch (B,) of labels, as a term."""
    t, eps = ctx.timesteps(len(x0)), ctx.noise_like(x0)
    x_t = ctx.schedule.add_noise(x0, eps, t)
    with torch.no_grad():
        null = predict_noise(ctx.base, x_t, t, torch.full_like(y, ctx.null_class))
        target = null - eta * (predict_noise(ctx.base, x_t, t, y) - null)
    return Term(x_t, t, y, target)


@method(
    title="Meta-Unlearning",
    paper="2410.12777",
    streams=("forget", "retain"),
    tuned={
        "digits": {"steps": 40, "batch": 48, "lr": 5e-4, "attack_lr": 5e-4, "alpha": 3.0},
        "smoke": {"steps": 50, "batch": 32, "lr": 3e-4, "attack_lr": 3e-4},
    },
    search={
        "lr": (1e-4, 2e-3),
        "batch": [32, 64],
        "attack_lr": (1e-4, 2e-3),
        "alpha": (0.1, 10.0),
    },
)
def meta_unlearning(
    ctx: Context,
    *,
    steps: Annotated[int, Ge(1)] = 1000,  # optimiser steps (chosen: SalUn's; code: 1500)
    batch: Annotated[int, Ge(1)] = 128,  # images of each kind per step (chosen: SalUn's; code: 10)
    lr: Annotated[float, Gt(0)] = 1e-4,  # Adam (chosen: SalUn's; code: 1e-5 for Stable Diffusion)
    eta: Annotated[float, Ge(0)] = 1.0,  # how far the target lies beyond the unconditional noise (ESD; code: 3)
    alpha: Annotated[float, Ge(0)] = 1.0,  # weight of the retain loss (chosen; code: related 0.1, benign 0.01)
    meta_forget: Annotated[float, Ge(0)] = 0.1,  # weight of the forget class after the attack (code; really 0.01)
    meta_retain: Annotated[float, Ge(0)] = 0.01,  # weight of the retained classes after the attack (code; really 1)
    attack_steps: Annotated[int, Ge(0)] = 1,  # steps of the attack (chosen; code: one epoch, clipped)
    attack_lr: Annotated[float, Gt(0)] = 1e-4,  # Adam, of the attack (code: that of the unlearning)
    label_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.1,  # share of retained labels dropped (chosen; code: 0)
    clip: Annotated[float, Gt(0)] = 1.0,  # global gradient norm, meta terms included (code)
    passes: Literal["separate", "joint"] = "separate",  # two terms one after the other, or as one batch (chosen)
):
    parameters = list(ctx.model.parameters())
    optimizer = torch.optim.Adam(parameters, lr=lr, fused=True)
    for _ in ctx.steps(steps):
        (x_f, y_f), (x_r, y_r) = ctx.forget.draw(batch), ctx.retain.draw(batch)
        terms = [esd_term(ctx, x_f, y_f, eta), ctx.eps_term(x_r, y_r, label_dropout=label_dropout)]
        optimizer.zero_grad()
        forget_loss, retain_loss = backward(ctx.model, terms, [1, alpha], passes=passes)
        gradients = [parameter.grad for parameter in parameters]
        start = [parameter.detach().clone() for parameter in parameters]
        attack = torch.optim.Adam(parameters, lr=attack_lr, fused=True)
        for _ in range(attack_steps):
            attack_loss = ctx.eps_loss(*ctx.forget.draw(batch))
            attack.zero_grad()
            attack_loss.backward()
            attack.step()
        terms = [ctx.eps_term(x_f, y_f), ctx.eps_term(x_r, y_r)]
        optimizer.zero_grad()
        relearned_loss, kept_loss = backward(ctx.model, terms, [-meta_forget, -meta_retain], passes=passes)
        with torch.no_grad():
            for parameter, value, gradient in zip(parameters, start, gradients, strict=True):
                parameter.copy_(value)
                parameter.grad += gradient
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        ctx.log(forget_loss=forget_loss, retain_loss=retain_loss, relearned_loss=relearned_loss, kept_loss=kept_loss)
