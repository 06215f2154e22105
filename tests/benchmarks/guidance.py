"""The guided sampler: ours against the reference code's habits, on the same weights, steps and batch.

    python -m tests.benchmarks.guidance [--small | --big]

The reference code runs the network twice per step and keeps every x_t and every prediction of x0 on the host. Prints
seconds of both, measured in turn, and the ratio literal / ours (above 1: ours is faster) as median, min and max;
`--small` leaves out the CIFAR-10-shaped network, `--big` the digits one.
"""

import torch

from tests.benchmarks.fisher import asked_for, header, network, side_by_side
from unlearnbench.models.diffusion import Schedule
from unlearnbench.models.sampler import sample

GUIDANCE = 2.0


@torch.no_grad()
def literal_sample(model, shape, labels, steps, schedule):
    """DDIM with eta = 0: two forwards per step, all intermediate images kept on the host."""
    x = torch.randn(len(labels), *shape)
    null = torch.full_like(labels, 10)
    timesteps = range(0, 1000, 1000 // steps)
    xs, x0_predictions = [x], []
    for t, before in zip(reversed(timesteps), reversed([-1, *timesteps[:-1]]), strict=True):
        x_t = xs[-1].to(labels.device)
        times = torch.full_like(labels, t)
        eps = (1 + GUIDANCE) * model(x_t, times, labels).sample - GUIDANCE * model(x_t, times, null).sample
        alpha = schedule.alphas_cumprod[t]
        previous = schedule.alphas_cumprod[before] if before >= 0 else torch.ones_like(alpha)
        x0 = (x_t - eps * (1 - alpha).sqrt()) / alpha.sqrt()
        x0_predictions.append(x0.to("cpu"))
        xs.append((previous.sqrt() * x0 + (1 - previous).sqrt() * eps).to("cpu"))
    return ((xs[-1].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def main():
    header()
    sizes = [("digits", batch, 25, rounds) for batch, rounds in ((1, 15), (10, 15), (50, 15), (250, 7))]
    sizes += [("CIFAR-10-shaped", 1, 5, 5), ("CIFAR-10-shaped", 8, 2, 3)]
    schedule = Schedule.of()
    for name, batch, steps, rounds in sizes:
        if not asked_for(name):
            continue
        model, shape = network(name)
        model.eval()
        labels = torch.arange(batch) % 10

        def literal(model=model, shape=shape, labels=labels, steps=steps):
            literal_sample(model, shape, labels, steps, schedule)

        def ours(model=model, shape=shape, labels=labels, steps=steps):
            sample(
                model, schedule, labels, range(len(labels)), shape, steps=steps, eta=0.0, guidance=GUIDANCE,
                null_class=10, batch_size=len(labels),
            )  # fmt: skip

        side_by_side(f"{name}, batch {batch}, {steps} steps", literal, ours, rounds)


if __name__ == "__main__":
    main()
