"""Each method against an independent, slow, literal transcription of its formula, in float64 on a small network."""

import math

import numpy as np
import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from unlearnbench import predict_noise
from unlearnbench.datasets import Split
from unlearnbench.models.unet import UNet, unet_config
from unlearnbench.plugins.registry import Registry
from unlearnbench.unlearn import terms
from unlearnbench.unlearn.context import Context

ROWS = "network.class_embedding.weight"  # of the labels
REGISTRY = Registry()
PLUGINS = {plugin.name: plugin for plugin in REGISTRY.plugins("method")}
ABAR = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0).float().double()


@pytest.fixture(scope="session")
def few(tiny):
    """Twelve training images of each class, so that an epoch is a few batches."""
    train = tiny.load(None, None).train
    chosen = np.concatenate([np.flatnonzero(train.labels == c)[:12] for c in range(10)])
    return Split(train.images[chosen], train.labels[chosen])


@pytest.fixture
def context(make_harness, few, monkeypatch):
    """A float64 context, and a twin that yields the same draws."""
    monkeypatch.setattr("unlearnbench.models.codec.to_float", lambda images: images.double() / 127.5 - 1)

    def make(method, **changes):
        return Context(make_harness(method, **{"dtype": torch.float64, "train": few, **changes}))

    return make


@pytest.fixture
def arrived(monkeypatch):
    """The gradients that reach the optimiser: one {name: tensor} per step of the method that `run` runs."""
    steps = []
    step = torch.optim.Adam.step

    def spy(self, *args, **kwargs):
        steps.append([p.grad.clone() for group in self.param_groups for p in group["params"]])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    return steps


@pytest.fixture
def seen(monkeypatch):
    """What a method asks of its networks, by itself and through its terms: (network, labels) per call, from now on."""

    def spy_on(name):
        calls = []

        def spy(model, x_t, t, y):
            calls.append((model, y))
            return predict_noise(model, x_t, t, y)

        for module in (PLUGINS[name].load_module(), terms):
            if hasattr(module, "predict_noise"):
                monkeypatch.setattr(module, "predict_noise", spy)
        return calls

    return spy_on


def run(method, ctx, **settings):
    spec = REGISTRY.method(method)
    spec.function(ctx, **{**spec.resolve((), {}), **settings})
    return {name: parameter.detach() for name, parameter in ctx.model.named_parameters()}


def logged(ctx, name):
    return [value for _, value in ctx._harness.curves[name]]


def noised(x0, eps, t):
    a = ABAR[t].view(-1, 1, 1, 1)
    return a.sqrt() * x0 + (1 - a).sqrt() * eps


def literal_eps_loss(ctx, x0, y, t, eps):
    """L_eps, one image at a time."""
    total = 0.0
    for k in range(len(x0)):
        error = eps[k] - ctx.model(noised(x0, eps, t)[k : k + 1], t[k : k + 1], y[k : k + 1]).sample[0]
        total = total + (error**2).sum()
    return total / len(x0)


def literal_gradient(ctx, loss, clip, mask=None, mask_first=False):
    """The gradient of a loss, clipped to a global norm before or after it is masked."""
    parameters = dict(ctx.model.named_parameters())
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    gradients = {
        k: torch.zeros_like(parameters[k]) if g is None else g for k, g in zip(parameters, gradients, strict=True)
    }
    if mask_first:
        gradients = {k: g * mask[k] for k, g in gradients.items()}
    norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
    scale = min(1.0, clip / (norm + 1e-6))
    return {k: g * scale * (1 if mask is None else mask[k]) for k, g in gradients.items()}


class LiteralAdam:
    """Kingma & Ba 2015, algorithm 1, betas (0.9, 0.999), eps 1e-8; one step in place."""

    def __init__(self, lr):
        self.lr, self.k, self.m, self.v = lr, 0, {}, {}

    @torch.no_grad()
    def step(self, ctx, gradients):
        self.k += 1
        for name, parameter in ctx.model.named_parameters():
            g = gradients[name]
            self.m[name] = 0.9 * self.m.get(name, 0.0) + 0.1 * g
            self.v[name] = 0.999 * self.v.get(name, 0.0) + 0.001 * g**2
            m, v = self.m[name] / (1 - 0.9**self.k), self.v[name] / (1 - 0.999**self.k)
            parameter -= self.lr * m / (v.sqrt() + 1e-8)


def weights(ctx):
    return {name: parameter.detach().clone() for name, parameter in ctx.model.named_parameters()}


def assert_same(ours, theirs):
    ours = ours if isinstance(ours, dict) else dict(zip(theirs, ours, strict=True))
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


FREE = 1e9  # a clipping norm that never acts, so that the gradient's scale is seen


