"""Whether a denoiser's tensors alone determine its predictions, so that another process can rebuild it from them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unlearnbench.errors import UsageError, one_line, spell_error
from unlearnbench.models.denoiser import CPU, Denoiser, described
from unlearnbench.models.diffusion import evaluating, predict_noise
from unlearnbench.models.networks import is_plain, placed
from unlearnbench.store.artifacts import Artifact, Tensors
from unlearnbench.store.hashing import digest

PROBES = (0, 333, 666, 999)  # timesteps at which the rebuilt network must predict the same
TOLERANCE = 1e-3  # of these predictions on CUDA; exact on a CPU


class NotInWeights(Exception):
    """The weights alone do not determine a network's predictions; the text says why."""


@dataclass(frozen=True)
class Weights:
    """The tensors of an unlearned denoiser, on the CPU, and the facts to build it."""

    tensors: Tensors
    facts: dict[str, Any]  # as of `described`
    base: Denoiser  # that it was made of

    def build(self, device: torch.device) -> Denoiser:
        """Return the denoiser, frozen, on a device; global random states stay unchanged."""
        return self.base.rebuilt(self.tensors, self.facts[self.base.kind], device)

    @property
    def changed(self) -> Tensors:
        """The tensors that differ from the base's; all, where it is another network."""
        theirs = self.base.tensors()
        if digest(self.facts) != digest(described(self.base)) or self.tensors.keys() != theirs.keys():
            return self.tensors
        return {name: tensor for name, tensor in self.tensors.items() if not torch.equal(tensor, theirs[name])}


def weights_of(model: Denoiser, base: Denoiser, label: int, null_class: int | None) -> Weights:
    """Return the tensors of a denoiser after checking that another one with them predicts the same.

    Args:
        model: as a method left it.
        base: that the method got.
        label: of a class; predictions for it, the next one and the null class are compared.
        null_class: label; None where there is none.

    Raises:
        NotInWeights: hooks, a replaced forward or other parts determine its predictions too.
    """
    if getattr(model, "guide", None) is not None:
        raise NotInWeights("its predictions are guided while samples are drawn, which no weights hold")
    if type(model) is not type(base):
        raise NotInWeights(f"ctx.model is a {one_line(type(model).__name__, 60)} now, not a {type(base).__name__}")
    try:
        weights = Weights(model.tensors(), described(model), base)
        other = weights.build(CPU)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
        words = one_line(spell_error(error), 120)
        raise NotInWeights(f"its weights do not fit a network of its config ({words})") from error
    if not is_plain(model) or not _predict_alike(model, placed(other, model.device), label, null_class):
        raise NotInWeights("its weights alone do not determine its predictions")
    return weights


def _predict_alike(model: Denoiser, other: Denoiser, label: int, null_class: int | None) -> bool:
    """Say whether two models predict the same noise for a class, the next one, and the null class."""
    device = model.device
    x = torch.randn((len(PROBES), *model.shape), generator=torch.Generator().manual_seed(0)).to(device)
    t = torch.tensor(PROBES, device=device)
    last = model.labels - 1 if null_class is None else null_class
    y = torch.tensor([label, last, (label + 1) % last, label], device=device)
    with evaluating(model), evaluating(other):
        ours, theirs = predict_noise(model, x, t, y), predict_noise(other, x, t, y)
    return torch.equal(ours, theirs) if device.type == "cpu" else torch.allclose(ours, theirs, TOLERANCE, TOLERANCE)


def weights_in(unlearned: Artifact, base: Denoiser) -> Weights:
    """Return the weights of an artifact, which holds what differs from the base.

    Raises:
        UsageError: they are of a model with another autoencoder.
    """
    facts = {base.kind: unlearned.facts[base.kind]}
    if unlearned.facts.get("codec", base.codec.identity) != base.codec.identity:
        raise UsageError("the given model has another autoencoder than the base model, so images cannot be compared")
    theirs = base.tensors()
    if unlearned.tensors.keys() <= theirs.keys():
        return Weights({**theirs, **unlearned.tensors}, facts, base)
    return Weights(dict(unlearned.tensors), facts, base)


def is_same(model: nn.Module, base: nn.Module) -> bool:
    """Say whether a model still equals the base model: the same weights bit for bit, no hooks, no replaced forward."""
    if not is_plain(model) or [type(part) for part in model.modules()] != [type(part) for part in base.modules()]:
        return False
    ours, theirs = model.state_dict(), base.state_dict()
    same = ours.keys() == theirs.keys() and all(ours[name].shape == theirs[name].shape for name in ours)
    return same and all(torch.equal(ours[name], theirs[name]) for name in ours)
