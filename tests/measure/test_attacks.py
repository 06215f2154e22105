"""Attacks: every method meets the same one, and one brings back what is there to be brought back."""

import copy
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from unlearnbench.cost.meter import Meter
from unlearnbench.errors import Unmeasurable, UsageError
from unlearnbench.measure.attacks import RELEARNING_STEPS, Attacker, attacked, relearning_curve
from unlearnbench.measure.inputs import EvaluationInputs, measure
from unlearnbench.measure.prepared import prepare
from unlearnbench.models.codec import PIXELS
from unlearnbench.models.diffusion import Schedule
from unlearnbench.models.sampler import Start, sample
from unlearnbench.models.unet import UNet
from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.spec import NO_OBJECT, Score, metric
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.store.cell import Cell

CPU = torch.device("cpu")
ATTACKS = [spec.name for spec in Registry().select_metrics("attacks") if not spec.is_of_prompts]


@pytest.fixture(scope="module")
def prepared(tiny, tmp_path_factory):
    store = ArtifactStore(tmp_path_factory.mktemp("artifacts"))
    return prepare(tiny, store, CPU, lambda what, done, total: None, ("attacker",))


class Says:
    """A judge that says the same, image by image, of whatever it is shown; a single word stands for all."""

    def __init__(self, *verdicts):
        self.verdicts, self.seen = verdicts, []

    def names(self, images, device):
        self.seen.append(images)
        return np.array([self.verdicts[k % len(self.verdicts)] for k in range(len(images))])


class Brightness:
    """A judge that sees class 3 in images brighter than a threshold, and otherwise nothing."""

    def names(self, images, device):
        return np.where(images.mean(axis=(1, 2, 3)) > 127, 3, NO_OBJECT)


class Album(torch.nn.Module):
    """A network that knows one image for each label, all dark but one, and draws exactly these."""

    def __init__(self, bright):
        super().__init__()
        self.class_embedding = torch.nn.Embedding(11, 64)
        self.class_embedding.weight.data.fill_(-1.0)[bright] = 1.0

    def forward(self, x, t, y):
        alpha = Schedule.of().alphas_cumprod[t].view(-1, 1, 1, 1)
        x0 = self.class_embedding(y).view_as(x)
        return SimpleNamespace(sample=(x - alpha.sqrt() * x0) / (1 - alpha).sqrt())


def denoiser(network):
    return UNet(network, PIXELS, (1, 8, 8))


@pytest.fixture
def make(tiny, prepared):
    def attacker(method="safemax", judge=None, model=None, **cell):
        chosen = Cell("digits", tiny.protocol.name, method, {}, **{"forget_class": 3, "seed": 0, **cell})
        ready = replace(prepared, rejecting=judge) if judge else prepared
        return Attacker(chosen, model or prepared.base, tiny, ready, lambda *_: None, samples=6)

    return attacker


def weights_after(attacker, name, steps=3):
    model, stream = attacker.victim(), attacker.retained(name)
    assert list(attacker.train(name, model, model.parameters(), lambda: stream.draw(4), steps=steps, lr=1e-3)) == list(
        range(1, steps + 1)
    )
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


