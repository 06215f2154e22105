import copy
import shutil
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch

from unlearnbench.datasets import Split
from unlearnbench.errors import UsageError
from unlearnbench.judges.fit import fit_classifier, shifted
from unlearnbench.measure.prepared import prepare
from unlearnbench.models import base as base_models
from unlearnbench.models.base import prepare_base
from unlearnbench.models.diffusion import Schedule, to_float
from unlearnbench.models.networks import CLASSIFIERS
from unlearnbench.models.training import DenoiserTraining, Ema, fit_denoiser
from unlearnbench.models.unet import build_unet, unet_config
from unlearnbench.plugins.spec import NEEDS
from unlearnbench.store.artifacts import ArtifactStore

SILENT = lambda what, done, total: None  # noqa: E731
ALL = tuple(NEEDS)


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
    model = build_unet(unet_config(tiny))
    train = tiny.load(None, None).train
    images, labels = to_float(torch.from_numpy(train.images)), torch.from_numpy(train.labels)
    generator = torch.Generator().manual_seed(0)

    def draw(n):
        chosen = torch.randint(0, len(images), (n,), generator=generator)
        return images[chosen], labels[chosen]

    options = {
        "total": steps, "batch": 32, "lr": 2e-3, "cosine": True, "label_dropout": 0.1, "ema": 0.9, "clip": 1.0,
        "null_class": 10, "generator": generator, **changes,
    }  # fmt: skip
    fit_denoiser(model, Schedule.of(), draw, range(steps), **options)
    return model


def test_training_lowers_the_loss_on_fixed_noise(tiny):
    images = to_float(torch.from_numpy(tiny.load(None, None).train.images[:256]))
    labels = torch.from_numpy(tiny.load(None, None).train.labels[:256])
    generator = torch.Generator().manual_seed(1)
    t, eps = torch.randint(0, 1000, (256,), generator=generator), torch.randn(images.shape, generator=generator)

    def loss(model):
        with torch.no_grad():
            return (model(Schedule.of().add_noise(images, eps, t), t, labels).sample - eps).square().mean().item()

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
    first = prepare(tiny, ArtifactStore(tmp_path), torch.device("cpu"), SILENT, ALL)
    second = prepare(tiny, ArtifactStore(tmp_path), torch.device("cpu"), SILENT, ALL)
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
    other = replace(tiny, base=replace(tiny.base, **change))
    keys = {prepare_base(dataset, store, torch.device("cpu"), SILENT).key for dataset in (tiny, other)}
    assert len(keys) == 2


