"""What metrics ask for, computed lazily and once per cell: samples, the judge's probabilities, features."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unlearnbench.cost import Meter
from unlearnbench.datasets import Dataset, Split
from unlearnbench.diffusion import Schedule, evaluating, sample
from unlearnbench.errors import PluginError, Unmeasurable, UsageError, one_line
from unlearnbench.features import extractor_for
from unlearnbench.grid import Cell
from unlearnbench.hashing import derive_seed
from unlearnbench.plugin import MetricSpec
from unlearnbench.process import Progress
from unlearnbench.training import Prepared

JUDGE_BATCH = 500


def sample_seeds(cell: Cell, labels: Sequence[int]) -> list[int]:
    """Return one seed per image, from dataset, protocol, seed, class and index alone.

    Neither the method nor the forget class is part of it: image i of class c starts from the same noise in every cell.
    """
    counter: dict[int, int] = {}
    seeds = []
    for label in labels:
        index = counter[label] = counter.get(label, -1) + 1
        seeds.append(derive_seed(
            "sample", dataset=cell.dataset, protocol=cell.protocol, seed=cell.seed, label=label, index=index
        ))  # fmt: skip
    return seeds


@dataclass(frozen=True)
class Evidence:
    """One cell's evidence; the cached properties are the needs of `plugin.NEEDS`, shapes and dtypes as said there."""

    cell: Cell
    model: nn.Module
    dataset: Dataset
    train: Split
    prepared: Prepared
    meter: Meter
    progress: Progress

    def _sample(self, labels: Sequence[int]) -> NDArray[np.uint8]:
        protocol, device = self.dataset.protocol, next(self.model.parameters()).device
        with self.meter.phase("sample"):
            images = sample(
                self.model, Schedule.linear(device=device), torch.tensor(labels), sample_seeds(self.cell, labels),
                self.dataset.image_shape, steps=protocol.steps, eta=protocol.eta, guidance=protocol.guidance,
                null_class=self.dataset.num_classes, batch_size=protocol.batch_size,
                progress=lambda done: self.progress("sample", done, len(labels) * protocol.steps),
            )  # fmt: skip
        result: NDArray[np.uint8] = images.numpy()
        return result

    @cached_property
    def forget_samples(self) -> NDArray[np.uint8]:
        return self._sample([self.cell.forget_class] * self.dataset.protocol.forget_samples)

    @cached_property
    def retain_labels(self) -> NDArray[np.int64]:
        retained = [c for c in range(self.dataset.num_classes) if c != self.cell.forget_class]
        return np.repeat(np.array(retained, dtype=np.int64), self.dataset.protocol.retain_samples)

    @cached_property
    def retain_samples(self) -> NDArray[np.uint8]:
        return self._sample(self.retain_labels.tolist())

    def _through(self, network: nn.Module, images: NDArray[np.uint8]) -> Tensor:
        """Return a network's output for images, (n, D) float64 on the CPU, computed batch by batch."""
        device = next(self.model.parameters()).device
        with evaluating(network.to(device)):
            outputs = [network(batch.to(device)) for batch in torch.split(torch.from_numpy(images), JUDGE_BATCH)]
        parts = [output[0] if isinstance(output, tuple) else output for output in outputs]
        return torch.cat(parts).cpu().double()

    def _probs(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        probs: NDArray[np.float64] = self._through(self.prepared.judge, images).softmax(dim=1).numpy()
        return probs

    @cached_property
    def _extractor(self) -> nn.Module:
        return extractor_for(f"unlearnbench-{self.dataset.name}", self.prepared.extractor)

    def _features(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        features: NDArray[np.float64] = self._through(self._extractor, images).numpy()
        return features

    @cached_property
    def forget_probs(self) -> NDArray[np.float64]:
        return self._probs(self.forget_samples)

    @cached_property
    def retain_probs(self) -> NDArray[np.float64]:
        return self._probs(self.retain_samples)

    @cached_property
    def forget_features(self) -> NDArray[np.float64]:
        return self._features(self.forget_samples)

    @cached_property
    def retain_features(self) -> NDArray[np.float64]:
        return self._features(self.retain_samples)

    @cached_property
    def reference_features(self) -> NDArray[np.float64]:
        return self._features(self.train.images[self.train.labels != self.cell.forget_class])


def measure(evidence: Evidence, metrics: Sequence[tuple[MetricSpec, str]]) -> dict[str, dict[str, Any]]:
    """Return the record's entry for each metric: its value, n, and all that a report needs to show it.

    Args:
        evidence: of the cell.
        metrics: each with the hash of its source file.

    A value that is not finite, or a metric that declares itself unmeasurable, becomes null with a reason.
    """
    entries: dict[str, dict[str, Any]] = {}
    for spec, source_hash in metrics:
        value, n, reason = _score(spec, {need: getattr(evidence, need) for need in spec.needs})
        entries[spec.name] = {
            "value": value, "n": n, "title": spec.title, "unit": spec.unit, "better": spec.better,
            "shows": spec.shows, "headline": spec.headline, "format": spec.format, "source": spec.source,
            "source_hash": source_hash, "reason": reason,
        }  # fmt: skip
    return entries


def _score(spec: MetricSpec, needs: Mapping[str, Any]) -> tuple[float | None, int, str | None]:
    try:
        result = spec.function(**needs)
    except UsageError as error:  # it would end the run, and this is one cell's affair
        raise PluginError(f"metric {spec.name} raised {error!r}") from error
    except Unmeasurable as error:
        return None, 0, one_line(str(error))
    try:
        value, n = float(result[0]), int(result[1])
    except (TypeError, ValueError, IndexError) as error:
        raise PluginError(
            f"metric {spec.name} must return Score(value, n), not {one_line(repr(result), 80)}"
        ) from error
    return (value, n, None) if np.isfinite(value) else (None, n, f"the metric came out as {value}")
