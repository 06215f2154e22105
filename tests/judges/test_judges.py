"""Judges: what is no object, and what the rejecting judge of digits makes of it."""

import hashlib
import json
import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from tests.conftest import cifar_shapes, cifar_weights
from unlearnbench.datasets import Source, Split, load_dataset
from unlearnbench.datasets.recipes import GivenJudge, SvmRecipe
from unlearnbench.errors import UsageError
from unlearnbench.judges.fit import fit_classifier
from unlearnbench.judges.forward import forward_batches
from unlearnbench.judges.judges import NetworkJudge, SvmJudge, build_classifier
from unlearnbench.judges.negatives import KINDS, negatives
from unlearnbench.judges.rejecting import RejectingJudge
from unlearnbench.judges.weights import check_given, read_weights
from unlearnbench.measure.prepared import prepare
from unlearnbench.models.diffusion import Schedule, to_float, to_uint8
from unlearnbench.models.networks import CLASSIFIERS
from unlearnbench.models.sampler import sample
from unlearnbench.plugins.spec import NO_OBJECT
from unlearnbench.run.stale import current_dataset
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.store.cell import Cell, sample_seeds
from unlearnbench.store.hashing import file_digest

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
        forward_batches(network, images.numpy(), torch.device("cpu:0"))
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
        import unlearnbench.judges.negatives as module

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
        monkeypatch.setattr("unlearnbench.judges.forward.JUDGE_BATCH", 7)
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

    @pytest.mark.parametrize("source", ["cifar10", "cifar100", "stl10", Source("cifar10", "brief")], ids=str)
    def test_images_have_judges_of_two_architectures(self, source):
        dataset = load_dataset(source)
        assert dataset.second.network != dataset.judge.network
        assert len({dataset.judge.seed, dataset.second.seed, dataset.rejecting.seed, 1}) == 4


