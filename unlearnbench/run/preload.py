"""What the process server imports before it forks cells, so that a cell starts in a fraction of a second."""

import ctypes
import gc
import importlib
import os

MODULES = (
    "unlearnbench.cli.commands", "unlearnbench.run.cell", "torch_fidelity.metric_fid", "sklearn.datasets",
    "sklearn.model_selection", "scipy.linalg",
)  # fmt: skip
ASKS_FOR_GPUS = ("diffusers.models.unets.unet_2d",)  # torch.accelerator.is_available(), at its import


def asking_harms() -> bool:
    """Say whether a module that asks torch for GPUs would leave CUDA unusable in forked processes.

    Not where NVML can count them, as torch then asks NVML if told to; nor where there is no CUDA driver at all.
    Elsewhere (MIG, say) each cell imports such a module itself.
    """
    import torch

    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    count = getattr(torch.cuda, "_device_count_nvml", lambda: -1)  # what torch itself would count by; -1: it cannot
    if count() >= 0:
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
        return True
    except OSError:
        return False


def preload() -> None:
    """Import what every cell needs, and keep it out of all garbage collections to come, here and in the cells.

    Collecting while importing takes a fifth of the time, and would copy pages that server and cells share.
    """
    gc.disable()
    for name in MODULES if asking_harms() else MODULES + ASKS_FOR_GPUS:
        importlib.import_module(name)
    gc.freeze()
    gc.enable()


preload()