def literal_psi(t, decay, normalise):
    psi = [math.exp(-decay * k / 1000) for k in range(1000)]
    return psi[t] / (math.fsum(psi) / 1000 if normalise else 1.0)


@pytest.mark.parametrize("target", ["independent", "trajectory"])
@pytest.mark.parametrize("decay", [0.0, 1.0, 50.0])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("clip", [1.0, FREE])
def test_safemax_step(context, arrived, target, decay, normalise, clip):
    ours_ctx = context("safemax")
    settings = {"target": target, "decay": decay, "normalise_psi": normalise, "label_dropout": 0.5}
    ours = run("safemax", ours_ctx, steps=1, batch=4, lr=1e-3, alpha=0.7, clip=clip, **settings)
    ctx = context("safemax")
    (x0, y), (x_r, y_r) = ctx.forget.draw(4), ctx.retain.draw(4)
    t, eps, eps_T = ctx.timesteps(4), ctx.noise_like(x0), ctx.noise_like(x0)
    t_r, eps_r, y_r = ctx.timesteps(4), ctx.noise_like(x_r), ctx.drop_labels(y_r, 0.5)
    forget_loss = 0.0
    for k in range(4):
        wanted = eps_T[k]
        if target == "trajectory":
            rho = math.sqrt(ABAR[-1] * (1 - ABAR[t[k]]) / (ABAR[t[k]] * (1 - ABAR[-1])))
            wanted = rho * eps[k] + math.sqrt(max(0.0, 1 - rho**2)) * eps_T[k]
        x_t = noised(x0[k : k + 1], eps[k : k + 1], t[k : k + 1])
        error = wanted - ctx.model(x_t, t[k : k + 1], y[k : k + 1]).sample[0]
        forget_loss = forget_loss + literal_psi(int(t[k]), decay, normalise) * (error**2).sum() / 4
    retain_loss = literal_eps_loss(ctx, x_r, y_r, t_r, eps_r)
    assert logged(ours_ctx, "forget_loss") == pytest.approx([float(forget_loss.detach())], rel=1e-6)
    assert logged(ours_ctx, "retain_loss") == pytest.approx([float(retain_loss.detach())], rel=1e-6)
    gradient = literal_gradient(ctx, forget_loss + 0.7 * retain_loss, clip)
    assert_same(arrived[0], gradient)
    LiteralAdam(1e-3).step(ctx, gradient)
    assert_same(ours, weights(ctx))


def predict_nothing(model, x_t, t, y):
    return x_t * sum(0 * p.sum() for p in model.parameters())


@pytest.mark.parametrize("decay, mean", [(0.0, 1.0), (1.0, 0.632), (10.0, 0.100), (50.0, 0.020)])
def test_safemax_decay_scales_the_forget_term_unless_psi_is_normalised(context, monkeypatch, decay, mean):
    """One image per timestep, each with squared error 64: the loss is 64 times the mean of psi."""
    monkeypatch.setattr(Context, "timesteps", lambda self, n: torch.arange(n))
    monkeypatch.setattr(Context, "noise_like", lambda self, x: torch.ones_like(x))
    monkeypatch.setattr(terms, "predict_noise", predict_nothing)
    for normalise, expected in ((False, mean), (True, 1.0)):
        ctx = context("safemax")
        run("safemax", ctx, steps=1, batch=1000, decay=decay, normalise_psi=normalise)
        assert logged(ctx, "forget_loss") == pytest.approx([64 * expected], rel=1e-9 if normalise else 0.03)


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


SALUN_STEPS = {
    "defaults": {},
    "mask_then_clip": {"clip_then_mask": False},
    "unclipped": {"clip": FREE},
    "source_dropout": {"clip": FREE, "source_dropout": 0.5},
    "plain_mask": {"clip": FREE, "mask_loss": "plain"},
    "other_pseudo_class": {"clip": FREE, "pseudo_offset": 7},
}


