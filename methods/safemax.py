"""SAFEMax: unleashing uncertainty.

Unleashing Uncertainty: Efficient Machine Unlearning for Generative AI.
Christoforos N. Spartalis, Theodoros Semertzidis, Petros Daras, Efstratios Gavves. arXiv:2508.20773, ICML 2025 workshop
on Machine Unlearning for Generative AI.

    L   = E[ psi(t) ||eps_T - eps_theta(x_t, c_f, t)||^2 ] + alpha L_eps(x_r, c_r)       (paper, eq. 3, and retain loss)
    psi = exp(-decay t / T)                                                               (paper, eq. 5)

eps_T is the terminal noise. `independent`: drawn afresh, so that the best prediction for c_f is zero. `trajectory`: the
noise of x_T on the Markov trajectory through x_t, rho_t eps + sqrt(1 - rho_t^2) eps'.

Deviations:
    - No official code is public. The paper's formula leaves open what eps_T depends on; `target` offers both readings
      that forget. (The third, the noise of x_t itself, is ordinary training.)
    - Assumed, as the paper does not say, from SalUn's settings: Adam 1e-4, batch 128, gradient norm 1, real images of
      both kinds, retain loss with label dropout 0.1, t and noise drawn apart for the two terms.
    - Assumed: weight alpha = 1 between the two terms, both summed over pixels and averaged over images.
    - decay also scales the whole forget term (its mean over t is (1 - e^-decay) / decay), as in the paper.
"""

from typing import Literal

import torch

from unlearnbench import Context, method, predict_noise


@method(
    title="SAFEMax",
    paper="2508.20773",
    streams=("forget", "retain"),
    groups=("paper",),
    tuned={"digits": {"steps": 120, "batch": 48, "lr": 2.5e-4, "alpha": 6.0}},
)
def safemax(
    ctx: Context,
    *,
    steps: int = 1000,  # optimiser steps (paper)
    batch: int = 128,  # images of each kind per step (assumed: SalUn)
    lr: float = 1e-4,  # Adam (assumed: SalUn)
    decay: float = 1.0,  # lambda of psi (paper); 0 switches the schedule off
    target: Literal["independent", "trajectory"] = "independent",  # reading of eps_T
    alpha: float = 1.0,  # weight of the retain loss (assumed)
    label_dropout: float = 0.1,  # share of retained labels replaced by the null class (assumed: SalUn)
    clip: float = 1.0,  # global gradient norm (assumed: SalUn)
):
    optimizer = torch.optim.Adam(ctx.model.parameters(), lr=lr)
    for _ in ctx.steps(steps):
        x0, y = ctx.forget.draw(batch)
        t, eps = ctx.timesteps(batch), ctx.noise_like(x0)
        x_t = ctx.schedule.add_noise(x0, eps, t)
        eps_T = ctx.noise_like(x0)
        if target == "trajectory":
            eps_T = ctx.schedule.terminal_noise(eps, eps_T, t)
        psi = torch.exp(-decay * t / ctx.schedule.timesteps)
        error = (eps_T - predict_noise(ctx.model, x_t, t, y)).square().flatten(1).sum(dim=1)
        forget_loss = (psi * error).mean()
        retain_loss = ctx.eps_loss(*ctx.retain.draw(batch), label_dropout=label_dropout)
        optimizer.zero_grad()
        (forget_loss + alpha * retain_loss).backward()
        torch.nn.utils.clip_grad_norm_(ctx.model.parameters(), clip)
        optimizer.step()
        ctx.log(forget_loss=forget_loss, retain_loss=retain_loss)
