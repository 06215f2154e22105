from types import SimpleNamespace

import torch
from torch import nn

from unlearnbench.datasets import load_dataset
from unlearnbench.models.flops import _count, flops_per_image, known_flops, peak_flops
from unlearnbench.models.unet import UNet, unet_config
from unlearnbench.store.artifacts import ArtifactStore


class OneConvolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.convolution = nn.Conv2d(3, 5, 3, padding=1)

    def forward(self, x, t, y):
        return SimpleNamespace(sample=self.convolution(x))


def test_a_convolution_is_counted_by_the_formula():
    t = y = torch.zeros(1, dtype=torch.long)
    counted = _count(OneConvolution(), torch.zeros(1, 3, 8, 8), t, y)
    forward = 2 * 3 * 5 * 3 * 3 * 8 * 8  # a multiplication and an addition per weight and position
    assert counted == {"forward": forward, "backward": forward}  # weight gradients only: the image needs none


def test_backward_is_about_twice_forward_and_shapes_are_enough():
    dataset = load_dataset("digits")
    denoiser = UNet.untrained(dataset)
    flops = flops_per_image(denoiser)
    assert 1.9 < flops["backward"] / flops["forward"] < 2.0
    x, t = torch.zeros(1, *dataset.image_shape), torch.zeros(1, dtype=torch.long)
    assert _count(denoiser, x, t, t) == flops


def test_operations_grow_with_the_image():
    config = unet_config(load_dataset("digits"))
    small, large = (flops_per_image(UNet.from_config({**config, "sample_size": side})) for side in (8, 16))
    assert 3.5 < large["forward"] / small["forward"] < 4.5


def test_the_peak_is_that_of_a_timed_product(monkeypatch):
    monkeypatch.setattr("unlearnbench.models.flops.PEAK_SECONDS", 0.0)
    monkeypatch.setattr("unlearnbench.models.flops.PEAK_SIZE", {"cpu": 100})
    ticks = iter([0.0, 4.0, 10.0, 12.0, 20.0, 23.0, 30.0, 34.0, 40.0, 44.0])
    monkeypatch.setattr("unlearnbench.models.flops.time.perf_counter", lambda: next(ticks))
    assert peak_flops(torch.device("cpu")) == {"float32": 2 * 100**3 / 2.0}  # the fastest took 2 s


def test_the_peak_is_that_of_random_matrices(monkeypatch):
    monkeypatch.setattr("unlearnbench.models.flops.PEAK_SECONDS", 0.0)
    monkeypatch.setattr("unlearnbench.models.flops.PEAK_SIZE", {"cpu": 50})
    multiplied, mm = [], torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: multiplied.append(a) or mm(a, b))
    peak_flops(torch.device("cpu"))
    assert all(a.shape == (50, 50) and a.std() > 0.9 for a in multiplied), "equal numbers would run faster"


def test_a_device_is_measured_once_and_another_one_again(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr("unlearnbench.models.flops.peak_flops", lambda device: calls.append(device) or {"float32": 1e9})
    dataset, store = load_dataset("digits"), ArtifactStore(tmp_path)
    for uuid in ("one", "one", "two"):
        found = known_flops(UNet.untrained(dataset), torch.device("cpu"), {"uuid": uuid}, {"torch": "1"}, store)
        assert found["peak"] == {"float32": 1e9}
        assert found["forward"] > 0
    assert len(calls) == 2
