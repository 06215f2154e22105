"""One cell, in a process of its own: unlearn, sample, judge, and say what it took."""

import base64
import io
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import BaseFileLock, FileLock, Timeout
from numpy.typing import NDArray
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_post_hook

from unlearnbench.artifacts import ArtifactStore
from unlearnbench.checkpoints import write_checkpoint
from unlearnbench.context import Context, Harness
from unlearnbench.cost import Meter
from unlearnbench.datasets import Dataset
from unlearnbench.errors import PluginError, UsageError
from unlearnbench.evaluation import Evidence, losses_by_timestep, measure
from unlearnbench.grid import Cell
from unlearnbench.hashing import digest
from unlearnbench.networks import build_unet
from unlearnbench.plugin import MethodSpec, MetricSpec
from unlearnbench.preparation import Prepared, frozen, prepare, prepare_base, software
from unlearnbench.process import Progress
from unlearnbench.provenance import device_identity
from unlearnbench.registry import Registry

STRIP_IMAGES = 8  # images kept in a record, per strip
PHASES = ("prior", "forget", "sample", "judge")


def identify(device: str, progress: Progress) -> dict[str, Any]:
    """Return {"device", "identity"} of the device that `auto`, `cpu`, `cuda`, ... stands for here.

    Raises:
        UsageError: torch cannot use it.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"torch cannot use the device {device!r} ({reason}): try --device cpu") from error
    chosen = torch.device(device)
    if chosen.type == "cuda" and chosen.index is None:
        chosen = torch.device("cuda", torch.cuda.current_device())
    if chosen.type == "cpu":
        chosen = torch.device("cpu")  # cpu:0 is no other device
    return {"device": str(chosen), "identity": device_identity(str(chosen))}


def prepare_dataset(dataset: Dataset, needs: Sequence[str], cache: Path, device: str, progress: Progress) -> None:
    """Train what belongs to a dataset where the cache lacks it.

    Args:
        dataset: is prepared.
        needs: of the metrics to come; they say whether the feature extractor is wanted.
        cache: folder of artifacts.
        device: trains.
        progress: shows how far it is.
    """
    with exclusive(device, progress):
        prepared = _prepare(dataset, needs, ArtifactStore(cache), device, progress)
    for note in prepared.notes:
        warnings.warn(note, stacklevel=1)


def _prepare(dataset: Dataset, needs: Sequence[str], store: ArtifactStore, device: str, progress: Progress) -> Prepared:
    features = any(need.endswith("_features") for need in needs)
    return prepare(dataset, store, torch.device(device), progress, features=features)


def train_base(dataset: Dataset, cache: Path, device: str, out: Path, progress: Progress) -> list[tuple[int, float]]:
    """Train the base model where the cache lacks it, write it as a diffusers folder, and return its loss curve."""
    with exclusive(device, progress):
        base = prepare_base(dataset, ArtifactStore(cache), torch.device(device), progress)
        write_checkpoint(out, frozen(build_unet(base.facts["unet"]), base.tensors, torch.device("cpu")))
    return [(step, loss) for step, loss in base.facts.get("loss", [])]


def run_cell(
    cell: Cell,
    dataset: Dataset,
    metric_names: Sequence[str],
    plugin_files: Sequence[Path],
    cache: Path,
    device_name: str,
    progress: Progress,
) -> dict[str, Any]:
    """Run one cell and return the measured fields of its record."""
    registry, device = Registry(plugin_files), torch.device(device_name)
    method = registry.method(cell.method)
    metrics = [(registry.metric(name), registry.source_hash("metric", name)) for name in metric_names]
    with exclusive(device_name, progress):
        store, needs = ArtifactStore(cache), [need for spec, _ in metrics for need in spec.needs]
        prepared = _prepare(dataset, needs, store, device_name, progress)
        meter, identity = Meter.for_device(device), device_identity(device_name)
        harness = Harness(
            dataset, prepared.train, prepared.base, digest(prepared.artifacts["base"]), cell.method,
            registry.source_hash("method", cell.method), method.streams, cell.seed, cell.forget_class, device, store,
            meter, identity, software(), progress,
        )  # fmt: skip
        context = Context(harness)
        with counted(harness, context), meter.phase("forget"):
            unlearn(method, context, cell)
        context.check_finite()
        context.model.requires_grad_(False)
        evidence = Evidence(cell, context.model.eval(), dataset, prepared, store, identity, meter, progress)
        _draw_needed_samples(evidence, [spec for spec, _ in metrics])
        with meter.phase("judge"):
            scores = measure(evidence, metrics)
            losses = losses_by_timestep(evidence)
    return {
        "method_source_hash": harness.source_hash,
        "metrics": scores,
        "cost": {p: meter.costs[p].to_json() for p in PHASES if p in meter.costs},
        "counts": vars(harness.counts),
        "curves": harness.curves,
        "timestep_loss": losses,
        "judge": {"test_accuracy": prepared.judge_accuracy, "n": prepared.judge_n},
        "artifacts": prepared.artifacts,
        "images": strips(evidence),
    }


def unlearn(method: MethodSpec, context: Context, cell: Cell) -> None:
    """Run the method; a UsageError of its own would end the run, and this is one cell's affair."""
    try:
        method.function(context, **cell.settings)
    except UsageError as error:
        raise PluginError(f"{method.name} raised {error!r}") from error


