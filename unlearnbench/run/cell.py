"""One cell, in a separate process: unlearning, sampling, judging, and their costs."""

import base64
import copy
import io
import os
import statistics
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from unlearnbench.cost.meter import Meter, compiling_is_warmup
from unlearnbench.datasets import Dataset
from unlearnbench.errors import PluginError, UsageError
from unlearnbench.judges.forward import forward_batches
from unlearnbench.measure.inputs import EvaluationInputs, losses_by_timestep, measure
from unlearnbench.measure.prepared import Prepared, prepare
from unlearnbench.models.base import prepare_base
from unlearnbench.models.checkpoints import write_checkpoint
from unlearnbench.models.diffusion import Schedule, eps_loss, half_precision, to_float
from unlearnbench.models.flops import known_flops
from unlearnbench.models.networks import build_unet, frozen, is_plain
from unlearnbench.models.sampler import sample
from unlearnbench.models.training import global_rng_kept, trainable_copy
from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.spec import MethodSpec
from unlearnbench.protocols import JobChannel, Progress
from unlearnbench.run.devices import check_alike, named_devices
from unlearnbench.run.global_state import REMEDY, GlobalState
from unlearnbench.run.saving import stage
from unlearnbench.run.stale import rests_on
from unlearnbench.store.artifacts import ArtifactStore, Tensors, software
from unlearnbench.store.cell import Cell
from unlearnbench.store.hashing import digest
from unlearnbench.store.provenance import available_cores, cpu_identity, device_identity, device_key
from unlearnbench.store.revisions import of_parts
from unlearnbench.unlearn.context import Context, Rehearsal, counted
from unlearnbench.unlearn.harness import Harness
from unlearnbench.unlearn.streams import Counts

STRIP_IMAGES = 8  # images kept in a record, per strip
WARMUP_IMAGES = 2  # enough on a CPU; on CUDA a training batch is used


def resolve_device(device: str, progress: Progress | None = None) -> dict[str, Any]:
    """Return {"name", "device", "identity", "of"} of a device named `auto`, `cpu`, `cuda`, ...

    `of` is the number of devices of the run.

    Raises:
        UsageError: torch cannot use it.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"torch sees no CUDA device here, so not {device!r}: try --device cpu")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"torch cannot use the device {device!r} ({reason}): try --device cpu") from error
    chosen = torch.device(device)
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", torch.cuda.current_device())
    if chosen.type == "cpu":
        chosen = torch.device("cpu")  # cpu:0 is the same device
    return {"name": str(chosen), "device": str(chosen), "identity": device_identity(str(chosen)), "of": 1}


def resolve_devices(device: str, devices: str, progress: Progress | None = None) -> list[dict[str, Any]]:
    """Return the result of `resolve_device` for each device of a run.

    Args:
        device: as for `resolve_device`; ignored where there are several.
        devices: text of --devices; empty for a single device.
        progress: unused.

    Raises:
        UsageError: torch cannot use one, or they are not of one model.
    """
    if not devices:
        return [resolve_device(device)]
    names = named_devices(devices, torch.cuda.device_count())
    infos: list[dict[str, Any]] = [
        {"name": name, "device": "cpu", "identity": cpu_identity(cores)} if cores else resolve_device(name)
        for name, cores in names.items()
    ]
    check_alike(infos)
    return [{**each, "of": len(infos)} for each in infos]


def occupy(device_info: Mapping[str, Any]) -> torch.device:
    """Bind this process to its device (cores, if it is a set of them) before it starts a thread; return the device.

    CUDA_VISIBLE_DEVICES stays as the user set it, so that a GPU has the same number in the command, in messages and in
    plugins. Cells on several GPUs share torch's threads but are not bound to cores, since core numbers show neither
    the distance to a GPU nor hyperthreads.
    """
    device, threads = torch.device(device_info["device"]), torch.get_num_threads()
    if cores := device_info["identity"].get("cores"):
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(min(threads, len(cores)))
    elif device_info["of"] > 1:
        torch.set_num_threads(max(1, threads // device_info["of"]))
    return device


def make_current(device: torch.device) -> None:
    """Make a GPU this process's current device. This allocates memory: start the meter before."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def prepare_dataset(
    dataset: Dataset, needs: Sequence[str], base_seeds: Sequence[int], cache: Path, device_info: Mapping[str, Any],
    progress: Progress,
) -> None:  # fmt: skip
    """Make the missing artifacts of a dataset and of the device.

    Args:
        dataset: to prepare.
        needs: of the run's metrics, which determine the judges and the feature extractor.
        base_seeds: of the base models.
        cache: folder of artifacts.
        device_info: the device that trains, as `resolve_devices` returns it.
        progress: shows how far it is.
    """
    store, device = ArtifactStore(cache), occupy(device_info)
    make_current(device)
    for seed in base_seeds:
        prepared = prepare(dataset.with_base_seed(seed), store, device, progress, needs)
    _flops(prepared, dataset, store, device_info)
    for note in prepared.notes:
        warnings.warn(note, stacklevel=1)


