"""Retraining from scratch on the retained classes: the gold standard, at the cost of a full training.

    L = L_eps(x_r, c_r)    from random weights

Deviations:
    - The forget class keeps its row of the label embedding, at its random initial value, so samples "of the forget
      class" come from an untrained condition; the reference code (SalUn, `--mode retrain`) does the same. UA is
      therefore an empirical reference, not 100 % by construction.
    - The loss is averaged over pixels before its gradient is clipped (reference: the sum over 3,072 values is clipped,
      so that nearly every step is; Adam ignores the scale itself), and the average (EMA) warms up, so that short
      trainings are usable (reference: constant decay from step 0). The base model of every dataset is trained so too.
    - Horizontal flips are fresh at every draw; the reference code freezes them once.
    - `cosine` anneals the step size on digits, as that base model's recipe does; off by default as in the reference.
"""

from typing import Annotated

from annotated_types import Ge, Gt, Interval

from unlearnbench import Context, fit_denoiser, method, reinitialise


@method(
    title="Retrain",
    role="gold",
    streams=("retain",),
    tuned={
        "digits": {"steps": 1500, "batch": 64, "lr": 2e-3, "ema": 0.995, "cosine": True},
        "smoke": {"steps": 3000, "batch": 64, "lr": 1e-3, "ema": 0.999, "cosine": True},
    },
)
def retrain(
    ctx: Context,
    *,
    steps: Annotated[int, Ge(1)] = 800_000,  # optimiser steps (DDIM code, cifar10_train.yml)
    batch: Annotated[int, Ge(1)] = 128,  # retained images per step
    lr: Annotated[float, Gt(0)] = 2e-4,  # Adam (same source)
    cosine: bool = False,  # anneal lr to zero along half a cosine
    label_dropout: Annotated[float, Interval(ge=0, le=1)] = 0.1,  # share of labels dropped
    ema: Annotated[float, Interval(ge=0, lt=1)] = 0.9999,  # decay of the averaged weights, which are the result
    clip: Annotated[float, Gt(0)] = 1.0,  # global gradient norm
):
    reinitialise(ctx.model)
    fit_denoiser(
        ctx.model, ctx.schedule, ctx.retain.draw, ctx.steps(steps), total=steps, batch=batch, lr=lr, cosine=cosine,
        label_dropout=label_dropout, ema=ema, clip=clip, null_class=ctx.null_class, generator=ctx.generator,
    )  # fmt: skip
