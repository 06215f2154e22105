"""Whether a network's weights alone determine its predictions, so that another process can rebuild it from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unlearnbench.errors import one_line, spell_error
from unlearnbench.models.diffusion import evaluating, predict_noise
from unlearnbench.models.networks import build_unet, frozen, is_plain, placed
from unlearnbench.models.training import global_rng_kept
from unlearnbench.store.artifacts import Artifact, Tensors

PROBES = (0, 333, 666, 999)  # timesteps at which the rebuilt network must predict the same
TOLERANCE = 1e-3  # of these predictions on CUDA; exact on a CPU
CPU = torch.device("cpu")


class NotInWeights(Exception):
    """The weights alone do not determine a network's predictions; the text says why."""


@dataclass(frozen=True)
class Weights:
    """The weights of a UNet2DModel, on the CPU, and the arguments to build it."""

    tensors: Tensors
    unet: Mapping[str, Any]

    def build(self, device: torch.device) -> nn.Module:
        """Return the network, frozen, on a device; global random states stay unchanged."""
        with global_rng_kept(device):  # its first weights are random
            return frozen(build_unet(self.unet), self.tensors, device)


def arguments_of(model: nn.Module) -> dict[str, Any]:
    """Return the arguments that built a network; empty where it does not say them."""
    return {key: value for key, value in dict(getattr(model, "config", {})).items() if not key.startswith("_")}


def weights_of(model: nn.Module, label: int, image_shape: Sequence[int]) -> Weights:
    """Return the weights of a network after checking that another one with them predicts the same.

    Args:
        model: noise predictor.
        label: of a class; predictions for it, the next one and the null class are compared.
        image_shape: (C, H, W).

    Raises:
        NotInWeights: hooks, a replaced forward or other parts determine its predictions too.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    weights = Weights(tensors, arguments_of(model))
    try:
        other = weights.build(CPU)
    except (RuntimeError, TypeError, ValueError) as error:
        words = one_line(spell_error(error), 120)
        raise NotInWeights(f"its weights do not fit a UNet2DModel of its config ({words})") from error
    device = next(model.parameters()).device
    if not is_plain(model) or not _predict_alike(model, placed(other, device), label, image_shape):
        raise NotInWeights("its weights alone do not determine its predictions")
    return weights


def _predict_alike(model: nn.Module, other: Any, label: int, image_shape: Sequence[int]) -> bool:
    """Say whether two models predict the same noise for a class, the null class, and one in between."""
    device = next(model.parameters()).device
    x = torch.randn((len(PROBES), *image_shape), generator=torch.Generator().manual_seed(0)).to(device)
    t = torch.tensor(PROBES, device=device)
    null = int(other.config["num_class_embeds"]) - 1
    y = torch.tensor([label, null, (label + 1) % null, label], device=device)
    with evaluating(model), evaluating(other):
        ours, theirs = predict_noise(model, x, t, y), predict_noise(other, x, t, y)
    return torch.equal(ours, theirs) if device.type == "cpu" else torch.allclose(ours, theirs, TOLERANCE, TOLERANCE)


def weights_in(unlearned: Artifact, base: nn.Module) -> Weights:
    """Return the weights of an artifact; that of an untouched model holds none, as they are those of the base model."""
    tensors = unlearned.tensors or {name: tensor.cpu().contiguous() for name, tensor in base.state_dict().items()}
    return Weights(tensors, unlearned.facts["unet"])
