"""Parsing of `--devices`: GPUs by number, or sets of CPU cores, all of one model. Free of torch."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from unlearnbench.errors import UsageError
from unlearnbench.store.provenance import allowed_cores, device_key

SYNTAX = "write --devices 0,1 or all for GPUs, --devices cpu:0-3,cpu:4-7+12 for sets of cores"
_GPU = re.compile(r"(?:cuda:)?([0-9]{1,4})")
_SPAN = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")


def named_devices(text: str, gpus: int) -> dict[str, list[int]]:
    """Return {device: its cores}, in the order of the text; a GPU, `cuda:1`, has no cores.

    Args:
        text: `0,1`, `all`, or `cpu:0-3,cpu:4-7`.
        gpus: the number of CUDA devices, for `all`.

    Raises:
        UsageError: the text is malformed, or names no device or one twice.
    """
    words = [word.strip() for word in text.split(",")]
    if words == ["all"]:
        if not gpus:
            raise UsageError("torch sees no CUDA device here, so --devices all names none: name sets of cores (cpu:0)")
        words = list(map(str, range(gpus)))
    found: dict[str, list[int]] = {}
    for word in words:
        cores = _cores(word) if word.startswith("cpu:") else []
        gpu = _GPU.fullmatch(word)
        if not (cores or gpu):
            raise UsageError(f"--devices names {word!r}, which is neither a GPU nor a set of cores: {SYNTAX}")
        name = f"cuda:{int(gpu[1])}" if gpu else f"cpu:{spell_cores(cores)}"
        if shared := sorted({core for others in found.values() for core in others} & set(cores)):
            raise UsageError(f"--devices names core {shared[0]} twice: give each set of cores its own")
        if name in found:
            raise UsageError(f"--devices names {name} twice: name each device once")
        found[name] = cores
    return found


def _cores(word: str) -> list[int]:
    """Return the cores of `cpu:0-3+8`.

    Raises:
        UsageError: it names no cores, or cores that this process may not use.
    """
    if not hasattr(os, "sched_setaffinity"):
        raise UsageError("this system does not let a process choose its cores: --devices takes only GPUs here")
    allowed, chosen = allowed_cores(), set[int]()
    for part in word.removeprefix("cpu:").split("+"):
        span = _SPAN.fullmatch(part)
        first, last = (int(span[1]), int(span[2] or span[1])) if span else (1, 0)
        if first > last:
            raise UsageError(f"--devices names {word!r}, which is not a set of cores: {SYNTAX}")
        cores = [core for core in allowed if first <= core <= last]
        if len(cores) <= last - first:
            raise UsageError(f"--devices names {word}, but this process may only use the cores {spell_cores(allowed)}")
        chosen.update(cores)
    return sorted(chosen)


def spell_cores(cores: Sequence[int]) -> str:
    """Return a set of cores in the syntax of `--devices`: `0-3+8`."""
    spans: list[list[int]] = []
    for core in sorted(cores):
        if spans and core == spans[-1][1] + 1:
            spans[-1][1] = core
        else:
            spans.append([core, core])
    return "+".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def check_alike(infos: Sequence[Mapping[str, Any]]) -> None:
    """Raise UsageError unless devices, as `run.jobs.resolve_devices` returns them, are of one model and driver.

    The cells of a run are compared with each other, and its priors are charged to all of them.
    """
    first = infos[0]
    for other in infos[1:]:
        if device_key(first["identity"]) != device_key(other["identity"]):
            raise UsageError(
                f"--devices names devices that are not alike, {_words(first)} and {_words(other)}: name those of one "
                "model, since run times of different models are not comparable"
            )


def _words(device_info: Mapping[str, Any]) -> str:
    facts = [str(device_info["identity"][fact]) for fact in ("name", "driver") if fact in device_info["identity"]]
    return f"{device_info['name']} ({', driver '.join(facts)})"
