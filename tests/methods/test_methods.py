"""Each method against an independent, slow, literal transcription of its formula, in float64 on a small network."""

import math

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from unlearnbench.context import Context
from unlearnbench.registry import Registry

REGISTRY = Registry()
PLUGINS = {plugin.name: plugin for plugin in REGISTRY.plugins("method")}
ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float().double()


@pytest.fixture
def context(make_harness, monkeypatch):
    """A float64 context, and a twin that yields the same draws."""
    from unlearnbench import context as module

    monkeypatch.setattr(module, "to_float", lambda images: images.double() / 127.5 - 1)

    def make(method, **changes):
        return Context(make_harness(method, dtype=torch.float64, **changes))

    return make


def run(method, ctx, **settings):
    spec = REGISTRY.method(method)
    spec.function(ctx, **{**spec.resolve("cifar10", {}), **settings})
    return {name: parameter.detach() for name, parameter in ctx.model.named_parameters()}


def noised(x0, eps, t):
    a = ABAR[t].view(-1, 1, 1, 1)
    return a.sqrt() * x0 + (1 - a).sqrt() * eps


def literal_eps_loss(ctx, x0, y, share):
    t, eps = ctx.timesteps(len(x0)), ctx.noise_like(x0)
    y = ctx.drop_labels(y, share)
    total = 0.0
    for k in range(len(x0)):
        error = eps[k] - ctx.model(noised(x0, eps, t)[k : k + 1], t[k : k + 1], y[k : k + 1]).sample[0]
        total = total + (error**2).sum()
    return total / len(x0)


def literal_adam(ctx, loss, lr, clip=1.0, masks=None, mask_first=False):
    """One Adam step from zero moments: theta - lr * g / (|g| + eps) after bias correction."""
    parameters = dict(ctx.model.named_parameters())
    gradients = dict(
        zip(parameters, torch.autograd.grad(loss, list(parameters.values()), allow_unused=True), strict=True)
    )
    gradients = {k: torch.zeros_like(parameters[k]) if g is None else g for k, g in gradients.items()}
    if mask_first:
        gradients = {k: g * masks[k] for k, g in gradients.items()}
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
    scale = min(1.0, clip / (norm + 1e-6))
    new = {}
    for k, parameter in parameters.items():
        g = gradients[k] * scale
        if masks is not None:
            g = g * masks[k]
        new[k] = parameter.detach() - lr * g / (g.abs() + 1e-8)
    return new


def assert_same(ours, theirs):
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("target", ["independent", "trajectory"])
@pytest.mark.parametrize("decay", [0.0, 1.0, 50.0])
def test_safemax_step(context, target, decay):
    ours = run("safemax", context("safemax"), steps=1, batch=4, lr=1e-3, target=target, decay=decay, alpha=0.7)
    ctx = context("safemax")
    x0, y = ctx.forget.draw(4)
    t, eps = ctx.timesteps(4), ctx.noise_like(x0)
    eps_T = ctx.noise_like(x0)
    loss = 0.0
    for k in range(4):
        wanted = eps_T[k]
        if target == "trajectory":
            rho = math.sqrt(ABAR[-1] * (1 - ABAR[t[k]]) / (ABAR[t[k]] * (1 - ABAR[-1])))
            wanted = rho * eps[k] + math.sqrt(max(0.0, 1 - rho**2)) * eps_T[k]
        x_t = noised(x0[k : k + 1], eps[k : k + 1], t[k : k + 1])
        error = wanted - ctx.model(x_t, t[k : k + 1], y[k : k + 1]).sample[0]
        loss = loss + math.exp(-decay * int(t[k]) / 1000) * (error**2).sum() / 4
    loss = loss + 0.7 * literal_eps_loss(ctx, *ctx.retain.draw(4), 0.1)
    assert_same(ours, literal_adam(ctx, loss, 1e-3))


def literal_mask(ctx, ratio, guidance, batch, mask_loss):
    parameters = dict(ctx.model.named_parameters())
    total = {k: torch.zeros_like(p) for k, p in parameters.items()}
    for x0, y in ctx.forget.epoch(batch):
        t, eps = ctx.timesteps(len(x0)), ctx.noise_like(x0)
        x_t = noised(x0, eps, t)
        prediction = ctx.model(x_t, t, y).sample
        if mask_loss == "guided":
            null = ctx.model(x_t, t, torch.full_like(y, 10)).sample
            prediction = (1 + guidance) * prediction - guidance * null
        ctx.model.zero_grad()
        ((eps - prediction) ** 2).sum((1, 2, 3)).mean().backward()
        if mask_loss == "guided":
            clip_grad_norm_(ctx.model.parameters(), 1.0)
        for k, p in parameters.items():
            total[k] += 0 if p.grad is None else p.grad
    ranked = torch.cat([g.abs().flatten() for g in total.values()]).sort(descending=True).values
    threshold = ranked[round(ratio * len(ranked))]
    return {k: g.abs() > threshold for k, g in total.items()}


