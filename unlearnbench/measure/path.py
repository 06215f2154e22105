"""The straight path in weight space from the base model to the unlearned one, and what the models on it draw."""

import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from typing import ClassVar, NamedTuple

import numpy as np
import torch

from unlearnbench.errors import Unmeasurable
from unlearnbench.measure.probe import Probe
from unlearnbench.models.denoiser import Denoiser, described
from unlearnbench.models.networks import is_plain
from unlearnbench.store.artifacts import Tensors

FORGET = 50  # samples per model, of all forget classes: a half interval of 14 points at 50 %
RETAINED = 100  # at least, of all retained classes, equally many of each

__all__ = ["ModelPath", "Point"]


class Point(NamedTuple):
    """A model on the path."""

    a: float
    forgotten: float  # percent of forget-class samples in which the rejecting judge sees no forget class
    retained: float  # percent of retained-class samples in which it sees the requested class


@dataclass(frozen=True)
class ModelPath(Probe):
    """The models (1 - a) theta_0 + a theta_u: the base model at 0, the unlearned one at 1.

    All start from the same noise as the cell's own samples, so that what they draw at 1 are first images of these.
    """

    step: ClassVar[str] = "sample between base and unlearned model"

    is_in_weights: bool  # whether the weights stand for the unlearned model

    @cached_property
    def forget_labels(self) -> list[int]:
        """The requested class of each forget-class sample, not more than a cell has."""
        classes = self.cell.forget_classes
        most = self.dataset.protocol.forget_samples * len(classes)
        return list(islice(cycle(classes), min(FORGET, most)))

    @cached_property
    def retain_labels(self) -> list[int]:
        """The requested class of each retained-class sample, not more than a cell has."""
        classes = self.dataset.measured(self.cell.target)
        each = min(-(-RETAINED // len(classes)), self.dataset.protocol.retain_samples)
        return [c for c in classes for _ in range(each)]

    @cached_property
    def _ends(self) -> tuple[Tensors, Tensors]:
        """The weights of both ends.

        Raises:
            Unmeasurable: there is no straight path between them.
        """
        if not (self.is_in_weights and is_plain(self.model)):
            raise Unmeasurable("its weights alone do not determine the model, so none lies between it and the base")
        base, ours = self.prepared.base.state_dict(), self.model.state_dict()
        shapes = [{name: tensor.shape for name, tensor in end.items()} for end in (base, ours)]
        if shapes[0] != shapes[1] or described(self.prepared.base) != described(self.model):
            raise Unmeasurable("it is another network than the base, so no model lies between them")
        return base, ours

    @cached_property
    def _network(self) -> Denoiser:
        return copy.deepcopy(self.prepared.base)

    def model_at(self, a: float) -> Denoiser:
        """Return the model at `a`, mixed in fp32, frozen; it is valid until the next call."""
        base, ours = self._ends
        mixed = {name: torch.lerp(base[name].float(), ours[name].float(), a) for name in base}
        self._network.load_state_dict(mixed)
        return self._network

    def at(self, a: float) -> Point:
        """Return what the model at `a` has forgotten and retained."""
        model = self.model_at(a)
        asked = np.array([*self.forget_labels, *self.retain_labels])
        found = self.verdicts(model, asked.tolist())
        n = len(self.forget_labels)
        forgotten = ~np.isin(found[:n], self.cell.forget_classes)
        return Point(a, 100 * float(forgotten.mean()), 100 * float((found[n:] == asked[n:]).mean()))
