"""MUNBa, SISS, task vectors, selective ascent and adapted LoTUS: against literal transcriptions, in float64.

"Code" are JingWu321/MUNBa at 70387727, claserken/SISS at af2a29c and cspartalis/LoTUS at 35ae25e.
"""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.optim.optimizer import register_optimizer_step_pre_hook

import tests.methods.test_methods as literal
from unlearnbench import UsageError, predict_noise

few, context = literal.few, literal.context  # fixtures

LR = 1e-3
NULL = 10


def module(name):
    return literal.PLUGINS[name].load_module()


@pytest.fixture
def arrived():
    """The gradients that reach an optimiser, of any class: a list of tensors per step."""
    steps = []

    def spy(optimizer, *_):
        steps.append([p.grad.clone() for group in optimizer.param_groups for p in group["params"]])

    handle = register_optimizer_step_pre_hook(spy)
    yield steps
    handle.remove()


def assert_arrived(steps, expected, rtol=1e-6, atol=1e-9):
    for ours, theirs in zip(steps, expected, strict=True):
        for gradient, wanted in zip(ours, theirs, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=rtol, atol=atol)


# MUNBa


def source_weights(grads, prvs_alpha):
    """Lines 263-274 of SD/MUNBa_cls.py, up to the weighted loss."""
    g1 = torch.dot(grads[0], grads[0])
    g2 = torch.dot(grads[0], grads[1])
    g3 = torch.dot(grads[1], grads[1])
    prvs_alpha[0] = torch.sqrt((g1 * g3 - g2 * torch.sqrt(g1 * g3)) / (g1 * g1 * g3 - g1 * g2 * g2 + 1e-8))
    prvs_alpha[1] = (1 - g1 * prvs_alpha[0] * prvs_alpha[0]) / (g2 * prvs_alpha[0] + 1e-8)
    if prvs_alpha[0] > 0 and prvs_alpha[1] > 0:  # Bargaining succeeded
        return prvs_alpha[0], prvs_alpha[1]
    return 1.0, 0.5


def gradients_at(cosine, scale=1.0):
    first, second = torch.zeros(2, 5, dtype=torch.float64)
    first[0] = 3.0 * scale
    second[:2] = 0.5 * scale * torch.tensor([cosine, math.sqrt(1 - cosine**2)], dtype=torch.float64)
    return first, second