class TestResume:
    """A base model's training that is stopped goes on as if nothing had happened."""

    @pytest.fixture
    def dropping(self, tiny):
        unet = {**tiny.base.network, "dropout": 0.2}  # its draws come from torch's global generator
        return replace(tiny, base=replace(tiny.base, network=unet, steps=8, batch=4), flip=True)

    def test_losses_and_weights_equal_an_uninterrupted_training(self, dropping, tmp_path, monkeypatch):
        monkeypatch.setattr(base_models, "FIRST_CHECKPOINT_SECONDS", 0.0)
        monkeypatch.setattr(base_models, "CHECKPOINT_SECONDS", 0.0)
        whole = prepare_base(dropping, ArtifactStore(tmp_path / "whole"), torch.device("cpu"), SILENT)
        store = ArtifactStore(tmp_path / "stopped")

        def stop_at_5(what, done, total):
            if done == 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare_base(dropping, store, torch.device("cpu"), stop_at_5)
        assert len(list(tmp_path.glob("stopped/base/*.work/checkpoint.safetensors"))) == 1
        torch.rand(17)  # whatever happens in between
        seen = []
        resumed = prepare_base(dropping, store, torch.device("cpu"), lambda what, done, total: seen.append(done))
        assert min(seen) == 5
        assert resumed.facts == whole.facts
        assert len(whole.facts["loss"]) == 8
        assert all(torch.equal(resumed.tensors[name], whole.tensors[name]) for name in whole.tensors)
        assert not list(tmp_path.glob("stopped/base/*.work"))

    def test_a_torn_checkpoint_never_appears(self, tmp_path, monkeypatch):
        path = tmp_path / "work" / "checkpoint.safetensors"
        base_models.save_checkpoint(path, {"a": torch.ones(2)})

        def break_off(tensors, target):
            target.write_bytes(b"half")
            raise OSError("the disk is full")

        monkeypatch.setattr(base_models, "save_file", break_off)
        with pytest.raises(UsageError, match="the disk is full"):
            base_models.save_checkpoint(path, {"a": torch.zeros(2)})
        assert base_models.load_file(path)["a"].tolist() == [1, 1]
        assert [each.name for each in path.parent.iterdir()] == [path.name]

    def test_a_checkpoint_is_no_failure_where_another_builder_is_done_meanwhile(self, tmp_path, monkeypatch):
        path = tmp_path / "work" / "checkpoint.safetensors"
        write = base_models.save_file

        def clear_up(tensors, target):
            shutil.rmtree(path.parent)
            write(tensors, target)

        monkeypatch.setattr(base_models, "save_file", clear_up)
        base_models.save_checkpoint(path, {"a": torch.zeros(2)})
        assert not path.exists()

    def test_a_damaged_checkpoint_is_trained_over_with_a_warning(self, dropping, tmp_path, monkeypatch):
        whole = prepare_base(dropping, ArtifactStore(tmp_path / "whole"), torch.device("cpu"), SILENT)
        store = ArtifactStore(tmp_path / "damaged")
        monkeypatch.setattr(ArtifactStore, "workspace", lambda self, kind, inputs: tmp_path / "work")
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / "checkpoint.safetensors").write_bytes(b"half")
        with pytest.warns(UserWarning, match="is damaged"):
            again = prepare_base(dropping, store, torch.device("cpu"), SILENT)
        assert all(torch.equal(again.tensors[name], whole.tensors[name]) for name in whole.tensors)

    def test_a_diverging_training_is_one_sentence_and_leaves_nothing(self, dropping, tmp_path):
        wild = replace(dropping, base=replace(dropping.base, lr=1e30))
        with pytest.raises(UsageError, match="diverged by step 8"):
            prepare_base(wild, ArtifactStore(tmp_path), torch.device("cpu"), SILENT)
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]

    def test_restored_moments_lie_in_memory_as_their_weights_do(self):
        model = torch.nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)

        def training():
            return DenoiserTraining(
                model, Schedule.of(), total=1, batch=1, lr=1e-3, cosine=False, label_dropout=0.0, ema=0.9,
                clip=1.0, null_class=1, generator=torch.Generator(),
            )  # fmt: skip

        first, second = training(), training()
        model(torch.rand(1, 4, 8, 8)).sum().backward()
        first.optimizer.step()
        second.restore({name: tensor.contiguous() for name, tensor in first.tensors().items()})
        state = second.optimizer.state[model.weight]
        assert state["exp_avg"].stride() == model.weight.stride()
        assert torch.equal(state["exp_avg_sq"], first.optimizer.state[model.weight]["exp_avg_sq"])


class TestTimeBox:
    """A base model's training that ends by the clock, on a clock by which every step takes a second."""

    @pytest.fixture
    def clock(self, monkeypatch):
        clock = SimpleNamespace(now=100.0)
        monkeypatch.setattr(base_models, "time", SimpleNamespace(monotonic=lambda: clock.now))
        monkeypatch.setattr(base_models, "FIRST_CHECKPOINT_SECONDS", 0.0)
        monkeypatch.setattr(base_models, "CHECKPOINT_SECONDS", 0.0)
        return clock

    def boxed(self, tiny, seconds):
        unet = {**tiny.base.network, "dropout": 0.2}
        return replace(tiny, base=replace(tiny.base, network=unet, steps=4, batch=4, minutes=seconds / 60))

    def ticking(self, clock, stop=None):
        """Return a progress by which the clock goes on, and which stops the training after so many seconds."""

        def progress(what, done, total):
            if what == "train the base model":
                progress.seen.append((done, total))
                if done == stop:
                    raise KeyboardInterrupt
                clock.now += 1.0

        progress.seen = []
        return progress

    @pytest.mark.parametrize("seconds", [1, 5, 11])  # of 4 steps by the recipe
    def test_it_takes_the_steps_that_the_time_holds(self, tiny, tmp_path, clock, seconds):
        progress = self.ticking(clock)
        found = prepare_base(self.boxed(tiny, seconds), ArtifactStore(tmp_path), torch.device("cpu"), progress)
        assert progress.seen == [(k, seconds) for k in range(seconds)]
        assert found.facts["steps"] == seconds
        assert [step for step, _ in found.facts["loss"]] == [*range(1, seconds + 1)]
        assert all(0.1 < loss < 10 for _, loss in found.facts["loss"])

    def test_the_step_size_is_annealed_along_the_time(self, tiny, tmp_path, clock, monkeypatch):
        rates = []

        class Watched(DenoiserTraining):
            def advance(self, draw, done=None):
                super().advance(draw, done)
                rates.append(self.optimizer.param_groups[0]["lr"])

        monkeypatch.setattr(base_models, "DenoiserTraining", Watched)
        prepare_base(self.boxed(tiny, 5), ArtifactStore(tmp_path), torch.device("cpu"), self.ticking(clock))
        assert rates == pytest.approx([2e-3, 1.80902e-3, 1.30902e-3, 0.69098e-3, 0.19098e-3], rel=1e-4)

    def test_a_training_that_goes_on_counts_what_it_took_before(self, tiny, tmp_path, clock):
        boxed, device = self.boxed(tiny, 5), torch.device("cpu")
        whole = prepare_base(boxed, ArtifactStore(tmp_path / "whole"), device, self.ticking(clock))
        store = ArtifactStore(tmp_path / "stopped")
        with pytest.raises(KeyboardInterrupt):
            prepare_base(boxed, store, device, self.ticking(clock, stop=3))
        clock.now += 1000.0
        progress = self.ticking(clock)
        resumed = prepare_base(boxed, store, device, progress)
        assert progress.seen == [(3, 5), (4, 5)]
        assert resumed.facts == whole.facts
        assert all(torch.equal(resumed.tensors[name], whole.tensors[name]) for name in whole.tensors)

    def test_the_key_holds_minutes_instead_of_steps(self, tiny):
        boxed = self.boxed(tiny, 5).base
        facts = boxed.to_json()
        assert ("steps" in facts, facts["minutes"]) == (False, 5 / 60)
        assert replace(boxed, steps=99).to_json() == facts
        usual = asdict(replace(boxed, minutes=None))
        assert usual.pop("minutes") is usual.pop("autoencoder") is None
        usual[usual.pop("kind")] = usual.pop("network")
        assert replace(boxed, minutes=None).to_json() == usual

    def test_a_record_says_how_many_steps_there_were(self, tiny, tmp_path, clock):
        store, device = ArtifactStore(tmp_path), torch.device("cpu")
        timed = prepare(self.boxed(tiny, 5), store, device, lambda *_: setattr(clock, "now", clock.now + 1.0), ())
        usual = prepare(tiny, store, device, SILENT, ())
        assert timed.artifacts["base"].keys() == {"key", "sha256", "steps"}
        assert usual.artifacts["base"].keys() == {"key", "sha256"}


