"""The first job of a cell: a method unlearns, and leaves weights in the cache, with their cost.

A process in which no method was imported measures them (`measuring`). Only a model that weights do not stand for, with
a guide, hooks or a forward of its own, is measured in the method's process.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unlearnbench.cost.meter import compiling_is_warmup
from unlearnbench.datasets import Dataset, local_digest
from unlearnbench.errors import PluginError, UsageError, spell_error
from unlearnbench.models.base import base_artifact, base_reference, image_digests
from unlearnbench.models.checkpoints import read_checkpoint
from unlearnbench.models.denoiser import KINDS, Denoiser, described, restored
from unlearnbench.models.diffusion import eps_loss, half_precision
from unlearnbench.models.kept import Kept, keep
from unlearnbench.models.training import global_rng_kept, trainable_copy
from unlearnbench.models.weights import NotInWeights, Weights, weights_in, weights_of
from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.spec import MethodSpec
from unlearnbench.protocols import JobChannel
from unlearnbench.run.global_state import REMEDY, GlobalState
from unlearnbench.run.jobs import account, begin, flops_of
from unlearnbench.run.measuring import measured_here
from unlearnbench.run.saving import stage
from unlearnbench.run.stale import unlearning_rests_on
from unlearnbench.store.artifacts import Artifact, ArtifactStore, key_of, software
from unlearnbench.store.cell import UNLEARNED, Cell
from unlearnbench.store.hashing import digest
from unlearnbench.store.provenance import device_key
from unlearnbench.store.revisions import of_parts
from unlearnbench.unlearn.context import Context, Rehearsal, counted
from unlearnbench.unlearn.guides import unlearned_model
from unlearnbench.unlearn.harness import Harness
from unlearnbench.unlearn.streams import Counts

WARMUP_IMAGES = 2  # enough on a CPU; on CUDA a training batch is used


def unlearn_cell(
    cell: Cell, dataset: Dataset, metric_names: Sequence[str], plugin_files: Sequence[Path], cache: Path,
    device_info: Mapping[str, Any], repeats: int, afresh: bool, staged: Path | None, channel: JobChannel,
) -> dict[str, Any]:  # fmt: skip
    """Unlearn, unless the cache has the weights, and return their fields of the record.

    Args:
        cell: what to unlearn.
        dataset: of the cell.
        metric_names: of the metrics to compute here, if the weights do not stand for the model.
        plugin_files: files that may hold the method.
        cache: folder of artifacts.
        device_info: the device, as `resolve_devices` returns it.
        repeats: timing repeats of unlearning.
        afresh: whether to unlearn although the cache has the weights.
        staged: folder to write the unlearned model to, for the process that records the cell; None for none.
        channel: shows progress.

    Returns:
        The facts of the artifact, with its reference as `artifacts.unlearned`; `made_by`, the cell that unlearned;
        `complete` where the fields are those of the whole cell, measured here.
    """
    harness, registry = _opened(cell, dataset, plugin_files, cache, device_info, channel)
    dataset, base, meter, store = harness.dataset, harness.base, harness.meter, harness.store
    with meter.phase("load"):
        found = None if afresh else find_unlearned(harness, cell.settings, repeats)
    if found is not None:
        return _fields(found, staged, harness)
    with meter.phase("load"):
        before = GlobalState()
        method = registry.method(cell.method)
        flops = flops_of(base, store, device_info)
    harness = replace(harness, streams=method.streams)
    context, again = make_unlearned(method, harness, cell, repeats)
    facts = {
        "flops": flops, "made_by": cell.id, "made_utc": _now(), "method_source_hash": harness.source_hash,
        "revisions": unlearning_rests_on(method.role, dataset, sampled=harness.counts.sampled_images > 0),
    }  # fmt: skip
    try:
        with meter.phase("load"):
            weights = weights_of(context.model, base, cell.forget_class, dataset.null_class)
    except NotInWeights as reason:
        check_left_as_found(before, method)
        fields = measured_here(cell, context.model.eval(), dataset, metric_names, registry, harness)
        fields["artifacts"] |= _without_weights(cell, str(reason), staged)
        facts["revisions"] |= fields["revisions"]
        return {**fields, **facts, **_account(harness, again), "complete": True}
    except Exception:
        check_left_as_found(before, method)  # more likely the reason
        raise
    made = keep_unlearned(harness, cell.settings, weights, {**facts, **_account(harness, again)})
    return _fields(made, staged, harness)


def make_shared_priors(
    cell: Cell, dataset: Dataset, plugin_files: Sequence[Path], cache: Path, device_info: Mapping[str, Any],
    channel: JobChannel,
) -> None:  # fmt: skip
    """Take a method's first step and discard it: the priors that it asks for are in the cache then.

    Args:
        cell: of the method.
        dataset: of the cell.
        plugin_files: files that may hold the method.
        cache: folder of artifacts.
        device_info: the device, as `resolve_devices` returns it.
        channel: shows progress.
    """
    harness, registry = _opened(cell, dataset, plugin_files, cache, device_info, channel)
    method = registry.method(cell.method)
    with harness.meter.phase("warmup"):
        rehearse(method, replace(harness, streams=method.streams), cell)


def _opened(
    cell: Cell, dataset: Dataset, plugin_files: Sequence[Path], cache: Path, device_info: Mapping[str, Any],
    channel: JobChannel,
) -> tuple[Harness, Registry]:  # fmt: skip
    """Return the harness of a cell, with the base model on its device, and the plugins, loaded in phase `load`."""
    device, meter = begin(device_info, channel)
    store = ArtifactStore(cache)
    with meter.phase("load"):
        registry = Registry(plugin_files)
        dataset = dataset.with_base_seed(cell.base_seed)
        kept, base, reference = _load_base(dataset, store, device, channel)
        harness = Harness(
            dataset, kept, base, digest(reference), cell.method, registry.source_hash("method", cell.method),
            frozenset(), cell.seed, cell.target, device, store, meter, device_info["identity"], software(), channel,
        )  # fmt: skip
    return harness, registry


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _without_weights(cell: Cell, reason: str, staged: Path | None) -> dict[str, dict[str, str]]:
    """Return the record's entries on a model that weights do not stand for; warn where it was to be saved."""
    if staged is None:
        return {UNLEARNED: {"reason": reason}}
    warnings.warn(f"{cell.id}: no model folder, because {reason}", stacklevel=1)
    return {UNLEARNED: {"reason": reason}, "model": {"reason": reason}}


