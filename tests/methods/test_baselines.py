"""Simple baselines and ESD against independent, slow, literal transcriptions of their formulas, in float64."""

import pytest
import torch

import tests.methods.test_methods as literal
from unlearnbench.unlearn.context import Context

few, context, arrived, seen = literal.few, literal.context, literal.arrived, literal.seen  # fixtures

FORGET, RETAIN = frozenset({"forget"}), frozenset({"retain"})
LR = 1e-3


def assert_steps(ctx, ours, arrived, losses, clip, mask=None):
    """Take the literal steps on `ctx` and compare gradients and weights; a loss function returns (loss, parts)."""
    optimizer, parts = literal.LiteralAdam(LR), []
    for step, loss_of in enumerate(losses):
        loss, logs = loss_of()
        parts.append({name: float(value.detach()) for name, value in logs.items()})
        gradient = literal.literal_gradient(ctx, loss, clip, mask, mask_first=mask is not None)
        sent = {name: g for name, g in gradient.items() if mask is None or mask[name]}
        literal.assert_same(arrived[step], sent)
        optimizer.step(ctx, gradient)
    literal.assert_same(ours, literal.weights(ctx))
    return parts


def assert_logged(ctx, parts):
    assert set(ctx._harness.curves) == set(parts[0])
    for name in parts[0]:
        assert literal.logged(ctx, name) == pytest.approx([part[name] for part in parts], rel=1e-6)


@pytest.mark.parametrize("clip", [1.0, literal.FREE])
@pytest.mark.parametrize("forget_class", [3, 8])
def test_finetune_two_steps(context, arrived, clip, forget_class):
    ours_ctx, ctx = (context("finetune", forget_class=forget_class) for _ in range(2))
    ours = literal.run("finetune", ours_ctx, steps=2, batch=4, lr=LR, label_dropout=0.5, clip=clip)

    def loss():
        x0, y = ctx.retain.draw(4)
        assert forget_class not in y
        t, eps = ctx.timesteps(4), ctx.noise_like(x0)
        retain_loss = literal.literal_eps_loss(ctx, x0, ctx.drop_labels(y, 0.5), t, eps)
        return retain_loss, {"retain_loss": retain_loss}

    assert_logged(ours_ctx, assert_steps(ctx, ours, arrived, [loss, loss], clip))


def test_finetune_never_moves_the_forget_row(context):
    ctx = context("finetune", forget_class=3)
    before = literal.weights(ctx)[literal.ROWS]
    after = literal.run("finetune", ctx, steps=3, batch=32, lr=1e-2, label_dropout=0.5)[
        "network.class_embedding.weight"
    ]
    assert torch.equal(after[3], before[3])
    assert not torch.equal(after[4], before[4])
    assert not torch.equal(after[10], before[10])  # the null class, through label dropout


@pytest.mark.parametrize("clip", [1.0, literal.FREE])
def test_neggrad_two_steps(context, arrived, clip):
    ours_ctx, ctx = context("neggrad"), context("neggrad")
    ours = literal.run("neggrad", ours_ctx, steps=2, batch=4, lr=LR, clip=clip)

    def loss():
        x0, y = ctx.forget.draw(4)
        t, eps = ctx.timesteps(4), ctx.noise_like(x0)
        y = ctx.drop_labels(y, 0.0)  # drops none, but draws
        forget_loss = literal.literal_eps_loss(ctx, x0, y, t, eps)
        return -forget_loss, {"forget_loss": forget_loss}

    assert_logged(ours_ctx, assert_steps(ctx, ours, arrived, [loss, loss], clip))


def mean_loss(ctx, stream):
    """L_eps on one batch and one set of draws, whatever the context has drawn before."""
    probe = Context(ctx._harness, purpose="probe")
    x0, y = getattr(probe, stream).draw(64)
    t, eps = probe.timesteps(64), probe.noise_like(x0)
    with torch.no_grad():
        return float(literal.literal_eps_loss(ctx, x0, y, t, eps))


@pytest.mark.parametrize("name, more", [("neggrad", {}), ("neggrad_plus", {"beta": 0.2})])
def test_ascent_raises_the_forget_loss(context, name, more):
    ctx = context(name)
    before = mean_loss(ctx, "forget")
    literal.run(name, ctx, steps=10, batch=32, lr=LR, **more)
    assert mean_loss(ctx, "forget") > 1.02 * before


def test_neggrad_leaves_the_null_row_and_the_retained_rows(context):
    ctx = context("neggrad", forget_class=3)
    before = literal.weights(ctx)[literal.ROWS]
    after = literal.run("neggrad", ctx, steps=3, batch=32, lr=1e-2)[literal.ROWS]
    assert [k for k in range(11) if not torch.equal(after[k], before[k])] == [3]


