"""Sampling speed: ours against the loop of diffusers' own pipelines, on the same UNet, steps, guidance and batch.

    python -m tests.benchmarks.sampling [--small | --big]

Prints seconds per image of both, measured in turn, the ratio ours / diffusers (below 1: ours is faster) as median, min
and max, and the share of ours that the network's own forward passes take. `--small` leaves out the CIFAR-10-shaped
network, `--big` the digits one.
"""

import statistics
import time

import torch
from diffusers import DDIMScheduler

from tests.benchmarks.fisher import asked_for, header, in_turn, network, ratio
from unlearnbench.models.diffusion import Schedule, to_uint8
from unlearnbench.models.sampler import sample

# network, images, steps, guidance, rounds
SIZES = (
    ("digits", 1, 25, 0.5, 15), ("digits", 10, 25, 0.5, 15), ("digits", 50, 25, 0.5, 15), ("digits", 250, 25, 0.5, 7),
    ("CIFAR-10-shaped", 1, 5, 2.0, 5), ("CIFAR-10-shaped", 8, 2, 2.0, 5),
)  # fmt: skip


def draw(model, shape, images, steps, guidance):
    """Sample with our sampler."""
    return sample(
        model, Schedule.of(), torch.arange(images) % 10, range(images), shape, steps=steps, eta=0.0,
        guidance=guidance, null_class=10, batch_size=images,
    )  # fmt: skip


@torch.no_grad()
def pipeline_loop(model, shape, images, steps, guidance):
    """Run scheduler.step over timesteps with both guidance branches in one batch, as diffusers' pipelines do."""
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    scheduler.set_timesteps(steps)
    x, labels = torch.randn(images, *shape), torch.arange(images) % 10
    both = torch.cat([labels, torch.full_like(labels, 10)])
    for t in scheduler.timesteps:
        conditional, unconditional = model(torch.cat([x, x]), t, both).sample.chunk(2)
        eps = unconditional + (1 + guidance) * (conditional - unconditional)
        x = scheduler.step(eps, t, x).prev_sample
    return to_uint8(x)


def forward_share(model, run):
    """Return the share of a function's seconds that is spent in the model's forward passes."""
    edges = []
    hooks = [
        model.register_forward_pre_hook(lambda *_: edges.append(time.perf_counter())),
        model.register_forward_hook(lambda *_: edges.append(time.perf_counter())),
    ]
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    for hook in hooks:
        hook.remove()
    return sum(end - begin for begin, end in zip(edges[::2], edges[1::2], strict=True)) / seconds


def against_diffusers(name, images, steps, guidance, rounds):
    """Compare the two loops on one network."""
    model, shape = network(name)
    model.eval()
    size = (model, shape, images, steps, guidance)
    ours_s, theirs_s = in_turn(lambda: draw(*size), lambda: pipeline_loop(*size), rounds)
    ours_ms, theirs_ms = (1e3 * statistics.median(seconds) / images for seconds in (ours_s, theirs_s))
    share = statistics.median(forward_share(model, lambda: draw(*size)) for _ in range(3))
    print(
        f"{name}, batch {images}, {steps} steps: ours {ours_ms:.4g} ms per image, diffusers {theirs_ms:.4g} ms, "
        f"ratio {ratio(ours_s, theirs_s, 3)}; {100 * share:.1f} % of ours is the network",
        flush=True,
    )


def main():
    header()
    for size in SIZES:
        if asked_for(size[0]):
            against_diffusers(*size)


if __name__ == "__main__":
    main()
