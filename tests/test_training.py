from dataclasses import replace

import pytest
import torch

from unlearnbench.artifacts import ArtifactStore
from unlearnbench.diffusion import Schedule, to_float
from unlearnbench.training import Ema, build_unet, fit_denoiser, prepare, shifted

SILENT = lambda what, done, total: None  # noqa: E731


def test_average_by_hand():
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
        average = Ema(model, 0.9, warm_up=False)
        expected = 0.0
        for value in (1.0, 2.0, 3.0):
            model.weight.fill_(value)
            average.update(model)
            expected = 0.9 * expected + 0.1 * value
        average.copy_to(model)
    assert model.weight.item() == pytest.approx(expected)


def test_warm_up_lets_short_trainings_move():
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.0)
        average = Ema(model, 0.9999)
        model.weight.fill_(1.0)
        for _ in range(100):
            average.update(model)
    assert average.shadow[0].item() > 0.99


def fit(tiny, steps, **changes):
    torch.manual_seed(0)
    model = build_unet(tiny)
    train = tiny.load("train")
    images, labels = to_float(torch.from_numpy(train.images)), torch.from_numpy(train.labels)
    generator = torch.Generator().manual_seed(0)

    def draw(n):
        chosen = torch.randint(0, len(images), (n,), generator=generator)
        return images[chosen], labels[chosen]

    options = {
        "total": steps, "batch": 32, "lr": 2e-3, "cosine": True, "label_dropout": 0.1, "ema": 0.9, "clip": 1.0,
        "null_class": 10, "generator": generator, **changes,
    }  # fmt: skip
    fit_denoiser(model, Schedule.linear(), draw, range(steps), **options)
    return model


def test_training_lowers_the_loss_on_fixed_noise(tiny):
    images = to_float(torch.from_numpy(tiny.load("train").images[:256]))
    labels = torch.from_numpy(tiny.load("train").labels[:256])
    generator = torch.Generator().manual_seed(1)
    t, eps = torch.randint(0, 1000, (256,), generator=generator), torch.randn(images.shape, generator=generator)

    def loss(model):
        with torch.no_grad():
            return (model(Schedule.linear().add_noise(images, eps, t), t, labels).sample - eps).square().mean().item()

    assert loss(fit(tiny, 120)) < 0.6 * loss(fit(tiny, 1))


def test_training_is_reproducible(tiny):
    first, second = fit(tiny, 3), fit(tiny, 3)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))


def test_the_null_class_is_trained_only_through_label_dropout(tiny):
    def null_row(**changes):
        return dict(fit(tiny, 3, **changes).named_parameters())["class_embedding.weight"][10].detach()

    untouched = dict(fit(tiny, 0).named_parameters())["class_embedding.weight"][10].detach()
    assert torch.equal(null_row(label_dropout=0.0), untouched)
    assert not torch.equal(null_row(label_dropout=0.5), untouched)


def test_shifts_move_pixels_and_fill_with_background():
    x = torch.full((64, 1, 4, 4), -1.0)
    x[:, :, 1, 1] = 1.0
    moved = shifted(x, 1, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape
    assert set(moved.unique().tolist()) == {-1.0, 1.0}
    assert len({tuple(image.flatten().tolist()) for image in moved}) == 9
    assert torch.equal(shifted(x, 0, torch.Generator()), x)


def test_prepared_networks_are_frozen_cached_and_equal_when_read_back(tiny, tmp_path):
    first = prepare(tiny, ArtifactStore(tmp_path), torch.device("cpu"), SILENT)
    second = prepare(tiny, ArtifactStore(tmp_path), torch.device("cpu"), SILENT)
    assert first.artifacts == second.artifacts
    for network in (first.base, first.judge, first.extractor):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())
    assert all(torch.equal(p, q) for p, q in zip(first.base.parameters(), second.base.parameters(), strict=True))
    judge, extractor = next(first.judge.parameters()), next(first.extractor.parameters())
    assert not torch.equal(judge, extractor)  # FID does not stand on the judge's own weights


@pytest.mark.parametrize("change", [{"steps": 5}, {"lr": 1e-3}, {"seed": 1}, {"revision": 2}])
def test_the_recipe_is_the_key(tiny, tmp_path, change):
    store = ArtifactStore(tmp_path)
    base = prepare(tiny, store, torch.device("cpu"), SILENT).artifacts["base"]["key"]
    other = replace(tiny, base=replace(tiny.base, **change))
    assert prepare(other, store, torch.device("cpu"), SILENT).artifacts["base"]["key"] != base
