"""Where the host waits for a CUDA device, as torch itself sees it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tests.pretend import project_stack


@contextmanager
def host_waits(device: torch.device) -> Iterator[list[tuple[str, ...]]]:
    """Note each wait of the host, as the project's functions that led there, the innermost first.

    These are the waits that torch causes in its operations (`torch.cuda.set_sync_debug_mode`), explicit
    `synchronize` apart. Another device than CUDA has none.
    """
    found: list[tuple[str, ...]] = []
    if device.type != "cuda":
        yield found
        return
    show = warnings.showwarning

    def note(message: Warning | str, *rest: Any, **more: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            found.append(project_stack())
        else:
            show(message, *rest, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
