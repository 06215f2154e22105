"""Safe Denoiser: predictions of clean images are pushed away from forget images, while samples are drawn.

Training-Free Safe Denoisers for Safe Use of Diffusion Models.
Mingyu Kim, Dongjun Kim, Amman Yusuf, Stefano Ermon, Mijung Park. arXiv:2502.08011, NeurIPS 2025.
Code: MingyuKim87/Safe_Denoiser, commit 223415b.

    x0_hat = (x_t - sqrt(1 - abar_t) eps(x_t, c)) / sqrt(abar_t)
    k_n    = exp(-norm(x0_hat - r_n) / (2 sigma^2)),    r_1 ... r_N forget images
    x0_hat := x0_hat - scale sum_n k_n r_n / (sum_n k_n + 1e-8)    where sum_n k_n + 1e-8 > beta - margin, t >= until
    eps     = (x_t - sqrt(abar_t) x0_hat) / sqrt(1 - abar_t)

beta is the smallest of the same sum among the forget images themselves, noised at the first timestep. No prediction
looks at the requested class: what resembles forget images is pushed, whatever was asked for.

Deviations:
    - The code's variant for nudity and COCO: kernel_fast with a threshold, safree_neg_prompt_rep_threshold_time. As in
      the code, the distance in the kernel is not squared, and the mean itself is subtracted. The paper derives a
      combination with a weight that depends on x_t; the code's weight is `scale` above the threshold, else 0.
    - The code draws x_t anew from the pushed x0_hat with fresh noise, and steps on from it with the unpushed eps; here
      eps follows from the pushed x0_hat and the same x_t, as any sampler needs it.
    - The code pushes the guided prediction; here each branch of guidance is pushed by itself, the null class as well.
      Guidance then adds (1 + w) times the push of one and subtracts w times that of the other.
    - The code divides the references, latents of Stable Diffusion, by their norm over channels, but not x0_hat. Not
      here: pixels of one channel would become signs.
    - The code adds SAFREE's negative prompts; not here.
    - N is at most the number of training images of the forget classes; mirrored at random, where training images are.
"""

from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval

from unlearnbench import Context, method

EPSILON = 1e-8


@method(
    title="Safe Denoiser",
    paper="2502.08011",
    streams=("forget",),
    kind="inference",
    tuned={"digits": {"sigma": 0.8, "margin": 0.0, "until": 0.0}},
    search={
        "sigma": (0.3, 3.0),
        "scale": (0.1, 10.0),
        "margin": (0.0, 3.0, "uniform"),
        "until": (0.0, 0.6, "uniform"),
    },
)
def safe_denoiser(
    ctx: Context,
    *,
    images: Annotated[int, Ge(1)] = 515,  # forget images that are held (paper)
    sigma: Annotated[float, Gt(0)] = 3.15,  # width of the kernel (code)
    scale: Annotated[float, Ge(0)] = 0.33,  # of the push (code)
    margin: Annotated[float, Ge(0)] = 1.6,  # by which the threshold is below beta (code)
    until: Annotated[float, Interval(ge=0, le=1)] = 0.78,  # it ends at this share of the timesteps (code)
):
    held, _ = ctx.forget.draw(min(images, len(ctx.forget)))
    flat, abar, last = held.flatten(1), ctx.schedule.alphas_cumprod, until * ctx.schedule.timesteps

    def kernel(x):
        return (-torch.cdist(x.flatten(1), flat) / (2 * sigma**2)).exp()

    first = torch.zeros(len(held), dtype=torch.long, device=held.device)
    noised = ctx.schedule.add_noise(held, ctx.noise_like(held), first)
    threshold = (kernel(noised).sum(dim=1) + EPSILON).min() - margin

    def guide(predict, x_t, t, y):
        eps = predict(x_t, t, y)
        signal, noise = (a.to(x_t.dtype).sqrt().view(-1, 1, 1, 1) for a in (abar[t], 1 - abar[t]))
        k = kernel((x_t - noise * eps) / signal)
        total = k.sum(dim=1) + EPSILON
        pushed = ((total > threshold) & (t >= last)).view(-1, 1, 1, 1)
        mean = (k @ flat / total[:, None]).view_as(x_t)
        return torch.where(pushed, eps + scale * signal / noise * mean, eps)

    return guide
