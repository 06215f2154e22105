"""Further published methods against independent, slow, literal transcriptions of their formulas, in float64."""

import math

import pytest
import torch

import tests.methods.test_methods as literal
from unlearnbench.datasets import Split
from unlearnbench.unlearn.context import Context

few, context, arrived, seen = literal.few, literal.context, literal.arrived, literal.seen  # fixtures

ABAR, LR = literal.ABAR, 1e-3
METHODS = ["sfron", "erasediff", "restricted_gradient", "meta_unlearning"]
SMALL = {
    "sfron": {"batch": 4},
    "erasediff": {"batch": 4, "round_steps": 1, "inner_steps": 1, "ema": 0.0},
    "restricted_gradient": {"batch": 4, "retain_batch": 6},
    "meta_unlearning": {"batch": 4},
}


def retain_loss(ctx, x0, y, dropout):
    """L_eps with the draws of `Context.eps_loss`, one image at a time."""
    t, eps = ctx.timesteps(len(x0)), ctx.noise_like(x0)
    return literal.literal_eps_loss(ctx, x0, ctx.drop_labels(y, dropout), t, eps)


def image_losses(ctx, x0, y, t, eps):
    return torch.stack(
        [
            literal.literal_eps_loss(ctx, x0[k : k + 1], y[k : k + 1], t[k : k + 1], eps[k : k + 1])
            for k in range(len(x0))
        ]
    )


def predicted(model, x0, eps, t, y, k):
    """The noise that a model sees in the k-th noised image."""
    x_t = literal.noised(x0[k : k + 1], eps[k : k + 1], t[k : k + 1])
    return model(x_t, t[k : k + 1], y[k : k + 1]).sample[0]


def squares(gradients):
    return sum(float((g**2).sum()) for g in gradients.values())


def product(first, second):
    return sum(float((first[k] * second[k]).sum()) for k in first)


@torch.no_grad()
def restore(ctx, saved):
    for name, parameter in ctx.model.named_parameters():
        parameter.copy_(saved[name])


def literal_fisher(ctx, stream, guidance, batch):
    gradients = []
    for x0, y in stream.epoch(batch):
        t, eps = ctx.timesteps(len(x0)), ctx.noise_like(x0)
        loss, null = 0.0, torch.full_like(y, 10)
        for k in range(len(x0)):
            guided = (1 + guidance) * predicted(ctx.model, x0, eps, t, y, k)
            guided = guided - guidance * predicted(ctx.model, x0, eps, t, null, k)
            loss = loss + ((eps[k] - guided) ** 2).sum() / len(x0)
        gradients.append(literal.literal_gradient(ctx, loss, 1.0))
    return {name: sum(g[name] ** 2 for g in gradients) / len(gradients) for name in gradients[0]}


def few_images(ctx, forget=9, retain=14):
    """Cut the training split down, so that an epoch is a few batches."""
    train = Split(ctx._harness.kept.images.numpy(), ctx._harness.kept.labels.numpy())
    inside = train.labels == 3
    chosen = [*inside.nonzero()[0][:forget], *(~inside).nonzero()[0][:retain]]
    return Split(train.images[chosen], train.labels[chosen])


@pytest.mark.parametrize("stream", ["forget", "retain"])
def test_sfron_fisher(context, stream):
    ctx = context("sfron", train=few_images(context("sfron")))
    module = literal.PLUGINS["sfron"].load_module()
    ours = ctx.prior(f"fisher_{stream}", module.fisher, stream=stream, guidance=2.0, batch=5)
    twin = Context(ctx._harness, purpose=f"prior fisher_{stream}")
    twin.model.eval()
    literal.assert_same(ours, literal_fisher(twin, getattr(twin, stream), 2.0, 5))


SFRON = {
    "defaults": {},
    "unclipped": {"clip": literal.FREE},
    "plain_ascent": {"clip": literal.FREE, "adaptivity": 0.0},
    "stricter_mask": {"clip": literal.FREE, "mask_threshold": 2.0},
    "no_mask": {"clip": literal.FREE, "mask_threshold": 0.0, "alpha": 0.3},
}


