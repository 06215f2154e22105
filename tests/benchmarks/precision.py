"""What sampling in bfloat16 does to FID: the same noise through the digits base model in fp32 and in bf16 autocast.

    python -m tests.benchmarks.precision

Runs on CUDA where there is one, else on the CPU with the CPU's bf16 autocast; prints FID of both against all training
images, the FID between them, the share of pixels that differ by more than 8 of 255, and seconds.
"""

import time

import torch

from unlearnbench.datasets import load_dataset
from unlearnbench.judges.forward import forward_batches
from unlearnbench.measure.prepared import prepare
from unlearnbench.models.diffusion import Schedule
from unlearnbench.models.sampler import sample
from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.spec import NEEDS
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.store.cache import default_cache

PER_CLASS = 100


def main():
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dataset = load_dataset("digits")
    prepared = prepare(dataset, ArtifactStore(default_cache()), device, lambda what, done, total: None, tuple(NEEDS))
    fid = next(p for p in Registry().plugins("metric") if p.name == "fid").load_module().frechet_distance
    labels = torch.arange(10).repeat_interleave(PER_CLASS)
    images, features = {}, {"train": prepared.train_features.double().numpy()}
    for name, autocast in (("fp32", False), ("bf16", True)):
        started = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            images[name] = sample(
                prepared.base, Schedule.of(device=device), labels, range(len(labels)), dataset.image_shape,
                null_class=10, **dataset.protocol.sampler,
            )  # fmt: skip
        features[name] = forward_batches(prepared.extractor, images[name].numpy(), device).double().numpy()
        print(f"{name}: FID {fid(features[name], features['train']):.3f}, {time.perf_counter() - started:.1f} s")
    off = (images["fp32"].int() - images["bf16"].int()).abs() > 8
    print(f"FID between the two {fid(features['fp32'], features['bf16']):.3f} (n={len(labels)} each), {device.type}")
    print(f"pixels that differ by more than 8 of 255: {100 * off.double().mean():.2f} %")


if __name__ == "__main__":
    main()