@pytest.mark.parametrize("mask_loss", ["guided", "plain"])
def test_salun_mask(context, mask_loss):
    ctx = context("salun")
    module = PLUGINS["salun"].load_module()
    options = {"mask_ratio": 0.3, "mask_loss": mask_loss, "guidance": 2.0, "batch": 50}
    ours = ctx.prior("mask", module.saliency_mask, **options)
    twin = Context(ctx._harness, purpose="prior mask")
    twin.model.eval()
    theirs = literal_mask(twin, 0.3, 2.0, 50, mask_loss)
    assert all(mask.dtype == torch.bool for mask in ours.values())
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)
    kept = sum(int(mask.sum()) for mask in ours.values())
    assert kept / sum(mask.numel() for mask in ours.values()) == pytest.approx(0.3, abs=0.001)


@pytest.mark.parametrize("clip_then_mask", [True, False])
def test_salun_step(context, clip_then_mask):
    settings = {"steps": 1, "batch": 4, "lr": 1e-3, "alpha": 0.01, "mask_ratio": 0.4, "clip_then_mask": clip_then_mask}
    ours = run("salun", context("salun"), **settings)
    ctx = context("salun")
    module = PLUGINS["salun"].load_module()
    mask = ctx.prior("mask", module.saliency_mask, mask_ratio=0.4, mask_loss="guided", guidance=2.0, batch=4)
    x0, y = ctx.forget.draw(4)
    t = ctx.timesteps(4)
    x_t = noised(x0, ctx.noise_like(x0), t)
    target = ctx.model(x_t, t, torch.full_like(y, 4)).sample.detach()  # (3 + 1) mod 10
    ctx.drop_labels(y, 0.0)  # the same draw, nothing dropped
    forget_loss = ((ctx.model(x_t, t, y).sample - target) ** 2).mean()
    loss = forget_loss + 0.01 * literal_eps_loss(ctx, *ctx.retain.draw(4), 0.1)
    assert_same(ours, literal_adam(ctx, loss, 1e-3, masks=mask, mask_first=not clip_then_mask))


@pytest.mark.parametrize("clip_then_mask", [True, False])
def test_salun_order_of_clip_and_mask(context, monkeypatch, clip_then_mask):
    """Adam's first step hardly depends on the gradient's scale, so look at the gradient that reaches it."""
    norms = []
    step = torch.optim.Adam.step

    def spy(self, *args, **kwargs):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat(gradients).norm()))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    run("salun", context("salun"), steps=1, batch=4, alpha=10.0, mask_ratio=0.4, clip_then_mask=clip_then_mask)
    if clip_then_mask:
        assert norms[0] < 0.999
    else:
        assert norms[0] == pytest.approx(1.0, abs=1e-4)


def test_salun_weights_outside_the_mask_never_move(context):
    ctx = context("salun")
    before = {name: parameter.detach().clone() for name, parameter in ctx.model.named_parameters()}
    after = run("salun", ctx, steps=5, batch=8, lr=1e-2, mask_ratio=0.2)
    mask = Context(ctx._harness).prior(
        "mask", PLUGINS["salun"].load_module().saliency_mask, mask_ratio=0.2, mask_loss="guided", guidance=2.0, batch=8
    )
    for name, value in after.items():
        moved = value != before[name]
        assert not (moved & ~mask[name]).any()
    assert sum(int((after[name] != before[name]).sum()) for name in after) > 0


def test_salun_refuses_the_forget_class_as_its_target(context):
    with pytest.raises(ValueError, match="choose another"):
        run("salun", context("salun"), steps=1, pseudo_offset=10)


def test_sa_fisher(context):
    ctx = context("sa")
    module = PLUGINS["sa"].load_module()
    replay = ctx.prior("replay", module.replay_images, shared=True, per_class=1)
    replay = {"x0": replay["x0"].double(), "y": replay["y"]}
    options = {"replay": replay, "images": 3, "timesteps": 6, "label_dropout": 0.0, "unit_range": False}
    chunked = ctx.prior("fisher", module.fisher, shared=True, chunk=4, **options)
    twin = Context(ctx._harness, purpose="prior fisher", shared=True)
    twin.model.eval()
    expected = {name: torch.zeros_like(p) for name, p in twin.model.named_parameters()}
    for index in (0, 3, 6):  # three of the ten replay images, evenly
        steps = [0, 166, 333, 500, 666, 833]
        loss = 0.0
        for part in (steps[:4], steps[4:]):
            twin.drop_labels(torch.zeros(len(part), dtype=torch.long), 0.0)
            noise = twin.noise_like(torch.empty(len(part), 1, 8, 8, dtype=torch.float64))
            for eps, t in zip(noise, part, strict=True):  # one timestep at a time, summed before the square
                x_t = noised(replay["x0"][index : index + 1], eps[None], torch.tensor([t]))
                error = eps - twin.model(x_t, torch.tensor([t]), replay["y"][index : index + 1]).sample[0]
                loss = loss + (error**2).sum()
        gradients = torch.autograd.grad(loss, list(twin.model.parameters()), allow_unused=True)
        for name, gradient in zip(expected, gradients, strict=True):
            expected[name] += 0 if gradient is None else (gradient * 1000 / 6) ** 2 / 3
    for name in expected:
        torch.testing.assert_close(chunked[name], expected[name], rtol=1e-5, atol=1e-9)