@pytest.mark.parametrize("changes", SFRON.values(), ids=SFRON)
def test_sfron_two_pairs_of_steps(context, arrived, changes):
    train = few_images(context("sfron"))
    ours_ctx, ctx = (context("sfron", train=train) for _ in range(2))
    ours = literal.run("sfron", ours_ctx, steps=2, batch=4, lr=LR, label_dropout=0.5, **changes)
    module = literal.PLUGINS["sfron"].load_module()
    options = {"guidance": 2.0, "batch": 4}
    f, r = (ctx.prior(f"fisher_{name}", module.fisher, stream=name, **options) for name in ("forget", "retain"))
    least, clip = changes.get("mask_threshold", 1.0), changes.get("clip", 1.0)
    mask = {name: ((f[name] + 1e-15) / (r[name] + 1e-15) >= least).double() for name in f}
    share = sum(float(m.sum()) for m in mask.values()) / sum(m.numel() for m in mask.values())
    assert share == 1 if least == 0 else 0.01 < share < 0.99
    optimizer, logs = literal.LiteralAdam(LR), []
    for s in range(2):
        x0, y = ctx.forget.draw(4)
        t, eps = ctx.timesteps(4), ctx.noise_like(x0)
        losses = image_losses(ctx, x0, ctx.drop_labels(y, 0.5), t, eps)
        weights = [1 / (float(loss.detach()) ** changes.get("adaptivity", 0.5) + 1e-8) for loss in losses]
        forget = -sum(w / sum(weights) * loss for w, loss in zip(weights, losses, strict=True))
        alpha = changes.get("alpha", 10.0) * (1 + math.cos(math.pi * s / 2)) / 2
        gradient = literal.literal_gradient(ctx, alpha * forget, clip, mask, mask_first=True)
        literal.assert_same(arrived[2 * s], gradient)
        optimizer.step(ctx, gradient)
        keep = retain_loss(ctx, *ctx.retain.draw(4), 0.5)
        gradient = literal.literal_gradient(ctx, keep, clip)
        literal.assert_same(arrived[2 * s + 1], gradient)
        optimizer.step(ctx, gradient)
        logs.append((float(forget.detach()), float(keep.detach())))
    assert literal.logged(ours_ctx, "forget_loss") == pytest.approx([a for a, _ in logs], rel=1e-6)
    assert literal.logged(ours_ctx, "retain_loss") == pytest.approx([b for _, b in logs], rel=1e-6)
    literal.assert_same(ours, literal.weights(ctx))


def erasediff_forget_loss(ctx, t, target, dropout):
    """The forget loss of JingWu321/EraseDiff at 14f4e98, ddpm/runners/diffusion.py, lines 753-766 and 806-817.

    `criteria` is `torch.nn.MSELoss()` (line 1067), `uniform_noise` the line that is a comment there.
    """
    x_0, y_t = ctx.forget.draw(len(t))
    noise = ctx.noise_like(x_0)
    a = ABAR.index_select(0, t).view(-1, 1, 1, 1)
    x_0 = x_0 * a.sqrt() + noise * (1.0 - a).sqrt()
    output = ctx.model(x_0, t, ctx.drop_labels(y_t, dropout)).sample  # the model's own cond_drop_prob
    if target == "random_class":
        others = [c for c in range(10) if c not in ctx.forget_classes]  # there: 1 to 9
        pseudo_c = torch.full(y_t.shape, others[torch.randint(len(others), (1,), generator=ctx.generator).item()])
        pseudo = ctx.model(x_0, t, ctx.drop_labels(pseudo_c, dropout)).sample.detach()
    else:
        pseudo = torch.empty_like(x_0).uniform_(0, 1, generator=ctx.generator)
    return torch.nn.MSELoss()(pseudo, output)


def erasediff_retain_loss(ctx, t, x0, c, e):
    """`noise_estimation_loss_conditional` of ddpm/functions/losses.py at the same commit, `cond_drop_prob` applied."""
    a = ABAR.index_select(0, t).view(-1, 1, 1, 1)
    x = x0 * a.sqrt() + e * (1.0 - a).sqrt()
    return torch.nn.functional.mse_loss(ctx.model(x, t, c).sample, e)


ERASEDIFF = {
    "defaults": {},
    "adaptive": {"weighting": "adaptive", "eta": 0.4, "clip": literal.FREE},
    "uniform_noise": {"forget_target": "uniform_noise", "share_t": False, "forget_dropout": 0.0, "clip": literal.FREE},
    "own_moments": {"keep_moments": False, "penalty": 0.7, "clip": literal.FREE},
    "averaged": {"ema": 0.9},
    "two_rounds": {"round_steps": 1, "forget_dropout": 0.5},
    "several_classes": {"target": ((3, 8),), "clip": literal.FREE},
}