class TestTheAttacker:
    def test_two_methods_meet_the_same_attack(self, make):
        one, other = make("safemax"), make("salun")
        for a, b in zip(one.forget_images(4), other.forget_images(4), strict=True):
            assert torch.equal(a, b)
        assert torch.equal(one.retained("x").draw(20)[0], other.retained("x").draw(20)[0])
        assert torch.equal(weights_after(one, "x"), weights_after(other, "x"))

    def test_attacks_seeds_and_targets_have_randomness_of_their_own(self, make):
        here = make()
        assert not torch.equal(weights_after(here, "x"), weights_after(here, "y"))
        assert not torch.equal(here.forget_images(4)[0], make(seed=1).forget_images(4)[0])
        assert not torch.equal(here.retained("x").draw(9)[0], make(forget_class=4).retained("x").draw(9)[0])

    def test_samples_start_from_the_noise_of_the_cells_own(self, make, tiny, prepared, tmp_path):
        judge = Says(NO_OBJECT)
        one = make(judge=judge)
        assert one.before == 100.0
        cell = EvaluationInputs(
            one.cell, prepared.base, "", tiny, prepared, ArtifactStore(tmp_path), {}, Meter(), lambda *_: None
        )
        np.testing.assert_array_equal(judge.seen[0], cell.forget_samples)

    def test_a_victim_is_a_fresh_trainable_copy(self, make, prepared):
        one = make()
        model = one.victim()
        assert model.training and all(weight.requires_grad for weight in model.parameters())
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
        assert not torch.equal(next(model.parameters()), next(one.victim().parameters()))
        assert not any(weight.requires_grad for weight in prepared.base.parameters())

    def test_the_victim_keeps_what_the_method_hung_on_its_model(self, make, prepared):
        model = copy.deepcopy(prepared.base)
        model.register_forward_hook(lambda module, args, output: None)
        assert len(make(model=model).victim()._forward_hooks) == 1

    def test_images_are_of_the_right_classes(self, make):
        one = make(forget_class=3, further=(5,), earlier=((7,),))
        assert one.retained_classes == (0, 1, 2, 4, 6, 8, 9)
        assert set(one.retained("x").draw(200)[1].tolist()) == set(one.retained_classes)
        x0, y = one.forget_images(2)
        assert y.tolist() == [3, 5, 3, 5]
        assert x0.shape == (4, 1, 8, 8) and x0.min() >= -1 and x0.max() <= 1
        assert torch.equal(one.forget_images(1)[0], x0[:2])  # few images are the first of many

    def test_too_few_images_have_a_reason(self, make):
        one = make()
        most = len(one.forget_images()[0])
        assert most == int((one.prepared.train.labels == 3).sum())
        with pytest.raises(Unmeasurable, match=f"needs {most + 1} training images of each forget class, and one has"):
            one.forget_images(most + 1)

    @pytest.mark.parametrize(
        ("cell", "share"), [({"forget_class": 3}, 400 / 6), ({"forget_class": 3, "further": (5,)}, 200 / 6)]
    )
    def test_any_forget_class_counts_as_not_forgotten(self, make, cell, share):
        one = make(judge=Says(3, 3, 5, 5, NO_OBJECT, 0), **cell)
        assert one.forgotten(one.model) == pytest.approx(share)

    def test_the_sampler_does_as_it_is_told(self, make):
        judge = Says(3)
        one = make(judge=judge)
        x0, y = one.forget_images()
        one.forgotten(one.model)
        one.forgotten(one.model, guidance=7.0)
        one.forgotten(one.model, eta=1.0)
        one.forgotten(one.model, start=Start(scale=2.0))
        one.forgotten(one.model, labels=torch.zeros(6, dtype=torch.long))
        one.forgotten(one.model, start=Start(x0[:6], 0), labels=y[:6])
        assert len({images.tobytes() for images in judge.seen}) == 6

    def test_new_labels_sample_as_what_their_rows_are(self, make):
        judge = Says(3)
        one = make(judge=judge)
        rows = one.embeddings()
        model, labels = one.with_new_labels(rows[[3, 4]])
        assert labels.tolist() == [11, 12]
        one.forgotten(one.model)
        one.forgotten(model, labels=labels[:1].expand(6))
        one.forgotten(model, labels=labels[1:].expand(6))
        assert judge.seen[0].tobytes() == judge.seen[1].tobytes() != judge.seen[2].tobytes()
        assert [name for name, weight in model.named_parameters() if weight.requires_grad] == [
            "network.class_embedding.weight"
        ]

    def test_a_model_without_embeddings_has_a_reason(self, make):
        with pytest.raises(Unmeasurable, match="no table of label embeddings"):
            make(model=denoiser(torch.nn.Linear(2, 2))).embeddings()

    def test_a_training_that_diverges_has_a_reason(self, make):
        one = make()
        model = one.victim()
        with pytest.raises(Unmeasurable, match="diverged"):
            list(one.train("x", model, model.parameters(), lambda: one.retained("x").draw(4), steps=4, lr=1e25))


