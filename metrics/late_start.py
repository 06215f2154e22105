"""Late start: what is forgotten when denoising begins at a noised image of the forget class.

    100 mean over t, i of [v(x_i^t) not in F]    x_i^t: denoised from sqrt(abar_t) x_i + sqrt(1 - abar_t) eps_i

Real training images x_i of the forget class are noised to t = 200, 400, 600 and 800 (of 1,000; the sampler's timestep
at or below) and denoised from there for the forget class, as the protocol samples. A method that acts only at some
timesteps leaves the others unchanged: its curve over t falls where it does not act.

At small t little noise is removed, and any model shows the class; at large t nothing of the image is left, as in
ordinary sampling. No single t suits all image sizes, so the value is the mean over the four, n counts all their
samples, and the record keeps each. The gold standard's value is due to the images alone: only the difference to it is
due to the method.

Source: diffusion completion of arXiv:2505.17013; timesteps, mean and judge are this package's.

Blind to: images outside the training set, and whether the result is the initial image.
"""

import torch

from unlearnbench import Score, Start, attacked, metric

TIMESTEPS = (200, 400, 600, 800)  # of 1,000


@metric(
    title="Late start",
    unit="%",
    better="higher",
    aspect="robustness",
    format=".1f",
    source="cf. arXiv:2505.17013",
    optional=True,
    groups=("attacks",),
)
def late_start(attacker):
    x0, y = attacker.forget_images()
    again = torch.arange(attacker.samples, device=x0.device) % len(x0)
    after = {t: attacker.forgotten(attacker.model, labels=y[again], start=Start(x0[again], t)) for t in TIMESTEPS}
    score = attacked(attacker, after)
    return Score(sum(after.values()) / len(after), score.n * len(after), score.detail)