def resnet_by_hand(weights, images, blocks):
    """Return the logits that a CIFAR ResNet's formulas make of a file's weights.

    Args:
        weights: by the file's names.
        images: (n, 3, H, W) uint8.
        blocks: of each stage.
    """

    def conv(x, name, stride=1):
        return functional.conv2d(x, weights[f"{name}.weight"], stride=stride, padding=1)

    def norm(x, name):
        mean, var, scale, shift = (
            weights[f"{name}.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + 1e-5).sqrt() * scale + shift

    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (images / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    x = norm(conv(x, "conv1"), "bn1").relu()
    for name in (f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(blocks)):
        stride = 2 if name in ("layer2.0", "layer3.0") else 1
        y = norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1").relu()
        y = norm(conv(y, f"{name}.conv2"), f"{name}.bn2")
        if stride == 2:
            zeros = torch.zeros(len(x), x.shape[1] // 2, *y.shape[2:])
            x = torch.cat([zeros, x[:, :, ::2, ::2], zeros], dim=1)
        x = (x + y).relu()
    return x.mean(dim=(2, 3)) @ weights["linear.weight"].T + weights["linear.bias"]


def save(path, weights):
    save_file(weights, path)
    return path


NETWORKS = {"cifar_resnet20": 3, "cifar_resnet56": 9}


class TestWeights:
    """Judges whose weights come from a file."""

    def test_the_layout_is_that_of_the_published_weights(self):
        for blocks, tensors, numbers in ((3, 97, 271_098), (9, 277, 857_082)):
            shapes = cifar_shapes(blocks)
            assert (len(shapes), sum(math.prod(shape) for shape in shapes.values())) == (tensors, numbers)

    @pytest.mark.parametrize("network", NETWORKS)
    def test_a_network_from_a_file_computes_its_formulas(self, tmp_path, network):
        weights = cifar_weights(NETWORKS[network])
        found = read_weights("x", save(tmp_path / "w.safetensors", weights), network, 10)
        assert found.sha256 == hashlib.sha256((tmp_path / "w.safetensors").read_bytes()).hexdigest()
        model = CLASSIFIERS[network](3, 10)
        model.load_state_dict(found.tensors)
        images = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=generator())
        with torch.no_grad():
            logits = model.eval()(images)
            expected = resnet_by_hand(weights, images, NETWORKS[network])
            torch.testing.assert_close(model(to_float(images)), logits)
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
        assert (expected[0] - expected[1]).abs().max() > 1e-2 * expected.abs().max()  # it looks at the images

    def test_counters_may_be_there_and_half_precision_is_made_whole(self, tmp_path):
        weights = {name: tensor.half() for name, tensor in cifar_weights().items()}
        weights["bn1.num_batches_tracked"] = torch.tensor(7)
        found = read_weights("x", save(tmp_path / "w.safetensors", weights), "cifar_resnet20", 10).tensors
        assert {tensor.dtype for name, tensor in found.items() if "num_batches" not in name} == {torch.float32}
        assert found["body.bn1.num_batches_tracked"] == 0
        CLASSIFIERS["cifar_resnet20"](3, 10).load_state_dict(found)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda w: w.pop("bn1.weight"), "it lacks bn1.weight: give weights of cifar-resnet20"),
            (lambda w: w.pop("linear.weight"), "it lacks linear.weight"),
            (
                lambda w: w.update({"conv1.weight": torch.zeros(16, 1, 3, 3)}),
                r"its conv1.weight has the shape \(16, 1, 3, 3\), but cifar-resnet20 has it as \(16, 3, 3, 3\)",
            ),
            (lambda w: w.update({"linear.weight": torch.zeros(64)}), r"its linear.weight has the shape \(64,\)"),
            (lambda w: w.update(cifar_weights(9)), "which cifar-resnet20 does not have"),
            (lambda w: w.update(cifar_weights(classes=100)), "its network has 100 classes, the dataset has 10"),
            (lambda w: w["linear.bias"].fill_(math.nan), "its linear.bias holds NaN"),
        ],
    )
    def test_what_does_not_fit_is_one_sentence(self, tmp_path, change, message):
        weights = cifar_weights()
        change(weights)
        path = save(tmp_path / "w.safetensors", weights)
        with pytest.raises(UsageError, match=rf"^--judge-weights {path}: .*{message}"):
            check_given(load_dataset(Source("cifar10", "brief", judge_weights=path)))

    def test_a_file_of_another_kind_is_one_sentence(self, tmp_path):
        path = tmp_path / "w.pth"
        with pytest.raises(UsageError, match=r"w\.pth: there is no such file"):
            check_given(load_dataset(Source("cifar10", "brief", judge_weights=path)))
        torch.save({"a": torch.ones(1)}, path)
        with pytest.raises(UsageError, match=r"w.pth: it cannot be read as safetensors \(.*give a file of cifar-"):
            check_given(load_dataset(Source("cifar10", "brief", judge_weights=path)))

    @pytest.mark.parametrize(
        ("choices", "message"),
        [
            ({"dataset": "digits", "judge_weights": "w"}, "--judge-weights is for cifar-resnet20 and cifar-resnet56"),
            ({"judge": "small", "judge_weights": "w"}, "name one of them with --judge$"),
            ({"second_judge_weights": "w"}, "name it with --second-judge"),
            ({"second_judge": "small", "second_judge_weights": "w"}, "name one of them with --second-judge$"),
            ({"second_judge": "cifar-resnet20"}, "is the first judge already"),
            ({"second_judge": "vgg"}, "has no judge 'vgg'"),
            ({"dataset": "stl10", "protocol": "fast", "judge": "cifar-resnet20"}, "has no judge 'cifar-resnet20'"),
        ],
        ids=str,
    )
    def test_choices_that_do_not_go_together(self, tmp_path, choices, message):
        path = save(tmp_path / "w.safetensors", cifar_weights())
        given = {name: path if value == "w" else value for name, value in choices.items()}
        usual = {"dataset": "cifar10", "protocol": "" if given.get("dataset") == "digits" else "brief"}
        with pytest.raises(UsageError, match=message):
            load_dataset(Source(**{**usual, **given}))

    def test_both_judges_are_part_of_what_records_rest_on(self, tmp_path):
        first, other = (save(tmp_path / f"{k}.safetensors", cifar_weights(9, seed=k)) for k in (0, 1))
        second = save(tmp_path / "2.safetensors", cifar_weights(3))
        source = Source("cifar10", "fast", judge="cifar-resnet56", judge_weights=first, second_judge="cifar-resnet20")
        given = load_dataset(replace(source, second_judge_weights=second))
        assert given.choices == {
            "judge": "cifar-resnet56", "judge_weights": file_digest(first), "second_judge": "cifar-resnet20",
            "second_judge_weights": file_digest(second),
        }  # fmt: skip
        digests = {load_dataset(replace(source, judge_weights=path)).digest for path in (None, first, other)}
        assert len(digests) == 3
        panels = {load_dataset(replace(source, second_judge_weights=path)).judges_digest for path in (None, second)}
        assert len(panels | {load_dataset(Source("cifar10", "fast")).judges_digest}) == 3
        for path in (first, other, second):
            path.unlink()  # whoever reads a record has no such files
        now = current_dataset(given.to_json(), "fast")
        assert (now.digest, now.judges_digest, now.choices) == (given.digest, given.judges_digest, given.choices)
        assert str(tmp_path) not in json.dumps(given.to_json())

    def test_judges_from_files_are_tested_like_any_other(self, tiny, tmp_path):
        weights, steps = [cifar_weights(seed=k) for k in (0, 1)], {}
        files = [save(tmp_path / f"{k}.safetensors", weights[k]) for k in (0, 1)]
        judges = [GivenJudge("cifar_resnet20", file_digest(path)) for path in files]
        paths = dict(zip((judge.sha256 for judge in judges), files, strict=True))
        dataset = replace(tiny, judge=judges[0], second=judges[1], weights=paths)

        def made():
            return prepare(
                dataset, ArtifactStore(tmp_path / "cache"), CPU, lambda what, done, total: steps.setdefault(what),
                ["forget_second"],
            )  # fmt: skip

        found = made()
        assert list(steps)[1:3] == ["read the judge (1 of 3)", "read the second judge (2 of 3)"]
        test = tiny.load(None, None).test
        rgb = torch.from_numpy(test.images).expand(-1, 3, -1, -1)
        for k, test_performance in enumerate((found.test_performance, found.test_performance["second"])):
            named = resnet_by_hand(weights[k], rgb, 3).argmax(dim=1).numpy()
            assert test_performance["test_accuracy"] == pytest.approx(np.mean(named == test.labels), abs=1 / 360)
            assert test_performance["n"] == 360
        for path in files:
            path.unlink()
        again = made()  # by the cache
        assert (again.test_performance, again.artifacts) == (found.test_performance, found.artifacts)

    def test_a_file_that_is_another_one_by_now_is_refused(self, tiny, tmp_path):
        path = save(tmp_path / "w.safetensors", cifar_weights())
        judge = GivenJudge("cifar_resnet20", file_digest(path))
        save(path, cifar_weights(seed=1))
        dataset = replace(tiny, judge=judge, weights={judge.sha256: path})
        with pytest.raises(UsageError, match="changed after the run began"):
            prepare(dataset, ArtifactStore(tmp_path / "cache"), CPU, lambda *_: None, [])

    def test_without_a_file_the_network_is_trained(self):
        judge = load_dataset(Source("cifar10", "fast", judge="cifar-resnet20")).judge
        assert (judge.network, judge.pretrained) == ("cifar_resnet20", False)
        torch.manual_seed(0)
        model = CLASSIFIERS[judge.network](3, 2)
        labels = np.arange(64) % 2
        images = np.full((64, 3, 8, 8), 40, dtype=np.uint8) + 170 * labels[:, None, None, None].astype(np.uint8)
        recipe = replace(judge, epochs=20, batch=32, shift=1)
        fit_classifier(model, Split(images, labels.astype(np.int64)), recipe, lambda done, total: None)
        model.train()  # too few steps for the running statistics
        with torch.no_grad():
            assert model(torch.from_numpy(images)).argmax(dim=1).tolist() == labels.tolist()