@pytest.mark.parametrize("changes", ERASEDIFF.values(), ids=ERASEDIFF)
def test_erasediff_two_steps(context, arrived, changes):
    """As `train_ours` at 14f4e98 does, lines 735-885: inner steps unclipped, then weights back, one Adam."""
    settings = {"round_steps": 2, "ema": 0.0, **changes}
    where = {"target": settings.pop("target")} if "target" in settings else {}
    ours_ctx, ctx = context("erasediff", **where), context("erasediff", **where)
    ours = literal.run("erasediff", ours_ctx, steps=2, inner_steps=2, batch=4, lr=LR, label_dropout=0.5, **settings)
    target, dropout = settings.get("forget_target", "random_class"), settings.get("forget_dropout", 0.1)
    seen, optimizer, gaps, average = iter(arrived), literal.LiteralAdam(LR), [], literal.weights(ctx)
    for step in range(2):
        if step % settings["round_steps"] == 0:
            saved, inner_losses = literal.weights(ctx), []
            inner = optimizer if settings.get("keep_moments", True) else literal.LiteralAdam(LR)
            for _ in range(2):
                loss = erasediff_forget_loss(ctx, ctx.timesteps(4), target, dropout)
                gradient = literal.literal_gradient(ctx, loss, literal.FREE)
                literal.assert_same(next(seen), gradient)
                inner.step(ctx, gradient)
                inner_losses.append(float(loss.detach()))
            restore(ctx, saved)
        x_r, y_r = ctx.retain.draw(4)
        t, e = ctx.timesteps(4), ctx.noise_like(x_r)
        keep = erasediff_retain_loss(ctx, t, x_r, ctx.drop_labels(y_r, 0.5), e)
        t = t if settings.get("share_t", True) else ctx.timesteps(4)  # line 808 noises forget images with t, not t_u
        forget = erasediff_forget_loss(ctx, t, target, dropout)
        weight = settings.get("penalty", 0.1)
        if settings.get("weighting") == "adaptive":
            g_f, g_r = kept_graph_gradient(ctx, forget), kept_graph_gradient(ctx, keep)
            weight = max(0.0, 0.4 - product(g_f, g_r) / squares(g_f))
        gradient = literal.literal_gradient(ctx, keep + weight * forget, settings.get("clip", 1.0))
        literal.assert_same(next(seen), gradient)
        optimizer.step(ctx, gradient)
        gaps.append(float(forget.detach()) - sum(inner_losses) / 2)
        decay = settings["ema"]
        average = {name: decay * average[name] + (1 - decay) * value for name, value in literal.weights(ctx).items()}
    assert next(seen, None) is None
    assert literal.logged(ours_ctx, "gap") == pytest.approx(gaps, rel=1e-6)
    literal.assert_same(ours, average)


def kept_graph_gradient(ctx, loss):
    parameters = dict(ctx.model.named_parameters())
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values()), retain_graph=True), strict=True))


def test_erasediff_adaptive_weight_is_never_negative():
    module = literal.PLUGINS["erasediff"].load_module()
    g = torch.tensor([2.0, 4.0])
    assert float(module.adaptive_penalty([g], [2 * g], 0.1)) == 0.0
    assert float(module.adaptive_penalty([g], [-g], 0.1)) == pytest.approx(1.1)


RESTRICTED = {
    "defaults": {},
    "unclipped": {"clip": literal.FREE},
    "eps": {"clip": literal.FREE, "truncate_in": "eps", "truncate": 0.5},
    "loose": {"clip": literal.FREE, "truncate": 50.0, "alpha": 0.7},
}