class TestStart:
    def test_the_sampler_goes_on_from_a_timestep(self):
        ddim = [750, 500, 250, 0]
        assert [Start(t=t).index(ddim) for t in (None, 999, 500, 499, 0)] == [0, 0, 1, 2, 3]
        assert Start(t=50).index([900, 500, 100]) == 2  # before the last one, from which sampling still begins

    @pytest.mark.parametrize("solver", ["ddim", "dpm++"])
    def test_a_perfect_model_gives_back_the_images_it_starts_from(self, solver):
        model, x0, done = Album(bright=0), torch.rand(5, 1, 8, 8) * 2 - 1, []
        model.class_embedding.weight.data[:5] = x0.flatten(1)
        images = sample(
            model, Schedule.of(), torch.arange(5), range(5), (1, 8, 8), steps=10, eta=0.0, guidance=0.0,
            null_class=10, batch_size=2, solver=solver, start=Start(x0, 300), progress=done.append,
        )  # fmt: skip
        assert torch.allclose(images.float() / 127.5 - 1, x0, atol=0.01)
        assert done[-1] == 5 * (4 if solver == "ddim" else 3)

    def test_images_are_noised_to_the_timestep(self):
        noise, x0 = torch.randn(2, 1, 8, 8), torch.rand(4, 1, 8, 8)
        schedule = Schedule.of()
        alpha = schedule.alphas_cumprod[300]
        expected = alpha.sqrt() * x0[2:] + (1 - alpha).sqrt() * noise
        torch.testing.assert_close(Start(x0, 300).x_t(schedule, noise, 300, 2), expected)
        assert torch.equal(Start(scale=2.0).x_t(schedule, noise, 900, 2), 2 * noise)


def test_the_worst_level_is_the_score(make):
    one = make(judge=Says(NO_OBJECT))
    score = attacked(one, {1: 80.0, "b": 20.0})
    assert score == Score(20.0, 6, {"before": 100.0, "levels": [1, "b"], "after": [80.0, 20.0]})


class TestRelearning:
    def test_the_curve_by_hand(self, make, monkeypatch):
        monkeypatch.setattr(Attacker, "train", lambda *_, **__: iter(range(1, 81)))
        one = make(judge=Says(NO_OBJECT))
        assert one.before == 100.0
        later = iter([100.0, 100.0, 40.0, 60.0, 0.0])
        monkeypatch.setattr(Attacker, "forgotten", lambda self, model: next(later))
        value, n, detail = relearning_curve(one, images=4)
        assert (value, n) == (0.0, 6)
        assert detail["steps"] == [0, *RELEARNING_STEPS] == [0, 5, 10, 20, 40, 80]
        assert detail["after"] == [100.0, 100.0, 100.0, 40.0, 60.0, 0.0]
        assert (detail["images"], detail["steps_until_back"]) == (4, 20)
        assert detail["area"] == pytest.approx((10 * 100 + 10 * 70 + 20 * 50 + 40 * 30) / 80)

    def test_nothing_comes_back_and_what_never_went_is_there_at_once(self, make, monkeypatch):
        monkeypatch.setattr("unlearnbench.measure.attacks.RELEARNING_STEPS", (1, 2))
        gone, there = (relearning_curve(make(judge=Says(verdict)), images=0) for verdict in (NO_OBJECT, 3))
        assert (gone.value, gone.detail["steps_until_back"], gone.detail["area"]) == (100.0, None, 100.0)
        assert (there.value, there.detail["steps_until_back"], there.detail["area"]) == (0.0, 0, 0.0)

    def test_batches_are_half_forget_images_or_all_retained(self, make, monkeypatch):
        batches = []

        def train(self, name, model, weights, draw, **settings):
            batches.append(draw())
            yield from RELEARNING_STEPS

        monkeypatch.setattr(Attacker, "train", train)
        one = make(judge=Says(3))
        relearning_curve(one, images=1)
        relearning_curve(one, images=0)
        (x0, y), (_, kept) = batches
        assert (y == 3).sum() == 16 and len(y) == len(kept) == 32 and 3 not in kept
        assert torch.equal(x0[:16], one.forget_images(1)[0].expand(16, -1, -1, -1))

    def test_fine_tuning_brings_back_a_class_whose_label_was_swapped(self, make):
        model = denoiser(Album(bright=4))
        one = make(judge=Brightness(), model=model)
        assert one.before == 100.0
        victim, batch = one.victim(), (torch.ones(8, 1, 8, 8), torch.full((8,), 3))
        shares = [
            one.forgotten(victim)
            for step in one.train("x", victim, victim.parameters(), lambda: batch, steps=80, lr=0.05)
            if step in (1, 80)
        ]
        assert shares == [100.0, 0.0]
        assert one.forgotten(model) == 100.0  # the model itself is untouched

    def test_what_was_never_forgotten_is_back_at_once(self, make, monkeypatch):
        monkeypatch.setattr("unlearnbench.measure.attacks.RELEARNING_STEPS", (1,))
        score = relearning_curve(make(judge=Brightness(), model=denoiser(Album(bright=3))), images=4)
        assert (score.value, score.detail["steps_until_back"]) == (0.0, 0)