def _flops(
    prepared: Prepared, dataset: Dataset, store: ArtifactStore, device_info: Mapping[str, Any]
) -> dict[str, Any]:
    device, shape = torch.device(device_info["device"]), dataset.image_shape
    return known_flops(prepared.unet, shape, device, device_info["identity"], software(), store)


def train_base(dataset: Dataset, cache: Path, device: str, out: Path, progress: Progress) -> list[tuple[int, float]]:
    """Train the base model where the cache lacks it, write it as a diffusers folder, and return its loss curve."""
    base = prepare_base(dataset, ArtifactStore(cache), torch.device(device), progress)
    write_checkpoint(out, frozen(build_unet(base.facts["unet"]), base.tensors, torch.device("cpu")))
    return [(step, loss) for step, loss in base.facts.get("loss", [])]


def run_cell(
    cell: Cell, dataset: Dataset, metric_names: Sequence[str], plugin_files: Sequence[Path],
    cache: Path, device_info: Mapping[str, Any], repeats: int, staged: Path | None, channel: JobChannel,
) -> dict[str, Any]:  # fmt: skip
    """Run one cell and return the measured fields of its record.

    Args:
        cell: what to run.
        dataset: of the cell.
        metric_names: of the metrics to compute.
        plugin_files: files that may hold the method or a metric.
        cache: folder of artifacts.
        device_info: the device, as `resolve_devices` returns it.
        repeats: timing repeats of unlearning.
        staged: folder to write the unlearned model to, for the process that records the cell; None for none.
        channel: shows progress.
    """
    device, meter = _begin(device_info, channel)
    with meter.phase("load"):
        before = GlobalState()
        registry = Registry(plugin_files)
        method = registry.method(cell.method)
        metrics = [(registry.metric(name), registry.source_hash("metric", name)) for name in metric_names]
        needs = [need for spec, _ in metrics for need in spec.needs]
        dataset = dataset.with_base_seed(cell.base_seed)
        prepared = prepare(dataset, ArtifactStore(cache), device, channel, needs)
        flops = _flops(prepared, dataset, ArtifactStore(cache), device_info)
        harness = Harness(
            dataset, prepared.train, prepared.base, digest(prepared.artifacts["base"]), cell.method,
            registry.source_hash("method", cell.method), method.streams, cell.seed, cell.target, device,
            ArtifactStore(cache), meter, device_info["identity"], software(), channel,
        )  # fmt: skip
    with meter.phase("warmup"):
        warm_up(prepared, dataset, device)
    harness = after_earlier(method, harness, cell)
    if device.type == "cuda":
        with meter.phase("warmup"):
            rehearse(method, harness, cell)
    context = unlearn(method, harness, cell)
    again = _time_again(method, harness, cell, repeats - 1)
    with meter.phase("load"):
        check_left_as_found(before, method)
    saved = {} if staged is None else {"model": _stage(staged, cell, context, dataset)}
    inputs = EvaluationInputs(
        cell, context.model.eval(), dataset, prepared, harness.store, device_info["identity"], meter, channel
    )
    _draw_needed_samples(inputs, needs)
    with meter.phase("judge"):
        scores, losses = measure(inputs, metrics), losses_by_timestep(inputs)
    return {
        "metrics": scores,
        "revisions": rests_on(method, [spec for spec, _ in metrics], dataset),
        "timestep_loss": losses,
        "flops": flops,
        "judge": prepared.test_performance,
        "artifacts": {**prepared.artifacts, **saved},
        "images": strips(inputs),
        **_account(harness, again),
    }


