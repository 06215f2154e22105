"""unlearnbench: class unlearning in diffusion models, measured under one harness.

This module is the SDK, all that a plugin imports:

    from unlearnbench import Context, method, metric, Score
"""

import importlib
from typing import TYPE_CHECKING, Any

from unlearnbench.errors import NonFiniteError, PluginError, Unmeasurable, UsageError
from unlearnbench.plugin import NO_OBJECT, Score, method, metric

if TYPE_CHECKING:
    from unlearnbench.attacks import attacked, relearning_curve
    from unlearnbench.context import Context
    from unlearnbench.diffusion import Start, eps_loss, predict_noise
    from unlearnbench.terms import Term, backward
    from unlearnbench.training import Ema, fit_denoiser, reinitialise

__version__ = "0.1.0"

_NEEDS_TORCH = {  # imported on first use, so that the command line starts fast and reports render without torch
    "Context": "unlearnbench.context",
    "Ema": "unlearnbench.training",
    "Start": "unlearnbench.diffusion",
    "Term": "unlearnbench.terms",
    "attacked": "unlearnbench.attacks",
    "backward": "unlearnbench.terms",
    "relearning_curve": "unlearnbench.attacks",
    "eps_loss": "unlearnbench.diffusion",
    "predict_noise": "unlearnbench.diffusion",
    "fit_denoiser": "unlearnbench.training",
    "reinitialise": "unlearnbench.training",
}

__all__ = [
    "NO_OBJECT",
    "Context",
    "Ema",
    "NonFiniteError",
    "PluginError",
    "Score",
    "Start",
    "Term",
    "Unmeasurable",
    "UsageError",
    "attacked",
    "backward",
    "eps_loss",
    "fit_denoiser",
    "method",
    "metric",
    "predict_noise",
    "reinitialise",
    "relearning_curve",
]


def __getattr__(name: str) -> Any:
    if name in _NEEDS_TORCH:
        return getattr(importlib.import_module(_NEEDS_TORCH[name]), name)
    raise AttributeError(f"module 'unlearnbench' has no attribute {name!r}")
