"""A step of SalUn: ours against a literal transcription of the reference code, from the same weights.

    python -m tests.benchmarks.salun_step [--small | --big]

Prints seconds of both, measured in turn, and the ratio literal / ours (above 1: ours is faster) as median, min and max;
`--small` leaves out the CIFAR-10-shaped network, `--big` the digits one.
"""

import copy

import torch

from tests.benchmarks.fisher import BareContext, asked_for, header, network, side_by_side
from unlearnbench.plugins.registry import Registry

ALPHA = 1e-3


def literal_salun(ctx, steps, batch, int_mask):
    """Graph for the target, three forwards, int64 mask on the CPU, Adam as it comes."""
    model = ctx.model
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    for _ in range(steps):
        x0, y = ctx.forget.draw(batch)
        t, eps = ctx.timesteps(batch), ctx.noise_like(x0)
        x_t = ctx.schedule.add_noise(x0, eps, t)
        output = model(x_t, t, ctx.drop_labels(y, 0.1)).sample
        pseudo = model(x_t, t, ctx.drop_labels((y + 1) % 10, 0.1)).sample.detach()
        forget_loss = torch.nn.functional.mse_loss(output, pseudo)
        x0, y = ctx.retain.draw(batch)
        t, eps = ctx.timesteps(batch), ctx.noise_like(x0)
        output = model(ctx.schedule.add_noise(x0, eps, t), t, ctx.drop_labels(y, 0.1)).sample
        retain_loss = (eps - output).square().sum(dim=(1, 2, 3)).mean(dim=0)
        optimizer.zero_grad()
        (forget_loss + ALPHA * retain_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                parameter.grad *= int_mask[name].to(parameter.grad.device)
        optimizer.step()


def main():
    header()
    spec = Registry().method("salun")
    sizes = (("digits", 8, 20, 15), ("digits", 48, 10, 15), ("digits", 128, 5, 15), ("CIFAR-10-shaped", 8, 1, 3))
    for name, batch, steps, rounds in sizes:
        if not asked_for(name):
            continue
        model, shape = network(name)
        mask = {key: torch.rand_like(parameter) > 0.5 for key, parameter in model.named_parameters()}
        int_mask = {key: value.long() for key, value in mask.items()}
        settings = {**spec.resolve((), {}), "steps": steps, "batch": batch, "alpha": ALPHA}

        def literal(model=model, shape=shape, steps=steps, batch=batch, int_mask=int_mask):
            literal_salun(BareContext(copy.deepcopy(model).train(), shape), steps, batch, int_mask)

        def ours(model=model, shape=shape, mask=mask, settings=settings):
            spec.function(BareContext(copy.deepcopy(model).train(), shape, mask), **settings)

        side_by_side(f"{name}, batch {batch} + {batch}, {steps} steps", literal, ours, rounds)


if __name__ == "__main__":
    main()
