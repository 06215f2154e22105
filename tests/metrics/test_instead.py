"""What came instead: shares that add up, statistics against formulas and loops, the error rates that the card says."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnbench import NO_OBJECT
from unlearnbench.datasets import load_dataset
from unlearnbench.judges import negatives
from unlearnbench.plugins.registry import Registry
from unlearnbench.store.cell import Cell

REGISTRY = Registry()
MODULE = {plugin.name: plugin for plugin in REGISTRY.plugins("metric")}["instead_noise"].load_module()
PARTS = ("noise", "blank", "unrecognised")
CELL = Cell("digits", "p", "m", {}, 2, 0)
VERDICTS = st.lists(st.sampled_from([NO_OBJECT, 0, 1, 2, 3]), min_size=1, max_size=30).map(np.array)


def score(name, **needs):
    return REGISTRY.metric(name).function(**needs)


def mixed(n, seed=0, shape=(1, 8, 8)):
    """Images in turn of noise, one level, and a ramp."""
    random = np.random.default_rng(seed)
    ramp = np.broadcast_to(np.linspace(0, 255, shape[-1]), shape)
    made = [random.integers(0, 256, shape), np.full(shape, random.integers(0, 256)), ramp]
    return np.array([made[k % 3] for k in range(n)], dtype=np.uint8)


def white(n, side, channels=1, seed=0):
    return np.random.default_rng(seed).normal(128, 30, (n, channels, side, side))


@settings(deadline=None)
@given(VERDICTS, st.integers(0, 2**32), st.sampled_from([(1, 8, 8), (3, 5, 9), (3, 1, 2)]))
def test_what_came_instead_is_all_samples(verdicts, seed, shape):
    needs = {"forget_samples": mixed(len(verdicts), seed, shape), "forget_verdicts": verdicts, "cell": CELL}
    noise, blank = score("instead_noise", **needs), score("instead_blank", **needs)
    shares = {part: 100 * count / noise.n for part, count in noise.detail["instead"].items()}
    assert sum(shares.values()) == pytest.approx(100) and noise.detail == blank.detail
    assert (noise.value, blank.value) == (shares["noise"], shares["blank"]) and noise.n == blank.n == len(verdicts)
    del needs["forget_samples"]
    assert 100 - shares["class"] == pytest.approx(score("forgotten", **needs).value)
    assert shares["other"] == pytest.approx(score("other_class", **needs).value)
    rejected = score("no_object", forget_verdicts=verdicts).value
    assert sum(shares[part] for part in PARTS) == pytest.approx(rejected)


def test_pixels_matter_only_where_the_judge_sees_no_object():
    verdicts = np.array([2, 0, NO_OBJECT, NO_OBJECT, NO_OBJECT, NO_OBJECT, 1])
    found = score("instead_noise", forget_samples=mixed(7), forget_verdicts=verdicts, cell=CELL)
    assert found.detail == {"instead": {"class": 1, "other": 2, "noise": 1, "blank": 1, "unrecognised": 2}}


@pytest.mark.parametrize("channels", [1, 3])
def test_the_autocorrelation_is_moran_s(channels):
    image = np.random.default_rng(1).random((channels, 4, 6))
    z = image - image.mean(axis=(1, 2), keepdims=True)
    places = [(i, j) for i in range(4) for j in range(6)]
    pairs = [(a, b) for a in places for b in ((a[0] + 1, a[1]), (a[0], a[1] + 1)) if b in places]
    products = sum(z[c][a] * z[c][b] for a, b in pairs for c in range(channels)) / len(pairs) / channels
    assert MODULE.autocorrelation(image[None])[0] == pytest.approx(products / (z**2).mean())


@pytest.mark.parametrize(("side", "told"), [(8, "0.09"), (32, "0.02")])
def test_white_noise_has_the_autocorrelation_that_cliff_and_ord_derive(side, told):
    found, n = MODULE.autocorrelation(white(3000, side)), side**2
    links = 2 * 2 * side * (side - 1)
    degrees = 2 * (4 * 2**2 + 4 * (side - 2) * 3**2 + (side - 2) ** 2 * 4**2) * 2
    variance = (n**2 * 2 * links - n * degrees + 3 * links**2) / ((n**2 - 1) * links**2) - 1 / (n - 1) ** 2
    assert found.mean() == pytest.approx(-1 / (n - 1), abs=4 * (variance / 3000) ** 0.5)
    assert found.std() == pytest.approx(variance**0.5, rel=0.05)
    assert f"{variance**0.5:.2f}" == told and f"of {told} at {side}x{side}" in MODULE.__doc__


def test_the_kurtosis_is_that_of_gaussian_noise_and_of_a_few_pixels():
    assert MODULE.kurtosis(white(1, 400))[0] == pytest.approx(3, abs=0.05)
    few = np.zeros((1, 1, 8, 8))
    few[..., 0, :4] = 9
    assert MODULE.kurtosis(few)[0] == pytest.approx(1 / (1 / 16 * 15 / 16) - 3)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 100, 60)])
def test_kinds_hold_at_any_size(shape):
    images = mixed(9, shape=shape)
    images[1, :, 0, 0] ^= 255  # a speck
    assert MODULE.kinds(images).tolist() == ["noise", "blank", "unrecognised"] * 3
    assert MODULE.kinds(images[:0]).shape == (0,)


def test_one_colour_is_blank_and_noise_of_one_channel_is_noise():
    colour = np.broadcast_to(np.array([[10], [120], [250]])[..., None], (3, 8, 8))
    red = np.stack([np.random.default_rng(0).integers(0, 256, (8, 8)), np.zeros((8, 8)), np.zeros((8, 8))])
    assert MODULE.kinds(np.stack([colour, red]).astype(np.uint8)).tolist() == ["blank", "noise"]


def test_blocks_of_images_give_what_all_give(monkeypatch):
    images = mixed(40)
    whole = MODULE.kinds(images).tolist()
    monkeypatch.setattr(MODULE, "VALUES", 7 * 64)
    assert MODULE.kinds(images).tolist() == whole


def test_the_error_rates_are_those_of_the_card():
    train = load_dataset("digits").load(None, lambda *_: None).train
    x, y = torch.from_numpy(train.images).float() / 127.5 - 1, torch.from_numpy(train.labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]

    def made(kind):
        return ((kind(x, y, torch.Generator().manual_seed(0)) + 1) * 127.5).round().clamp(0, 255).byte().numpy()

    partner = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))  # as `blend` draws it
    images = {
        "real digits": train.images, "Gaussian noise": made(negatives.gaussian),
        "two-level noise": made(negatives.two_level), "shuffled pixels": made(negatives.shuffled_pixels),
        "blank": made(negatives.blank), "smooth noise": made(negatives.smooth),
        "blends": made(negatives.blend)[(y != y[partner]).numpy()],
        "shuffled patches": made(negatives.shuffled_patches),
    }  # fmt: skip
    found = {name: [100 * np.mean(MODULE.kinds(some) == part) for part in PARTS] for name, some in images.items()}
    lines = re.findall(r"^    (\S.*?) +([\d.]+) +([\d.]+) +([\d.]+)$", MODULE.__doc__, re.MULTILINE)
    told = {name: list(map(float, numbers)) for name, *numbers in lines}
    assert told.keys() == found.keys() and f"n = {len(x):,} of each" in MODULE.__doc__
    for name, shares in found.items():
        assert told[name] == pytest.approx(shares, abs=0.1), (name, np.round(shares, 1))
