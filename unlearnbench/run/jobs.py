"""What every job of a run needs: its device, and a meter there; and the jobs before the first cell."""

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from unlearnbench.cost.meter import Meter
from unlearnbench.datasets import Dataset
from unlearnbench.errors import UsageError
from unlearnbench.measure.prepared import prepare
from unlearnbench.models.base import prepare_base
from unlearnbench.models.checkpoints import write_checkpoint
from unlearnbench.models.denoiser import CPU, Denoiser, restored
from unlearnbench.models.flops import known_flops
from unlearnbench.protocols import JobChannel, Progress
from unlearnbench.run.devices import check_alike, named_devices
from unlearnbench.store.artifacts import ArtifactStore, software
from unlearnbench.store.provenance import available_cores, cpu_identity, device_identity


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
    dataset: Dataset, needs: Sequence[str] | None, base_seeds: Sequence[int], cache: Path,
    device_info: Mapping[str, Any], progress: Progress,
) -> None:  # fmt: skip
    """Make the missing artifacts of a dataset and of the device.

    Args:
        dataset: to prepare.
        needs: of the run's metrics, which determine the judges and the feature extractor; None without metrics, when
            base models are enough.
        base_seeds: of the base models.
        cache: folder of artifacts.
        device_info: the device that trains, as `resolve_devices` returns it.
        progress: shows how far it is.
    """
    store, device = ArtifactStore(cache), occupy(device_info)
    make_current(device)
    if needs is None:
        for seed in base_seeds:
            prepare_base(dataset.with_base_seed(seed), store, device, progress)
        return
    for seed in base_seeds:
        prepared = prepare(dataset.with_base_seed(seed), store, device, progress, needs)
    flops_of(prepared.base, store, device_info)
    for note in prepared.notes:
        warnings.warn(note, stacklevel=1)


def flops_of(denoiser: Denoiser, store: ArtifactStore, device_info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the operations of a network per image, and of the device per second, as a record has them."""
    return known_flops(denoiser, torch.device(device_info["device"]), device_info["identity"], software(), store)


def train_base(dataset: Dataset, cache: Path, device: str, out: Path, progress: Progress) -> list[tuple[int, float]]:
    """Train the base model where the cache lacks it, write it as a diffusers folder, and return its loss curve."""
    base = prepare_base(dataset, ArtifactStore(cache), torch.device(device), progress)
    write_checkpoint(out, restored(base.facts, base.tensors, CPU))
    return [(step, loss) for step, loss in base.facts.get("loss", [])]


def begin(device_info: Mapping[str, Any], channel: JobChannel) -> tuple[torch.device, Meter]:
    """Return the device, and a meter that started before this process allocated memory there."""
    device = occupy(device_info)
    beside = channel.beside if device_info["of"] > 1 else None
    meter = Meter.for_device(device, str(device_info["identity"]["uuid"]), beside)
    make_current(device)
    return device, meter


def account(meter: Meter) -> dict[str, Any]:
    """Close the meter's instruments, and return the fields of a record on a job's cost.

    `seconds_seen` is the time since the meter's start, without that of starting and ending the process.
    """
    untimed, seen = meter.untimed(), meter.elapsed()
    meter.instruments.close()
    return {
        "cost": meter.phases(),
        "outside": untimed,
        "seconds_seen": seen,
        "probes": meter.instruments.reasons(),
        "disturbances": meter.disturbances(available_cores()),
    }
