"""Measurements for an estimate, each a job in a separate process, which does and times a part of the work.

Untrained networks of the same shape replace missing base models and judges, as times do not depend on weights. The
cache is read-only.
"""

import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from unlearnbench.cost.meter import Meter
from unlearnbench.cost.phases import Cost, Phase, Untimed
from unlearnbench.datasets import Dataset, Images, Split
from unlearnbench.datasets.recipes import ClassifierRecipe, GivenJudge, SvmRecipe
from unlearnbench.errors import UsageError
from unlearnbench.judges.features import extractor_for, inception
from unlearnbench.judges.forward import JUDGE_BATCH, forward_batches
from unlearnbench.judges.judges import Judge, NetworkJudge, SvmJudge, build_classifier, classifier
from unlearnbench.judges.rejecting import RejectingJudge
from unlearnbench.measure.inputs import EvaluationInputs, losses_by_timestep, measure
from unlearnbench.measure.prepared import Prepared
from unlearnbench.models.autoencoder import trained_codec, untrained_codec
from unlearnbench.models.base import base_artifact, base_reference, image_digests, train_denoiser
from unlearnbench.models.checkpoints import read_checkpoint
from unlearnbench.models.denoiser import Denoiser, restored, untrained
from unlearnbench.models.kept import Kept
from unlearnbench.models.networks import Classifier, placed
from unlearnbench.models.weights import is_same
from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.spec import MethodSpec, MetricSpec
from unlearnbench.protocols import JobChannel, Progress
from unlearnbench.run.at_hand import DOWNLOAD, Look, Missing, at_hand, inception_is_here
from unlearnbench.run.estimate import Making, MethodCost, Prior, Unknown
from unlearnbench.run.jobs import make_current
from unlearnbench.run.measuring import warm_up as warm_up_judging
from unlearnbench.run.trial import (
    PLENTY_SECONDS,
    NotKnown,
    Trial,
    TrialAttacker,
    TrialClock,
    TrialPath,
    TrialStore,
    sample_some,
)
from unlearnbench.run.unlearning import unlearn, warm_up
from unlearnbench.store.artifacts import ArtifactStore, software
from unlearnbench.store.cell import Cell
from unlearnbench.store.hashing import digest
from unlearnbench.unlearn.harness import Harness
from unlearnbench.unlearn.streams import Counts

CLOCKED: tuple[Phase, ...] = ("prior", "forget")
AROUND_PHASES: tuple[Phase | Untimed, ...] = ("load", "warmup", "judge", "attack")
TRAIN_SECONDS = 2.0  # of timed training steps
TEST_SHARE = 5  # training images per test image, where the test images are missing
NO_INCEPTION = "judging: FID's Inception weights are missing, so the time of its features is unknown"


@dataclass(frozen=True)
class Subject:
    """The training images and the base model, or substitutes."""

    train: Split
    kept: Kept  # the images as the base takes them
    base: Denoiser
    base_digest: str  # of the cached base model's reference, as in priors' keys; empty for a substitute


def subject_of(dataset: Dataset, cache: Path, device: torch.device) -> Subject:
    """Return images and base model of the cache, or substitutes.

    Raises:
        UsageError: neither is possible.
    """
    look = Look(cache)
    train, _ = _images(dataset, look)
    torch.manual_seed(0)
    try:
        source = image_digests(Images(train, train))["train"]
        found = base_artifact(dataset, train, source, look, device, _quiet)
        base, base_digest = restored(found.facts, found.tensors, device), digest(base_reference(dataset, found))
    except Missing:
        base, base_digest = placed(_substitute(dataset), device).eval().requires_grad_(False), ""
    return Subject(train, Kept.make(base.codec, train, mirrors=dataset.flip, device=device), base, base_digest)


def _images(dataset: Dataset, look: Look) -> tuple[Split, int]:
    """Return the training images, or noise in their place, and the number of test images.

    Raises:
        UsageError: the number of images is unknown.
    """
    try:
        train, test, _ = dataset.load(look, _quiet)
        return train, len(test.images)
    except Missing as missing:
        train = _made_up(dataset, str(missing))
        return train, len(train.images) // TEST_SHARE