@pytest.mark.parametrize("clip", [1.0, literal.FREE])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.95, 1.0])
def test_neggrad_plus_two_steps(context, arrived, clip, beta):
    ours_ctx, ctx = context("neggrad_plus"), context("neggrad_plus")
    ours = literal.run("neggrad_plus", ours_ctx, steps=2, batch=4, lr=LR, beta=beta, label_dropout=0.5, clip=clip)

    def loss():
        x_f, y_f = ctx.forget.draw(4)
        t_f, eps_f, y_f = ctx.timesteps(4), ctx.noise_like(x_f), ctx.drop_labels(y_f, 0.0)
        x_r, y_r = ctx.retain.draw(4)
        t_r, eps_r, y_r = ctx.timesteps(4), ctx.noise_like(x_r), ctx.drop_labels(y_r, 0.5)
        forget_loss = literal.literal_eps_loss(ctx, x_f, y_f, t_f, eps_f)
        retain_loss = literal.literal_eps_loss(ctx, x_r, y_r, t_r, eps_r)
        return beta * retain_loss - (1 - beta) * forget_loss, {"forget_loss": forget_loss, "retain_loss": retain_loss}

    assert_logged(ours_ctx, assert_steps(ctx, ours, arrived, [loss, loss], clip))


@pytest.mark.parametrize("beta, other", [(1.0, "finetune"), (0.0, "neggrad")])
def test_neggrad_plus_has_finetune_and_neggrad_at_its_ends(context, arrived, monkeypatch, beta, other):
    """With the same draws for both, the gradients are those of the plain method."""
    monkeypatch.setattr(Context, "timesteps", lambda self, n: torch.arange(n) * 200)
    monkeypatch.setattr(Context, "noise_like", lambda self, x: torch.linspace(-2, 2, 64).to(x).view(1, 1, 8, 8) + 0 * x)
    draws = {"forget": context("neggrad").forget.draw(4), "retain": context("finetune").retain.draw(4)}
    monkeypatch.setattr("unlearnbench.unlearn.streams.Stream.draw", lambda self, n: draws[self.name])
    no_drop = {"label_dropout": 0.0}
    literal.run("neggrad_plus", context("neggrad_plus"), steps=1, batch=4, clip=literal.FREE, beta=beta, **no_drop)
    drop = no_drop if other == "finetune" else {}
    literal.run(other, context(other), steps=1, batch=4, clip=literal.FREE, **drop)
    ours, plain = arrived
    for a, b in zip(ours, plain, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert any((a != 0).any() for a in ours)


@pytest.mark.parametrize("clip", [1.0, literal.FREE])
@pytest.mark.parametrize("alpha", [0.0, 0.01])
@pytest.mark.parametrize("forget_class", [3, 9])
def test_random_label_two_steps(context, arrived, clip, alpha, forget_class):
    ours_ctx, ctx = (context("random_label", forget_class=forget_class) for _ in range(2))
    settings = {"alpha": alpha, "label_dropout": 0.5, "clip": clip}
    ours = literal.run("random_label", ours_ctx, steps=2, batch=4, lr=LR, **settings)
    kept = [k for k in range(10) if k != forget_class]

    def loss():
        (x_f, y_f), (x_r, y_r) = ctx.forget.draw(4), ctx.retain.draw(4)
        pseudo = [kept[k] for k in torch.randint(9, (4,), generator=ctx.generator).tolist()]
        t_f, eps_f = ctx.timesteps(4), ctx.noise_like(x_f)
        t_r, eps_r, y_r = ctx.timesteps(4), ctx.noise_like(x_r), ctx.drop_labels(y_r, 0.5)
        forget_loss = 0.0
        for k in range(4):
            x_t = literal.noised(x_f[k : k + 1], eps_f[k : k + 1], t_f[k : k + 1])
            target = ctx.base(x_t, t_f[k : k + 1], torch.tensor([pseudo[k]])).sample
            error = ctx.model(x_t, t_f[k : k + 1], y_f[k : k + 1]).sample - target
            forget_loss = forget_loss + (error**2).mean() / 4
        retain_loss = literal.literal_eps_loss(ctx, x_r, y_r, t_r, eps_r)
        return forget_loss + alpha * retain_loss, {"forget_loss": forget_loss, "retain_loss": retain_loss}

    assert_logged(ours_ctx, assert_steps(ctx, ours, arrived, [loss, loss], clip))


def test_random_label_draws_every_retained_class_and_no_other(context, seen):
    calls, ctx = seen("random_label"), context("random_label", forget_class=0)
    literal.run("random_label", ctx, steps=2, batch=200, lr=0.0)
    targets = [y for model, y in calls if model is ctx.base]
    assert len(targets) == 2
    assert set(torch.cat(targets).tolist()) == set(range(1, 10))
    assert not torch.equal(*targets)  # drawn afresh
    asked = [y for model, y in calls if model is ctx.model]
    assert len(asked) == 4
    for forget, retain in zip(asked[::2], asked[1::2], strict=True):
        assert (forget == 0).all()  # the condition stays the forget class
        assert (retain != 0).all()


def test_random_label_keeps_clear_of_all_forgotten_classes(context, seen):
    calls, ctx = seen("random_label"), context("random_label", target=((2, 5), ((7,),)))
    literal.run("random_label", ctx, steps=1, batch=200, lr=0.0)
    (base, target), (_, forget), (_, retain) = calls
    assert base is ctx.base
    assert set(target.tolist()) == {0, 1, 3, 4, 6, 8, 9}
    assert set(forget.tolist()) == {2, 5}
    assert not set(retain.tolist()) & {2, 5, 7}


@pytest.mark.parametrize("classes", [(2,), (2, 5)])
def test_esd_steers_away_from_the_class_of_each_image(context, seen, classes):
    calls, ctx = seen("esd"), context("esd", target=(classes,))
    literal.run("esd", ctx, steps=1, batch=50, lr=0.0)
    (base, both), (model, y) = calls
    assert base is ctx.base and model is ctx.model
    assert set(y.tolist()) == set(classes)
    assert torch.equal(both, torch.cat([y, torch.full_like(y, 10)]))


def esd_mask(ctx):
    """1 for the class path of the network, 0 elsewhere, found through the modules and not through their names."""
    inside = {id(p) for p in ctx.model.network.class_embedding.parameters()}
    for module in ctx.model.modules():
        if hasattr(module, "time_emb_proj"):
            inside |= {id(p) for p in module.time_emb_proj.parameters()}
    return {name: int(id(p) in inside) for name, p in ctx.model.named_parameters()}


@pytest.mark.parametrize("clip", [0.01, literal.FREE])
@pytest.mark.parametrize("train", ["all", "class"])
@pytest.mark.parametrize("eta", [0.0, 1.0, 3.0])
def test_esd_two_steps(context, arrived, clip, train, eta):
    ours_ctx, ctx = context("esd"), context("esd")
    ours = literal.run("esd", ours_ctx, steps=2, batch=4, lr=LR, eta=eta, train=train, clip=clip)

    def loss():
        x0, y = ctx.forget.draw(4)
        t, eps = ctx.timesteps(4), ctx.noise_like(x0)
        forget_loss = 0.0
        for k in range(4):
            x_t, t_k = literal.noised(x0[k : k + 1], eps[k : k + 1], t[k : k + 1]), t[k : k + 1]
            of_class, null = (ctx.base(x_t, t_k, torch.tensor([c])).sample for c in (int(y[k]), 10))
            target = null - eta * (of_class - null)
            forget_loss = forget_loss + ((ctx.model(x_t, t_k, y[k : k + 1]).sample - target) ** 2).mean() / 4
        return forget_loss, {"forget_loss": forget_loss}

    mask = esd_mask(ctx) if train == "class" else None
    assert_logged(ours_ctx, assert_steps(ctx, ours, arrived, [loss, loss], clip, mask))


def test_esd_without_guidance_has_nothing_to_do_where_the_class_is_the_null_class(context):
    """eta = 0 asks for the unconditional noise: with equal embeddings the base already predicts it."""
    ctx = context("esd", forget_class=3)
    with torch.no_grad():
        for network in (ctx.base, ctx.model):
            table = network.tables()[0]
            table[3] = table[10]
    literal.run("esd", ctx, steps=1, batch=8, eta=0.0)
    assert literal.logged(ctx, "forget_loss") == pytest.approx([0.0], abs=1e-20)


def test_esd_eta_is_the_strength_of_the_guidance_away_from_the_class(context):
    """At the start eps_theta = eps_base, so the residual is (1 + eta) (eps(c) - eps(null)), and the loss its square."""
    losses = {}
    for eta in (0.0, 1.0, 3.0):
        ctx = context("esd")
        literal.run("esd", ctx, steps=1, batch=8, eta=eta)
        losses[eta] = literal.logged(ctx, "forget_loss")[0]
    assert losses[0.0] > 0
    assert losses[1.0] == pytest.approx(4 * losses[0.0], rel=1e-9)
    assert losses[3.0] == pytest.approx(16 * losses[0.0], rel=1e-9)


def test_esd_class_trains_the_class_path_only(context):
    ctx = context("esd", forget_class=3)
    before, mask = literal.weights(ctx), esd_mask(ctx)
    after = literal.run("esd", ctx, steps=2, batch=8, lr=1e-2, train="class")
    assert {name for name in after if not torch.equal(after[name], before[name])} == {n for n, m in mask.items() if m}
    rows = after[literal.ROWS] != before[literal.ROWS]
    assert rows.any(dim=1).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize(
    "name, streams",
    [
        ("finetune", RETAIN),
        ("neggrad", FORGET),
        ("neggrad_plus", FORGET | RETAIN),
        ("random_label", FORGET | RETAIN),
        ("esd", FORGET),
    ],
)
def test_streams_and_draws(context, name, streams):
    """A method draws one batch a step of each stream that it declares, and the same seed gives the same weights."""
    assert literal.REGISTRY.method(name).streams == streams
    first, second, other = context(name), context(name), context(name, seed=1)
    results = [literal.run(name, ctx, steps=3, batch=5, lr=LR) for ctx in (first, second, other)]
    assert first._harness.counts.drawn == dict.fromkeys(streams, 15)
    assert all(torch.equal(results[0][k], results[1][k]) for k in results[0])
    assert any(not torch.equal(results[0][k], results[2][k]) for k in results[0])
