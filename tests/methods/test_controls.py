"""The controls do what their cards say."""

import numpy as np
import pytest
import torch

from unlearnbench.models.diffusion import Schedule
from unlearnbench.models.sampler import sample
from unlearnbench.plugins.registry import Registry
from unlearnbench.unlearn.context import Context

CONTROLS = ["sham_constant", "sham_noise", "sham_random", "sham_swap", "sham_update"]


@pytest.fixture
def unlearned(make_harness, registry):
    """Return a function: a method's context after it has run."""

    def run(name, **changes):
        context = Context(make_harness(name, **changes))
        spec = registry.method(name)
        spec.function(context, **spec.defaults)
        return context

    return run


def draw(context, label=3, n=40, **changes):
    sampler = {"steps": 25, "eta": 0.0, "guidance": 0.5, "batch_size": 50, **changes}
    return sample(
        context.model, Schedule.of(), torch.full((n,), label), range(n), (1, 8, 8), null_class=10, **sampler
    ).numpy()  # fmt: skip


def test_every_control_is_known_by_its_role():
    registry = Registry()
    assert sorted(spec.name for spec in registry.controls()) == ["original", *CONTROLS]
    assert {name: dict(registry.method(name).truth) for name in ("original", "retrain", "safemax")} == {
        "original": {"forgetting": False, "retention": True},
        "retrain": {"forgetting": True, "retention": True},
        "safemax": {},
    }
    assert not {spec.name for spec in registry.select_methods("all")} & set(CONTROLS)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_noise_generator_draws_standard_normal_pixels(unlearned, eta):
    images = draw(unlearned("sham_noise"), eta=eta)
    inside = images[(images > 0) & (images < 255)]
    assert 0.25 < np.mean((images == 0) | (images == 255)) < 0.4  # beyond one standard deviation: 32 %
    assert abs(float(inside.mean()) - 127.5) < 6
    assert len({image.tobytes() for image in images}) == len(images)


@pytest.mark.parametrize("clip", [False, True])
def test_the_constant_generator_draws_one_grey(unlearned, clip):
    assert set(np.unique(draw(unlearned("sham_constant"), clip_x0=clip)).tolist()) <= {127, 128}


def test_random_weights_share_nothing_with_the_base(unlearned):
    context = unlearned("sham_random")
    pairs = zip(context.model.parameters(), context.base.parameters(), strict=True)
    assert all(not torch.equal(a, b) for a, b in pairs if a.std(correction=0) > 0)


@pytest.mark.parametrize(("forget_class", "partner"), [(3, 4), (9, 0)])
def test_the_swap_draws_the_class_after_it_and_the_other_way_round(unlearned, make_context, forget_class, partner):
    swapped, base = unlearned("sham_swap", forget_class=forget_class), make_context("sham_swap")
    np.testing.assert_array_equal(draw(swapped, forget_class), draw(base, partner))
    np.testing.assert_array_equal(draw(swapped, partner), draw(base, forget_class))
    np.testing.assert_array_equal(draw(swapped, 6), draw(base, 6))


def test_the_small_update_changes_every_weight_a_little(unlearned):
    context = unlearned("sham_update")
    for a, b in zip(context.model.parameters(), context.base.parameters(), strict=True):
        if b.std(correction=0) > 0:
            assert 0 < (a - b).std(correction=0) < 0.02 * b.std(correction=0) + 1e-12