def _made_up(dataset: Dataset, missing: str) -> Split:
    """Return images of noise, as many per class as in the dataset."""
    if not dataset.train_counts:
        raise UsageError(
            f"an estimate downloads nothing, and the number of images of {dataset.title} is unknown without them "
            f"({missing}): name their folder with --data-root"
        )
    labels = np.repeat(np.arange(dataset.num_classes), dataset.train_counts)
    return Split(_noise(len(labels), dataset), labels)


def _noise(n: int, dataset: Dataset) -> NDArray[np.uint8]:
    """Return n images of noise (n, C, H, W)."""
    return np.random.default_rng(0).integers(0, 256, (n, *dataset.image_shape), dtype=np.uint8)


def _substitute(dataset: Dataset) -> Denoiser:
    """Return a base model of the right size."""
    if not dataset.checkpoint:
        return untrained(dataset, untrained_codec(dataset))
    if not Path(dataset.checkpoint).is_dir():
        raise UsageError(
            f"an estimate downloads nothing, and --base {dataset.checkpoint} is not in the cache yet: give a folder"
        )
    return read_checkpoint(dataset.checkpoint, dataset)


def _quiet(what: str, done: int, total: int) -> None:
    """Show no progress."""


def _begin(device_info: Mapping[str, Any]) -> tuple[torch.device, TrialClock, Meter]:
    """Return the device, a clock that adds the time of skipped work, and a meter with that clock."""
    device = torch.device(device_info["device"])
    clock = TrialClock(device)
    meter = Meter.for_device(device, str(device_info["identity"]["uuid"]), clock=clock)
    make_current(device)
    return device, clock, meter


def measure_method(
    cell: Cell, dataset: Dataset, labels: Sequence[int], plugin_files: Sequence[Path], cache: Path,
    device_info: Mapping[str, Any], channel: JobChannel,
) -> tuple[MethodCost | Unknown, float]:  # fmt: skip
    """Return the cost of a method for a cell, and the seconds that this job worked.

    Args:
        cell: with the method and its settings.
        dataset: of the cell.
        labels: of the cell's samples.
        plugin_files: files that may hold the method.
        cache: folder of artifacts.
        device_info: the device, as `run.jobs.resolve_device` returns it.
        channel: shows progress.
    """
    began = time.perf_counter()
    device, clock, meter = _begin(device_info)
    registry, store, dataset = Registry(plugin_files), TrialStore(cache), dataset.with_base_seed(cell.base_seed)
    method, subject = registry.method(cell.method), subject_of(dataset, cache, device)
    harness = Harness(
        dataset, subject.kept, subject.base, subject.base_digest, cell.method,
        registry.source_hash("method", cell.method), method.streams, cell.seed, cell.target, device, store, meter,
        device_info["identity"], software(), channel,
    )  # fmt: skip
    try:
        cost: MethodCost | Unknown = _method_cost(method, cell, harness, store, clock, labels)
    except NotKnown as error:
        cost = Unknown(str(error))
    finally:
        meter.instruments.close()
    return cost, time.perf_counter() - began


