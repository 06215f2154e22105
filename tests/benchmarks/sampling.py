"""Sampling speed: ours against the loop of diffusers' own pipelines, on the same UNet, steps, guidance and batch.

    python -m tests.benchmarks.sampling

Prints seconds per image of both, measured in turn, and the ratio (below 1: ours is faster) as median, min and max.
"""

import statistics
import time

import torch
from diffusers import DDIMScheduler

from unlearnbench.datasets import load_dataset
from unlearnbench.diffusion import Schedule, sample
from unlearnbench.networks import build_unet, unet_config

IMAGES, ROUNDS = 250, 7


def ours(model, protocol, labels):
    sample(
        model, Schedule.linear(), labels, range(IMAGES), (1, 8, 8), steps=protocol.steps, eta=0.0,
        guidance=protocol.guidance, null_class=10, batch_size=IMAGES,
    )  # fmt: skip


@torch.no_grad()
def pipeline_loop(model, protocol, labels):
    """Run scheduler.step over timesteps with both guidance branches in one batch, as diffusers' pipelines do."""
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    scheduler.set_timesteps(protocol.steps)
    x = torch.randn(IMAGES, 1, 8, 8)
    both = torch.cat([labels, torch.full_like(labels, 10)])
    for t in scheduler.timesteps:
        conditional, unconditional = model(torch.cat([x, x]), t, both).sample.chunk(2)
        eps = unconditional + (1 + protocol.guidance) * (conditional - unconditional)
        x = scheduler.step(eps, t, x).prev_sample
    ((x.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def main():
    dataset = load_dataset("digits")
    model, labels = build_unet(unet_config(dataset)).eval(), torch.arange(IMAGES) % 10
    seconds = {ours: [], pipeline_loop: []}
    for round_number in range(ROUNDS + 1):
        for run in seconds:
            started = time.perf_counter()
            run(model, dataset.protocol, labels)
            if round_number:  # the first round warms up
                seconds[run].append((time.perf_counter() - started) / IMAGES)
    ratios = [a / b for a, b in zip(seconds[ours], seconds[pipeline_loop], strict=True)]
    for run, values in seconds.items():
        print(f"{run.__name__:14} {1e3 * statistics.median(values):7.3f} ms per image (n={ROUNDS})")
    print(f"ratio          {statistics.median(ratios):7.3f} (min {min(ratios):.3f}, max {max(ratios):.3f})")


if __name__ == "__main__":
    main()
