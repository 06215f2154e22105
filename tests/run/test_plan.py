"""What a run is asked for: the order of its cells, what it keeps, and what it says before anything is trained."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import fake_record
from unlearnbench.datasets import FEATURES, INCEPTION_FEATURES, Source, load_dataset, resolve
from unlearnbench.datasets.profiles import colour_profiles
from unlearnbench.models.networks import CLASSIFIERS
from unlearnbench.run.arguments import parse_targets
from unlearnbench.run.execution import Execution
from unlearnbench.run.plan import _few_samples, make_plan, select
from unlearnbench.store.records import DeviceModel, device_model

CACHE = Path("cache")
DEVICE = {"type": "cpu", "name": "A CPU", "uuid": "1"}


def folder(names, protocol="smoke", extractor="", counts=()):
    """Return a dataset of classes of these names, of which no image is read."""
    source = Source("imagefolder", protocol, extractor=extractor)
    return resolve(
        source, name="pets", title="Pets", class_names=names, image_shape=(3, 32, 32), flip=True, load=None,
        train_counts=counts,
    )  # fmt: skip


@pytest.mark.parametrize("name", FEATURES)
def test_the_number_of_features_is_what_the_network_has(name):
    network = CLASSIFIERS[name](1 if name == "small_cnn" else 3, 4)
    size = 8 if name == "small_cnn" else 32
    channels = 1 if name == "small_cnn" else 3
    with torch.no_grad():
        features = network.eval().features(torch.zeros(2, channels, size, size, dtype=torch.uint8))
    assert features.shape == (2, FEATURES[name])


@pytest.mark.parametrize("extractor", ["own", "inception"])
@pytest.mark.parametrize("protocol", ["fast", "paper", "brief", "smoke", "smoke-b4"])
@pytest.mark.parametrize("classes", [2, 3, 5, 10])
def test_samples_of_the_retained_classes_give_a_covariance(classes, protocol, extractor):
    if protocol.endswith("-b4") and classes < 3:
        pytest.skip("it drops class 0, so two classes leave none")
    dataset = folder([f"class {k}" for k in range(classes)], protocol, extractor)
    samples, profile = dataset.protocol.retain_samples, colour_profiles(dataset.image_shape)[protocol]
    assert dataset.features == (INCEPTION_FEATURES if extractor == "inception" else FEATURES[profile.own.network])
    assert (classes - 1) * samples >= 2 * dataset.features
    assert samples >= profile.protocol.retain_samples
    if classes == 10 and extractor == profile.extractor:
        assert samples == profile.protocol.retain_samples  # ten classes are what the protocols were made for


def test_digits_is_as_it_was():
    digits = load_dataset(Source(protocol="digits-ddim25"))
    assert (digits.protocol.retain_samples, digits.features, digits.digest[:12]) == (50, 64, "e979b87560d8")


@pytest.mark.parametrize(
    ("classes", "counts", "words"),
    [
        ("cat", (), []),
        ("cat", (900, 129, 900), []),
        ("cat+dog", (900, 900, 128), ["cat and dog", "128 real ones", "128 generated ones: forget fewer"]),
        ("cat,dog", (40, 40, 40), ["80 real ones: add training images", "cat is forgotten (and for 1 more target)"]),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_known_beforehand(classes, counts, words):
    names = ["cat", "dog", "emu"]
    found = _few_samples(folder(names, counts=counts), parse_targets(classes, names))
    assert all(word in " ".join(found) for word in words)
    assert bool(found) == bool(words)


def test_inception_asks_for_more_images_than_own_features():
    names = ["cat", "dog"]
    (found,) = _few_samples(folder(names, "fast", counts=(2000, 2000)), parse_targets("cat", names))
    assert "more than 2048 images, and of the retained classes there are 2000 real ones" in found
    assert "--extractor own" in found
    assert _few_samples(folder(names, "fast", "own", (2000, 2000)), parse_targets("cat", names)) == []


@pytest.fixture
def make(registry):
    def plan(methods="original,esd", classes="0-1", **more):
        return make_plan(
            registry, methods=methods, classes=classes, source=Source(), metrics="forgotten", sweeps=[], **more
        )

    return plan


def test_the_untouched_model_comes_first(make):
    found = [cell.method for cell in make().cells]
    assert found[:4] == ["original", "original", "esd", "esd"]
    assert all(name.startswith("sham_") for name in found[4:])
    found = [cell.method for cell in make("esd,salun").cells]  # as a control
    assert found[:5] == ["original", "esd", "salun", "esd", "salun"]


def recorded(plan, cell, **changes):
    """Return a sound record of a plan's cell."""
    made = fake_record()
    entries = {
        s.name: {**made.metrics["fake_ua"], "source_hash": plan.source_hashes[f"metric:{s.name}"]} for s in plan.metrics
    }
    fields = {
        "cell": cell, "method": {**made.method, "source_hash": plan.source_hashes[f"method:{cell.method}"]},
        "metrics": entries, "provenance": {**made.provenance, "device": DEVICE},
        "dataset": {**made.dataset, "digest": plan.dataset.digest, "panel": plan.dataset.judges_digest, "content": ""},
    }  # fmt: skip
    return replace(made, **{**fields, **changes})


def test_a_selection_keeps_what_is_recorded(make):
    plan = make(controls="first")
    cells = {(cell.method, cell.forget_class): cell for cell in plan.cells}
    done, failed = cells["esd", 0], cells["esd", 1]
    records = [recorded(plan, done), recorded(plan, failed, status="failed", metrics={}, reason="it broke")]
    device = device_model(DEVICE)
    found = select(plan, records, Execution(CACHE), device)
    assert [cell.id for cell in plan.cells if cell not in found.todo] == [done.id, failed.id]
    assert [record.cell.id for record in found.failed] == [failed.id]
    assert failed in select(plan, records, Execution(CACHE, rerun="failed"), device).todo
    assert select(plan, records, Execution(CACHE, rerun="always"), device).todo == list(plan.cells)
    assert select(plan, records, Execution(CACHE), DeviceModel("cpu", "Another CPU")).todo == list(plan.cells)


def test_a_control_of_another_class_stands_for_the_first(make):
    plan, other = make("esd", "0"), make("esd", "1")
    records = [recorded(other, cell) for cell in other.cells if cell.id in other.controls]
    found = select(plan, records, Execution(CACHE), device_model(DEVICE))
    assert [cell.method for cell in found.todo] == ["esd"]
    assert {record.cell.method for record in found.kept} == {cell.method for cell in other.cells} - {"esd"}
    every = select(plan, records, Execution(CACHE, controls="every"), device_model(DEVICE))
    assert len(every.todo) == len(plan.cells)