def _method_cost(
    method: MethodSpec, cell: Cell, harness: Harness, store: TrialStore, clock: TrialClock, labels: Sequence[int]
) -> MethodCost:
    """Run a method's first step, which makes its priors, then a few timed steps, then sampling."""
    unlearn(method, harness, cell, partial(Trial, clock=clock, rehearsing=True))
    reckoned = {"prior"} if clock.reckoned else set()
    clock.reckoned, clock.rate = False, None
    first: tuple[Phase, ...] = ("warmup", "forget") if harness.device.type == "cuda" else ("warmup",)
    warmup = sum(harness.meter.costs[phase].seconds for phase in first if phase in harness.meter.costs)
    meter = harness.meter.fresh()
    timed = replace(harness, meter=meter, counts=Counts(), curves={}, priors={}, made=set())
    context = unlearn(method, timed, cell, partial(Trial, clock=clock))
    reckoned |= {"rte"} if clock.reckoned else set()
    rate, costs = clock.rate, [meter.costs[phase] for phase in CLOCKED if phase in meter.costs]
    sampling = Cost()
    if labels:
        with meter.phase("sample") as sampling:
            sample_some(clock, context.model, torch.tensor(labels), harness.dataset)
    probes = set.intersection(*[set(cost.memory_bytes) for cost in costs])
    return MethodCost(
        rte=meter.costs["forget"].seconds,
        prior=meter.costs["prior"].seconds if "prior" in meter.costs else 0.0,
        sample=sampling.seconds,
        rate=rate,
        memory={probe: max(cost.memory_bytes[probe] for cost in costs) for probe in probes},
        priors={name: _prior(facts, store) for name, facts in timed.priors.items()},
        warmup=warmup,
        untouched=is_same(context.model, harness.base),
        reckoned=frozenset(reckoned),
    )


def _prior(facts: Mapping[str, Any], store: TrialStore) -> Prior:
    """Return the cost of a prior, given its entry in a record."""
    made = store.made.get(facts["key"])
    size = sum(tensor.nbytes for tensor in made.tensors.values()) if made is not None else 0
    return Prior(facts["seconds"], facts["shared"], made is None, size)


class _Enough(BaseException):
    """Ends a watched training. Not an Exception, so that nothing handles it as a failure."""


class _Watch:
    """Times a training by its progress calls, and ends it after enough steps."""

    def __init__(self, clock: TrialClock, channel: Progress) -> None:
        self._clock, self._channel, self._calls, self._first = clock, channel, 0, (0.0, 0)
        self.seconds = 0.0  # extrapolated to the whole training, at its end

    def __call__(self, what: str, done: int, total: int) -> None:
        """Time steps from the second one on until there are enough; only the first where it is slow."""
        self._channel(what, done, total)
        if not total:
            return
        self._calls += 1
        began, before = self._first
        spent = self._clock() - began
        if self._calls == 1 or (self._calls == 2 and spent < PLENTY_SECONDS):
            self._first = self._clock.settled(), done
        elif self._calls == 2 or spent >= PLENTY_SECONDS or (self._calls > 3 and spent >= TRAIN_SECONDS):
            self.seconds = (self._clock.settled() - began) / (done - before) * total
            raise _Enough


def look_around(
    dataset: Dataset, needs: Collection[str], base_seeds: Sequence[int], cache: Path, device_info: Mapping[str, Any],
    channel: JobChannel,
) -> tuple[tuple[list[str], list[str], int], float]:  # fmt: skip
    """Return a dataset's cached and missing parts, a base model's bytes, and the seconds that this job worked.

    Args:
        dataset: to be prepared.
        needs: of the metrics to come.
        base_seeds: of the base models.
        cache: folder of artifacts.
        device_info: the device, as `run.jobs.resolve_device` returns it.
        channel: shows progress.
    """
    began, device = time.perf_counter(), torch.device(device_info["device"])
    there, lacking = at_hand(dataset, Look(cache), device, needs, base_seeds)
    base = subject_of(dataset, cache, torch.device("cpu")).base
    return (there, lacking, _bytes(base)), time.perf_counter() - began


def _bytes(network: nn.Module) -> int:
    return sum(weights.nbytes for weights in network.state_dict().values())


def measure_making(
    dataset: Dataset, name: str, cache: Path, device_info: Mapping[str, Any], channel: JobChannel
) -> tuple[Making, float]:
    """Return the cost of making a part of a dataset's preparation, and the seconds that this job worked.

    Args:
        dataset: to be prepared.
        name: of the part, as in `at_hand.at_hand`.
        cache: folder of artifacts.
        device_info: the device, as `run.jobs.resolve_device` returns it.
        channel: shows progress.
    """
    if name.endswith(DOWNLOAD):
        return Making(None, 0), 0.0
    began, device = time.perf_counter(), torch.device(device_info["device"])
    make_current(device)
    train, tests = _images(dataset, Look(cache))
    with tempfile.TemporaryDirectory() as folder:
        maker = _Maker(dataset, train, tests, ArtifactStore(Path(folder)), device, TrialClock(device), channel)
        making = maker.making(name)
    return making, time.perf_counter() - began