@pytest.mark.parametrize("changes", RESTRICTED.values(), ids=RESTRICTED)
def test_restricted_gradient_two_steps(context, arrived, changes):
    ours_ctx, ctx = context("restricted_gradient"), context("restricted_gradient")
    ours = literal.run(
        "restricted_gradient", ours_ctx, steps=2, batch=4, retain_batch=6, lr=LR, label_dropout=0.5, **changes
    )
    optimizer, logs = literal.LiteralAdam(LR), []
    for step in range(2):
        x0, y = ctx.forget.draw(4)
        t, eps = ctx.timesteps(4), ctx.noise_like(x0)
        forget = 0.0
        for k in range(4):
            error = (eps[k] - predicted(ctx.model, x0, eps, t, y, k)) ** 2
            bound = changes.get("truncate", 0.1)
            if changes.get("truncate_in", "x0") == "x0":
                bound = float(bound * literal.ABAR[t[k]] / (1 - literal.ABAR[t[k]]))
            left = error.detach() < bound  # the other pixels are constant
            forget = forget - (error[left].sum() + bound * int((~left).sum())) / 4
        keep = retain_loss(ctx, *ctx.retain.draw(6), 0.5)
        logs.append((float(forget.detach()), float(keep.detach())))
        g_f = literal.literal_gradient(ctx, forget, literal.FREE)
        g_r = literal.literal_gradient(ctx, keep, literal.FREE)
        a = min(0.0, product(g_f, g_r))
        f = {k: g_f[k] - a / squares(g_r) * g_r[k] for k in g_f}
        r = {k: g_r[k] - a / squares(g_f) * g_f[k] for k in g_f}
        gradient = {k: f[k] + changes.get("alpha", 5.0) * r[k] for k in g_f}
        scale = min(1.0, changes.get("clip", 1.0) / (math.sqrt(squares(gradient)) + 1e-6))
        gradient = {k: g * scale for k, g in gradient.items()}
        literal.assert_same(arrived[step], gradient)
        optimizer.step(ctx, gradient)
    assert literal.logged(ours_ctx, "forget_loss") == pytest.approx([a for a, _ in logs], rel=1e-6)
    assert literal.logged(ours_ctx, "retain_loss") == pytest.approx([b for _, b in logs], rel=1e-6)
    literal.assert_same(ours, literal.weights(ctx))


def test_restricted_gradient_takes_out_the_conflict_and_nothing_else():
    project = literal.PLUGINS["restricted_gradient"].load_module().without_conflict
    g, against, alike = torch.tensor([1.0, 0.0]), torch.tensor([-3.0, 4.0]), torch.tensor([3.0, 4.0])
    assert torch.allclose(project(g, against), torch.tensor([0.64, 0.48]))  # perpendicular to `against`
    assert torch.equal(project(g, alike), g)
    assert torch.equal(project(g, torch.zeros(2)), g)  # every pixel truncated: no NaN


@pytest.mark.parametrize("eta", [0.0, 1.5])
@pytest.mark.parametrize("attack_steps", [0, 2])
@pytest.mark.parametrize("clip", [1.0, literal.FREE])
def test_meta_unlearning_two_steps(context, arrived, eta, attack_steps, clip):
    settings = {"eta": eta, "alpha": 0.7, "meta_forget": 0.3, "meta_retain": 0.2, "attack_lr": 2e-3, "clip": clip}
    ours_ctx, ctx = context("meta_unlearning"), context("meta_unlearning")
    more = {"attack_steps": attack_steps, "label_dropout": 0.5, **settings}
    ours = literal.run("meta_unlearning", ours_ctx, steps=2, batch=4, lr=LR, **more)
    optimizer, seen, logs = literal.LiteralAdam(LR), iter(arrived), []
    for _ in range(2):
        (x_f, y_f), (x_r, y_r) = ctx.forget.draw(4), ctx.retain.draw(4)
        t, eps = ctx.timesteps(4), ctx.noise_like(x_f)
        forget, null = 0.0, torch.full_like(y_f, 10)
        for k in range(4):
            free, bound = (predicted(ctx.base, x_f, eps, t, y, k) for y in (null, y_f))
            wanted = free - eta * (bound - free)
            forget = forget + ((wanted - predicted(ctx.model, x_f, eps, t, y_f, k)) ** 2).sum() / 4
        keep = retain_loss(ctx, x_r, y_r, 0.5)
        at_theta = literal.literal_gradient(ctx, forget + 0.7 * keep, literal.FREE)
        saved, attack = literal.weights(ctx), literal.LiteralAdam(2e-3)
        for _ in range(attack_steps):
            gradient = literal.literal_gradient(ctx, retain_loss(ctx, *ctx.forget.draw(4), 0.0), literal.FREE)
            literal.assert_same(next(seen), gradient)
            attack.step(ctx, gradient)
        relearned, kept = retain_loss(ctx, x_f, y_f, 0.0), retain_loss(ctx, x_r, y_r, 0.0)
        attacked = literal.literal_gradient(ctx, -0.3 * relearned - 0.2 * kept, literal.FREE)
        restore(ctx, saved)
        gradient = {k: at_theta[k] + attacked[k] for k in at_theta}
        scale = min(1.0, clip / (math.sqrt(squares(gradient)) + 1e-6))
        gradient = {k: g * scale for k, g in gradient.items()}
        literal.assert_same(next(seen), gradient)
        optimizer.step(ctx, gradient)
        logs.append([float(loss.detach()) for loss in (forget, keep, relearned, kept)])
    assert next(seen, None) is None
    for name, values in zip(
        ["forget_loss", "retain_loss", "relearned_loss", "kept_loss"], zip(*logs, strict=True), strict=True
    ):
        assert literal.logged(ours_ctx, name) == pytest.approx(list(values), rel=1e-6)
    literal.assert_same(ours, literal.weights(ctx))


