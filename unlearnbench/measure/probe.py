"""What metrics that sample anew have in common: samples from the cell's own initial noise, and their verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unlearnbench.datasets import Dataset
from unlearnbench.errors import Unmeasurable
from unlearnbench.measure.prepared import Prepared
from unlearnbench.models.denoiser import Denoiser
from unlearnbench.models.diffusion import Schedule
from unlearnbench.models.sampler import Start
from unlearnbench.protocols import Progress
from unlearnbench.store.cell import Cell, sample_seeds


@dataclass(frozen=True)
class Probe:
    """Samples from a cell's unlearned model, or from models made of it, and the rejecting judge's verdicts on them."""

    step: ClassVar[str]  # as shown by progress

    cell: Cell
    model: Denoiser
    dataset: Dataset
    prepared: Prepared
    progress: Progress

    @cached_property
    def device(self) -> torch.device:
        """The model's device."""
        return next(self.model.parameters()).device

    @cached_property
    def schedule(self) -> Schedule:
        """The forward process."""
        return self.model.schedule

    @property
    def num_classes(self) -> int:
        """K; labels are 0 to K - 1."""
        return self.dataset.num_classes

    @property
    def null_class(self) -> int | None:
        """The label of the unconditional branch; None where the base model has none."""
        return self.dataset.null_class

    @property
    def retained_classes(self) -> tuple[int, ...]:
        """The classes that the model should still know."""
        return self.cell.target.retained(self.num_classes)

    def verdicts(
        self, model: Denoiser, asked: Sequence[int], *, labels: Tensor | None = None, start: Start | None = None,
        **changed: Any,
    ) -> NDArray[np.int64]:  # fmt: skip
        """Return the rejecting judge's verdicts on samples that start from the same noise as the cell's own.

        Args:
            model: to sample from; it is left in the mode it has.
            asked: a class for each sample, which determines its noise.
            labels: (n,) to sample; by default those of the classes, of a concept its training prompts in turn.
            start: of sampling, if not standard noise.
            changed: settings of the protocol's sampler.
        """
        sampler = {**self.dataset.protocol.sampler, **changed}
        if sampler["guidance"] and self.null_class is None:
            raise Unmeasurable("the base model has no null class, so it cannot be guided")
        images = model.draw(
            torch.tensor(self.dataset.conditions.spread(asked)) if labels is None else labels,
            sample_seeds(self.cell, asked), null_class=self.null_class, **sampler, start=start or Start(),
            progress=lambda done: self.progress(self.step, 0, 0),
        )  # fmt: skip
        assert self.prepared.rejecting is not None
        return self.prepared.rejecting.names(images.numpy(), self.device)