@dataclass(frozen=True)
class _Maker:
    """Times the preparation of a dataset, in a temporary folder."""

    dataset: Dataset
    train: Split
    tests: int  # test images
    store: ArtifactStore
    device: torch.device
    clock: TrialClock
    channel: Progress

    def making(self, name: str) -> Making:
        """Return the cost of making a part, by its name."""
        if name == "images":
            return Making(self._seconds(lambda watch: self.dataset.load(self.store, watch)), self.train.images.nbytes)
        if name == "features of the training images":
            return self._features()
        if name.startswith("base model"):
            return self._base()
        recipes: dict[str, Any] = {"judge": self.dataset.judge, "feature extractor": self.dataset.extractor}
        recipes |= {"second judge": self.dataset.second, "rejecting judge": self.dataset.rejecting}
        return self._classifier(name, recipes[name])

    def _classifier(self, name: str, recipe: ClassifierRecipe | GivenJudge) -> Making:
        network = build_classifier(self.dataset, recipe)
        if isinstance(recipe, GivenJudge):  # it is only tested
            return Making(self._looking_seconds(network, self.tests), _bytes(network))
        images = Images(self.train, self.train)
        from_scratch = replace(recipe, pretrained=False)  # nothing is downloaded
        seconds = self._seconds(
            lambda watch: classifier(self.dataset, name, from_scratch, images, {}, self.store, self.device, watch)
        )
        return Making(seconds, _bytes(network))

    def _features(self) -> Making:
        own, size = self.dataset.extractor, 4 * len(self.train.images) * self.dataset.features
        if own is None and not inception_is_here(self.dataset):
            return Making(None, size, "Inception's weights are missing")
        network = inception(self.dataset.inception_weights)[0] if own is None else build_classifier(self.dataset, own)
        return Making(self._looking_seconds(network, len(self.train.images)), size)

    def _looking_seconds(self, network: nn.Module, n: int) -> float:
        """Return the seconds for passing n images through a network."""
        some = self.train.images[:JUDGE_BATCH]
        forward_batches(network, some, self.device)  # first use
        began = self.clock.settled()
        forward_batches(network, some, self.device)
        return (self.clock.settled() - began) * n / len(some)

    def _base(self) -> Making:
        dataset, size = self.dataset, _bytes(_substitute(self.dataset))
        if dataset.checkpoint:
            return Making(self._seconds(lambda watch: read_checkpoint(dataset.checkpoint, dataset)), size)
        codec, seconds = untrained_codec(dataset), 0.0
        if codec.identity:
            seconds = self._seconds(
                lambda watch: trained_codec(dataset, self.train, "", self.store, self.device, watch)
            )
        if dataset.base.minutes is not None:
            return Making(seconds + 60 * dataset.base.minutes, size)
        workspace = self.store.workspace("base", {})
        seconds += self._seconds(
            lambda watch: train_denoiser(dataset, self.train, codec, workspace, self.device, watch)
        )
        return Making(seconds, size)

    def _seconds(self, make: Callable[[Progress], object]) -> float:
        """Return the extrapolated seconds of a function that reports progress at each step."""
        watch, began = _Watch(self.clock, self.channel), self.clock.settled()
        with suppress(_Enough):
            make(watch)
            return self.clock.settled() - began
        return watch.seconds


