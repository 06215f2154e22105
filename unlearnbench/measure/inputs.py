"""Inputs of metrics, computed lazily and once per cell: samples, the judges' outputs, features."""

import math
import operator
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unlearnbench.cost.meter import Meter
from unlearnbench.cost.phases import Cost
from unlearnbench.datasets import Dataset
from unlearnbench.datasets.recipes import WITHOUT_CLASS_0
from unlearnbench.errors import PluginError, Unmeasurable, UsageError, one_line
from unlearnbench.judges.forward import forward_batches
from unlearnbench.judges.judges import Judge
from unlearnbench.measure.prepared import Prepared
from unlearnbench.models.denoiser import Denoiser
from unlearnbench.models.diffusion import eps_loss, evaluating
from unlearnbench.models.training import global_rng_kept
from unlearnbench.models.weights import is_same
from unlearnbench.plugins.spec import MetricSpec, Score
from unlearnbench.protocols import Progress
from unlearnbench.store.artifacts import ArtifactStore, Tensors, software
from unlearnbench.store.cell import Cell, sample_seeds
from unlearnbench.store.hashing import derive_seed
from unlearnbench.store.provenance import device_key
from unlearnbench.store.revisions import of_parts

if TYPE_CHECKING:
    from unlearnbench.measure.attacks import Attacker
    from unlearnbench.measure.path import ModelPath

TIMESTEP_BINS = 10
LOSS_IMAGES = 64  # images per bin and side of the loss by timestep
B4_IMAGES = 500  # first images per class in the reference set of SalUn's code


def reference_images(labels: NDArray[np.int64], gone: Collection[int], reference: str) -> NDArray[np.int64]:
    """Return the indices of FID's reference images among the training images.

    Args:
        labels: of all training images.
        gone: the forgotten classes, which are excluded.
        reference: RETAINED, or WITHOUT_CLASS_0 for the reference set of SalUn's code (`save_base_dataset.py`).
    """
    classes = [int(c) for c in np.unique(labels) if c not in gone]
    if reference == WITHOUT_CLASS_0:
        return np.concatenate([np.flatnonzero(labels == c)[:B4_IMAGES] for c in classes if c != 0])
    return np.flatnonzero(np.isin(labels, classes))


