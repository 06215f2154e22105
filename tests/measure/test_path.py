"""The path from the base to the unlearned model: its ends, its samples, and forgetting at equal retention."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unlearnbench.cost.meter import Meter
from unlearnbench.datasets import load_dataset
from unlearnbench.errors import Unmeasurable
from unlearnbench.measure.inputs import EvaluationInputs, measure
from unlearnbench.measure.path import ModelPath, Point
from unlearnbench.measure.prepared import prepare
from unlearnbench.models.training import reinitialise
from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.spec import NO_OBJECT
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.store.cell import Cell

EQUAL = Registry().metric("equal_retention")


@pytest.fixture(scope="module")
def prepared(tiny, tmp_path_factory):
    store = ArtifactStore(tmp_path_factory.mktemp("artifacts"))
    return prepare(tiny, store, torch.device("cpu"), lambda what, done, total: None, EQUAL.needs)


@pytest.fixture
def unlearned(prepared):
    torch.manual_seed(0)
    model = copy.deepcopy(prepared.base)
    reinitialise(model)
    return model.eval().requires_grad_(False)


class Sees:
    """A judge that sees the same in all images, and keeps these."""

    def __init__(self, verdict):
        self.verdict, self.seen = verdict, []

    def names(self, images, device):
        self.seen.append(images)
        return np.full(len(images), self.verdict)


@pytest.fixture
def make(tiny, prepared, unlearned):
    def path(judge=None, model=None, dataset=tiny, is_in_weights=True, **cell):
        chosen = Cell("digits", tiny.protocol.name, "safemax", {}, **{"forget_class": 3, "seed": 0, **cell})
        ready = replace(prepared, rejecting=judge) if judge else prepared
        return ModelPath(chosen, model or unlearned, dataset, ready, lambda *_: None, is_in_weights)

    return path


class TestThePath:
    def test_both_ends_draw_first_images_of_the_cells_own(self, make, tiny, prepared, unlearned, tmp_path):
        judge, few = Sees(3), replace(tiny, protocol=replace(tiny.protocol, forget_samples=4, retain_samples=1))
        one = make(judge, dataset=few)
        one.at(0.0)
        one.at(1.0)
        for images, model in zip(judge.seen, (prepared.base, unlearned), strict=True):
            cell = EvaluationInputs(
                one.cell, model, "", tiny, prepared, ArtifactStore(tmp_path), {}, Meter(), lambda *_: None
            )
            first = np.concatenate([cell.retain_samples[cell.retain_labels == c][:1] for c in one.retained_classes])
            np.testing.assert_array_equal(images, np.concatenate([cell.forget_samples[:4], first]))

    def test_weights_are_mixed(self, make, prepared, unlearned):
        base, ours = prepared.base.state_dict(), unlearned.state_dict()
        mixed = make().model_at(0.25).state_dict()
        for name in base:
            torch.testing.assert_close(mixed[name], 0.75 * base[name] + 0.25 * ours[name])

    def test_the_ends_stay_as_they_are(self, make, prepared, unlearned):
        before = [copy.deepcopy(model.state_dict()) for model in (prepared.base, unlearned)]
        make().at(0.5)
        for weights, model in zip(before, (prepared.base, unlearned), strict=True):
            assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())

    def test_samples_are_about_a_hundred_and_not_more_than_a_cell_has(self, make, tiny):
        many = replace(tiny, protocol=replace(tiny.protocol, forget_samples=40, retain_samples=1000))
        one = make(dataset=many)
        assert one.forget_labels == [3] * 40
        assert one.retain_labels == [c for c in range(10) if c != 3 for _ in range(12)]
        several = make(dataset=many, forget_class=3, further=(5,), earlier=((7,),))
        assert several.forget_labels == [3, 5] * 25
        assert several.retain_labels == [c for c in (0, 1, 2, 4, 6, 8, 9) for _ in range(15)]
        assert len(make().forget_labels) == tiny.protocol.forget_samples == 6
        assert len(make().retain_labels) == 9 * tiny.protocol.retain_samples == 18

    @pytest.mark.parametrize(
        ("verdict", "forgotten", "retained"), [(NO_OBJECT, 100.0, 0.0), (3, 0.0, 0.0), (4, 100.0, 100 / 9)]
    )
    def test_shares_by_hand(self, make, verdict, forgotten, retained):
        assert make(Sees(verdict)).at(0.5) == pytest.approx(Point(0.5, forgotten, retained))

    def test_any_forget_class_counts_as_not_forgotten(self, make):
        assert make(Sees(5), further=(5,)).at(1.0).forgotten == 0.0

    def test_models_without_a_path_have_a_reason(self, make, unlearned):
        hooked = copy.deepcopy(unlearned)
        hooked.register_forward_hook(lambda module, args, output: None)
        for one in (make(is_in_weights=False), make(model=hooked)):
            with pytest.raises(Unmeasurable, match="weights alone do not determine the model"):
                one.at(1.0)
        wider = copy.deepcopy(unlearned)
        network = wider.network
        network.class_embedding = torch.nn.Embedding(12, network.class_embedding.embedding_dim)
        with pytest.raises(Unmeasurable, match="another network than the base"):
            make(model=wider).at(1.0)


@pytest.fixture(scope="module")
def digits(cache):
    """The real digits, prepared, with samples enough for controls."""
    real = load_dataset("digits")
    few = replace(real, protocol=replace(real.protocol, forget_samples=20, retain_samples=4))
    return few, prepare(few, ArtifactStore(cache), torch.device("cpu"), lambda *_: None, EQUAL.needs)


class Told:
    """A path with given shares: {a: (forgotten, retained)}, or a function of a."""

    forget_labels, retain_labels = [3] * 50, [0] * 108

    def __init__(self, shares):
        self.shares, self.asked = shares, []

    def at(self, a):
        self.asked.append(a)
        return Point(a, *self.shares(a))


class TestEqualRetention:
    def test_a_model_that_holds_the_level_is_not_moved(self):
        path = Told(lambda a: (100 * a, 100 - 5 * a))
        score = EQUAL.function(path)
        assert (score.value, score.n) == (100.0, 50)
        assert path.asked == [0.0, 0.25, 0.5, 0.75, 1.0]
        assert score.detail == {
            "a": [0.0, 0.25, 0.5, 0.75, 1.0], "forget": [0.0, 25.0, 50.0, 75.0, 100.0],
            "retain": [100.0, 98.75, 97.5, 96.25, 95.0], "at": 1.0, "level": 95.0, "n_retain": 108,
        }  # fmt: skip

    @pytest.mark.parametrize(("lost", "at"), [(40.0, 0.125), (6.5, 0.75), (5.2, 0.9375), (1000.0, 0.0)])
    def test_another_is_moved_until_it_holds_it(self, lost, at):
        score = EQUAL.function(Told(lambda a: (100 * a, max(100 - lost * a, 0.0))))
        assert score.detail["at"] == at <= 5 / lost < at + 1 / 32
        assert score.value == 100 * at
        assert score.detail["a"] == sorted(score.detail["a"]) and len(score.detail["a"]) == 8

    def test_a_dip_on_the_way_counts_for_nothing(self):
        assert EQUAL.function(Told(lambda a: (100 * a, 96.0 if a in (0.0, 1.0) else 0.0))).value == 100.0
        assert EQUAL.function(Told(lambda a: (100 * a, 0.0 if a in (0.25, 1.0) else 96.0))).value > 75.0

    def test_the_level_depends_on_the_base_alone(self):
        levels = {EQUAL.function(Told(lambda a, s=s: (0.0, 80 - s * a))).detail["level"] for s in (0, 30, 80)}
        assert levels == {76.0}

    @pytest.mark.parametrize(
        ("control", "least", "most"),
        [("original", 0, 5), ("sham_update", 0, 5), ("sham_random", 0, 30), ("sham_swap", 50, 100)],
    )
    def test_controls_on_digits_are_as_the_card_says(self, digits, control, least, most):
        dataset, ready = digits
        model = copy.deepcopy(ready.base)
        context = SimpleNamespace(
            model=model, forget_class=3, num_classes=10, generator=torch.Generator().manual_seed(0)
        )
        spec = Registry().method(control)
        torch.manual_seed(0)
        spec.function(context, **spec.defaults)
        cell = Cell("digits", dataset.protocol.name, control, {}, 3, 0)
        path = ModelPath(cell, model.requires_grad_(False), dataset, ready, lambda *_: None, is_in_weights=True)
        score = EQUAL.function(path)
        assert least <= score.value <= most
        assert score.detail["retain"][0] > 90
        assert spec.truth["forgetting"] == (score.detail["forget"][-1] > 90)

    def test_it_is_timed_apart(self, make, tiny, prepared, unlearned, tmp_path):
        meter, cell = Meter(), make().cell
        inputs = EvaluationInputs(
            cell, unlearned, "weights", tiny, prepared, ArtifactStore(tmp_path), {}, meter, lambda *_: None
        )
        state = torch.get_rng_state()
        entry = measure(inputs, [(EQUAL, "hash")])["equal_retention"]
        assert torch.equal(torch.get_rng_state(), state)
        assert entry["value"] is not None and entry["n"] == 6
        assert entry["cost"]["seconds"] == meter.costs["attack"].seconds > 0
        assert set(meter.phases()) == {"attack"}

    def test_only_when_named_and_for_every_row(self):
        registry = Registry()
        assert EQUAL not in registry.select_metrics("all")
        assert registry.select_metrics("equal") == [EQUAL]
        assert EQUAL.is_apart and not EQUAL.is_attack