def _draw_needed_samples(evidence: Evidence, metrics: list[MetricSpec]) -> None:
    """Sample what the metrics will ask for, outside the judge's clock."""
    for stream in ("forget", "retain"):
        if any(need.startswith(f"{stream}_") for spec in metrics for need in spec.needs):
            getattr(evidence, f"{stream}_samples")


@contextmanager
def exclusive(device: str, progress: Progress) -> Iterator[None]:
    """Hold a device: no two timed phases, of any run of any user on this machine, overlap on it."""
    name = "cpu" if device == "cpu" else "{type}-{uuid}".format(**device_identity(device))
    try:
        common = Path("/tmp")  # TMPDIR may be a user's own
        folder = (common if os.access(common, os.W_OK) else Path(tempfile.gettempdir())) / "unlearnbench-locks"
        if not folder.exists():
            folder.mkdir(exist_ok=True)
            folder.chmod(0o1777)  # like the folder it lies in: every user's runs meet here
        lock = FileLock(folder / f"{name}.lock", mode=0o666)
        while not _acquired(lock):
            progress("wait for the device, which another run holds", 0, 0)
    except OSError as error:
        raise UsageError(f"the device cannot be locked ({error}): set TMPDIR to a folder you can write") from error
    try:
        yield
    finally:
        lock.release()


def _acquired(lock: BaseFileLock) -> bool:
    """Try for a second to take a lock."""
    try:
        lock.acquire(timeout=1)
    except Timeout:
        return False
    return True


@contextmanager
def counted(harness: Harness, context: Context) -> Iterator[None]:
    """Count the steps of every torch optimiser and the images through both models, while the method runs."""

    def count(*_: Any) -> None:
        harness.counts.optimizer_steps += 1

    handles = [register_optimizer_step_post_hook(count), harness.counts.watch(harness.base), context.watching]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def strips(evidence: Evidence) -> dict[str, Mapping[str, Any]]:
    """Return the first images of the forget class, and of the class after it, as base64 PNG strips."""
    found: dict[str, Mapping[str, Any]] = {}
    computed, companion = vars(evidence), (evidence.cell.forget_class + 1) % evidence.dataset.num_classes
    if "forget_samples" in computed:
        found["forget"] = {"class": evidence.cell.forget_class, "png": _png(evidence.forget_samples[:STRIP_IMAGES])}
    if "retain_samples" in computed:
        chosen = evidence.retain_samples[evidence.retain_labels == companion][:STRIP_IMAGES]
        found["retain"] = {"class": companion, "png": _png(chosen)}
    return found


def _png(images: NDArray[np.uint8]) -> str:
    """Return images (n, C, H, W) side by side as a base64 PNG, C being 1 or 3."""
    strip = np.concatenate(list(images), axis=2).transpose(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(strip.squeeze(2) if strip.shape[2] == 1 else strip).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