@dataclass(frozen=True)
class EvaluationInputs:
    """The inputs of one cell's metrics; `plugins.spec.NEEDS` documents the cached properties with shapes and dtypes.

    Classes that are forgotten at once count as one: verdicts of each are mapped to the first, so that metrics need not
    know their number.
    """

    cell: Cell
    model: Denoiser
    weights: str  # identify the model; empty where they do not stand for it
    dataset: Dataset
    prepared: Prepared
    store: ArtifactStore
    device_identity: Mapping[str, Any]
    meter: Meter
    progress: Progress
    afresh: bool = False  # draw samples of the model although they are cached

    @cached_property
    def device(self) -> torch.device:
        """The model's device."""
        return next(self.model.parameters()).device

    def _draw(self, model: Denoiser, labels: Sequence[int]) -> Tensor:
        """Sample one image per label, in the current phase."""
        protocol = self.dataset.protocol
        return model.draw(
            torch.tensor(self.dataset.conditions.spread(labels)), sample_seeds(self.cell, labels),
            null_class=self.dataset.null_class, **protocol.sampler,
            progress=lambda done: self.progress("sample", done, len(labels) * protocol.steps),
        )  # fmt: skip

    def _sample(self, labels: Sequence[int], model: Denoiser | None = None) -> NDArray[np.uint8]:
        """Return a sample per label of a model, the unlearned one by default.

        A class stands for its training prompts in turn, where the model takes prompts.
        """
        chosen = self.model if model is None else model
        if chosen is self.prepared.base or self._untouched:
            base = self.prepared.artifacts["base"]
            images = torch.cat([self._kept(base, chosen, [c] * labels.count(c)) for c in dict.fromkeys(labels)])
        elif self.weights:
            images = self._kept(self.weights, chosen, labels)
        else:
            with self.meter.phase("sample"):
                images = self._draw(chosen, labels)
        result: NDArray[np.uint8] = images.numpy()
        return result

    @cached_property
    def _untouched(self) -> bool:
        """Whether the model still equals the base model."""
        return is_same(self.model, self.prepared.base)

    def _kept(self, identity: Any, model: Denoiser, labels: Sequence[int]) -> Tensor:
        """Return samples that are cached, so that further metrics need no new ones; their cost is charged again.

        Those of the untouched base model, one class at a time, are shared by all cells.

        Args:
            identity: JSON that identifies the model.
            model: to sample.
            labels: of the images.
        """

        def build() -> tuple[Tensors, Mapping[str, Any]]:
            with self.meter.phase("sample") as cost:
                images = self._draw(model, labels)
            return {"images": images}, {"cost": cost.to_json()}

        inputs = {
            "model": identity, "sampler": self.dataset.protocol.sampler, "labels": labels,
            "seeds": sample_seeds(self.cell, labels), "software": software(),
            "device": device_key(self.device_identity),  # the cost is charged again, so it must match
            "harness": of_parts(("sampler", "measuring")),
        }  # fmt: skip
        with self.meter.phase("load"):  # or waiting for another cell that draws them
            if self.afresh and identity == self.weights:
                self.store.discard("samples", inputs)
            artifact = self.store.get("samples", inputs, build)
        if artifact.reused:
            self.meter.charge("sample", Cost.earlier(artifact.facts["cost"]))
        return artifact.tensors["images"]

    @cached_property
    def forget_samples(self) -> NDArray[np.uint8]:
        n = self.dataset.protocol.forget_samples
        return self._sample([c for c in self.cell.forget_classes for _ in range(n)])

    @cached_property
    def earlier_labels(self) -> NDArray[np.int64]:
        earlier = sorted(c for classes in self.cell.earlier for c in classes)
        return np.repeat(np.array(earlier, dtype=np.int64), self.dataset.protocol.forget_samples)

    @cached_property
    def earlier_samples(self) -> NDArray[np.uint8]:
        return self._sample(self.earlier_labels.tolist())

    @cached_property
    def earlier_verdicts(self) -> NDArray[np.int64]:
        return self._named_by(self.prepared.rejecting, self.earlier_samples)

    @property
    def paraphrase_labels(self) -> list[int]:
        """The labels of held-out paraphrases of the forget concepts.

        Raises:
            Unmeasurable: there are none.
        """
        conditions = self.dataset.conditions
        if not (labels := [label for c in self.cell.forget_classes for label in conditions.paraphrases(c)]):
            raise Unmeasurable("the forget concept has no held-out paraphrase: add some to the file of concepts")
        return labels

    @cached_property
    def paraphrase_samples(self) -> NDArray[np.uint8]:
        n = self.dataset.protocol.forget_samples * len(self.cell.forget_classes)
        return self._sample(list(islice(cycle(self.paraphrase_labels), n)))

    @property
    def _unrelated_labels(self) -> list[int]:
        """A label for each sample of prompts that name no concept."""
        if not (labels := self.dataset.conditions.unrelated):
            raise Unmeasurable("no unrelated prompts are known: add some to the file of concepts")
        return [label for label in labels for _ in range(self.dataset.protocol.retain_samples)]

    @cached_property
    def unrelated_samples(self) -> NDArray[np.uint8]:
        return self._sample(self._unrelated_labels)

    @cached_property
    def base_unrelated_samples(self) -> NDArray[np.uint8]:
        return self._sample(self._unrelated_labels, self.prepared.base)

    @cached_property
    def retain_labels(self) -> NDArray[np.int64]:
        retained = self.dataset.measured(self.cell.target)
        return np.repeat(np.array(retained, dtype=np.int64), self.dataset.protocol.retain_samples)

    @cached_property
    def retain_samples(self) -> NDArray[np.uint8]:
        return self._sample(self.retain_labels.tolist())

    def _probs(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        logits = forward_batches(self.prepared.judge, images, self.device).double()
        probs: NDArray[np.float64] = logits.softmax(dim=1).numpy()
        first, further = self.cell.forget_class, self.cell.further
        rows = np.flatnonzero(np.isin(probs.argmax(axis=1), further))
        named = probs[rows].argmax(axis=1)
        probs[rows, first], probs[rows, named] = probs[rows, named], probs[rows, first]
        return probs

    def _named_by(self, judge: Judge | None, images: NDArray[np.uint8]) -> NDArray[np.int64]:
        assert judge is not None
        named = judge.names(images, self.device)
        return np.where(np.isin(named, self.cell.further), self.cell.forget_class, named)

    @cached_property
    def forget_verdicts(self) -> NDArray[np.int64]:
        return self._named_by(self.prepared.rejecting, self.forget_samples)

    @cached_property
    def retain_verdicts(self) -> NDArray[np.int64]:
        return self._named_by(self.prepared.rejecting, self.retain_samples)

    @cached_property
    def forget_second(self) -> NDArray[np.int64]:
        return self._named_by(self.prepared.second, self.forget_samples)

    @cached_property
    def retain_second(self) -> NDArray[np.int64]:
        return self._named_by(self.prepared.second, self.retain_samples)

    def _features(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        assert self.prepared.extractor is not None
        features: NDArray[np.float64] = forward_batches(self.prepared.extractor, images, self.device).double().numpy()
        return features

    @cached_property
    def paraphrase_probs(self) -> NDArray[np.float64]:
        return self._probs(self.paraphrase_samples)

    @cached_property
    def paraphrase_verdicts(self) -> NDArray[np.int64]:
        return self._named_by(self.prepared.rejecting, self.paraphrase_samples)

    @cached_property
    def unrelated_features(self) -> NDArray[np.float64]:
        return self._features(self.unrelated_samples)

    @cached_property
    def base_unrelated_features(self) -> NDArray[np.float64]:
        return self._features(self.base_unrelated_samples)

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

    def _train_features(self, chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        assert self.prepared.train_features is not None
        features: NDArray[np.float64] = self.prepared.train_features[torch.from_numpy(chosen)].double().numpy()
        return features

    @cached_property
    def _reference(self) -> NDArray[np.int64]:
        labels, measured = self.prepared.train.labels, self.dataset.measured(self.cell.target)
        chosen = reference_images(labels, self.cell.target.gone, self.dataset.protocol.reference)
        return chosen[np.isin(labels[chosen], measured)]

    @cached_property
    def reference_features(self) -> NDArray[np.float64]:
        return self._train_features(self._reference)

    @cached_property
    def reference_labels(self) -> NDArray[np.int64]:
        labels: NDArray[np.int64] = self.prepared.train.labels[self._reference]
        return labels

    @cached_property
    def forget_reference_features(self) -> NDArray[np.float64]:
        return self._train_features(np.flatnonzero(np.isin(self.prepared.train.labels, self.cell.forget_classes)))

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.dataset.num_classes

    @cached_property
    def attacker(self) -> "Attacker":
        from unlearnbench.measure.attacks import Attacker  # avoids a circular import

        return Attacker(self.cell, self.model, self.dataset, self.prepared, self.progress)

    @cached_property
    def path(self) -> "ModelPath":
        from unlearnbench.measure.path import ModelPath  # likewise

        return ModelPath(self.cell, self.model, self.dataset, self.prepared, self.progress, bool(self.weights))


def losses_by_timestep(inputs: EvaluationInputs) -> dict[str, Any]:
    """Return the denoising loss of the unlearned model by timestep bin, for forget and retained training images.

    mean (eps - eps_theta(x_t, t, c))^2 per pixel over `n` images per bin, with t and noise that are
    the same for every method. Predicting zero gives 1; None stands for a non-finite loss.
    """
    train, cell, device = inputs.prepared.train, inputs.cell, inputs.device
    schedule = inputs.model.schedule
    width = schedule.timesteps // TIMESTEP_BINS
    together = max(1, 2 * inputs.dataset.protocol.batch_size // LOSS_IMAGES)  # bins; guided sampling doubles its batch
    sides: dict[str, list[float | None]] = {"forget": [], "retain": []}
    with evaluating(inputs.model):
        for side, losses in sides.items():
            inside = np.isin(train.labels, cell.forget_classes)
            kept = ~np.isin(train.labels, cell.target.gone)
            pool = torch.from_numpy(np.flatnonzero(inside if side == "forget" else kept))
            bins = []
            for k in range(TIMESTEP_BINS):
                random = torch.Generator().manual_seed(
                    derive_seed("loss", dataset=cell.dataset, seed=cell.seed, side=side, bin=k)
                )
                chosen = pool[torch.randint(len(pool), (LOSS_IMAGES,), generator=random)]
                x0 = inputs.prepared.kept.x0(chosen)
                t = torch.randint(k * width, (k + 1) * width, (LOSS_IMAGES,), generator=random)
                eps = torch.randn(x0.shape, generator=random)
                bins.append((x0, torch.from_numpy(train.labels)[chosen], t, eps))
            for first in range(0, TIMESTEP_BINS, together):
                batch = bins[first : first + together]
                x0, y, t, eps = (torch.cat(parts).to(device) for parts in zip(*batch, strict=True))
                each = eps_loss(inputs.model, schedule, x0, y, t, eps).view(len(batch), -1).mean(dim=1)
                losses += [float(x) if math.isfinite(x) else None for x in each / x0[0].numel()]
    edges = [k * width for k in range(TIMESTEP_BINS + 1)]
    return {"edges": edges, **sides, "n": LOSS_IMAGES}


def measure(inputs: EvaluationInputs, metrics: Sequence[tuple[MetricSpec, str]]) -> dict[str, dict[str, Any]]:
    """Return the record's entry for each metric: its value, n, and the declaration that reports need.

    Args:
        inputs: of one cell.
        metrics: each with the hash of its source file.

    A value that is not finite, or a metric that declares itself unmeasurable, becomes null with a reason.
    """
    entries: dict[str, dict[str, Any]] = {}
    for spec, source_hash in metrics:
        cost: Cost | None = None
        with ExitStack() as apart:
            if spec.is_apart:
                cost = apart.enter_context(inputs.meter.phase("attack"))
                apart.enter_context(global_rng_kept(inputs.device))
            score, reason = _score(spec, inputs)
        entry = {"value": None if reason else score.value, "n": score.n, "reason": reason}
        entries[spec.name] = {**spec.declaration(source_hash), **entry}
        if score.detail is not None:
            entries[spec.name]["detail"] = score.detail
        if cost is not None:
            entries[spec.name]["cost"] = cost.to_json()
    return entries


def _score(spec: MetricSpec, inputs: EvaluationInputs) -> tuple[Score, str | None]:
    """Return a metric's score, and the reason if it has no value."""
    try:
        needs = {need: getattr(inputs, need) for need in spec.needs}
    except Unmeasurable as error:
        return Score(0.0, 0), one_line(str(error))
    try:
        result = spec.function(**needs)
    except UsageError as error:  # a UsageError would end the run, not only this cell
        raise PluginError(f"metric {spec.name} raised {error!r}") from error
    except Unmeasurable as error:
        return Score(0.0, 0), one_line(str(error)) or "the metric gave no reason"
    try:
        score = Score(*result)
        if any(isinstance(part, bool | np.bool_ | str | bytes) for part in (score.value, score.n)):
            raise TypeError("neither text nor a truth value is a number")  # though float() accepts it
        score = Score(float(score.value), operator.index(score.n), score.detail)
    except (TypeError, ValueError, OverflowError) as error:
        raise PluginError(
            f"metric {spec.name} must return Score(value, n), not {one_line(repr(result), 80)}"
        ) from error
    return score, None if np.isfinite(score.value) else f"the metric's value is {score.value}"
