"""Provenance of numbers: versions, commit, device. Free of torch, except to describe a CUDA device."""

import hashlib
import importlib.metadata
import os
import platform
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearnbench.errors import one_line
from unlearnbench.store.records import device_model

PACKAGES = (
    "unlearnbench", "torch", "torchvision", "diffusers", "torch-fidelity", "numpy", "scipy", "scikit-learn",
    "safetensors",
)  # fmt: skip
# names of ARM's implementers and parts, as in util-linux's lscpu-arm.c
ARM_IMPLEMENTERS = {
    "0x41": "ARM", "0x42": "Broadcom", "0x43": "Cavium", "0x46": "Fujitsu", "0x48": "HiSilicon", "0x4e": "NVIDIA",
    "0x50": "APM", "0x51": "Qualcomm", "0x53": "Samsung", "0x56": "Marvell", "0x61": "Apple", "0x69": "Intel",
    "0x6d": "Microsoft", "0x70": "Phytium", "0xc0": "Ampere",
}  # fmt: skip
ARM_PARTS = {
    ("0x41", "0xc07"): "Cortex-A7", ("0x41", "0xc0f"): "Cortex-A15", ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd04"): "Cortex-A35", ("0x41", "0xd05"): "Cortex-A55", ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72", ("0x41", "0xd09"): "Cortex-A73", ("0x41", "0xd0a"): "Cortex-A75",
    ("0x41", "0xd0b"): "Cortex-A76", ("0x41", "0xd0c"): "Neoverse-N1", ("0x41", "0xd0d"): "Cortex-A77",
    ("0x41", "0xd40"): "Neoverse-V1", ("0x41", "0xd41"): "Cortex-A78", ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd44"): "Cortex-X1", ("0x41", "0xd46"): "Cortex-A510", ("0x41", "0xd47"): "Cortex-A710",
    ("0x41", "0xd48"): "Cortex-X2", ("0x41", "0xd49"): "Neoverse-N2", ("0x41", "0xd4a"): "Neoverse-E1",
    ("0x41", "0xd4b"): "Cortex-A78C", ("0x41", "0xd4d"): "Cortex-A715", ("0x41", "0xd4e"): "Cortex-X3",
    ("0x41", "0xd4f"): "Neoverse-V2", ("0x41", "0xd81"): "Cortex-A720", ("0x41", "0xd84"): "Neoverse-V3",
    ("0x41", "0xd8e"): "Neoverse-N3", ("0x43", "0x0a1"): "ThunderX-88XX", ("0x43", "0x0af"): "ThunderX2-99XX",
    ("0x46", "0x001"): "A64FX", ("0x48", "0xd01"): "TaiShan-v110", ("0x4e", "0x004"): "Carmel",
    ("0x61", "0x022"): "Icestorm-M1", ("0x61", "0x023"): "Firestorm-M1", ("0x61", "0x024"): "Icestorm-M1-Pro",
    ("0x61", "0x025"): "Firestorm-M1-Pro", ("0x61", "0x028"): "Icestorm-M1-Max", ("0x61", "0x029"): "Firestorm-M1-Max",
    ("0x61", "0x032"): "Blizzard-M2", ("0x61", "0x033"): "Avalanche-M2", ("0xc0", "0xac3"): "Ampere-1",
    ("0xc0", "0xac4"): "Ampere-1a",
}  # fmt: skip


def software_provenance() -> dict[str, Any]:
    """Return Python, package versions, platform, and the git commit of the package's checkout (null if installed)."""
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": versions,
        "git": _git_state(Path(__file__).resolve().parents[2]),
    }


def _git_state(folder: Path) -> dict[str, Any] | None:
    """Return {"commit", "dirty"} when the package runs from its checkout, None when it is installed."""
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
    """Return the number of CPU cores that this process may use."""
    return len(allowed_cores())