@pytest.mark.parametrize("scale", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("cosine", [-0.9, -0.2, 0.0, 0.3, 0.99])
def test_munba_bargains_as_its_code(cosine, scale):
    grads = gradients_at(cosine, scale)
    theirs = source_weights(grads, np.ones(2))
    ours = module("munba").bargaining(*grads, "code")
    assert [float(w) for w in ours] == pytest.approx([float(w) for w in theirs], rel=1e-9)


@pytest.mark.parametrize("cosine", [-0.9, -0.2, 0.3, 0.99])
def test_munba_exact_bargain_is_the_code_at_large_gradients_and_the_bisector_at_all(cosine):
    exact = module("munba").bargaining(*gradients_at(cosine), "exact")
    assert [float(w) for w in exact] == pytest.approx([float(w) for w in source_weights(gradients_at(cosine), [0, 0])])
    g_r, g_u = gradients_at(cosine, 1e-6)
    alpha_r, alpha_u = module("munba").bargaining(g_r, g_u, "exact")
    agreed = alpha_r * g_r + alpha_u * g_u
    assert float(agreed.norm()) == pytest.approx(math.sqrt(2), rel=1e-6)
    for g in (g_r, g_u):
        assert float(agreed @ g / g.norm()) == pytest.approx(math.sqrt(1 + cosine), rel=1e-6)


def test_munba_where_the_bargain_of_the_code_is_not_the_bisector():
    """At a right angle it is 0/0 but for the 1e-8; where one gradient is 0 there is none."""
    bargaining, right = module("munba").bargaining, gradients_at(0.0)
    assert [float(w) for w in bargaining(*right, "code")] == pytest.approx([1 / 3, 1 / (81 * 0.25)], rel=1e-6)
    assert [float(w) for w in bargaining(*right, "exact")] == pytest.approx([1 / 3, 2])
    nothing = torch.zeros(5, dtype=torch.float64)
    assert [float(w) for w in bargaining(nothing, right[1], "code")] == [1.0, 0.5]
    for first, second in ((right[0], nothing), (nothing, right[1]), (right[0], -right[0])):
        assert all(math.isfinite(w) for w in bargaining(first, second, "exact"))


def source_munba(ctx, *, steps, batch, lr, train, beta, alpha, clip, anchor):
    """Lines 183-287 of SD/MUNBa_cls.py with `--munba --with_l1`, an epoch being one step; return the losses.

    `shared_step` is the mean squared error of the noise, over pixels and then over images. Weights that do not move are
    frozen, whose gradients would pile up in the clipping there; the weights of the losses are float32 there.
    """
    part = ctx.part(train)
    for name, param in ctx.model.named_parameters():
        param.requires_grad_(name in part)
    parameters = [p for p in ctx.model.parameters() if p.requires_grad]
    criteria, prvs_alpha, seen = torch.nn.MSELoss(), np.ones(2), []
    optimizer = torch.optim.Adam(parameters, lr=lr)
    for epoch in range(steps):
        x_r, y_r = ctx.retain.draw(batch)
        t_r, eps_r = ctx.timesteps(batch), ctx.noise_like(x_r)
        out = ctx.model(literal.noised(x_r, eps_r, t_r), t_r, ctx.drop_labels(y_r, 0.5)).sample
        loss_r = F.mse_loss(eps_r, out, reduction="none").mean([1, 2, 3]).mean()

        forget_input, labels = ctx.forget.draw(batch)
        t, noise = ctx.timesteps(batch), ctx.noise_like(forget_input)
        forget_noisy = literal.noised(forget_input, noise, t)
        forget_out = ctx.model(forget_noisy, t, labels).sample
        pseudo_out = ctx.model(forget_noisy, t, torch.tensor([anchor[int(c)] for c in labels])).sample.detach()
        loss_u = criteria(forget_out, pseudo_out) * beta

        grads = {}
        for task, loss in zip([0, 1], [loss_r, loss_u], strict=True):
            optimizer.zero_grad()
            grad = torch.autograd.grad(loss, parameters, retain_graph=True)
            grads[task] = torch.cat([torch.flatten(g.detach()) for g in grad])
        first, second = source_weights(grads, prvs_alpha)
        loss = loss_r * first + loss_u * second
        optimizer.zero_grad()
        current_alpha = alpha * (1 - epoch / steps)
        loss = loss + current_alpha * torch.linalg.norm(torch.cat([p.view(-1) for p in parameters]), ord=1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ctx.model.parameters(), clip)
        seen.append((float(loss_r.detach()), float(loss_u.detach())))
        optimizer.step()
    return seen


MUNBA = {
    "defaults": {},
    "unclipped": {"clip": literal.FREE, "beta": 30.0},
    "all_weights": {"clip": literal.FREE, "train": "all"},
    "without_penalty": {"l1": 0.0, "train": "all"},
    "several_classes": {"target": ((3, 8),), "clip": literal.FREE},
}


@pytest.mark.parametrize("changes", MUNBA.values(), ids=MUNBA)
def test_munba_three_steps(context, arrived, changes):
    settings = {"train": "condition", "beta": 1.0, "l1": 1e-4, "clip": 1.0, **changes}
    where = {"target": settings.pop("target")} if "target" in settings else {}
    ours_ctx, ctx = context("munba", **where), context("munba", **where)
    ours = literal.run("munba", ours_ctx, steps=3, batch=4, lr=LR, label_dropout=0.5, **settings)
    alpha = settings.pop("l1")
    theirs = source_munba(ctx, steps=3, batch=4, lr=LR, alpha=alpha, anchor={3: 4, 8: 9}, **settings)
    assert_arrived(arrived[:3], arrived[3:])
    assert literal.logged(ours_ctx, "retain_loss") == pytest.approx([r for r, _ in theirs], rel=1e-6)
    assert literal.logged(ours_ctx, "forget_loss") == pytest.approx([u for _, u in theirs], rel=1e-6)
    literal.assert_same(ours, literal.weights(ctx))


# SISS


def source_siss_losses(ctx, x_r, y_r, x_f, y_f, lambd, label_dropout):
    """`importance_sampling_with_mixture` of losses/ddpm_deletion_loss.py, lines 11-53; labels are its conditioning."""
    timesteps, noise = ctx.timesteps(len(x_r)), ctx.noise_like(x_r)
    gamma, sigma = literal.ABAR[timesteps] ** 0.5, (1 - literal.ABAR[timesteps]) ** 0.5
    all_mask = torch.rand(len(x_r), generator=ctx.generator) > lambd
    deletion_mask = ~all_mask
    mixture = torch.empty_like(x_r)
    mixture[all_mask] = literal.noised(x_r, noise, timesteps)[all_mask]
    mixture[deletion_mask] = literal.noised(x_f, noise, timesteps)[deletion_mask]
    labels = ctx.drop_labels(y_r, label_dropout)
    labels[deletion_mask] = y_f[deletion_mask]
    mixture_noise_preds = ctx.model(mixture, timesteps, labels).sample

    epsilon_x = (mixture - gamma[:, None, None, None] * x_r) / sigma[:, None, None, None]
    epsilon_a = (mixture - gamma[:, None, None, None] * x_f) / sigma[:, None, None, None]
    loss_x = (mixture_noise_preds - epsilon_x) ** 2
    loss_a = (mixture_noise_preds - epsilon_a) ** 2
    dist_x = torch.sum((mixture - gamma[:, None, None, None] * x_r) ** 2, dim=[1, 2, 3])
    dist_x /= 2 * (sigma**2)
    dist_a = torch.sum((mixture - gamma[:, None, None, None] * x_f) ** 2, dim=[1, 2, 3])
    dist_a /= 2 * (sigma**2)
    ratio_a_x = torch.exp(dist_x - dist_a)
    ratio_x_a = torch.exp(dist_a - dist_x)
    importance_weight_x = 1 / ((1 - lambd) + lambd * ratio_a_x)
    importance_weight_a = 1 / ((1 - lambd) * ratio_x_a + lambd)
    return importance_weight_x[:, None, None, None] * loss_x, importance_weight_a[:, None, None, None] * loss_a


def source_siss(ctx, *, steps, batch, lr, lam, scaling_norm, label_dropout, clip):
    """Lines 628-713 of delete_tshirt.py without accumulation, its AdamW; return the losses."""
    optimizer = torch.optim.AdamW(ctx.model.parameters(), lr=lr, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    seen = []
    for _ in range(steps):
        (x_r, y_r), (x_f, y_f) = ctx.retain.draw(batch), ctx.forget.draw(batch)
        weighted_x, weighted_a = source_siss_losses(ctx, x_r, y_r, x_f, y_f, lam, label_dropout)
        weighted_x, weighted_a = weighted_x.sum() / batch, weighted_a.sum() / batch
        weighted_x.backward(retain_graph=True)
        gradients_loss_x = {name: param.grad.clone() for name, param in ctx.model.named_parameters()}
        weighted_a.backward()
        accum_a = {name: param.grad.clone() - gradients_loss_x[name] for name, param in ctx.model.named_parameters()}
        accum_x = {name: param.grad.clone() - accum_a[name] for name, param in ctx.model.named_parameters()}
        total_l2_norm_a = torch.sqrt(sum(torch.norm(grad, p=2) ** 2 for grad in accum_a.values()))
        scaling_factor = scaling_norm / total_l2_norm_a
        if torch.isinf(scaling_factor):
            scaling_factor = 0
        for name, param in ctx.model.named_parameters():
            param.grad = accum_x[name] - scaling_factor * accum_a[name]
        torch.nn.utils.clip_grad_norm_(ctx.model.parameters(), clip)
        seen.append((float(weighted_x.detach()), float(weighted_a.detach())))
        optimizer.step()
        optimizer.zero_grad()
    return seen


SISS = {
    "defaults": {},
    "unclipped": {"clip": literal.FREE},
    "mostly_forget": {"clip": literal.FREE, "lam": 0.9, "scaling_norm": 40.0},
    "labels_dropped": {"clip": literal.FREE, "lam": 0.2, "label_dropout": 0.5},
}


@pytest.mark.parametrize("changes", SISS.values(), ids=SISS)
def test_siss_three_steps(context, arrived, changes):
    settings = {"lam": 0.5, "scaling_norm": 5.0, "label_dropout": 0.0, "clip": 1.0, **changes}
    ours_ctx, ctx = context("siss"), context("siss")
    ours = literal.run("siss", ours_ctx, steps=3, batch=6, lr=LR, **changes)
    theirs = source_siss(ctx, steps=3, batch=6, lr=LR, **settings)
    assert_arrived(arrived[:3], arrived[3:], rtol=1e-5, atol=1e-8)
    assert literal.logged(ours_ctx, "retain_loss") == pytest.approx([x for x, _ in theirs], rel=1e-6)
    assert literal.logged(ours_ctx, "forget_loss") == pytest.approx([a for _, a in theirs], rel=1e-6)
    literal.assert_same(ours, literal.weights(ctx))


@pytest.mark.parametrize("t", [0, 999])
def test_siss_weights_choose_the_image_but_at_the_last_timesteps(context, monkeypatch, t):
    """At t = 0 what the mixture draws is far from the other image: there ascent sees forget images alone."""
    ctx = context("siss")
    monkeypatch.setattr(type(ctx), "timesteps", lambda self, n: torch.full((n,), t))
    x_r, y_r = ctx.retain.draw(8)
    x_f, y_f = ctx.forget.draw(8)
    _, weighted = source_siss_losses(ctx, x_r, y_r, x_f, y_f, 0.5, 0.0)
    near_zero = int((weighted.flatten(1).sum(1) < 1e-6).sum())
    assert (near_zero > 0) == (t == 0)


def test_siss_without_ascent_has_no_nan(context, arrived, monkeypatch):
    """No draw of a forget image at t = 0: every w_a is 0, and so is s."""
    ctx = context("siss")
    monkeypatch.setattr(type(ctx), "timesteps", lambda self, n: torch.zeros(n, dtype=torch.long))
    literal.run("siss", ctx, steps=1, batch=4, lam=1e-9)
    assert literal.logged(ctx, "forget_loss") == [0.0]
    assert all(torch.isfinite(gradient).all() for gradient in arrived[0])


# Task vector


@pytest.mark.parametrize("train", ["all", "condition", "rest"])
@pytest.mark.parametrize("clip", [1.0, literal.FREE])
def test_task_vector(context, train, clip):
    ours = literal.run(
        "task_vector", context("task_vector"), steps=2, batch=4, lr=LR, alpha=0.7, train=train, clip=clip,
        label_dropout=0.5,
    )  # fmt: skip
    ctx = context("task_vector")
    start, optimizer = literal.weights(ctx), literal.LiteralAdam(LR)
    mask = {name: float(train == "all" or name in ctx.part(train)) for name in start}
    for _ in range(2):
        x0, y = ctx.forget.draw(4)
        t, eps = ctx.timesteps(4), ctx.noise_like(x0)
        loss = literal.literal_eps_loss(ctx, x0, ctx.drop_labels(y, 0.5), t, eps)
        optimizer.step(ctx, literal.literal_gradient(ctx, loss, clip, mask, mask_first=True))
    tuned = literal.weights(ctx)
    literal.assert_same(ours, {name: start[name] - 0.7 * (tuned[name] - start[name]) for name in start})
    assert all(torch.equal(ours[name], start[name]) for name in start if not mask[name])


# Selective ascent


def literal_low_pass_energy(error, cutoff):
    """The energy of one image (C, H, W) at the frequencies |k| <= cutoff n / 2 along each axis, by its Fourier sums."""
    total, n = 0.0, error.shape[-1]
    position = torch.arange(n, dtype=torch.float64)
    for k in range(n):
        for m in range(n):
            if max(min(k, n - k), min(m, n - m)) <= cutoff * n / 2:
                angle = 2 * math.pi * (k * position[:, None] + m * position[None]) / n
                waves = (error * angle.cos()).sum((1, 2)) ** 2 + (error * angle.sin()).sum((1, 2)) ** 2
                total = total + waves.sum() / n**2
    return total


SELECTIVE = {
    "defaults": {},
    "unclipped": {"clip": literal.FREE},
    "low_pass": {"clip": literal.FREE, "cutoff": 0.5},
    "average_only": {"clip": literal.FREE, "cutoff": 0.0, "t_low": 0.0, "t_high": 0.05},
}


@pytest.mark.parametrize("changes", SELECTIVE.values(), ids=SELECTIVE)
def test_selective_ascent_two_steps(context, arrived, changes):
    settings = {"t_low": 0.2, "t_high": 0.8, "cutoff": 1.0, "clip": 1.0, **changes}
    ours_ctx, ctx = context("selective_ascent"), context("selective_ascent")
    more = {"alpha": 0.7, "label_dropout": 0.5, **changes}
    ours = literal.run("selective_ascent", ours_ctx, steps=2, batch=3, lr=LR, **more)
    optimizer = literal.LiteralAdam(LR)
    for step in range(2):
        x0, y = ctx.forget.draw(3)
        first, end = int(1000 * settings["t_low"]), int(1000 * settings["t_high"])
        t = torch.randint(first, end, (3,), generator=ctx.generator)
        eps = ctx.noise_like(x0)
        x_t, forget = literal.noised(x0, eps, t), 0.0
        for k in range(3):
            error = eps[k] - predict_noise(ctx.model, x_t[k : k + 1], t[k : k + 1], y[k : k + 1])[0]
            forget = forget - literal_low_pass_energy(error, settings["cutoff"]) / 3
        x_r, y_r = ctx.retain.draw(3)
        t_r, eps_r = ctx.timesteps(3), ctx.noise_like(x_r)
        keep = literal.literal_eps_loss(ctx, x_r, ctx.drop_labels(y_r, 0.5), t_r, eps_r)
        gradient = literal.literal_gradient(ctx, forget + 0.7 * keep, settings["clip"])
        literal.assert_same(arrived[step], gradient)
        optimizer.step(ctx, gradient)
    literal.assert_same(ours, literal.weights(ctx))


def test_all_frequencies_are_the_squared_error_and_fewer_are_less():
    energy = module("selective_ascent").low_pass_energy
    error = torch.randn(4, 3, 8, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(energy(error, 1.0), error.square().flatten(1).sum(dim=1))
    assert (energy(error, 0.5) < 0.6 * energy(error, 1.0)).all()
    flat = torch.ones(1, 1, 8, 8)
    assert float(energy(flat, 0.0)) == pytest.approx(64)  # its average is the lowest frequency


def test_selective_ascent_needs_a_timestep(context):
    with pytest.raises(UsageError, match=r"no timestep between t_low=0\.5 and t_high=0\.4: raise t_high"):
        literal.run("selective_ascent", context("selective_ascent"), t_low=0.5, t_high=0.4)


# LoTUS, adapted


def literal_accuracy(ctx, model, x0, y):
    t, eps = ctx.timesteps(len(x0)), ctx.noise_like(x0)
    hits = 0
    for k in range(len(x0)):
        x_t = literal.noised(x0, eps, t)[k : k + 1]
        labelled, null = (
            float(((eps[k] - of(x_t, t[k : k + 1], torch.tensor([c])).sample[0]) ** 2).sum().detach())
            for of, c in ((model, int(y[k])), (ctx.base, NULL))
        )
        hits += labelled < null
    return hits / len(x0)


@torch.no_grad()
def astray(ctx):
    """Return the context, its model moved away from the base."""
    generator = torch.Generator().manual_seed(8)
    for parameter in ctx.model.parameters():
        parameter += 0.02 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return ctx


LOTUS = {
    "defaults": {},
    "moderate": {"alpha": 0.9, "retain_weight": 0.4},
    "decaying": {"weight_decay": 20.0, "alpha": 0.9},
    "several_classes": {"target": ((3, 8),), "alpha": 2.0},
}


@pytest.mark.parametrize("changes", LOTUS.values(), ids=LOTUS)
def test_lotus_three_steps(context, arrived, changes):
    settings = {"alpha": 32.0, "retain_weight": 2.7, "weight_decay": 5e-4, **changes}
    where = {"target": settings.pop("target")} if "target" in settings else {}
    ours_ctx, ctx = (astray(context("lotus", **where)) for _ in range(2))
    amounts = {"steps": 3, "batch": 4, "lr": LR, "round_steps": 2, "images": 10, "label_dropout": 0.5}
    ours = literal.run("lotus", ours_ctx, **amounts, **settings)

    acc_val_t = ctx.prior("unseen", module("lotus").unseen, images=10)["accuracy"]
    optimizer = torch.optim.AdamW(ctx.model.parameters(), lr=LR, weight_decay=settings["weight_decay"])
    for step in range(3):
        if step % 2 == 0:
            acc_diff = literal_accuracy(ctx, ctx.model, *ctx.forget.draw(10)) - float(acc_val_t)
            assert acc_diff > -0.01  # line 303 would end it
            temperature = np.exp(settings["alpha"] * acc_diff)  # line 305
        x0, y = ctx.forget.draw(4)
        t, eps = ctx.timesteps(4), ctx.noise_like(x0)
        x_r, y_r = ctx.retain.draw(4)
        t_r, eps_r = ctx.timesteps(4), ctx.noise_like(x_r)
        y_r = ctx.drop_labels(y_r, 0.5)
        x_t, x_r = literal.noised(x0, eps, t), literal.noised(x_r, eps_r, t_r)
        own, null = ctx.base(x_t, t, y).sample, ctx.base(x_t, t, torch.full_like(y, NULL)).sample
        soft = own / temperature + (1 - 1 / temperature) * null
        forget = F.mse_loss(ctx.model(x_t, t, y).sample, soft.detach())
        keep = F.mse_loss(ctx.model(x_r, t_r, y_r).sample, ctx.base(x_r, t_r, y_r).sample.detach())
        optimizer.zero_grad()
        (forget + settings["retain_weight"] * keep).backward()
        optimizer.step()
    assert_arrived(arrived[:3], arrived[3:])
    literal.assert_same(ours, literal.weights(ctx))


def test_lotus_accuracy_of_unseen_images(context):
    """Of retained images labelled as the forget classes in turn, by the base model."""
    ctx = context("lotus", target=((3, 8),))
    accuracy = ctx.prior("unseen", module("lotus").unseen, images=30)["accuracy"]
    twin = type(ctx)(ctx._harness, purpose="prior unseen")
    x0, _ = twin.retain.draw(30)
    assert float(accuracy) == pytest.approx(literal_accuracy(twin, twin.base, x0, [3, 8] * 15))


def test_lotus_at_temperature_one_asks_for_what_the_teacher_says(context):
    ctx = context("lotus")
    literal.run("lotus", ctx, steps=1, batch=4, alpha=0.0, images=4)
    assert literal.logged(ctx, "forget_loss") == pytest.approx([0.0], abs=1e-20)
    assert literal.logged(ctx, "retain_loss") == pytest.approx([0.0], abs=1e-20)


@pytest.mark.parametrize("second, taken", [(0.485, 2), (0.495, 6)])
def test_lotus_ends_below_the_accuracy_of_unseen_images(context, arrived, monkeypatch, second, taken):
    """At 0.01 below and less, lines 303-304, but for the first measurement."""
    measured = iter([0.5, 0.3, second, 0.6])  # of unseen images, then before every two steps
    monkeypatch.setattr(module("lotus"), "accuracy", lambda *_: torch.tensor(next(measured), dtype=torch.float64))
    ctx = context("lotus")
    literal.run("lotus", ctx, steps=6, batch=2, round_steps=2, images=4)
    assert len(arrived) == taken
    assert literal.logged(ctx, "forget_loss")[0] == pytest.approx(0, abs=1e-20)  # no sharpening
