"""Methods of kind inference against literal transcriptions, in float64, and whose predictions they leave alone."""

from dataclasses import replace

import pytest
import torch

import tests.methods.test_methods as literal
from unlearnbench import Context
from unlearnbench.datasets import Source, load_dataset
from unlearnbench.plugins.registry import Registry

context, few = literal.context, literal.few  # fixtures
ABAR, noised = literal.ABAR, literal.noised
NULL = 10


@pytest.fixture
def guided(make_harness):
    """Return a function that gives a method's guide, its context, and a list of the labels of each prediction."""

    def make(name, settings, classes=(3, 5), dataset=None, **fields):
        harness = make_harness(name, target=(classes,), dtype=torch.float64, **fields)
        ctx, passes = Context(harness if dataset is None else replace(harness, dataset=dataset)), []
        spec = Registry().method(name)
        guide = spec.function(ctx, **{**spec.defaults, **settings})

        def predict(x_t, t, y):
            passes.append(y.tolist())
            return ctx.base(x_t, t, y).sample

        return lambda *batch: guide(predict, *batch), ctx, passes

    return make


def batch(labels, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x_t = torch.randn(len(labels), 1, 8, 8, generator=generator, dtype=torch.float64)
    return x_t, torch.randint(0, 1000, (len(labels),), generator=generator), torch.tensor(labels)


MIXED = [3, 0, 5, NULL, 3, 7]


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_negative_guidance(guided, scale):
    guide, ctx, passes = guided("negative_guidance", {"scale": scale})
    x_t, t, y = batch(MIXED)
    found = guide(x_t, t, y)
    whole = ctx.base(x_t, t, y).sample
    for k, label in enumerate(MIXED):
        one = x_t[k : k + 1], t[k : k + 1]
        eps_c, eps_null = (ctx.base(*one, torch.tensor([c])).sample[0] for c in (label, NULL))
        if label in (3, 5):
            torch.testing.assert_close(found[k], eps_null - scale * (eps_c - eps_null), rtol=1e-12, atol=1e-12)
        else:
            assert torch.equal(found[k], whole[k])
    assert passes == ([[NULL, 0, NULL, NULL, NULL, 7]] if scale == 0 else [MIXED, [NULL] * 3])


def test_negative_guidance_is_the_target_that_esd_distils(guided):
    guide, ctx, _ = guided("negative_guidance", {"scale": 1.3}, (3,))
    x_t, t, y = batch([3, 3])
    conditional, null = (ctx.base(x_t, t, torch.full_like(y, c)).sample for c in (3, NULL))
    torch.testing.assert_close(guide(x_t, t, y), null - 1.3 * (conditional - null), rtol=1e-12, atol=1e-12)


def test_negative_guidance_costs_nothing_where_no_forget_class_is_asked_for(guided):
    guide, ctx, passes = guided("negative_guidance", {})
    x_t, t, y = batch([0, 1, NULL])
    assert torch.equal(guide(x_t, t, y), ctx.base(x_t, t, y).sample)
    assert len(passes) == 1


def test_of_a_concept_the_training_prompts_are_guided_and_paraphrases_are_not(guided):
    text = load_dataset(Source("digits", model="text"))
    _, ctx, _ = guided("negative_guidance", {}, dataset=text)
    spec, told = Registry().method("negative_guidance"), []
    labels = [*text.prompts.training(3), *text.prompts.training(5), *text.prompts.paraphrases(3), 4, NULL]
    y = torch.tensor(labels)
    spec.function(ctx, scale=0.0)(lambda x_t, t, y: told.extend(y.tolist()), torch.zeros(len(y)), None, y)
    kept = len(text.prompts.paraphrases(3)) + 2
    assert len(text.prompts.training(3)) > 1 < kept
    assert told == [NULL] * (len(labels) - kept) + labels[-kept:]


def code_empirical_denoiser(x_t, ref_data, sigma, epsilon=1e-8):
    """`RBFKernelRepellency.empirical_denoiser` of `kernel_fast`, repellency_methods_threshold.py, for one image."""
    x_t_proj, ref_data_proj = x_t.reshape(1, -1), ref_data.reshape(len(ref_data), -1)
    (n, d), (m, _) = x_t_proj.shape, ref_data_proj.shape
    ones = torch.ones(m, dtype=x_t.dtype)[..., None]
    kernel = -(torch.cdist(x_t_proj[None], ref_data_proj[None])[0]).reshape(n, m, 1).repeat(1, 1, d + 1)
    kernel = kernel / (2.0 * sigma**2)
    kernel = (kernel.exp() * (torch.cat((ref_data_proj, ones), dim=1).reshape(1, -1, d + 1))).sum(dim=1)
    denominator = kernel[:, -1].reshape(-1, 1) + epsilon
    return (kernel[:, :-1] / denominator).reshape(x_t.shape), denominator.item()


def code_empirical_beta(noisy, ref_data, sigma, epsilon=1e-8):
    """`empirical_beta` with quantile 0, at the last of the code's timesteps."""
    kernel = -(torch.cdist(noisy.flatten(1)[None], ref_data.flatten(1)[None])[0]) / (2.0 * sigma**2)
    beta = kernel.exp()[:, :, None].sum(dim=(1, 2)) + epsilon
    return torch.quantile(beta, 0.0)


@pytest.mark.parametrize(
    "settings", [{}, {"sigma": 0.8, "margin": 0.0, "until": 0.0}, {"sigma": 1.5, "scale": 2.0, "images": 20}]
)
def test_safe_denoiser(context, settings):
    s = {"images": 515, "sigma": 3.15, "scale": 0.33, "margin": 1.6, "until": 0.78, **settings}
    guide = Registry().method("safe_denoiser").function(context("safe_denoiser", target=((3, 5),)), **s)
    ctx = context("safe_denoiser", target=((3, 5),))
    ref_data, labels = ctx.forget.draw(min(s["images"], 24))
    assert set(labels.tolist()) == {3, 5}
    noisy = noised(ref_data, ctx.noise_like(ref_data), torch.zeros(len(ref_data), dtype=torch.long))
    beta_threshold = code_empirical_beta(noisy, ref_data, s["sigma"]) - s["margin"]
    eps, t, y = batch([3, 0, NULL, 5, 8, 1, 3, 2])  # of any label
    x_0_hats = torch.cat([ref_data[:4] + 0.01, 9 + ref_data[:4]])  # near to forget images, and far from all
    pushed = []
    for moment in (t, torch.full_like(t, 900)):
        x_t = noised(x_0_hats, eps, moment)
        found = guide(lambda *_: eps, x_t, moment, y)
        for k, x_0_hat in enumerate(x_0_hats):
            negative, denominator = code_empirical_denoiser(x_0_hat, ref_data, s["sigma"])
            if denominator > beta_threshold and moment[k] >= 1000 * s["until"]:
                x_0_hat = x_0_hat - s["scale"] * negative
                abar = ABAR[moment[k]]
                expected = (x_t[k] - abar**0.5 * x_0_hat) / (1 - abar) ** 0.5
                torch.testing.assert_close(found[k], expected, rtol=1e-6, atol=1e-7)
                pushed.append(k)
            else:
                assert torch.equal(found[k], eps[k])
    assert pushed[-4:] == [0, 1, 2, 3]
    assert len(pushed) == 8 or s["until"]