@pytest.mark.parametrize("changes", SALUN_STEPS.values(), ids=SALUN_STEPS)
def test_salun_step(context, arrived, changes):
    settings = {"label_dropout": 0.5, "mask_ratio": 0.4, "alpha": 0.01, **changes}
    ours_ctx = context("salun")
    ours = run("salun", ours_ctx, steps=1, batch=4, lr=1e-3, **settings)
    ctx = context("salun")
    module = PLUGINS["salun"].load_module()
    mask_loss = settings.get("mask_loss", "guided")
    mask = ctx.prior("mask", module.saliency_mask, mask_ratio=0.4, mask_loss=mask_loss, guidance=2.0, batch=4)
    (x0, y), (x_r, y_r) = ctx.forget.draw(4), ctx.retain.draw(4)
    t, eps = ctx.timesteps(4), ctx.noise_like(x0)
    source = ctx.drop_labels(y, settings.get("source_dropout", 0.0))
    t_r, eps_r, y_r = ctx.timesteps(4), ctx.noise_like(x_r), ctx.drop_labels(y_r, 0.5)
    pseudo = torch.full_like(y, 0 if "pseudo_offset" in settings else 4)  # (3 + 7) mod 10, (3 + 1) mod 10
    forget_loss = 0.0
    for k in range(4):
        x_t = noised(x0[k : k + 1], eps[k : k + 1], t[k : k + 1])
        target = ctx.model(x_t, t[k : k + 1], pseudo[k : k + 1]).sample.detach()
        forget_loss = forget_loss + ((ctx.model(x_t, t[k : k + 1], source[k : k + 1]).sample - target) ** 2).mean() / 4
    retain_loss = literal_eps_loss(ctx, x_r, y_r, t_r, eps_r)
    assert logged(ours_ctx, "forget_loss") == pytest.approx([float(forget_loss.detach())], rel=1e-6)
    assert logged(ours_ctx, "retain_loss") == pytest.approx([float(retain_loss.detach())], rel=1e-6)
    loss, mask_first = forget_loss + 0.01 * retain_loss, not settings.get("clip_then_mask", True)
    gradient = literal_gradient(ctx, loss, settings.get("clip", 1.0), mask, mask_first)
    assert_same(arrived[0], gradient)
    LiteralAdam(1e-3).step(ctx, gradient)
    assert_same(ours, weights(ctx))


@pytest.mark.parametrize("clip_then_mask", [True, False])
def test_salun_order_of_clip_and_mask(context, arrived, clip_then_mask):
    """Masked after clipping, the gradient that reaches the optimiser is shorter than the clipping norm."""
    run("salun", context("salun"), steps=1, batch=4, alpha=10.0, mask_ratio=0.4, clip_then_mask=clip_then_mask)
    norm = float(torch.cat([gradient.flatten() for gradient in arrived[0]]).norm())
    assert norm < 0.999 if clip_then_mask else norm == pytest.approx(1.0, abs=1e-4)


def test_salun_source_dropout_drops_the_labels_of_the_source_only(context, seen):
    module, ctx = PLUGINS["salun"].load_module(), context("salun")
    ctx.prior("mask", module.saliency_mask, mask_ratio=0.5, mask_loss="guided", guidance=2.0, batch=4)
    calls = seen("salun")
    run("salun", ctx, steps=1, batch=4, source_dropout=1.0, label_dropout=0.0)
    (_, target), (_, forget), (_, retain) = calls
    assert target.tolist() == [4] * 4
    assert forget.tolist() == [10] * 4
    assert not set(retain.tolist()) & {3, 10}


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


def replay_in_float64(ctx):
    replay = ctx.prior("replay", PLUGINS["sa"].load_module().replay_images, shared=True, per_class=1, dropout=False)
    return {"x0": replay["x0"].double(), "y": replay["y"]}


@pytest.mark.parametrize("unit_range", [False, True])
@pytest.mark.parametrize("label_dropout", [0.0, 0.5])
def test_sa_fisher(context, unit_range, label_dropout):
    ctx = context("sa")
    module = PLUGINS["sa"].load_module()
    replay = replay_in_float64(ctx)
    options = {"images": 3, "timesteps": 6, "label_dropout": label_dropout, "unit_range": unit_range}
    chunked = ctx.prior("fisher", module.fisher, shared=True, replay=replay, chunk=4, **options)
    twin = Context(ctx._harness, purpose="prior fisher", shared=True)
    twin.model.eval()
    expected = {name: torch.zeros_like(p) for name, p in twin.model.named_parameters()}
    for index in (0, 3, 6):  # three of the ten replay images, evenly
        steps = [0, 166, 333, 500, 666, 833]
        x0 = replay["x0"][index : index + 1]
        if unit_range:
            x0 = x0 * 0.5 + 0.5
        loss = 0.0
        for part in (steps[:4], steps[4:]):
            labels = twin.drop_labels(replay["y"][index].repeat(len(part)), label_dropout)
            noise = twin.noise_like(torch.empty(len(part), 1, 8, 8, dtype=torch.float64))
            for eps, t, y in zip(noise, part, labels, strict=True):  # one timestep at a time, summed before the square
                error = eps - twin.model(noised(x0, eps[None], torch.tensor([t])), torch.tensor([t]), y[None]).sample[0]
                loss = loss + (error**2).sum()
        gradients = torch.autograd.grad(loss, list(twin.model.parameters()), allow_unused=True)
        for name, gradient in zip(expected, gradients, strict=True):
            expected[name] += 0 if gradient is None else (gradient * 1000 / 6) ** 2 / 3
    for name in expected:
        torch.testing.assert_close(chunked[name], expected[name], rtol=1e-5, atol=1e-9)


