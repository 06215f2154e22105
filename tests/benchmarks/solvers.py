"""DPM-Solver++(2M) against DDIM: quality and time of the base model's samples by solver and number of steps.

    python -m tests.benchmarks.solvers [DATASET PROTOCOL]

Prints FID of the samples against all training images (features of the dataset's own extractor), the share of them that
the rejecting judge names as requested, and seconds; medians of three sets of initial noise, drawn in turn.
"""

import statistics
import sys
import time

import numpy as np
import torch

from unlearnbench.datasets import Source, load_dataset
from unlearnbench.judges.forward import forward_batches
from unlearnbench.measure.prepared import prepare
from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.spec import NEEDS
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.store.cache import default_cache

PER_CLASS, SETS = 100, 3
SOLVERS = (("ddim", 50), ("ddim", 25), ("ddim", 10), ("dpm++", 25), ("dpm++", 20), ("dpm++", 12), ("dpm++", 8))


def main():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name, protocol = sys.argv[1:] or ("digits", "")
    dataset = load_dataset(Source(name, protocol, extractor="own"))
    prepared = prepare(dataset, ArtifactStore(default_cache()), device, lambda what, done, total: None, tuple(NEEDS))
    fid = next(p for p in Registry().plugins("metric") if p.name == "fid").load_module().frechet_distance
    labels = torch.arange(dataset.num_classes).repeat_interleave(PER_CLASS)
    train, found = prepared.train_features.double().numpy(), {choice: [] for choice in SOLVERS}
    for k in range(SETS):
        for solver, steps in SOLVERS:
            started = time.perf_counter()
            images = prepared.base.draw(
                labels, range(k * len(labels), (k + 1) * len(labels)), null_class=dataset.null_class,
                **{**dataset.protocol.sampler, "solver": solver, "steps": steps, "eta": 0.0, "clip_x0": False},
            ).numpy()  # fmt: skip
            seconds = time.perf_counter() - started
            features = forward_batches(prepared.extractor, images, device).double().numpy()
            right = np.mean(prepared.rejecting.names(images, device) == labels.numpy())
            found[solver, steps].append((fid(features, train), 100 * right, seconds))
    print(f"{dataset.name}, {len(labels)} samples a set, guidance {dataset.protocol.guidance}, {device.type}")
    for (solver, steps), rows in found.items():
        quality, right, seconds = map(statistics.median, zip(*rows, strict=True))
        print(f"{solver:6s} {steps:3d} steps: FID {quality:.2f}, named as requested {right:.1f} %, {seconds:.2f} s")


if __name__ == "__main__":
    main()