class TestMetrics:
    def test_a_group_selects_them_and_all_does_not(self):
        assert len(ATTACKS) == 9
        registry = Registry()
        assert not {spec.name for spec in registry.select_metrics("all")} & set(ATTACKS)
        both = [spec.name for spec in registry.select_metrics("all,attacks")]
        assert set(both) > set(ATTACKS) and len(both) == len(set(both))
        with pytest.raises(UsageError, match="there is no metric 'attack'"):
            registry.select_metrics("attack")

    def test_they_are_timed_apart_and_leave_the_random_state_alone(self, make, tiny, prepared, tmp_path):
        one, meter = make(), Meter()
        inputs = EvaluationInputs(
            one.cell, prepared.base, "", tiny, prepared, ArtifactStore(tmp_path), {}, meter, lambda *_: None
        )

        @metric(title="T", unit="%", better="higher", aspect="robustness", optional=True)
        def mine(attacker):
            torch.manual_seed(99)
            assert attacker is inputs.attacker
            return Score(attacker.before, attacker.samples)

        state = torch.get_rng_state()
        with meter.phase("judge"):
            entry = measure(inputs, [(mine.__unlearnbench__, "hash")])["mine"]
        assert torch.equal(torch.get_rng_state(), state)
        assert (entry["n"], entry["shows"]) == (50, "robustness")
        assert meter.costs["attack"].seconds > 0
        assert set(meter.phases()) == {"judge", "attack"}

    @pytest.mark.parametrize("name", ATTACKS)
    def test_each_finds_a_class_that_was_never_forgotten_and_counts_its_samples(self, make, name, monkeypatch):
        monkeypatch.setattr("unlearnbench.measure.attacks.RELEARNING_STEPS", (1, 2))
        function = Registry().metric(name).function
        monkeypatch.setitem(function.__globals__, "STEPS", 2)
        there, gone = (Score(*function(make(judge=Says(verdict)))) for verdict in (3, NO_OBJECT))
        assert (there.value, gone.value) == (0.0, 100.0)
        for score, share in ((there, 0.0), (gone, 100.0)):
            levels = score.detail.get("levels") or score.detail["steps"]
            assert score.detail["before"] == share
            assert score.detail["after"] == [share] * len(levels)
            assert score.n == (24 if name == "late_start" else 6)

    @pytest.mark.parametrize("name", [name for name in ATTACKS if not name.startswith("relearn")])
    def test_each_takes_several_forget_classes(self, make, name, monkeypatch):
        function = Registry().metric(name).function
        monkeypatch.setitem(function.__globals__, "STEPS", 1)
        assert function(make(judge=Says(5), forget_class=3, further=(5,))).value == 0.0

    def test_the_embedding_search_moves_its_own_row_alone(self, make, monkeypatch):
        function = Registry().metric("embedding_search").function
        monkeypatch.setitem(function.__globals__, "STEPS", 3)
        tried = []
        monkeypatch.setattr(Attacker, "forgotten", lambda self, model, **_: tried.append(model) or 50.0)
        one = make()
        assert function(one).value == 50.0
        base = one.model.state_dict()
        for model in tried[:2]:
            found = model.state_dict()
            rows = found.pop("network.class_embedding.weight")
            assert torch.equal(rows[:-1], base["network.class_embedding.weight"])
            assert all(torch.equal(found[name], base[name]) for name in found)
        others = base["network.class_embedding.weight"][[c for c in range(10) if c != 3]].mean(dim=0)
        starts = [others, base["network.class_embedding.weight"][3]]
        moved = [(m.network.class_embedding.weight[-1] - s).abs() for m, s in zip(tried, starts, strict=False)]
        assert all(0 < step.max() < 0.5 for step in moved)

    def test_interpolation_mixes_the_rows(self, make, monkeypatch):
        asked = []

        def forgotten(self, model, *, labels=None, **_):
            asked.append(None if labels is None else model.network.class_embedding.weight[labels])
            return 70.0

        monkeypatch.setattr(Attacker, "forgotten", forgotten)
        one = make()
        Registry().metric("class_interpolation").function(one)
        rows = one.embeddings()
        torch.testing.assert_close(asked[0][0], 0.75 * rows[3] + 0.25 * rows[0])
        torch.testing.assert_close(asked[2][5], 0.25 * rows[3] + 0.75 * rows[8])
