"""Floating-point operations: of a model per image, and of a device per second.

With the counts of images they allow comparisons across machines, as a method does the same arithmetic everywhere.
"""

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from unlearnbench.models.denoiser import Denoiser, described
from unlearnbench.models.diffusion import predict_noise
from unlearnbench.store.artifacts import ArtifactStore, Tensors
from unlearnbench.store.provenance import device_key

PEAK_SIZE = {"cpu": 1024, "cuda": 8192}  # rows and columns of the matrices whose product is timed
PEAK_SECONDS, PEAK_LEAST = 1.0, 5  # how long products are timed, and at least how many


def flops_per_image(denoiser: Denoiser) -> dict[str, int]:
    """Return the operations of one x0's forward and backward pass through a denoiser.

    A multiplication and an addition count as two. Counted by torch's FLOP counter: convolutions, matrix products and
    attention; the rest is below a percent.

    Returns:
        {"forward", "backward"}; backward computes the gradients of all weights, not of x0.
    """
    with torch.device("meta"):  # shapes are enough
        model = type(denoiser).from_config(denoiser.config, denoiser.codec).to("meta")
        x, t, y = torch.empty(1, *model.shape), torch.zeros(1, dtype=torch.long), torch.zeros(1, dtype=torch.long)
    return _count(model, x, t, y)


def _count(model: nn.Module, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> dict[str, int]:
    with FlopCounterMode(display=False) as counter:
        prediction = predict_noise(model, x, t, y)
        forward = counter.get_total_flops()
        prediction.sum().backward()  # type: ignore[no-untyped-call]
        both = counter.get_total_flops()
    return {"forward": forward, "backward": both - forward}


def peak_flops(device: torch.device) -> dict[str, float]:
    """Return the operations per second that a device reaches in large matrix products, by precision.

    The best of repeated products; "float32" in full precision, "tf32" and "bfloat16" on CUDA alone.
    """
    precisions = {"float32": (torch.float32, False)}
    if device.type == "cuda":
        precisions |= {"tf32": (torch.float32, True), "bfloat16": (torch.bfloat16, True)}
    return {name: _fastest_product(device, dtype, tf32) for name, (dtype, tf32) in precisions.items()}


def _fastest_product(device: torch.device, dtype: torch.dtype, tf32: bool) -> float:
    """Return the operations per second of the fastest of several matrix products."""

    def synchronize() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    size = PEAK_SIZE.get(device.type, PEAK_SIZE["cpu"])
    drawn = torch.randn(size, size, generator=torch.Generator().manual_seed(0))  # equal numbers would multiply faster
    a = drawn.to(device, dtype)
    allowed, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, tf32
    try:
        torch.mm(a, a)  # warms up
        seconds: list[float] = []
        while len(seconds) < PEAK_LEAST or sum(seconds) < PEAK_SECONDS:
            synchronize()
            started = time.perf_counter()
            torch.mm(a, a)
            synchronize()
            seconds.append(time.perf_counter() - started)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    return float(2 * size**3 / min(seconds))


def known_flops(
    denoiser: Denoiser, device: torch.device, identity: Mapping[str, Any], software: Mapping[str, str],
    store: ArtifactStore,
) -> dict[str, Any]:  # fmt: skip
    """Return {"forward", "backward", "peak"}: counted per network, measured per model of device, cached.

    Args:
        denoiser: of the network.
        device: is measured.
        identity: of that device.
        software: library versions, which the peak depends on.
        store: the cache.
    """

    def count() -> tuple[Tensors, Mapping[str, Any]]:
        return {}, flops_per_image(denoiser)

    def measure() -> tuple[Tensors, Mapping[str, Any]]:
        return {}, peak_flops(device)

    network = {**described(denoiser), "image_shape": list(denoiser.shape), "software": software}
    counted = store.get("flops", network, count)
    peak = store.get("peak", {"device": device_key(identity), "software": software}, measure)
    return {**counted.facts, "peak": dict(peak.facts)}