def measure_surroundings(
    cell: Cell, dataset: Dataset, metric_names: Sequence[str], plugin_files: Sequence[Path], cache: Path,
    device_info: Mapping[str, Any], channel: JobChannel,
) -> tuple[tuple[dict[str, float], str], float]:  # fmt: skip
    """Return a cell's times besides method and samples, the unknown parts, and the seconds that this job worked.

    Judges and metrics get noise images in place of a cell's samples; attacks are shortened.

    Args:
        cell: of a method that attacks apply to.
        dataset: of the cell.
        metric_names: of the metrics to compute.
        plugin_files: files that may hold a metric.
        cache: folder of artifacts.
        device_info: the device, as `run.jobs.resolve_device` returns it.
        channel: shows progress.
    """
    began = time.perf_counter()
    device, clock, meter = _begin(device_info)
    with meter.phase("load"):
        metrics, unknown = _metrics(dataset, metric_names, Registry(plugin_files))
        subject = subject_of(dataset.with_base_seed(cell.base_seed), cache, device)
        prepared = _stand_ins(dataset, subject, {need for spec, _ in metrics for need in spec.needs})
    with meter.phase("warmup"):
        warm_up(subject.base, subject.kept, dataset)
        warm_up_judging(prepared, dataset, device)
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(Path(folder))
        inputs = EvaluationInputs(
            cell, subject.base, "", dataset, prepared, store, device_info["identity"], meter, channel
        )
        _fill(inputs, clock)
        with meter.phase("judge"):
            measure(inputs, metrics)
            losses_by_timestep(inputs)
    meter.instruments.close()
    seconds: dict[str, float] = {p: meter.costs[p].seconds for p in AROUND_PHASES if p in meter.costs}
    return (seconds, unknown), time.perf_counter() - began


def _metrics(dataset: Dataset, names: Sequence[str], registry: Registry) -> tuple[list[tuple[MetricSpec, str]], str]:
    """Return the metrics that can be computed here, each with its source's hash, and a note on missing ones."""
    metrics = [(registry.metric(name), registry.source_hash("metric", name)) for name in names]
    blind = [item for item in metrics if any(need.endswith("_features") for need in item[0].needs)]
    if dataset.extractor is not None or inception_is_here(dataset) or not blind:
        return metrics, ""
    return [item for item in metrics if item not in blind], NO_INCEPTION


def _stand_ins(dataset: Dataset, subject: Subject, needs: Collection[str]) -> Prepared:
    """Return a dataset's preparation with untrained networks."""
    featured = any(need.endswith("_features") for need in needs)
    extractor: nn.Module | None = None
    if featured and dataset.extractor is None:
        extractor = inception(dataset.inception_weights)[0]
    elif featured and dataset.extractor is not None:
        extractor = extractor_for(f"unlearnbench-{dataset.name}", _untrained(dataset, dataset.extractor))
    return Prepared(
        train=subject.train,
        notes=(),
        base=subject.base,
        kept=subject.kept,
        judge=_untrained(dataset, dataset.judge),
        extractor=extractor,
        train_features=torch.rand(len(subject.train.images), dataset.features) if featured else None,
        second=_second(dataset, subject.train) if any(need.endswith("_second") for need in needs) else None,
        rejecting=RejectingJudge(_untrained(dataset, dataset.rejecting), dataset.rejecting.threshold),
        test_performance={},
        artifacts={"base": {}},
    )


def _untrained(dataset: Dataset, recipe: ClassifierRecipe | GivenJudge) -> Classifier:
    return build_classifier(dataset, recipe).eval().requires_grad_(False)


def _second(dataset: Dataset, train: Split) -> Judge:
    if isinstance(dataset.second, SvmRecipe):
        return SvmJudge.fitted(dataset.second, train.images, train.labels)
    return NetworkJudge(_untrained(dataset, dataset.second))


def _fill(inputs: EvaluationInputs, clock: TrialClock) -> None:
    """Fill the inputs with noise images in place of samples, and with shortened probes."""
    cell, dataset = inputs.cell, inputs.dataset
    forget = dataset.protocol.forget_samples * len(cell.forget_classes)
    probed = cell, inputs.model, dataset, inputs.prepared, inputs.progress
    vars(inputs).update(
        forget_samples=_noise(forget, dataset),
        retain_samples=_noise(len(inputs.retain_labels), dataset),
        earlier_samples=_noise(len(inputs.earlier_labels), dataset),
        attacker=TrialAttacker(*probed, clock=clock),
        path=TrialPath(*probed, True, clock=clock),
    )