SA_SMALL = {"batch": 4, "replay_per_class": 1, "fisher_images": 2, "fisher_timesteps": 4}


@pytest.mark.parametrize("clip", [1.0, FREE])
@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_sa_two_steps(context, arrived, clip, ema):
    """Two, because at the first theta = theta* and the penalty has no gradient."""
    module = PLUGINS["sa"].load_module()
    ours_ctx = context("sa")
    settings = {"lr": 1e-3, "penalty": 10.0, "gamma": 0.7, "label_dropout": 0.5, "clip": clip, "ema": ema}
    ours = run("sa", ours_ctx, **SA_SMALL, steps=2, **settings)
    ctx = context("sa")
    replay = replay_in_float64(ctx)
    options = {"images": 2, "timesteps": 4, "chunk": 50, "label_dropout": 0.1, "unit_range": False}
    information = ctx.prior("fisher", module.fisher, shared=True, replay=replay, **options)
    start, average = weights(ctx), weights(ctx)
    kept = torch.tensor([k for k in range(10) if k != 3])
    optimizer, losses = LiteralAdam(1e-3), []
    for step in range(2):
        chosen = kept[torch.randint(9, (4,), generator=ctx.generator)]
        x_r, y_r = replay["x0"][chosen], replay["y"][chosen]
        u = torch.empty_like(x_r).uniform_(-1, 1, generator=ctx.generator)
        t, eps, y_f = ctx.timesteps(4), ctx.noise_like(u), ctx.drop_labels(torch.full((4,), 3), 0.0)
        t_r, eps_r, y_r = ctx.timesteps(4), ctx.noise_like(x_r), ctx.drop_labels(y_r, 0.5)
        forget_loss = literal_eps_loss(ctx, u, y_f, t, eps)
        replay_loss = literal_eps_loss(ctx, x_r, y_r, t_r, eps_r)
        losses.append((float(forget_loss.detach()), float(replay_loss.detach())))
        loss = forget_loss + 0.7 * replay_loss
        for name, p in ctx.model.named_parameters():
            loss = loss + 10.0 * (information[name] * (p - start[name]) ** 2).sum()
        gradient = literal_gradient(ctx, loss, clip)
        assert_same(arrived[step], gradient)
        optimizer.step(ctx, gradient)
        average = {name: ema * average[name] + (1 - ema) * value for name, value in weights(ctx).items()}
    assert logged(ours_ctx, "forget_loss") == pytest.approx([a for a, _ in losses], rel=1e-6)
    assert logged(ours_ctx, "replay_loss") == pytest.approx([b for _, b in losses], rel=1e-6)
    assert_same(ours, average)


@pytest.mark.parametrize("replay_dropout", [False, True])
def test_sa_replay_dropout_reaches_the_sampler(context, monkeypatch, replay_dropout):
    asked = []
    sample = Context.sample

    def spy(self, labels, *, dropout=False):
        asked.append(dropout)
        return sample(self, labels, dropout=dropout)

    monkeypatch.setattr(Context, "sample", spy)
    run("sa", context("sa"), **SA_SMALL, steps=1, replay_dropout=replay_dropout)
    assert asked == [replay_dropout]


def test_sa_replay_dropout_changes_the_replay_images(context, tiny):
    torch.manual_seed(7)
    base = UNet.from_config({**unet_config(tiny), "dropout": 0.5}).double().eval().requires_grad_(False)
    make = PLUGINS["sa"].load_module().replay_images
    sane, again = (make(context("sa", base=base), per_class=1, dropout=False)["x0"] for _ in range(2))
    dropped = make(context("sa", base=base), per_class=1, dropout=True)["x0"]
    assert torch.equal(sane, again)
    assert not torch.equal(sane, dropped)
    assert not base.training


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
    embedding = dict(ctx.base.named_parameters())[ROWS]
    after = run("retrain", ctx, steps=3, batch=16, lr=1e-2, ema=0.0, label_dropout=0.0)[
        "network.class_embedding.weight"
    ]
    assert not torch.equal(after[3], embedding[3])  # fresh random weights
    twin = context("retrain", forget_class=3)
    PLUGINS["retrain"].load_module().reinitialise(twin.model)
    fresh = dict(twin.model.named_parameters())[ROWS].detach()
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
    assert len(card.splitlines()) >= (1 if plugin.spec.role == "control" else 3)
    if plugin.spec.paper:
        assert f"arXiv:{plugin.spec.paper}" in card
        assert "Deviations:" in card
        assert set(plugin.spec.tuned) >= {"digits"}
