"""SISS: subtracted importance-sampled scores.

Data Unlearning in Diffusion Models.
Silas Alberti, Kenan Hasanaliyev, Manav Shah, Stefano Ermon. arXiv:2503.01034, ICLR 2025.

    m   = sqrt(abar_t) x + sqrt(1 - abar_t) eps, x being x_f with probability lambda, else x_r
    L_x = w_x ||eps_x - eps_theta(m, c)||^2,   L_a = w_a ||eps_a - eps_theta(m, c)||^2
    g   = g_x - s g_a,   s = scaling_norm / ||g_a||,   g_x, g_a: gradients of L_x and L_a

eps_x = (m - sqrt(abar_t) x_r) / sqrt(1 - abar_t) is the noise that m has as an image of x_r, eps_a that as an image of
x_f. The weights w_x = 1 / (1 - lambda + lambda r) and w_a = 1 / ((1 - lambda) / r + lambda), with r = q(m | x_f) /
q(m | x_r) = exp((||eps_x||^2 - ||eps_a||^2) / 2), make both losses expectations under one mixture: one forward pass
serves descent and ascent. Both losses are sums over pixels, averaged over the pairs.

Deviations:
    - "Code" is claserken/SISS at af2a29c, `losses/ddpm_deletion_loss.py` and `delete_tshirt.py`, with the settings of
      `config/delete_tshirt.yaml` (MNIST); scaling_norm is 500 for CelebA and 750 for Stable Diffusion there. A tenth of
      the norm of g_x is the README's advice.
    - Its models are unconditional, or have one prompt for all images. Here m has the label of the image that it was
      made of, so that c_f unlearns and each retained class keeps its own. The weights do not see the label.
    - x_r are retained images, as in the code (the paper's x are all training images, with factors for the shares).
    - Of little use in high dimensions: r is 0 or infinite but at the last timesteps, so that w_x and w_a choose the
      image that m was made of. There it is the code's variant `subscore_bernoulli`, not here.
    - The code unlearns single images, here a class: x_f are drawn in epochs (code: the same image until the end).
    - t is uniform, as in the code, but drawn in pairs t and T - 1 - t (code for CelebA: always the last one).
    - `label_dropout` keeps the null class, which guidance needs: of m made of retained images only (code: no labels).
    - Where g_a is 0, so is s (code).
    - Assumed: the start is the base model that the harness evaluates, and the result the last weights (no average).
"""

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval

from unlearnbench import Context, method


@method(
    title="SISS",
    paper="2503.01034",
    streams=("forget", "retain"),
    search={
        "lr": (1e-4, 2e-3),
        "batch": [32, 64],
        "lam": [0.25, 0.5, 0.75],
        "scaling_norm": (0.5, 50.0),
    },
    tuned={
        "digits": {"steps": 120, "batch": 32, "lr": 2.5e-4},
        "smoke": {"steps": 100, "batch": 32, "lr": 3e-4},
    },
)
def siss(
    ctx: Context,
    *,
    steps: Annotated[int, Ge(1)] = 300,  # optimiser steps (code)
    batch: Annotated[int, Ge(1)] = 64,  # pairs of a forget and a retained image per step (code)
    lr: Annotated[float, Gt(0)] = 5e-5,  # AdamW, betas 0.95 and 0.999, weight decay 1e-6 (code)
    lam: Annotated[float, Interval(gt=0, lt=1)] = 0.5,  # lambda, the share of forget images in the mixture (code)
    scaling_norm: Annotated[float, Ge(0)] = 5.0,  # norm that the gradient of L_a is given (code)
    label_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.0,  # share of retained labels dropped (code)
    clip: Annotated[float, Gt(0)] = 1.0,  # global gradient norm of the difference (code)
):
    parameters = list(ctx.model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=(0.95, 0.999), weight_decay=1e-6, fused=True)
    for _ in ctx.steps(steps):
        (x_r, y_r), (x_f, y_f) = ctx.retain.draw(batch), ctx.forget.draw(batch)
        t, eps = ctx.timesteps(batch), ctx.noise_like(x_r)
        of_forget = torch.rand(batch, generator=ctx.generator, device=eps.device) <= lam
        m = ctx.schedule.add_noise(torch.where(of_forget.view(-1, 1, 1, 1), x_f, x_r), eps, t)
        prediction = ctx.predict(m, t, torch.where(of_forget, y_f, ctx.drop_labels(y_r, label_dropout)))

        abar = ctx.schedule.alphas_cumprod[t].to(m.dtype).view(-1, 1, 1, 1)
        eps_x, eps_a = ((m - abar.sqrt() * x0) / (1 - abar).sqrt() for x0 in (x_r, x_f))
        log_r = (eps_x.square() - eps_a.square()).flatten(1).sum(dim=1) / 2
        w_x = 1 / (1 - lam + lam * log_r.exp())
        w_a = 1 / ((1 - lam) * (-log_r).exp() + lam)
        retain_loss = (w_x * (prediction - eps_x).square().flatten(1).sum(dim=1)).mean()
        forget_loss = (w_a * (prediction - eps_a).square().flatten(1).sum(dim=1)).mean()
        g_x = torch.autograd.grad(retain_loss, parameters, retain_graph=True)
        g_a = torch.autograd.grad(forget_loss, parameters)
        s = scaling_norm / torch.stack(torch._foreach_norm(g_a)).norm()
        s = torch.where(s.isinf(), 0.0, s)
        for parameter, descend, ascend in zip(parameters, g_x, g_a, strict=True):
            parameter.grad = torch.empty_like(parameter).copy_(descend - s * ascend)  # in its memory layout
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        ctx.log(forget_loss=forget_loss, retain_loss=retain_loss)
