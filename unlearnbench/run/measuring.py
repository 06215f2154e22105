"""The later jobs of a cell: unlearned weights are sampled, judged and attacked, in processes without any method."""

import base64
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from unlearnbench.datasets import Dataset
from unlearnbench.errors import Unmeasurable
from unlearnbench.judges.forward import forward_batches
from unlearnbench.measure.inputs import EvaluationInputs, losses_by_timestep, measure
from unlearnbench.measure.prepared import Prepared, prepare
from unlearnbench.models.denoiser import Denoiser
from unlearnbench.models.training import global_rng_kept
from unlearnbench.models.weights import weights_in
from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.spec import MetricSpec
from unlearnbench.protocols import JobChannel
from unlearnbench.run.jobs import account, begin
from unlearnbench.run.stale import measuring_rests_on
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.store.cell import UNLEARNED, Cell
from unlearnbench.unlearn.harness import Harness

STRIP_IMAGES = 8  # images kept in a record, per strip
WARMUP_IMAGES = 2  # enough on a CPU; on CUDA a training batch is used

Metrics = list[tuple[MetricSpec, str]]  # each with the hash of its source


def measure_cell(
    cell: Cell, dataset: Dataset, key: str, metric_names: Sequence[str], plugin_files: Sequence[Path], cache: Path,
    device_info: Mapping[str, Any], afresh: bool, channel: JobChannel,
) -> dict[str, Any] | None:  # fmt: skip
    """Measure unlearned weights of the cache, and return the fields of the cell's record on that.

    Args:
        cell: what to measure.
        dataset: of the cell.
        key: of the unlearned weights.
        metric_names: of the metrics to compute.
        plugin_files: files that may hold a metric.
        cache: folder of artifacts.
        device_info: the device, as `resolve_devices` returns it.
        afresh: whether to draw samples although they are cached.
        channel: shows progress.

    Returns:
        None where the weights are missing or damaged.
    """
    inputs, metrics = _opened(cell, dataset, key, metric_names, plugin_files, cache, device_info, channel)
    if inputs is None:
        return None
    return {**_measured(replace(inputs, afresh=afresh), metrics), **account(inputs.meter)}


def attack_cell(
    cell: Cell, dataset: Dataset, key: str, attack: str, plugin_files: Sequence[Path], cache: Path,
    device_info: Mapping[str, Any], channel: JobChannel,
) -> dict[str, Any] | None:  # fmt: skip
    """Make one attack on unlearned weights; arguments and result mostly as of `measure_cell`."""
    inputs, metrics = _opened(cell, dataset, key, [attack], plugin_files, cache, device_info, channel)
    if inputs is None:
        return None
    revisions = measuring_rests_on([spec for spec, _ in metrics])
    return {"metrics": measure(inputs, metrics), "revisions": revisions, **account(inputs.meter)}


def measured_here(
    cell: Cell, model: Denoiser, dataset: Dataset, metric_names: Sequence[str], registry: Registry, harness: Harness
) -> dict[str, Any]:
    """Measure a model that cannot leave its process, attacks included; the method's meter goes on."""
    with harness.meter.phase("load"):
        metrics = _chosen(metric_names, registry)
        prepared = _prepare(dataset, metrics, harness.store, harness.device, harness.progress)
    inputs = EvaluationInputs(
        cell, model, "", dataset, prepared, harness.store, harness.device_identity, harness.meter, harness.progress
    )
    return _measured(inputs, metrics)


def _chosen(names: Sequence[str], registry: Registry) -> Metrics:
    return [(registry.metric(name), registry.source_hash("metric", name)) for name in names]


def _prepare(dataset: Dataset, metrics: Metrics, store: ArtifactStore, device: torch.device, progress: Any) -> Prepared:
    return prepare(dataset, store, device, progress, [need for spec, _ in metrics for need in spec.needs])


