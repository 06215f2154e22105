"""Peak resident memory of every method on a CIFAR-10-shaped denoiser (35.8 M weights) at batch 8, on the CPU.

    python -m tests.benchmarks.memory [METHOD ...]

Each method takes two optimiser steps in a process of its own, priors included, with random weights and random images.
Prints the peak in GB (VmHWM), of which about 0.6 GB are libraries.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

BATCH = 8
SMALL = {
    "steps": 2, "batch": BATCH, "replay_per_class": 1, "fisher_images": 2, "fisher_timesteps": 16,
    "fisher_chunk": BATCH,
}  # fmt: skip


def measure(name):
    """Run one method and return its peak resident bytes."""
    import numpy as np
    import torch

    from unlearnbench.cost.meter import Meter
    from unlearnbench.cost.probes import RssPeak
    from unlearnbench.datasets import Source, Split, load_dataset
    from unlearnbench.models.codec import PIXELS
    from unlearnbench.models.kept import Kept
    from unlearnbench.models.unet import UNet
    from unlearnbench.plugins.registry import Registry
    from unlearnbench.store.artifacts import ArtifactStore, software
    from unlearnbench.store.cell import Target
    from unlearnbench.unlearn.context import Context
    from unlearnbench.unlearn.harness import Harness

    registry, dataset = Registry(), load_dataset(Source("cifar10", "fast"))
    dataset = replace(dataset, protocol=replace(dataset.protocol, steps=2, batch_size=BATCH))
    spec = registry.method(name)
    base = UNet.untrained(dataset).eval().requires_grad_(False)
    labels = np.arange(160) % 10
    train = Split(np.random.default_rng(0).integers(0, 256, (160, 3, 32, 32), dtype=np.uint8), labels)
    device = torch.device("cpu")
    kept = Kept.make(PIXELS, train, mirrors=dataset.flip, device=device)
    with TemporaryDirectory() as folder:
        context = Context(Harness(
            dataset, kept, base, "base", name, "source", spec.streams, 0, Target((3,)), device,
            ArtifactStore(Path(folder)), Meter(), {"type": "cpu", "uuid": "1"}, software(),
            lambda what, done, total: None,
        ))  # fmt: skip
        changed = {key: value for key, value in SMALL.items() if key in spec.settings}
        spec.function(context, **{**spec.resolve((), {}), **changed})
    return RssPeak().edge()["rss_peak"]


def main():
    from unlearnbench.plugins.registry import Registry

    names = sys.argv[1:] or [plugin.name for plugin in Registry().plugins("method")]
    for name in names:
        code = f"from tests.benchmarks.memory import measure; print(measure({name!r}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        print(f"{name:10} {int(done.stdout) / 1e9:5.2f} GB", flush=True)


if __name__ == "__main__":
    main()
