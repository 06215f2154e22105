import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from unlearnbench.cost.meter import Meter
from unlearnbench.errors import PluginError, Unmeasurable
from unlearnbench.judges.features import FEATURE_LAYER, extractor_for
from unlearnbench.measure.inputs import EvaluationInputs, losses_by_timestep, measure
from unlearnbench.measure.prepared import prepare
from unlearnbench.models.codec import PIXELS
from unlearnbench.models.diffusion import evaluating
from unlearnbench.models.unet import UNet
from unlearnbench.plugins.spec import NEEDS, NO_OBJECT, Score, metric
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.store.cell import Cell, sample_seeds


@pytest.fixture(scope="module")
def prepared(tiny, tmp_path_factory):
    store = ArtifactStore(tmp_path_factory.mktemp("artifacts"))
    return prepare(tiny, store, torch.device("cpu"), lambda what, done, total: None, tuple(NEEDS))


@pytest.fixture
def inputs(tiny, prepared, tmp_path):
    store = ArtifactStore(tmp_path)
    cell = Cell("digits", tiny.protocol.name, "safemax", {}, 3, 0)
    return EvaluationInputs(cell, prepared.base, "", tiny, prepared, store, {"uuid": "1"}, Meter(), lambda *_: None)


def test_the_noise_depends_on_neither_method_nor_forget_class():
    a = Cell("digits", "p", "safemax", {"lr": 1.0}, 3, 0)
    b = Cell("digits", "p", "salun", {}, 5, 0)
    assert sample_seeds(a, [1, 1, 2]) == sample_seeds(b, [1, 1, 2])
    assert sample_seeds(a, [2, 1, 1])[1:] == sample_seeds(a, [1, 1, 2])[:2]
    assert len(set(sample_seeds(a, [0] * 50 + [1] * 50))) == 100
    assert sample_seeds(a, [1]) != sample_seeds(replace(a, sampling_seed=1), [1])
    assert sample_seeds(a, [1]) == sample_seeds(replace(a, seed=1, base_seed=1), [1])


def test_shapes_and_types_are_as_documented(inputs):
    assert inputs.forget_samples.shape == (6, 1, 8, 8)
    assert inputs.forget_samples.dtype == np.uint8
    assert inputs.retain_samples.shape == (18, 1, 8, 8)
    assert inputs.retain_labels.tolist() == [c for c in range(10) if c != 3 for _ in range(2)]
    assert inputs.forget_probs.shape == (6, 10)
    assert inputs.forget_probs.dtype == np.float64
    np.testing.assert_allclose(inputs.retain_probs.sum(axis=1), 1)
    assert inputs.retain_features.shape == (18, 64)
    assert len(inputs.reference_features) == int((inputs.prepared.train.labels != 3).sum())
    assert len(inputs.reference_labels) == len(inputs.reference_features)
    assert set(inputs.reference_labels.tolist()) == set(range(10)) - {3}
    assert len(inputs.forget_reference_features) == int((inputs.prepared.train.labels == 3).sum())
    assert inputs.num_classes == 10
    for side, n in (("forget", 6), ("retain", 18)):
        for judge in ("verdicts", "second"):
            named = getattr(inputs, f"{side}_{judge}")
            assert (named.shape, named.dtype) == ((n,), np.int64)
            assert set(named.tolist()) <= {NO_OBJECT, *range(10)}
        assert NO_OBJECT not in getattr(inputs, f"{side}_second")


def test_needs_are_computed_once_and_only_when_asked_for(inputs):
    inputs.forget_probs  # noqa: B018
    assert "retain_samples" not in vars(inputs)
    assert inputs.forget_samples is inputs.forget_samples
    assert set(inputs.meter.phases()) == {"sample"}


def test_a_sample_does_not_depend_on_the_batch_size(inputs, tiny):
    other = replace(inputs, dataset=replace(tiny, protocol=replace(tiny.protocol, batch_size=3)))
    np.testing.assert_array_equal(inputs.forget_samples, other.forget_samples)


def test_the_judge_is_left_in_eval_mode_and_consistent(inputs):
    with evaluating(inputs.prepared.judge):
        pass
    assert not inputs.prepared.judge.training


@pytest.mark.parametrize("change", ["weights", "forward", "part", "type", "more", "hook"])
def test_a_model_that_computes_something_else_is_sampled_itself(inputs, change):
    model = copy.deepcopy(inputs.prepared.base)
    changed = replace(inputs, model=model)
    assert changed._untouched
    if change == "weights":
        next(model.parameters()).data += 1
    elif change == "forward":
        model.forward = type(model).forward.__get__(model)
    elif change == "part":
        model.network.class_embedding.forward = lambda y: torch.zeros(len(y), 1)
    elif change == "type":
        model.network.conv_norm_out = torch.nn.Identity()
    elif change == "more":
        model.extra = torch.nn.Parameter(torch.zeros(1))
    else:
        model.network.conv_in.register_forward_hook(lambda *_: None)
    assert not replace(inputs, model=model)._untouched


def make_metric(function):
    return metric(title="T", unit="", better="lower", aspect="forgetting")(function).__unlearnbench__


def test_non_finite_and_refused_values_become_null_with_a_reason(inputs):
    def infinite(cell):
        return Score(float("inf"), 5)

    def refused(cell):
        raise Unmeasurable("too few samples")

    entries = measure(inputs, [(make_metric(infinite), "h"), (make_metric(refused), "h")])
    assert (entries["infinite"]["value"], entries["infinite"]["n"]) == (None, 5)
    assert "inf" in entries["infinite"]["reason"]
    assert (entries["refused"]["value"], entries["refused"]["reason"]) == (None, "too few samples")


