"""The policy on passes: one backward pass per loss term, or all terms as one batch; the same sums either way."""

import pytest
import torch

import tests.methods.test_methods as literal
from tests.benchmarks.passes import saved_bytes
from unlearnbench import Term, backward
from unlearnbench.unlearn.terms import predict_noise

few, context = literal.few, literal.context  # fixtures
SMALL = {
    "concept_ablation": {"images": 4, "prior_weight": 1.0},
    "erasediff": {"round_steps": 2, "inner_steps": 1, "ema": 0.0},
    "lotus": {"images": 15},
    "meta_unlearning": {},
    "neggrad_plus": {},
    "random_label": {},
    "sa": {"replay_per_class": 1, "fisher_images": 2, "fisher_timesteps": 4, "ema": 0.0},
    "safemax": {},
    "salun": {},
}


def test_the_setting_has_one_name_and_one_default_in_all_methods_of_two_terms():
    with_it = {
        name: plugin.spec.settings["passes"]
        for name, plugin in literal.PLUGINS.items()
        if "passes" in plugin.spec.settings
    }
    assert set(with_it) == set(SMALL)
    assert {setting.default for setting in with_it.values()} == {"separate"}


@pytest.mark.parametrize("name", SMALL)
def test_both_ways_take_the_same_steps(context, name):
    results = {
        passes: literal.run(name, context(name), steps=2, batch=4, lr=1e-3, passes=passes, **SMALL[name])
        for passes in ("separate", "joint")
    }
    literal.assert_same(results["joint"], results["separate"])


@pytest.mark.parametrize("name", SMALL)
def test_a_pass_per_term_holds_half_as_much(context, name):
    """The memory of a step, without what the priors need, which are there already the second time."""
    most = {}
    for passes in ("separate", "joint"):
        settings = {"steps": 1, "batch": 16, "passes": passes, **SMALL[name]}
        ctx = context(name)
        literal.run(name, ctx, **settings)
        twin = type(ctx)(ctx._harness)
        most[passes] = saved_bytes(lambda twin=twin, settings=settings: literal.run(name, twin, **settings))
    assert most["separate"] / most["joint"] == pytest.approx(0.5, abs=0.05)


def terms(ctx):
    """Two terms of different sizes, reductions and weights of images."""
    (x, y), (x_r, y_r) = ctx.forget.draw(3), ctx.retain.draw(5)
    psi = torch.rand(3, generator=ctx.generator).double()
    t = ctx.timesteps(3)
    x_t = ctx.schedule.add_noise(x, ctx.noise_like(x), t)
    first = Term(x_t, t, y, ctx.noise_like(x), pixels="mean", image_weight=psi)
    return first, ctx.eps_term(x_r, y_r)


@pytest.mark.parametrize("passes", ["separate", "joint"])
def test_the_gradient_is_that_of_the_weighted_sum(context, passes):
    ctx = context("safemax")
    first, second = terms(ctx)
    parameters = list(ctx.model.parameters())
    losses = []
    for term in (first, second):
        loss = 0.0
        for k in range(len(term.t)):
            error = term.target[k] - predict_noise(ctx.model, *(v[k : k + 1] for v in (term.x_t, term.t, term.y)))[0]
            weight = term.image_weight[k] / 64 if term is first else 1.0  # 64 pixels
            loss = loss + weight * (error**2).sum() / len(term.t)
        losses.append(loss)
    expected = torch.autograd.grad(0.3 * losses[0] - 2.0 * losses[1], parameters)
    reported = backward(ctx.model, [first, second], [0.3, -2.0], passes=passes)
    for loss, value in zip(losses, reported, strict=True):
        torch.testing.assert_close(value, loss.detach(), rtol=1e-9, atol=0)
        assert not value.requires_grad
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-6, atol=1e-10)


def test_a_gradient_is_added_to_what_is_there(context):
    ctx = context("safemax")
    first, second = terms(ctx)
    backward(ctx.model, [first], [1.0])
    backward(ctx.model, [second], [0.5])
    apart = [p.grad.clone() for p in ctx.model.parameters()]
    ctx.model.zero_grad()
    backward(ctx.model, [first, second], [1.0, 0.5])
    for a, p in zip(apart, ctx.model.parameters(), strict=True):
        assert torch.equal(a, p.grad)


def test_a_missing_weight_is_refused(context):
    with pytest.raises(ValueError, match="2 terms but 1 weights"):
        ctx = context("safemax")
        backward(ctx.model, terms(ctx), [1.0])