def _begin(device_info: Mapping[str, Any], channel: JobChannel) -> tuple[torch.device, Meter]:
    """Return the device, and a meter that started before this process allocated memory there."""
    device = occupy(device_info)
    beside = channel.beside if device_info["of"] > 1 else None
    meter = Meter.for_device(device, str(device_info["identity"]["uuid"]), beside)
    make_current(device)
    return device, meter


def _stage(staged: Path, cell: Cell, context: Context, dataset: Dataset) -> dict[str, str]:
    """Write the unlearned model and return its entry in the record; warn where it cannot be saved."""
    entry = stage(staged, cell, context.model, dataset.image_shape)
    if "reason" in entry:
        warnings.warn(f"{cell.id}: no model folder, because {entry['reason']}", stacklevel=1)
    return entry


def _account(harness: Harness, again: Sequence[float]) -> dict[str, Any]:
    """Return the record's fields on the method's run and its cost; `again` are the seconds of its repeats."""
    meter = harness.meter
    untimed, seen = meter.untimed(), meter.elapsed()
    meter.instruments.close()
    if again:
        forget = meter.costs["forget"]
        forget.repeats = [forget.seconds, *again]
        forget.seconds = statistics.median(forget.repeats)
    return {
        "method_source_hash": harness.source_hash,
        "cost": meter.phases(),
        "outside": untimed,
        "seconds_seen": seen,
        "priors": harness.priors,
        "probes": meter.instruments.reasons(),
        "disturbances": meter.disturbances(available_cores()),
        "counts": vars(harness.counts),
        "curves": harness.curves,
    }


def warm_up(prepared: Prepared, dataset: Dataset, device: torch.device) -> None:
    """Run training, sampling and judging once, as first use is slower. Weights and random states stay unchanged."""
    n = dataset.base.batch if device.type == "cuda" else WARMUP_IMAGES
    images, labels = prepared.train.images[:n], torch.from_numpy(prepared.train.labels[:n])
    with global_rng_kept(device):
        model, schedule = trainable_copy(prepared.base), Schedule.linear(device=device)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=True)
        x0, y = to_float(torch.from_numpy(images)).to(device), labels.to(device)
        eps_loss(model, schedule, x0, y, torch.zeros_like(y), torch.zeros_like(x0)).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        sampler = {**dataset.protocol.sampler, "steps": 1}
        sample(model, schedule, labels, range(n), dataset.image_shape, null_class=dataset.null_class, **sampler)
    for network in (prepared.judge, prepared.extractor):
        if network is not None:
            forward_batches(network, images, device)


def rehearse(method: MethodSpec, harness: Harness, cell: Cell) -> None:
    """Run the method's first step and discard it, so that kernels for its shapes are selected and loaded.

    Its priors are built meanwhile, in phase `prior`, and stay.
    """
    quiet = replace(harness, counts=Counts(), curves={}, priors={})
    with global_rng_kept(harness.device), _one_cells_affair(method), _precision(harness):
        context = Rehearsal(quiet)
        with counted(quiet, context):  # a prior's counts are kept with it
            context.run(method.function, cell.settings)


def _precision(harness: Harness) -> AbstractContextManager[Any]:
    """Return the precision context of a run's methods; weights stay in fp32."""
    return half_precision(harness.device, harness.dataset.precision == "bf16")