def _opened(
    cell: Cell, dataset: Dataset, key: str, metric_names: Sequence[str], plugin_files: Sequence[Path], cache: Path,
    device_info: Mapping[str, Any], channel: JobChannel,
) -> tuple[EvaluationInputs | None, Metrics]:  # fmt: skip
    """Return the inputs of metrics, after a warm-up, and the metrics; None without the weights."""
    device, meter = begin(device_info, channel)
    with meter.phase("load"):
        store, dataset = ArtifactStore(cache), dataset.with_base_seed(cell.base_seed)
        metrics = _chosen(metric_names, Registry(plugin_files))
        prepared = _prepare(dataset, metrics, store, device, channel)
        unlearned = store.find(UNLEARNED, key)
        if unlearned is None:
            return None, metrics
        model = weights_in(unlearned, prepared.base).build(device)
    with meter.phase("warmup"):
        warm_up(prepared, dataset, device)
    inputs = EvaluationInputs(
        cell, model, unlearned.payload_digest, dataset, prepared, store, device_info["identity"], meter, channel
    )
    return inputs, metrics


def warm_up(prepared: Prepared, dataset: Dataset, device: torch.device) -> None:
    """Sample and judge once, as first use is slower. Weights and random states stay unchanged."""
    n = dataset.base.batch if device.type == "cuda" else WARMUP_IMAGES
    images, labels = prepared.train.images[:n], torch.from_numpy(prepared.train.labels[:n])
    with global_rng_kept(device):
        sampler = {**dataset.protocol.sampler, "steps": 1}
        prepared.base.draw(labels, range(len(labels)), null_class=dataset.null_class, **sampler)
    for network in (prepared.judge, prepared.extractor):
        if network is not None:
            forward_batches(network, images, device)


def _measured(inputs: EvaluationInputs, metrics: Metrics) -> dict[str, Any]:
    """Return the fields of a record on the measurement of its model."""
    needs = [need for spec, _ in metrics for need in spec.needs]
    _draw_needed_samples(inputs, needs)
    with inputs.meter.phase("judge"):
        scores, losses = measure(inputs, metrics), losses_by_timestep(inputs)
    return {
        "metrics": scores,
        "revisions": measuring_rests_on([spec for spec, _ in metrics]),
        "timestep_loss": losses,
        "judge": inputs.prepared.test_performance,
        "artifacts": inputs.prepared.artifacts,
        "images": strips(inputs),
    }


def _draw_needed_samples(inputs: EvaluationInputs, needs: Sequence[str]) -> None:
    """Draw the samples that metrics need, outside the phase `judge`."""
    for stream in ("forget", "retain", "earlier", "paraphrase", "unrelated", "base_unrelated"):
        if any(need.startswith(f"{stream}_") for need in needs):
            with suppress(Unmeasurable):  # which its metrics say
                getattr(inputs, f"{stream}_samples")


def strips(inputs: EvaluationInputs) -> dict[str, Mapping[str, Any]]:
    """Return the first images of the (first) forget class, and of the retained class after it, as base64 PNG."""
    kept: dict[str, Mapping[str, Any]] = {}
    computed, first, k = vars(inputs), inputs.cell.forget_class, inputs.dataset.num_classes
    measured = inputs.dataset.measured(inputs.cell.target)
    companion = next(c % k for c in range(first + 1, first + k) if c % k in measured)
    if "forget_samples" in computed:
        kept["forget"] = {"class": first, "png": _png(inputs.forget_samples[:STRIP_IMAGES])}
    if "retain_samples" in computed:
        chosen = inputs.retain_samples[inputs.retain_labels == companion][:STRIP_IMAGES]
        kept["retain"] = {"class": companion, "png": _png(chosen)}
    return kept


def _png(images: NDArray[np.uint8]) -> str:
    """Return images (n, C, H, W) side by side as a base64 PNG, C being 1 or 3."""
    strip = np.concatenate(list(images), axis=2).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(strip.squeeze(2) if strip.shape[2] == 1 else strip).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
