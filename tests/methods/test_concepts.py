"""Methods that replace a concept by its anchor, against the lines of their sources, in float64.

UCE: rohitgandikota/unified-concept-editing at 28c81ed, trainscripts/uce_sd_erase.py.
Concept ablation: nupurkmr9/concept-ablation at c11fb1b, diffusers/train.py.
"""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tests.methods.test_methods as literal
from unlearnbench import Term

CLASSES, NULL, D = 6, 6, 5


class Concepts:
    """What both methods use of a context: two concepts to forget of six, each with an anchor of its own."""

    forget_classes, retained_classes = (1, 4), (0, 2, 3, 5)

    def __init__(self, model):
        self.model, self.base = model, copy.deepcopy(model).requires_grad_(False).eval()
        self.generator = torch.Generator().manual_seed(7)
        self.curves, self.taken = {}, 0

    def anchor(self, c):
        return {1: 3, 4: 0}[c]

    def steps(self, n):
        for self.taken in range(1, n + 1):
            yield self.taken - 1

    def log(self, **scalars):
        for name, value in scalars.items():
            self.curves.setdefault(name, []).append(float(value))


class CrossAttention(nn.Module):
    """Keys and values of two layers of different widths, a query, and a bias where Stable Diffusion has none."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(D, 4, bias=False), nn.Linear(D, 7, bias=False), nn.Linear(D, 3)])
        self.to_q = nn.Linear(4, 4, bias=False)


class Prompts(Concepts):
    """The context of a text-to-image model."""

    def __init__(self, dtype=torch.float64):
        torch.manual_seed(3)
        super().__init__(CrossAttention().to(dtype))
        self.names = {f"concept {c}": torch.randn(D, dtype=torch.float64).to(dtype) for c in range(CLASSES)}
        self.names |= {f"guide {c}": torch.randn(D, dtype=torch.float64).to(dtype) for c in self.forget_classes}

    def condition_layers(self):
        return list(self.model.layers)

    def subject(self, c):
        return self.names[f"concept {c}"]

    def anchor_subject(self, c):
        return self.names[f"guide {c}"]


def source_uce(ctx, *, lamb, erase_scale, preserve_scale, preserve):
    """`UCE` of uce_sd_erase.py, lines 12-82, but for `encode_prompt` and the dtypes; return its weights.

    A layer is called without its bias, which those of Stable Diffusion do not have.
    """
    edit_concepts = [f"concept {c}" for c in ctx.forget_classes]
    guide_concepts = [f"guide {c}" for c in ctx.forget_classes]
    preserve_concepts = [f"concept {c}" for c in ctx.retained_classes] if preserve else []
    original_modules = copy.deepcopy(list(ctx.base.layers))
    uce_modules = copy.deepcopy(original_modules)
    uce_erase_embeds = {}
    for e in edit_concepts + guide_concepts + preserve_concepts:
        if e in uce_erase_embeds:
            continue
        uce_erase_embeds[e] = ctx.names[e][None, :]  # t_emb[0][:, last_token_idx, :]
    uce_guide_outputs = {}
    for g in guide_concepts + preserve_concepts:
        if g in uce_guide_outputs:
            continue
        t_emb = uce_erase_embeds[g]
        for module in original_modules:
            uce_guide_outputs[g] = [*uce_guide_outputs.get(g, []), F.linear(t_emb, module.weight)]
    for module_idx, module in enumerate(original_modules):
        w_old = module.weight
        mat1 = lamb * w_old
        mat2 = lamb * torch.eye(w_old.shape[1], dtype=w_old.dtype)
        for erase_concept, guide_concept in zip(edit_concepts, guide_concepts, strict=True):
            c_i = uce_erase_embeds[erase_concept].T
            v_i_star = uce_guide_outputs[guide_concept][module_idx].T
            mat1 += erase_scale * (v_i_star @ c_i.T)
            mat2 += erase_scale * (c_i @ c_i.T)
        for preserve_concept in preserve_concepts:
            c_i = uce_erase_embeds[preserve_concept].T
            v_i_star = uce_guide_outputs[preserve_concept][module_idx].T
            mat1 += preserve_scale * (v_i_star @ c_i.T)
            mat2 += preserve_scale * (c_i @ c_i.T)
        uce_modules[module_idx].weight = torch.nn.Parameter(mat1 @ torch.inverse(mat2))
    return [module.weight for module in uce_modules]


UCE = {
    "defaults": {},
    "scales": {"lamb": 0.1, "erase_scale": 3.0, "preserve_scale": 0.25},
    "nothing_preserved": {"preserve": False},
    "preserved_only": {"erase_scale": 0.0},
}


def edited(ctx, **settings):
    return [literal.run("uce", ctx, **settings)[f"layers.{k}.weight"] for k in range(len(ctx.model.layers))]


@pytest.mark.parametrize("changes", UCE.values(), ids=UCE)
def test_uce_is_its_source(changes):
    ctx = Prompts()
    settings = {"lamb": 0.5, "erase_scale": 1.0, "preserve_scale": 1.0, "preserve": True, **changes}
    expected = source_uce(ctx, **settings)
    literal.run("uce", ctx, **changes)  # the others are the defaults of the source's arguments
    for layer, weight in zip(ctx.model.layers, expected, strict=True):
        torch.testing.assert_close(layer.weight, weight, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("preserve", [True, False])
def test_uce_minimises_its_objective(preserve):
    ctx = Prompts()
    literal.run("uce", ctx, lamb=0.3, erase_scale=2.0, preserve_scale=0.7, preserve=preserve)
    for layer, old in zip(ctx.model.layers, ctx.base.layers, strict=True):
        w = layer.weight.detach().clone().requires_grad_()
        loss = 0.3 * (w - old.weight).square().sum()
        for c in ctx.forget_classes:
            loss = loss + 2.0 * (w @ ctx.subject(c) - old.weight @ ctx.anchor_subject(c)).square().sum()
        for c in ctx.retained_classes if preserve else ():
            loss = loss + 0.7 * (w @ ctx.subject(c) - old.weight @ ctx.subject(c)).square().sum()
        (gradient,) = torch.autograd.grad(loss, w)
        assert float(gradient.abs().max()) < 1e-10


def test_uce_with_little_regularisation_maps_concepts_to_guides():
    ctx = Prompts()
    ctx.retained_classes = (0, 2, 3)  # with two forgotten ones, as many as there are dimensions
    literal.run("uce", ctx, lamb=1e-9)
    for layer, old in zip(ctx.model.layers, ctx.base.layers, strict=True):
        for c in ctx.forget_classes:
            torch.testing.assert_close(
                layer.weight @ ctx.subject(c), old.weight @ ctx.anchor_subject(c), rtol=1e-4, atol=1e-4
            )
        for c in ctx.retained_classes:
            torch.testing.assert_close(layer.weight @ ctx.subject(c), old.weight @ ctx.subject(c), rtol=1e-4, atol=1e-4)


def test_uce_edits_the_projections_in_place_and_nothing_else():
    ctx = Prompts(torch.float32)
    before = {name: (id(p), p.detach().clone()) for name, p in ctx.model.named_parameters()}
    literal.run("uce", ctx)
    for name, parameter in ctx.model.named_parameters():
        identity, old = before[name]
        assert id(parameter) == identity and parameter.dtype == torch.float32 and parameter.requires_grad
        is_projection = name in {"layers.0.weight", "layers.1.weight", "layers.2.weight"}
        assert torch.equal(parameter, old) != is_projection


def test_uce_takes_a_step_per_layer_and_logs_its_change():
    ctx = Prompts()
    literal.run("uce", ctx)
    expected = [
        float((layer.weight.detach() - old.weight).norm() / old.weight.norm())
        for layer, old in zip(ctx.model.layers, ctx.base.layers, strict=True)
    ]
    assert ctx.taken == 3
    assert ctx.curves == {"change": pytest.approx(expected, rel=1e-9)}


def test_uce_is_for_text_to_image_models():
    assert set(literal.REGISTRY.method("uce").requires) == {"prompts"}


class Denoiser(nn.Module):
    """A class-conditional noise predictor: the class reaches the features by `embedding` and `project`."""

    def __init__(self):
        super().__init__()
        self.embedding, self.project = nn.Embedding(CLASSES + 1, 4), nn.Linear(4, 6)
        self.into, self.out = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 2, 3, padding=1)

    def forward(self, x, t, y):
        h = self.into(x) + self.project(self.embedding(y))[:, :, None, None] + (t / 1000)[:, None, None, None]
        return SimpleNamespace(sample=self.out(torch.tanh(h)))


class Labels(Concepts):
    """The context of a class-conditional model; its samples are its labels, noised."""

    schedule = SimpleNamespace(add_noise=literal.noised)

    def __init__(self):
        torch.manual_seed(5)
        super().__init__(Denoiser().double())
        self.sampled, self.built = [], {}

    def part(self, name):
        names = [n for n, _ in self.model.named_parameters()]
        return frozenset(n for n in names if name == "all" or n.startswith(("embedding.", "project.")))

    def sample(self, labels):
        self.sampled += labels.tolist()
        noise = torch.randn(len(labels), 2, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return noise + labels[:, None, None, None]

    def prior(self, name, build, *, shared=False, **inputs):
        assert not shared  # it depends on the forget classes
        self.built[name] = build(self, **inputs)
        return self.built[name]

    def timesteps(self, n):
        return torch.randint(0, 1000, (n,), generator=self.generator)

    def noise_like(self, x):
        return torch.empty_like(x).normal_(generator=self.generator)

    def eps_term(self, x0, y):
        t, eps = self.timesteps(len(x0)), self.noise_like(x0)
        return Term(literal.noised(x0, eps, t), t, y, eps)

    def draw(self, batch):
        """Draw images, labels, anchors, t and noise, as the method does."""
        anchors = self.built["anchors"]
        chosen = torch.randint(len(anchors["y"]), (batch,), generator=self.generator)
        t = self.timesteps(batch)
        return (*(anchors[name][chosen] for name in ("x0", "y", "anchor")), t, self.noise_like(anchors["x0"][chosen]))


def source_ablation_loss(unet, frozen, instance, prior, prior_loss_weight):
    """Lines 1078-1149 of train.py with `model-based`: latents, prompts and mask are images, labels and ones.

    `frozen` predicts for the anchor: the source's is `unet` itself.
    """
    latents, input_ids, input_anchor_ids, timesteps, noise = instance
    if prior is not None:  # as `collate_fn` joins them
        class_images, _, class_ids, t, eps = prior
        latents, input_ids = torch.cat([latents, class_images]), torch.cat([input_ids, class_ids])
        timesteps, noise = torch.cat([timesteps, t]), torch.cat([noise, eps])
    batch_mask = torch.ones(len(latents), 1, 4, 4, dtype=torch.float64).expand_as(latents)
    noisy_latents = literal.noised(latents, noise, timesteps)
    model_pred = unet(noisy_latents, timesteps, input_ids).sample
    with torch.no_grad():
        model_pred_anchor = frozen(
            noisy_latents[: input_anchor_ids.size(0)], timesteps[: input_anchor_ids.size(0)], input_anchor_ids
        ).sample
    target = model_pred_anchor
    if prior is None:
        loss = F.mse_loss(model_pred, target, reduction="none")
        loss = ((loss * batch_mask).sum([1, 2, 3]) / batch_mask.sum([1, 2, 3])).mean()
        return loss, {"forget_loss": float(loss.detach())}
    target_prior = torch.chunk(noise, 2, dim=0)[1]
    model_pred, model_pred_prior = torch.chunk(model_pred, 2, dim=0)
    mask = torch.chunk(batch_mask, 2, dim=0)[0]
    loss = F.mse_loss(model_pred, target, reduction="none")
    loss = ((loss * mask).sum([1, 2, 3]) / mask.sum([1, 2, 3])).mean()
    prior_loss = F.mse_loss(model_pred_prior, target_prior, reduction="mean")
    logs = {"forget_loss": float(loss.detach()), "prior_loss": float(prior_loss.detach())}
    return loss + prior_loss_weight * prior_loss, logs


def source_steps(ctx, *, steps, batch, lr, weight_decay, clip, train, prior_weight, target):
    """Take the source's steps: AdamW of lines 932-938, clipping and order of lines 1151-1188. Return its losses."""
    moving = [p for name, p in ctx.model.named_parameters() if name in ctx.part(train)]
    optimizer = torch.optim.AdamW(moving, lr=lr, betas=(0.9, 0.999), weight_decay=weight_decay, eps=1e-8, fused=False)
    curves = {}
    for _ in range(steps):
        instance = ctx.draw(batch)
        prior = ctx.draw(batch) if prior_weight else None
        frozen = ctx.model if target == "model" else ctx.base
        loss, logs = source_ablation_loss(ctx.model, frozen, instance, prior, prior_weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(moving, clip)
        optimizer.step()
        optimizer.zero_grad()
        for name, value in logs.items():
            curves.setdefault(name, []).append(value)
    return curves


ABLATION = {
    "defaults": {},
    "full_weight": {"train": "all"},
    "unclipped": {"train": "all", "clip": literal.FREE},
    "clipped": {"clip": 1e-3},
    "decaying": {"weight_decay": 20.0},
    "prior": {"prior_weight": 0.7, "clip": literal.FREE},
    "prior_in_one_batch": {"prior_weight": 0.7, "passes": "joint", "train": "all"},
    "frozen_target": {"target": "base", "train": "all"},
}


@pytest.mark.parametrize("changes", ABLATION.values(), ids=ABLATION)
def test_concept_ablation_is_its_source(changes):
    ours, ctx = Labels(), Labels()
    module = literal.PLUGINS["concept_ablation"].load_module()
    ctx.prior("anchors", module.anchor_images, images=9)
    weights = literal.run("concept_ablation", ours, steps=3, batch=4, lr=1e-2, images=9, **changes)
    settings = {"weight_decay": 0.01, "clip": 1.0, "train": "condition", "prior_weight": 0.0, "target": "model"}
    settings |= {key: value for key, value in changes.items() if key != "passes"}
    curves = source_steps(ctx, steps=3, batch=4, lr=1e-2, **settings)
    literal.assert_same(weights, {name: p.detach() for name, p in ctx.model.named_parameters()})
    assert ours.curves == {name: pytest.approx(values, rel=1e-9) for name, values in curves.items()}


def test_concept_ablation_samples_the_anchor_of_each_concept_in_turn():
    ctx = Labels()
    literal.run("concept_ablation", ctx, steps=1, images=5)
    assert ctx.sampled == [3, 0, 3, 0, 3]
    assert ctx.built["anchors"]["y"].tolist() == [1, 4, 1, 4, 1]
    assert ctx.built["anchors"]["anchor"].tolist() == ctx.sampled


@pytest.mark.parametrize("train", ["condition", "all"])
def test_concept_ablation_moves_its_part_and_no_other(train):
    ctx = Labels()
    after = literal.run("concept_ablation", ctx, steps=2, lr=1e-2, images=4, train=train)
    moved = {name for name, old in ctx.base.named_parameters() if not torch.equal(old, after[name])}
    assert moved == ctx.part(train)


@pytest.mark.parametrize("target", ["model", "base"])
def test_concept_ablation_brings_a_concept_to_the_anchor_of_its_target(target):
    """The model's own anchor, which may drift, or that of the base model."""
    ctx = Labels()
    concept, anchor = torch.tensor([1, 4] * 8), torch.tensor([3, 0] * 8)
    noised = ctx.eps_term(ctx.sample(anchor), anchor)
    teacher = ctx.model if target == "model" else ctx.base

    @torch.no_grad()
    def gap():
        wanted = teacher(noised.x_t, noised.t, anchor).sample
        return float((ctx.model(noised.x_t, noised.t, concept).sample - wanted).square().mean())

    before = gap()
    literal.run("concept_ablation", ctx, steps=150, lr=2e-2, images=16, target=target)
    assert gap() < 0.1 * before


def test_neither_draws_from_a_stream():
    """The contexts above have none, so that a draw would fail; the declarations say so."""
    assert not literal.REGISTRY.method("uce").streams | literal.REGISTRY.method("concept_ablation").streams
