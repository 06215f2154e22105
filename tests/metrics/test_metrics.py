import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearnbench.errors import Unmeasurable
from unlearnbench.plugins.registry import Registry
from unlearnbench.store.cell import Cell

REGISTRY = Registry()
PLUGINS = {plugin.name: plugin for plugin in REGISTRY.plugins("metric")}
CELL = Cell("digits", "p", "m", {}, 2, 0)


def score(name, **needs):
    return REGISTRY.metric(name).function(**needs)


def one_hot(labels, classes=10):
    return np.eye(classes)[np.asarray(labels)]


def test_ua_counts_what_is_not_the_forget_class():
    assert score("ua", forget_probs=one_hot([2, 2, 3, 4]), cell=CELL)[:2] == (50.0, 4)
    assert score("ua", forget_probs=one_hot([2] * 5), cell=CELL)[:2] == (0.0, 5)


def test_entropy_in_nats_with_exact_zeros():
    assert score("judge_entropy", forget_probs=one_hot([1, 2])).value == 0.0
    assert score("judge_entropy", forget_probs=np.full((3, 10), 0.1)).value == pytest.approx(np.log(10))
    assert score("judge_entropy", forget_probs=np.array([[0.5, 0.5, 0.0]])).value == pytest.approx(np.log(2))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=10).filter(lambda p: sum(p) > 0))
def test_entropy_stays_within_its_range(weights):
    probs = np.array([weights]) / sum(weights)
    assert -1e-12 <= score("judge_entropy", forget_probs=probs).value <= np.log(len(weights)) + 1e-9


def test_retained_accuracy():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    probs = one_hot([0, 0, 0, 0, 1, 1, 1, 5])
    assert score("retain_accuracy", retain_probs=probs, retain_labels=labels)[:2] == (87.5, 8)


def test_the_worst_retained_class():
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 4, 4])
    verdicts = np.array([0, 0, 0, 0, 1, 1, 5, -1, 4, 4])
    value, n, detail = score("worst_retained", retain_verdicts=verdicts, retain_labels=labels)
    assert (value, n) == (50.0, 2)
    assert detail == {"class": 1, "by_class": {"0": 100.0, "1": 50.0, "4": 100.0}}


class TestFid:
    @staticmethod
    def gaussian(mean, scale, n=4000, dimensions=4, seed=0):
        noise = np.random.default_rng(seed).standard_normal((n, dimensions))
        noise = (noise - noise.mean(0)) @ np.linalg.inv(np.linalg.cholesky(np.cov(noise, rowvar=False))).T
        return mean + scale * noise  # sample mean and covariance are exact

    def test_known_gaussians(self):
        # |mu|^2 + D (s1 - s2)^2 for isotropic covariances s^2 I
        fid = score("fid", retain_features=self.gaussian(1.0, 2.0), reference_features=self.gaussian(0.0, 5.0, seed=1))
        assert fid.value == pytest.approx(4 * 1.0 + 4 * 9.0, rel=1e-6)
        assert fid.n == 4000

    def test_zero_for_itself_and_symmetric(self):
        a, b = self.gaussian(0.0, 1.0), self.gaussian(0.5, 2.0, seed=3)
        assert score("fid", retain_features=a, reference_features=a).value == pytest.approx(0, abs=1e-6)
        forward = score("fid", retain_features=a, reference_features=b).value
        assert forward == pytest.approx(score("fid", retain_features=b, reference_features=a).value)

    def test_singular_covariances_stay_finite(self):
        a = self.gaussian(0.0, 1.0)
        dead = np.concatenate([a, np.zeros((len(a), 3))], axis=1)
        doubled = np.concatenate([a, a[:, :3]], axis=1)
        for x in (dead, doubled):
            assert np.isfinite(score("fid", retain_features=x, reference_features=x + 0.1).value)

    @pytest.mark.parametrize("short", ["retain_features", "reference_features"])
    def test_too_few_samples_are_refused(self, short):
        needs = {name: self.gaussian(0.0, 1.0) for name in ("retain_features", "reference_features")}
        needs[short] = needs[short][:4]
        with pytest.raises(Unmeasurable, match="use more than 4"):
            score("fid", **needs)


@pytest.mark.parametrize("plugin", PLUGINS.values(), ids=list(PLUGINS))
def test_every_metric_has_a_card_that_says_what_it_is_blind_to(plugin):
    card = plugin.load_module().__doc__
    assert "lind to" in card or "biased" in card
    assert plugin.spec.better in {"lower", "higher", "neither"}