def cpu_identity(cores: Sequence[int] | None = None) -> dict[str, Any]:
    """Return the CPU's name, cores, and a hash that identifies the machine (a CPU has no UUID).

    Args:
        cores: the set of cores of this device, recorded by number; None for all cores that this process may use.
    """
    blocks, chosen = _cpuinfo(), allowed_cores() if cores is None else cores
    name, count = _cpu_name(blocks, chosen), len(chosen)
    parts = "|".join([_text(Path("/etc/machine-id")).strip() or socket.gethostname(), name, str(count)])
    uuid = hashlib.sha256(parts.encode("utf-8", "replace")).hexdigest()[:16]
    identity: dict[str, Any] = {"type": "cpu", "name": f"{name}, {count} cores", "uuid": uuid}
    if cores is not None:
        identity["cores"] = list(cores)
    first = blocks[0] if blocks else {}
    if marks := [f"{mark} {first[mark]}" for mark in ("vendor_id", "cpu family", "model", "stepping") if mark in first]:
        identity["processor"] = ", ".join(marks)  # distinguishes processors with the same marketing name
    return identity


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8", "replace")
    except OSError:
        return ""  # another system, or no permission


def _cpuinfo() -> list[dict[str, str]]:
    """Return the facts of /proc/cpuinfo, one block per core and one for all; empty except on Linux."""
    blocks = []
    for block in re.split(r"\n\s*\n", _text(Path("/proc/cpuinfo"))):
        pairs = [line.split(":", 1) for line in block.splitlines() if ":" in line]
        if facts := {key.strip(): value.strip() for key, value in pairs}:
            blocks.append(facts)
    return blocks


def _cpu_name(blocks: Sequence[Mapping[str, str]], cores: Sequence[int]) -> str:
    """Return the name of a processor's cores, from the fields of its architecture."""
    numbers = {str(core) for core in cores}
    ours = [block for block in blocks if block.get("processor") in numbers] or blocks
    if kinds := dict.fromkeys(_arm_name(block) for block in ours if "CPU part" in block):
        return " + ".join(kinds)  # cores of several kinds
    facts = {key.lower(): value for block in reversed(ours) for key, value in block.items()}
    for key in ("model name", "cpu model", "cpu"):  # x86 and LoongArch, MIPS, POWER
        if facts.get(key):
            return facts[key].removesuffix(", altivec supported")
    if facts.get("vendor_id") == "IBM/S390":
        machine = re.search(r"machine = (\w+)", " ".join(f"{value}," for value in facts.values()))
        return f"IBM/S390 machine {machine[1]}" if machine else "IBM/S390"
    if "isa" in facts:  # RISC-V
        marks = [facts[key] for key in ("uarch", "mvendorid", "marchid", "mimpid") if key in facts]
        return " ".join(["RISC-V", *marks, facts["isa"].split("_")[0]])
    return _sysctl_name() or platform.processor() or platform.machine()


def _arm_name(facts: Mapping[str, str]) -> str:
    """Return a core's implementer and part, in words where they are known: `ARM Neoverse-N1 (0x41/0xd0c)`."""
    codes = facts.get("CPU implementer", "?").lower(), facts["CPU part"].lower()
    words = [ARM_IMPLEMENTERS.get(codes[0], ""), ARM_PARTS.get(codes, "")]
    return " ".join([*filter(None, words), f"({codes[0]}/{codes[1]})"])


def _sysctl_name() -> str:
    """Return the processor's name on macOS or a BSD; empty elsewhere."""
    key = "machdep.cpu.brand_string" if sys.platform == "darwin" else "hw.model"
    if sys.platform != "darwin" and "bsd" not in sys.platform:
        return ""
    try:
        done = subprocess.run(["sysctl", "-n", key], capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return ""
    return one_line(done.stdout, 100)


def device_key(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a device's identity in artifact keys: model and driver.

    The UUID is recorded, but artifacts are shared between devices of one model.
    """
    facts = {fact: identity[fact] for fact in ("driver", "cuda") if fact in identity}
    return {**device_model(identity)._asdict(), **facts}


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