def adopt_model(
    cell: Cell, dataset: Dataset, folder: Path, cache: Path, device_info: Mapping[str, Any], channel: JobChannel
) -> dict[str, Any]:
    """Keep a given model in the cache as if it were unlearned here, without a cost; return its fields of the record.

    Args:
        cell: of the model's row.
        dataset: that the model must fit.
        folder: of the model, in diffusers' format.
        cache: folder of artifacts.
        device_info: the device, as `resolve_devices` returns it.
        channel: shows progress.

    Raises:
        UsageError: it cannot be read, or does not fit.
    """
    _, meter = begin(device_info, channel)
    with meter.phase("load"):
        given = read_checkpoint(str(folder), dataset, option="")
    facts = {
        "made_by": cell.id,
        "made_utc": _now(),
        "codec": given.codec.identity,
        **described(given),
        **account(meter),
    }
    inputs = {"given": local_digest(folder), "conditions": dataset.conditions.to_json()}
    kept = ArtifactStore(cache).put(UNLEARNED, inputs, given.tensors(), facts, facts["seconds_seen"])
    return unlearned_fields(kept)


def unlearned_fields(found: Artifact) -> dict[str, Any]:
    """Return the fields of a record on unlearned weights."""
    facts: dict[str, Any] = {name: value for name, value in found.facts.items() if name not in (*KINDS, "codec")}
    artifacts = {UNLEARNED: {**found.reference, "made_utc": facts["made_utc"]}}
    return {**facts, "artifacts": artifacts, "fresh": not found.reused}


def _fields(found: Artifact, staged: Path | None, harness: Harness) -> dict[str, Any]:
    """Return the fields of a record on unlearned weights, and stage their model, if a folder is given."""
    fields = unlearned_fields(found)
    if staged is not None:
        weights, label = weights_in(found, harness.base), harness.target.classes[0]
        fields["artifacts"]["model"] = stage(staged, weights, harness.dataset, label)
    return fields


def _load_base(
    dataset: Dataset, store: ArtifactStore, device: torch.device, channel: JobChannel
) -> tuple[Kept, Denoiser, dict[str, Any]]:
    """Return the training images, the base model on the device, and its reference."""
    images = dataset.load(store, channel)
    source = image_digests(images)["train"]
    made = base_artifact(dataset, images.train, source, store, device, channel)
    base = restored(made.facts, made.tensors, device)
    return keep(dataset, images.train, source, base.codec, store, device, channel), base, base_reference(dataset, made)


def _key(harness: Harness, settings: Mapping[str, Any], *, sampled: bool) -> dict[str, Any]:
    """Return everything that unlearned weights depend on: the sampler where the method draws samples with it."""
    dataset = harness.dataset
    parts = of_parts(("unlearning", "sampler")) if sampled else of_parts(("unlearning",))
    computing = {"precision": dataset.precision, "compiled": dataset.compiled}
    return {
        "base": harness.base_digest, "method": harness.method, "source": harness.source_hash,
        "settings": dict(settings), "target": harness.target, "seed": harness.seed, "dataset": dataset.name,
        "content": dataset.content, "device": device_key(harness.device_identity),  # their cost is charged again
        "software": dict(harness.software), "harness": parts, **computing,
        **({"sampler": dataset.protocol.sampler} if sampled else {}),
    }  # fmt: skip


def find_unlearned(harness: Harness, settings: Mapping[str, Any], repeats: int) -> Artifact | None:
    """Return the unlearned weights in the cache, if they were timed often enough; 0 if they need not be timed."""
    for sampled in (False, True):
        found = harness.store.find(UNLEARNED, key_of(UNLEARNED, _key(harness, settings, sampled=sampled)))
        if found is not None and _timed(found) >= repeats:
            return found
    return None