@contextmanager
def _one_cells_affair(method: MethodSpec) -> Iterator[None]:
    """Turn a method's UsageError, which would end the run, into a PluginError."""
    try:
        yield
    except UsageError as error:
        raise PluginError(f"{method.name} raised {error!r}") from error


def unlearn(method: MethodSpec, harness: Harness, cell: Cell, make: Callable[[Harness], Context] = Context) -> Context:
    """Run the method in phase `forget`, its compilation in `warmup`, and return its context, which `make` creates."""
    context, meter = make(harness), harness.meter
    with (
        counted(harness, context), compiling_is_warmup(meter), meter.phase("forget"), _one_cells_affair(method),
        _precision(harness),
    ):  # fmt: skip
        method.function(context, **cell.settings)
    context.check_finite()
    context.model.requires_grad_(False)
    return context


def check_left_as_found(before: GlobalState, method: MethodSpec) -> None:
    """Restore global state that a method may change in the process that evaluates it.

    Raises:
        PluginError: it changed other global state.
    """
    if complaint := before.complaint():
        raise PluginError(f"{method.name} or its file changes what its own evaluation uses, {complaint}: {REMEDY}")
    before.restore()


def after_earlier(method: MethodSpec, harness: Harness, cell: Cell) -> Harness:
    """Return the harness with the model of the sequence's earlier steps as base; cached, not timed.

    Raises:
        PluginError: the method replaced the network, so that its weights are not enough.
    """
    for step in cell.target.steps[:-1]:
        quiet = replace(harness, target=step, meter=harness.meter.fresh(), counts=Counts(), curves={}, priors={})

        def forget(quiet: Harness = quiet) -> tuple[Tensors, Mapping[str, Any]]:
            model = unlearn(method, quiet, cell).model
            weights = model.state_dict()
            if not is_plain(model) or weights.keys() != quiet.base.state_dict().keys():
                raise PluginError(f"{cell.method} changes the network itself, so a sequence cannot continue from it")
            return {name: tensor.contiguous() for name, tensor in weights.items()}, {}

        with harness.meter.phase("earlier"), global_rng_kept(harness.device):
            earlier_model = harness.store.get("unlearned", {
                "base": harness.base_digest, "method": cell.method, "source": harness.source_hash,
                "settings": dict(cell.settings), "target": step, "seed": cell.seed, "dataset": harness.dataset.name,
                "content": harness.dataset.content,
                "sampler": harness.dataset.protocol.sampler, "device": device_key(harness.device_identity),
                "software": dict(harness.software), "harness": of_parts(("unlearning", "sampler")),
            }, forget)  # fmt: skip
        base = frozen(copy.deepcopy(harness.base), earlier_model.tensors, harness.device)
        base._forward_hooks.clear()
        harness = replace(harness, base=base, base_digest=earlier_model.payload_digest, target=cell.target)
    return harness


def _time_again(method: MethodSpec, harness: Harness, cell: Cell, times: int) -> list[float]:
    """Return the seconds of repeated unlearning from the start, with its priors cached."""
    seconds = []
    for _ in range(times):
        with harness.meter.phase("repeat"):
            meter = harness.meter.fresh()
            unlearn(method, replace(harness, meter=meter, counts=Counts(), curves={}, priors={}), cell)
            seconds.append(meter.costs["forget"].seconds)
    return seconds


def _draw_needed_samples(inputs: EvaluationInputs, needs: Sequence[str]) -> None:
    """Draw the samples that metrics need, outside the phase `judge`."""
    for stream in ("forget", "retain", "earlier"):
        if any(need.startswith(f"{stream}_") for need in needs):
            getattr(inputs, f"{stream}_samples")


def strips(inputs: EvaluationInputs) -> dict[str, Mapping[str, Any]]:
    """Return the first images of the (first) forget class, and of the retained class after it, as base64 PNG."""
    kept: dict[str, Mapping[str, Any]] = {}
    computed, first, k = vars(inputs), inputs.cell.forget_class, inputs.dataset.num_classes
    companion = next(c % k for c in range(first + 1, first + k) if c % k not in inputs.cell.target.gone)
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
