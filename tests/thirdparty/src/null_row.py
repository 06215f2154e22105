"""Null row: the label of the forget class comes to mean no label at all.

An example of this package, not a published method. One row of the class embedding moves and nothing else, so that
every retained class keeps its predictions bit for bit; no image of the forget class is needed.

    L = mean (eps_theta(x_t, c_f) - eps_base(x_t, null))^2    over the row of c_f, x_t being noised retained images

Deviations:
    - None: there is no paper to deviate from.
"""

import torch

from unlearnbench import Context, method, predict_noise


@method(title="Null row", streams=("retain",), tuned={"digits": {"steps": 120, "batch": 48}})
def null_row(
    ctx: Context,
    *,
    steps: int = 1000,  # optimiser steps
    batch: int = 128,  # retained images per step
    lr: float = 1e-2,  # Adam
):
    rows = ctx.model.requires_grad_(False).tables()[0].requires_grad_(True)
    moving = torch.zeros_like(rows)
    moving[list(ctx.forget_classes)] = 1
    forgotten = torch.tensor(ctx.forget_classes, device=rows.device)
    optimizer = torch.optim.Adam([rows], lr=lr)
    for step in ctx.steps(steps):
        x0, _ = ctx.retain.draw(batch)
        t = ctx.timesteps(batch)
        x_t = ctx.schedule.add_noise(x0, ctx.noise_like(x0), t)
        y = forgotten[torch.arange(step * batch, (step + 1) * batch, device=rows.device) % len(forgotten)]
        with torch.no_grad():
            target = predict_noise(ctx.base, x_t, t, torch.full_like(y, ctx.null_class))
        loss = (predict_noise(ctx.model, x_t, t, y) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        rows.grad *= moving
        optimizer.step()
        ctx.log(loss=loss)
