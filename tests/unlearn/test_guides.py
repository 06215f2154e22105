"""What a method of kind inference returns is attached to its model, and what breaks the contract is refused."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from unlearnbench import PluginError, predict_noise
from unlearnbench.measure.attacks import Attacker
from unlearnbench.models.weights import NotInWeights, is_same, weights_of
from unlearnbench.plugins.registry import Registry
from unlearnbench.run.unlearning import after_earlier, unlearn
from unlearnbench.store.cell import Cell, Target

LAST = torch.tensor([999])


def away(c):
    """A guide that negates what is predicted for a class."""

    def guide(predict, x_t, t, y):
        return torch.where((y == c).view(-1, 1, 1, 1), -1, 1) * predict(x_t, t, y)

    return guide


def made(make_harness, function, *, inference=True, harness=None):
    method = replace(Registry().method("original"), name="mine", function=function, inference=inference)
    return unlearn(method, harness or make_harness("original"), Cell("digits", "p", "mine", {}, 3, 0)).model


def predictions(model, labels=(3, 4, 10)):
    x = torch.randn(len(labels), 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return predict_noise(model, x, LAST.expand(len(labels)), torch.tensor(labels))


def test_copies_are_guided_with_weights_of_their_own(make_harness):
    harness = make_harness("original")
    model = made(make_harness, lambda ctx: away(ctx.forget_class), harness=harness)
    sign = torch.tensor([-1, 1, 1]).view(-1, 1, 1, 1)
    assert torch.equal(predictions(model), sign * predictions(harness.base))
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for weight in copied.parameters():
            weight.mul_(1.1)
    assert not torch.equal(predictions(copied), predictions(model))
    twin = copy.deepcopy(harness.base)
    twin.load_state_dict(copied.state_dict())
    assert torch.equal(predictions(copied), sign * predictions(twin))


def test_attacks_train_copies_that_are_guided(make_harness):
    model = made(make_harness, lambda ctx: away(ctx.forget_class))
    attacker = Attacker(Cell("digits", "p", "mine", {}, 3, 0), model, None, None, None)
    victim = attacker.victim()
    loss = predictions(victim).square().sum()
    assert all(g is not None for g in torch.autograd.grad(loss, list(victim.parameters()), allow_unused=True))
    searched, labels = attacker.with_new_labels(attacker.embeddings()[:2])
    assert torch.equal(predictions(searched.eval()), predictions(model))
    assert labels.tolist() == [11, 12]


def test_weights_do_not_stand_for_a_guided_model(make_harness):
    harness = make_harness("original")
    model = made(make_harness, lambda ctx: away(3), harness=harness)
    assert not is_same(model, harness.base)
    assert model.tensors().keys() == harness.base.tensors().keys()
    with pytest.raises(NotInWeights, match="guided while samples are drawn"):
        weights_of(model, harness.base, 3, 10)


def edit(ctx):
    with torch.no_grad():
        next(ctx.model.parameters()).add_(1)
    return away(3)


def hook(ctx):
    ctx.model.register_forward_hook(lambda module, args, output: None)
    return away(3)


@pytest.mark.parametrize(
    ("function", "inference", "words"),
    [
        (lambda ctx: away(3), False, "returns <function .*: edit ctx.model in place and return nothing"),
        (lambda ctx: None, True, r"returns None: return a function guide\(predict, x_t, t, y\)"),
        (lambda ctx: nn.Identity(), True, "returns Identity.*return a function"),
        (edit, True, "changes ctx.model: leave its weights alone"),
        (hook, True, "changes ctx.model: leave its weights alone"),
    ],
)  # fmt: skip
def test_what_breaks_the_contract_is_refused(make_harness, function, inference, words):
    with pytest.raises(PluginError, match=words):
        made(make_harness, function, inference=inference)


@pytest.mark.parametrize(
    ("returned", "found"), [(None, "NoneType"), (torch.zeros(3, 1, 1, 1), r"\(3, 1, 1, 1\)"), (1.0, "float")]
)
def test_a_guide_returns_the_noise(make_harness, returned, found):
    model = made(make_harness, lambda ctx: lambda *_: returned)
    with pytest.raises(PluginError, match=f"guide returns {found} for x_t of shape .3, 1, 8, 8.: return the noise"):
        predictions(model)


def test_the_guides_of_a_sequence_follow_each_other(make_harness):
    harness = make_harness("original", target=((4,), ((3,), (5, 6))))
    original = harness.base
    method = replace(
        Registry().method("original"), name="mine", inference=True,
        function=lambda ctx: away(ctx.forget_classes[0]),
    )  # fmt: skip
    cell = Cell("digits", "p", "mine", {}, 4, 0, earlier=((3,), (5, 6)))
    harness = after_earlier(method, harness, cell)
    assert harness.target == Target((4,), ((3,), (5, 6)))
    model = unlearn(method, harness, cell).model
    labels = (3, 4, 5, 6, 7)
    sign = torch.tensor([-1, -1, -1, 1, 1]).view(-1, 1, 1, 1)
    assert torch.equal(predictions(model, labels), sign * predictions(original, labels))
    assert torch.equal(
        predictions(harness.base, (4, 5)), torch.tensor([1, -1]).view(2, 1, 1, 1) * predictions(original, (4, 5))
    )