@pytest.mark.parametrize("source_dropout", [0.0, 0.5])
def test_salun_ascent_step(context, arrived, source_dropout):
    settings = {"forget_loss": "ga", "alpha": 0.6, "label_dropout": 0.5, "source_dropout": source_dropout}
    ours_ctx, ctx = context("salun"), context("salun")
    ours = literal.run("salun", ours_ctx, steps=1, batch=4, lr=LR, clip=literal.FREE, **settings)
    module = literal.PLUGINS["salun"].load_module()
    mask = ctx.prior("mask", module.saliency_mask, mask_ratio=0.5, mask_loss="guided", guidance=2.0, batch=4)
    (x_f, y_f), (x_r, y_r) = ctx.forget.draw(4), ctx.retain.draw(4)
    t_f, eps_f, y_f = ctx.timesteps(4), ctx.noise_like(x_f), ctx.drop_labels(y_f, source_dropout)
    t_r, eps_r, y_r = ctx.timesteps(4), ctx.noise_like(x_r), ctx.drop_labels(y_r, 0.5)
    lose = literal.literal_eps_loss(ctx, x_f, y_f, t_f, eps_f)
    keep = literal.literal_eps_loss(ctx, x_r, y_r, t_r, eps_r)
    gradient = literal.literal_gradient(ctx, 0.6 * keep - lose, literal.FREE, mask)
    literal.assert_same(arrived[0], gradient)
    assert literal.logged(ours_ctx, "forget_loss") == pytest.approx([-float(lose.detach())], rel=1e-6)
    literal.LiteralAdam(LR).step(ctx, gradient)
    literal.assert_same(ours, literal.weights(ctx))


@pytest.mark.parametrize(
    "classes, offset, pseudo",
    [
        ((3,), 1, {3: 4}),
        ((3,), 7, {3: 0}),
        ((3,), 9, {3: 2}),
        ((3,), -1, {3: 2}),
        ((9,), 1, {9: 0}),
        ((3, 4), 1, {3: 5, 4: 5}),
        ((3, 4, 9), 6, {3: 1, 4: 1, 9: 7}),
        ((3, 4, 9), -1, {3: 2, 4: 2, 9: 8}),
    ],
)
def test_salun_pseudo_class_is_a_retained_one(context, classes, offset, pseudo):
    ctx = context("salun", target=(classes,))
    found = literal.PLUGINS["salun"].load_module().pseudo_classes(ctx, offset).tolist()
    assert {c: found[c] for c in classes} == pseudo


def test_salun_takes_the_target_of_each_forgotten_class(context, seen):
    module = literal.PLUGINS["salun"].load_module()
    ctx = context("salun", target=((3, 4),))
    ctx.prior("mask", module.saliency_mask, mask_ratio=0.5, mask_loss="guided", guidance=2.0, batch=16)
    calls = seen("salun")
    literal.run("salun", ctx, steps=1, batch=16, label_dropout=0.0)
    (_, target), (_, forget), (_, retain) = calls
    assert set(target.tolist()) == {5}
    assert set(forget.tolist()) == {3, 4}
    assert not set(retain.tolist()) & {3, 4}


@pytest.mark.parametrize("offset", [0, 10, -10])
def test_salun_refuses_an_offset_beyond_the_retained_classes(context, offset):
    with pytest.raises(ValueError, match="choose another"):
        literal.run("salun", context("salun"), steps=1, pseudo_offset=offset)


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_same_weights(context, name):
    train = few_images(context(name))
    first, second = (literal.run(name, context(name, train=train), steps=2, **SMALL[name]) for _ in range(2))
    assert all(torch.equal(first[k], second[k]) for k in first)
    other = literal.run(name, context(name, train=train, seed=1), steps=2, **SMALL[name])
    assert any(not torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize("name", METHODS)
def test_several_classes_are_forgotten_at_once(context, name):
    ctx, asked = context(name, target=((3, 8),)), []
    ctx.model.register_forward_hook(lambda module, args, output: asked.extend(args[2].tolist()))
    literal.run(name, ctx, steps=3, **{**SMALL[name], "batch": 16})
    assert {3, 8} <= set(asked)
    assert ctx._harness.counts.drawn.keys() == {"forget", "retain"}
