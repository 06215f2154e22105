"""Imports of the process server before it forks cells, so that a cell starts in a fraction of a second."""

import ctypes
import gc
import importlib
import os

MODULES = (
    "unlearnbench.cli.commands", "unlearnbench.run.unlearning", "torch_fidelity.metric_fid", "sklearn.datasets",
    "sklearn.model_selection", "sklearn.svm", "scipy.linalg",
)  # fmt: skip
ASKS_FOR_GPUS = ("diffusers.models.unets.unet_2d",)  # they call torch.accelerator.is_available() on import


def asking_harms() -> bool:
    """Say whether a module that counts GPUs on import would make CUDA unusable in forked processes.

    It is harmless where NVML can count them, as torch can use NVML instead, and without a CUDA driver. Elsewhere (for
    example with MIG) each cell imports such a module itself.
    """
    import torch

    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    count = getattr(torch.cuda, "_device_count_nvml", lambda: -1)  # torch's own count; -1: it fails
    if count() >= 0:
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
        return True
    except OSError:
        return False


def preload() -> None:
    """Import modules that every cell needs, and exclude them from garbage collection, here and in the cells.

    Collection during imports takes a fifth of the time, and later ones would copy pages shared with the cells.
    """
    gc.disable()
    for name in MODULES if asking_harms() else MODULES + ASKS_FOR_GPUS:
        importlib.import_module(name)
    importlib.import_module("unlearnbench.plugins.registry").read_builtins()
    gc.freeze()
    gc.enable()


preload()
