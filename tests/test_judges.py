"""Judges: what is no object, and what the rejecting judge of digits makes of it."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from unlearnbench.artifacts import ArtifactStore
from unlearnbench.datasets import SvmRecipe, load_dataset
from unlearnbench.diffusion import Schedule, sample, to_float, to_uint8
from unlearnbench.evaluation import sample_seeds
from unlearnbench.grid import Cell
from unlearnbench.judges import NetworkJudge, RejectingJudge, SvmJudge, build_classifier, through
from unlearnbench.negatives import KINDS, negatives
from unlearnbench.networks import CLASSIFIERS
from unlearnbench.plugin import NO_OBJECT
from unlearnbench.preparation import prepare

CPU = torch.device("cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pictures(n=64, channels=1, side=8):
    """Return images (n, C, side, side) in [-1, 1] that differ in every pixel, and labels."""
    return torch.rand(n, channels, side, side, generator=generator(1)) * 2 - 1, torch.arange(n) % 10


@pytest.mark.parametrize("fails", [False, True])
def test_a_network_goes_back_to_where_it_was(monkeypatch, fails):
    network = CLASSIFIERS["small_cnn"](1, 10).double()
    moves = []

    def to(device):
        moves.append(str(device))
        return network

    monkeypatch.setattr(network, "to", to)
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    monkeypatch.setattr(network, "forward", None if fails else lambda batch: batch.flatten(1).float())
    with pytest.raises(TypeError) if fails else nullcontext():
        through(network, images.numpy(), torch.device("cpu:0"))
    assert moves == ["cpu:0", "cpu"]


class TestNegatives:
    @pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
    @pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 32), (3, 10)])
    def test_every_kind_keeps_shape_and_range_and_its_seed(self, kind, channels, side):
        x, y = pictures(channels=channels, side=side)
        drawn = kind(x, y, generator())
        assert drawn.shape == x.shape
        assert drawn.min() >= -1 and drawn.max() <= 1
        assert torch.equal(drawn, kind(x, y, generator()))
        assert not torch.equal(drawn, kind(x, y, generator(1)))

    def test_shuffles_keep_the_pixels_of_each_image_and_their_channels_together(self):
        x, y = pictures(channels=3)
        for name in ("shuffled_pixels", "shuffled_patches"):
            moved = KINDS[name](x, y, generator())
            assert torch.equal(moved.flatten(2).sort(dim=2)[0], x.flatten(2).sort(dim=2)[0])
            pixels = {tuple(p) for p in x[0].flatten(1).T.tolist()}
            assert {tuple(p) for p in moved[0].flatten(1).T.tolist()} == pixels
        patches = KINDS["shuffled_patches"](x, y, generator())[0, 0].unfold(0, 2, 2).unfold(1, 2, 2).reshape(-1, 4)
        whole = x[0, 0].unfold(0, 2, 2).unfold(1, 2, 2).reshape(-1, 4)
        assert {tuple(p) for p in patches.tolist()} == {tuple(p) for p in whole.tolist()}

    def test_a_blend_is_of_two_classes(self):
        x, _ = pictures(n=8)
        alone = KINDS["blend"](x, torch.zeros(8, dtype=torch.int64), generator())
        assert torch.equal(
            alone, KINDS["blend"](-x, torch.zeros(8, dtype=torch.int64), generator())
        )  # no image is in it
        apart = KINDS["blend"](x, torch.arange(8), generator())
        assert not torch.equal(apart, KINDS["blend"](-x, torch.arange(8), generator()))

    def test_all_kinds_come_in_equal_shares(self, monkeypatch):
        import unlearnbench.negatives as module

        marked = {name: lambda x, y, g, k=k: torch.full_like(x, k) for k, name in enumerate(KINDS)}
        monkeypatch.setattr(module, "KINDS", marked)
        x, y = pictures(n=2 * len(KINDS) + 3)
        counts = negatives(x, y, generator())[:, 0, 0, 0].unique(return_counts=True)[1]
        assert len(counts) == len(KINDS)
        assert sorted(counts.tolist()) == [2] * (len(KINDS) - 3) + [3] * 3
        assert len(negatives(x[:3], y[:3], generator())) == 3


class TestNames:
    def test_an_image_is_rejected_above_the_threshold_alone(self):
        class Fixed(torch.nn.Module):
            def forward(self, images):
                return torch.tensor([[0.3, 0.1, 0.6], [0.15, 0.04, 0.81], [0.1, 0.11, 0.79]]).log()

        images = np.zeros((3, 1, 8, 8), dtype=np.uint8)
        assert RejectingJudge(Fixed(), 0.8).names(images, CPU).tolist() == [0, NO_OBJECT, 1]
        assert RejectingJudge(Fixed(), 0.5).names(images, CPU).tolist() == [NO_OBJECT] * 3
        assert NetworkJudge(Fixed()).names(images, CPU).tolist() == [2, 2, 2]

    def test_verdicts_do_not_depend_on_the_batch(self, monkeypatch):
        torch.manual_seed(0)
        dataset = load_dataset("digits")
        judge = RejectingJudge(build_classifier(dataset, dataset.rejecting), 0.1)
        images = dataset.load(None, None).test.images[:50]
        whole = judge.names(images, CPU)
        monkeypatch.setattr("unlearnbench.judges.JUDGE_BATCH", 7)
        np.testing.assert_array_equal(judge.names(images, CPU), whole)
        assert 0 < np.mean(whole == NO_OBJECT) < 1

    def test_the_svm_is_that_of_scikit_learn_and_the_same_again(self):
        from sklearn.svm import SVC

        images = load_dataset("digits").load(None, None)
        recipe = SvmRecipe(c=10.0, gamma=0.05)
        judge = SvmJudge.fitted(recipe, images.train.images, images.train.labels)
        theirs = SVC(C=10.0, gamma=0.05).fit(images.train.images.reshape(-1, 64) / 255, images.train.labels)
        named = judge.names(images.test.images, CPU)
        np.testing.assert_array_equal(named, theirs.predict(images.test.images.reshape(-1, 64) / 255))
        assert np.mean(named == images.test.labels) >= 0.98

    @pytest.mark.parametrize("name", ["small_vgg", "vgg16"])
    def test_the_second_architectures_take_images_of_any_size(self, name):
        network = CLASSIFIERS[name](3, 7).eval()
        for side in (8, 16, 32, 64):
            assert network(torch.zeros(2, 3, side, side)).shape == (2, 7)

    def test_only_the_rejecting_network_has_an_output_more(self):
        dataset = load_dataset("digits")
        assert build_classifier(dataset, dataset.judge).head.out_features == 10
        assert build_classifier(dataset, dataset.rejecting).head.out_features == 11

    @pytest.mark.parametrize("source", ["cifar10", "cifar100", "stl10"])
    def test_images_have_judges_of_two_architectures(self, source):
        dataset = load_dataset(source)
        assert dataset.second.network != dataset.judge.network
        assert len({dataset.judge.seed, dataset.second.seed, dataset.rejecting.seed, 1}) == 4


@pytest.fixture(scope="module")
def prepared(cache):
    dataset = load_dataset("digits")
    return dataset, prepare(dataset, ArtifactStore(cache), CPU, lambda *_: None, ["forget_verdicts"])


class TestDigits:
    """The reach that the rejecting judge of digits must have, on images that no judge was trained on."""

    def rejected(self, prepared, images):
        return float(np.mean(prepared.rejecting.names(images, CPU) == NO_OBJECT))

    def test_the_record_says_what_the_judges_are_worth(self, prepared):
        worth = prepared[1].worth
        assert worth["test_accuracy"] >= 0.975
        assert worth["rejecting"]["test_accuracy"] >= 0.975
        assert worth["rejecting"]["n"] == worth["n"] == 360

    @pytest.mark.parametrize("kind", ["gaussian", "uniform", "two_level", "shuffled_pixels", "blank"])
    def test_noise_shuffled_pixels_and_blanks_are_no_object(self, prepared, kind):
        test = prepared[0].load(None, None).test
        x, y = to_float(torch.from_numpy(test.images)).repeat(3, 1, 1, 1), torch.from_numpy(test.labels).repeat(3)
        drawn = to_uint8(KINDS[kind](x, y, generator(7))).numpy()
        assert self.rejected(prepared[1], drawn) >= 0.99

    def test_plain_noise_and_one_constant_are_no_object(self, prepared):
        noise = to_uint8(torch.randn(1000, 1, 8, 8, generator=generator())).numpy()
        greys = np.repeat(np.arange(256, dtype=np.uint8), 64).reshape(256, 1, 8, 8)
        assert self.rejected(prepared[1], noise) >= 0.99
        assert self.rejected(prepared[1], greys) >= 0.99

    def test_real_test_images_are_hardly_ever_rejected(self, prepared):
        assert self.rejected(prepared[1], prepared[0].load(None, None).test.images) <= 0.01

    def test_of_what_the_base_model_draws_at_most_three_in_a_hundred_are_rejected(self, prepared):
        dataset, found = prepared
        for c in range(10):
            cell = Cell("digits", dataset.protocol.name, "m", {}, c, 0)
            labels = [c] * dataset.protocol.forget_samples
            images = sample(
                found.base, Schedule.linear(), torch.tensor(labels), sample_seeds(cell, labels), (1, 8, 8),
                null_class=10, **dataset.protocol.sampler,
            )  # fmt: skip
            assert self.rejected(found, images.numpy()) <= 0.03, c


def test_a_judge_nobody_asks_for_is_not_trained(tiny, tmp_path):
    found = prepare(tiny, ArtifactStore(tmp_path), CPU, lambda *_: None, ["forget_probs"])
    assert found.rejecting is found.second is found.extractor is None
    assert not (tmp_path / "rejecting-judge").exists()
    other = replace(tiny, rejecting=replace(tiny.rejecting, threshold=0.5))
    assert (other.digest, other.panel != tiny.panel) == (tiny.digest, True)