@pytest.fixture(scope="module")
def prepared(cache):
    dataset = load_dataset("digits")
    return dataset, prepare(dataset, ArtifactStore(cache), CPU, lambda *_: None, ["forget_verdicts"])


class TestDigits:
    """The reach that the rejecting judge of digits must have, on images that no judge was trained on."""

    def rejected(self, prepared, images):
        return float(np.mean(prepared.rejecting.names(images, CPU) == NO_OBJECT))

    def test_the_record_says_what_the_judges_are_worth(self, prepared):
        test_performance = prepared[1].test_performance
        assert test_performance["test_accuracy"] >= 0.975
        assert test_performance["rejecting"]["test_accuracy"] >= 0.975
        assert test_performance["rejecting"]["n"] == test_performance["n"] == 360

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
                found.base, Schedule.of(), torch.tensor(labels), sample_seeds(cell, labels), (1, 8, 8),
                null_class=10, **dataset.protocol.sampler,
            )  # fmt: skip
            assert self.rejected(found, images.numpy()) <= 0.03, c


def test_a_judge_nobody_asks_for_is_not_trained(tiny, tmp_path):
    found = prepare(tiny, ArtifactStore(tmp_path), CPU, lambda *_: None, ["forget_probs"])
    assert found.rejecting is found.second is found.extractor is None
    assert not (tmp_path / "rejecting-judge").exists()
    other = replace(tiny, rejecting=replace(tiny.rejecting, threshold=0.5))
    assert (other.digest, other.judges_digest != tiny.judges_digest) == (tiny.digest, True)