SA_SMALL = {"batch": 4, "replay_per_class": 1, "fisher_images": 2, "fisher_timesteps": 4}


def test_sa_second_step_feels_the_penalty(context):
    """At the first step theta = theta*, so the penalty acts from the second on: compare both, by hand."""
    module = PLUGINS["sa"].load_module()
    settings = {**SA_SMALL, "steps": 2, "lr": 1e-3, "penalty": 10.0, "ema": 0.0}
    ours = run("sa", context("sa"), **settings)
    ctx = context("sa")
    replay = ctx.prior("replay", module.replay_images, shared=True, per_class=1)
    information = ctx.prior(
        "fisher",
        module.fisher,
        shared=True,
        replay=replay,
        images=2,
        timesteps=4,
        chunk=50,
        label_dropout=0.1,
        unit_range=False,
    )
    start = {name: p.detach().clone() for name, p in ctx.model.named_parameters()}
    optimizer = torch.optim.Adam(ctx.model.parameters(), lr=1e-3)
    kept = [k for k in range(10) if k != 3]
    for _ in range(2):
        chosen = torch.tensor(kept)[torch.randint(9, (4,), generator=ctx.generator)]
        x_r, y_r = replay["x0"][chosen], replay["y"][chosen]
        u = torch.rand(0)
        u = torch.empty_like(x_r).uniform_(-1, 1, generator=ctx.generator)
        loss = literal_eps_loss(ctx, u, torch.full((4,), 3), 0.0) + literal_eps_loss(ctx, x_r, y_r, 0.0)
        for name, p in ctx.model.named_parameters():
            loss = loss + 10.0 * (information[name] * (p - start[name]) ** 2).sum()
        optimizer.zero_grad()
        loss.backward()
        clip_grad_norm_(ctx.model.parameters(), 1.0)
        optimizer.step()
    assert_same(ours, {name: p.detach() for name, p in ctx.model.named_parameters()})


def test_sa_average_starts_from_the_base_and_hardly_moves(context):
    ctx = context("sa")
    base = {name: p.detach().clone() for name, p in ctx.base.named_parameters()}
    last = run("sa", context("sa"), **SA_SMALL, steps=3, lr=1e-3, penalty=0.0, ema=0.0)
    averaged = run("sa", ctx, **SA_SMALL, steps=3, lr=1e-3, penalty=0.0, ema=0.9999)
    moved = sum(float((averaged[k] - base[k]).abs().sum()) for k in base)
    assert 0 < moved < 0.001 * sum(float((last[k] - base[k]).abs().sum()) for k in base)


def test_sa_touches_no_real_image(context):
    ctx = context("sa")
    run("sa", ctx, **SA_SMALL, steps=1)
    assert ctx._harness.counts.drawn == {}


def test_original_changes_nothing(context):
    ctx = context("original")
    run("original", ctx)
    for p, q in zip(ctx.model.parameters(), ctx.base.parameters(), strict=True):
        assert torch.equal(p, q)


def test_retrain_starts_afresh_and_never_trains_the_forget_row(context):
    ctx = context("retrain", forget_class=3)
    embedding = dict(ctx.base.named_parameters())["class_embedding.weight"]
    after = run("retrain", ctx, steps=3, batch=16, lr=1e-2, ema=0.0, label_dropout=0.0)["class_embedding.weight"]
    assert not torch.equal(after[3], embedding[3])  # fresh random weights
    twin = context("retrain", forget_class=3)
    PLUGINS["retrain"].load_module().reinitialise(twin.model)
    fresh = dict(twin.model.named_parameters())["class_embedding.weight"].detach()
    assert torch.equal(after[3], fresh[3])  # which no retained image ever moves
    assert not torch.equal(after[4], fresh[4])


@pytest.mark.parametrize("name", ["retrain", "safemax", "salun", "sa"])
def test_same_seed_same_weights(context, name):
    small = {"steps": 2, "batch": 4, **({} if name != "sa" else SA_SMALL)}
    first, second = (run(name, context(name), **small) for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    other = run(name, context(name, seed=1), **small)
    assert any(not torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("plugin", PLUGINS.values(), ids=list(PLUGINS))
def test_every_method_has_a_card(plugin):
    card = plugin.load_module().__doc__
    assert len(card.splitlines()) >= 3
    if plugin.spec.paper:
        assert f"arXiv:{plugin.spec.paper}" in card
        assert "Deviations:" in card
        assert set(plugin.spec.tuned) >= {"digits"}
