"""Where a number comes from: versions, commit, device. Free of torch, except to describe a CUDA device."""

import hashlib
import importlib.metadata
import os
import platform
import socket
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = (
    "unlearnbench", "torch", "torchvision", "diffusers", "torch-fidelity", "numpy", "scipy", "scikit-learn",
    "safetensors",
)  # fmt: skip


def software_provenance() -> dict[str, Any]:
    """Return Python, package versions, platform, and the git commit of the suite's checkout (null outside one)."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "git": _git_state(Path(__file__).resolve().parent.parent),
    }


def _git_state(folder: Path) -> dict[str, Any] | None:
    """Return {"commit", "dirty"} when the suite runs from its own checkout, None when it is installed."""
    if not (folder / ".git").exists():
        return None

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        code = ["--", "unlearnbench", "methods", "metrics", "pyproject.toml"]
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", *code))}
    except (OSError, subprocess.SubprocessError):
        return None


def allowed_cores() -> list[int]:
    """Return the numbers of the CPU cores that this process may use, in order."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def available_cores() -> int:
    """Return how many CPU cores this process may use."""
    return len(allowed_cores())


def cpu_identity() -> dict[str, Any]:
    """Return the CPU's name, cores, and a hash that tells this machine from others (a CPU has no UUID)."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        models = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    cores = available_cores()
    machine_id = Path("/etc/machine-id")
    identity = machine_id.read_text().strip() if machine_id.is_file() else ""
    parts = "|".join([identity or socket.gethostname(), name, str(cores)])
    return {"type": "cpu", "name": f"{name}, {cores} cores", "uuid": hashlib.sha256(parts.encode()).hexdigest()[:16]}


def device_identity(device: str) -> dict[str, Any]:
    """Return type, name and UUID of a torch device, and its driver where it has one.

    Args:
        device: `cpu`, `cuda:0`, or another device torch can use.
    """
    if device == "cpu":
        return cpu_identity()
    import torch

    if not device.startswith("cuda"):
        identity = cpu_identity()
        return {**identity, "type": device, "uuid": f"{device}-{identity['uuid']}"}
    import pynvml

    properties = torch.cuda.get_device_properties(torch.device(device))
    driver = None
    try:
        pynvml.nvmlInit()
        driver = str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        driver = "unknown (NVML does not answer)"
    return {
        "type": "cuda",
        "name": properties.name,
        "uuid": str(properties.uuid),
        "driver": driver,
        "cuda": str(torch.version.cuda),
        "memory_bytes": int(properties.total_memory),
    }