def test_what_else_a_metric_says_travels_with_it(inputs):
    def detailed(cell):
        return Score(1.0, 5, {"by_class": {"3": 1.0}})

    spec = metric(title="T", unit="", better="lower", aspect="forgetting", threshold=2.0)(detailed).__unlearnbench__
    entry = measure(inputs, [(spec, "h")])["detailed"]
    assert (entry["detail"], entry["boundary"]) == ({"by_class": {"3": 1.0}}, 2.0)
    plain = measure(inputs, [(make_metric(lambda cell: (1.0, 5)), "h")])["<lambda>"]
    assert not {"detail", "boundary", "range"} & plain.keys()
    bounded = metric(title="T", unit="", better="lower", aspect="forgetting", range=(0.0, None))(detailed)
    assert measure(inputs, [(bounded.__unlearnbench__, "h")])["detailed"]["range"] == (0.0, None)


@pytest.mark.parametrize(
    "result", [None, 1.0, "text", (1.0,), ("a", "b"), [[1], 2], ("5", 2), (True, 2), (1.0, 2.5), (10**400, 2)]
)
def test_a_metric_that_returns_no_score_is_told_so(inputs, result):
    def careless(cell):
        return result

    with pytest.raises(PluginError, match=r"careless must return Score\(value, n\)"):
        measure(inputs, [(make_metric(careless), "h")])


def test_a_metric_gets_exactly_what_it_asks_for(inputs):
    def both(forget_samples, cell):
        return Score(float(forget_samples.mean() + cell.forget_class), len(forget_samples))

    entry = measure(inputs, [(make_metric(both), "hash")])["both"]
    assert entry["value"] == inputs.forget_samples.mean() + 3
    assert (entry["n"], entry["source_hash"]) == (6, "hash")


def test_fid_is_that_of_torch_fidelity_end_to_end(prepared, tiny):
    """Our features and FID against torch-fidelity's own pipeline with the extractor registered there."""
    import torch_fidelity
    from torch.utils.data import Dataset

    from unlearnbench.plugins.registry import Registry

    class Images(Dataset):
        def __init__(self, images):
            self.images = torch.from_numpy(images)

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return self.images[index].expand(3, 8, 8)

    class Grey(torch.nn.Module):  # torch-fidelity feeds three channels
        def __init__(self):
            super().__init__()
            self.network = prepared.extractor

        def features(self, images):
            return self.network(images[:, :1])[0]

    name = "unlearnbench-test"
    extractor_for(name, Grey())
    train = tiny.load(None, None).train.images
    theirs = torch_fidelity.calculate_metrics(
        input1=Images(train[:300]), input2=Images(train[300:700]), fid=True, feature_extractor=name,
        feature_layer_fid=FEATURE_LAYER, cuda=False, verbose=False, cache=False,
    )["frechet_inception_distance"]  # fmt: skip
    with evaluating(prepared.extractor):
        features = prepared.extractor(torch.from_numpy(train))[0].double().numpy()
    plugin = next(p for p in Registry().plugins("metric") if p.name == "fid")
    assert plugin.load_module().frechet_distance(features[:300], features[300:700]) == pytest.approx(theirs, rel=1e-4)


def test_samples_of_the_untouched_base_are_drawn_once_and_charged_every_time(tiny, prepared, tmp_path):
    drawn = []

    def inputs(forget_class, model):
        cell = Cell("digits", tiny.protocol.name, "original", {}, forget_class, 0)
        meter = Meter()
        progress = lambda what, done, total: drawn.append((forget_class, done))  # noqa: E731
        return EvaluationInputs(
            cell, model, "", tiny, prepared, ArtifactStore(tmp_path), {"uuid": "1"}, meter, progress
        )

    first, second = inputs(3, prepared.base), inputs(4, prepared.base)
    kept, again = first.retain_samples, second.retain_samples
    shared = np.flatnonzero(first.retain_labels == 7), np.flatnonzero(second.retain_labels == 7)
    np.testing.assert_array_equal(kept[shared[0]], again[shared[1]])
    assert {forget_class for forget_class, _ in drawn} == {3, 4}
    assert sum(forget_class == 4 for forget_class, _ in drawn) < sum(forget_class == 3 for forget_class, _ in drawn) / 4
    assert second.meter.costs["sample"].reused
    assert second.meter.costs["sample"].seconds > 0.5 * first.meter.costs["sample"].seconds
    touched = copy.deepcopy(prepared.base)
    with torch.no_grad():
        next(touched.parameters()).add_(1e-3)
    before = len(drawn)
    own = inputs(4, touched)
    own.retain_samples  # noqa: B018
    assert len(drawn) > before + 1
    assert not own.meter.costs["sample"].reused


def test_a_model_draws_the_same_images_whether_they_are_kept_or_not(inputs):
    direct = inputs._draw(inputs.model, [5, 5, 8]).numpy()
    np.testing.assert_array_equal(inputs._sample([5, 5, 8]), direct)


def test_loss_by_timestep_by_hand(inputs, tiny):
    class Zero(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x, t, y):
            seen.append((t.clone(), y.clone()))
            return type("Output", (), {"sample": torch.zeros_like(x)})()

    seen = []
    losses = losses_by_timestep(replace(inputs, model=UNet(Zero(), PIXELS, (1, 8, 8))))
    assert losses["edges"] == list(range(0, 1001, 100))
    for side in ("forget", "retain"):
        assert losses[side] == pytest.approx([1.0] * 10, abs=0.1)  # predicting zero leaves the noise itself
    for k, (t, y) in enumerate(seen):
        assert (t // 100 == k % 10).all()
        assert ((y == 3) == (k < 10)).all()
    assert losses == losses_by_timestep(replace(inputs, model=UNet(Zero(), PIXELS, (1, 8, 8))))