def _timed(found: Artifact) -> int:
    """Return how often unlearning was timed; those of a sequence's earlier steps may not be."""
    cost = found.facts.get("cost", {}).get("forget")
    return 0 if cost is None else len(cost.get("repeats", ())) or 1


def keep_unlearned(
    harness: Harness, settings: Mapping[str, Any], weights: Weights, facts: Mapping[str, Any]
) -> Artifact:
    """Keep unlearned weights in the cache, as far as they differ from those of the base."""
    key = _key(harness, settings, sampled=harness.counts.sampled_images > 0)
    try:
        return harness.store.put(UNLEARNED, key, weights.changed, {**facts, **weights.facts}, harness.meter.elapsed())
    except (ValueError, TypeError, RecursionError, OverflowError) as error:  # from a plugin's invalid value
        raise PluginError(f"its results cannot be recorded: {spell_error(error)}") from error


def make_unlearned(method: MethodSpec, harness: Harness, cell: Cell, repeats: int) -> tuple[Context, list[float]]:
    """Run the method, after a warm-up, and return its context and the seconds of its repeats."""
    with harness.meter.phase("warmup"):
        warm_up(harness.base, harness.kept, harness.dataset)
    harness = after_earlier(method, harness, cell)
    if harness.device.type == "cuda":
        with harness.meter.phase("warmup"):
            rehearse(method, harness, cell)
    context = unlearn(method, harness, cell)
    return context, _time_again(method, harness, cell, repeats - 1)


def _account(harness: Harness, again: Sequence[float]) -> dict[str, Any]:
    """Return the record's fields on the method's run and its cost; `again` are the seconds of its repeats."""
    if again:
        forget = harness.meter.costs["forget"]
        forget.repeats = [forget.seconds, *again]
        forget.seconds = statistics.median(forget.repeats)
    run = {"priors": harness.priors, "counts": vars(harness.counts), "curves": harness.curves}
    return {**account(harness.meter), **run}


def warm_up(base: Denoiser, kept: Kept, dataset: Dataset) -> None:
    """Take a training step, as first use is slower. Weights and random states stay unchanged."""
    device = base.device
    n = min(dataset.base.batch if device.type == "cuda" else WARMUP_IMAGES, len(kept.labels))
    with global_rng_kept(device):
        model = trainable_copy(base)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.0, fused=True)
        x0, y = kept.x0(torch.arange(n)).to(device), kept.labels[:n].to(device)
        eps_loss(model, base.schedule, x0, y, torch.zeros_like(y), torch.zeros_like(x0)).mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()


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
        returned = method.function(context, **cell.settings)
    context.check_finite()
    context.model = unlearned_model(method, context, returned)
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
    """Return the harness with the model of the sequence's earlier steps as base.

    Each is the unlearned model of the step's own cell, from the cache or made here, outside the clock of this cell; of
    a method of kind inference, it is guided by all of them.

    Raises:
        PluginError: the method replaced the network, so that its weights are not enough.
    """
    origin = harness
    for step in cell.target.steps[:-1]:
        with harness.meter.phase("earlier"), global_rng_kept(harness.device):
            quiet = replace(harness, target=step, meter=harness.meter.fresh(), counts=Counts(), curves={}, priors={})
            if method.inference:  # its guides follow each other
                base = unlearn(method, quiet, cell).model
                identity = digest([harness.base_digest, step, cell.settings])
            else:
                earlier = _earlier(method, quiet, replace(origin, target=step, counts=quiet.counts), cell)
                base, identity = weights_in(earlier, origin.base).build(harness.device), digest(earlier.reference)
        harness = replace(harness, base=base, base_digest=identity, target=cell.target)
    return harness


def _earlier(method: MethodSpec, quiet: Harness, keyed: Harness, cell: Cell) -> Artifact:
    """Return the unlearned model of an earlier step.

    Args:
        method: of the sequence.
        quiet: the harness of the step, with the model of the step before as base, and nothing charged.
        keyed: the same with the base model of the whole sequence, as in the key of the step's own cell.
        cell: the last of the sequence.
    """
    if (found := find_unlearned(keyed, cell.settings, repeats=0)) is not None:
        return found
    model = unlearn(method, quiet, cell).model
    try:
        weights = weights_of(model, keyed.base, keyed.target.classes[0], quiet.dataset.null_class)
        if weights.facts != described(keyed.base):
            raise NotInWeights("it has other weights than the base")
    except NotInWeights as error:
        raise PluginError(f"{cell.method} changes the network itself, so a sequence cannot continue from it") from error
    return keep_unlearned(keyed, cell.settings, weights, {})


def _time_again(method: MethodSpec, harness: Harness, cell: Cell, times: int) -> list[float]:
    """Return the seconds of repeated unlearning from the start, with its priors cached."""
    seconds = []
    for _ in range(times):
        with harness.meter.phase("repeat"):
            meter = harness.meter.fresh()
            unlearn(method, replace(harness, meter=meter, counts=Counts(), curves={}, priors={}), cell)
            seconds.append(meter.costs["forget"].seconds)
    return seconds