def test_preparing_says_what_is_to_be_done_and_counts_it(tiny, tmp_path):
    def prepared(dataset, *needs):
        steps = {}  # in order, once each
        prepare(
            dataset, ArtifactStore(tmp_path), torch.device("cpu"),
            lambda what, done, total: steps.setdefault(what), needs,
        )  # fmt: skip
        return list(steps)

    judge, base = "train the judge (1 of 2)", "train the base model (2 of 2)"
    assert prepared(tiny) == ["2 of 2 steps to do (train the judge, train the base model)", judge, base]
    assert prepared(tiny) == []
    assert prepared(tiny, "forget_verdicts", "retain_features") == [
        "3 of 5 steps to do (train the rejecting judge, train the extractor, compute features of the training images), "
        "and 2 are in the cache",
        "train the rejecting judge (1 of 3)",
        "train the extractor (2 of 3)",
        "compute features of the training images (3 of 3)",
    ]
    assert prepared(tiny, "forget_verdicts", "retain_features") == []
    other = replace(tiny, base=replace(tiny.base, seed=9))
    assert prepared(other, "forget_second", "retain_features")[1:] == ["train the base model (1 of 1)"]  # SVM: no step


@pytest.mark.parametrize("network", ["small_resnet", "resnet34", "cifar_resnet20", "cifar_resnet56"])
def test_classifiers_for_photographs(network):
    torch.manual_seed(0)
    model = CLASSIFIERS[network](3, 7).eval()
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    with torch.no_grad():
        assert model(images).shape == (2, 7)
        assert torch.equal(model(images), model.head(model.features(images)))
        torch.testing.assert_close(model(images), model(to_float(images)))


def test_the_papers_judge_sees_224_pixels():
    model = CLASSIFIERS["resnet34_224"](3, 10).eval()
    seen = []
    model.body.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0].shape))
    with torch.no_grad():
        assert model.features(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 512)
    assert seen == [(1, 3, 224, 224)]


def test_imagenet_weights_that_cannot_be_had_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UsageError, match=r"cannot be downloaded .*--judge resnet34-scratch"):
        CLASSIFIERS["resnet34_224"](3, 10).start_from_imagenet()


def test_the_recipe_of_a_judge_is_followed(tiny):
    """Body and head at their own step sizes: with a body at rest only the head moves."""
    recipe = replace(tiny.judge, epochs=1, body_lr=0.0, schedule="constant", optimizer="adam", flip=True, shift=0)
    torch.manual_seed(0)
    model = CLASSIFIERS["small_cnn"](1, 10)
    before = copy.deepcopy(model)
    train = tiny.load(None, None).train
    fit_classifier(model, Split(train.images[:64], train.labels[:64]), recipe, lambda done, total: None)
    assert all(torch.equal(p, q) for p, q in zip(model.body.parameters(), before.body.parameters(), strict=True))
    assert not torch.equal(model.head.weight, before.head.weight)
