"""unlearnbench: class unlearning in diffusion models, measured under one harness.

This module is the SDK, all that a plugin imports:

    from unlearnbench import Context, method, metric, Score
"""

import importlib
from typing import TYPE_CHECKING, Any

from unlearnbench.errors import NonFiniteError, PluginError, Unmeasurable, UsageError
from unlearnbench.plugins.spec import NO_OBJECT, Score, method, metric
from unlearnbench.version import __version__ as __version__

if TYPE_CHECKING:
    from unlearnbench.measure.attacks import attacked, relearning_curve
    from unlearnbench.models.diffusion import eps_loss, predict_noise
    from unlearnbench.models.sampler import Start
    from unlearnbench.models.training import Ema, fit_denoiser, reinitialise
    from unlearnbench.unlearn.context import Context
    from unlearnbench.unlearn.terms import Term, backward


_NEEDS_TORCH = {  # imported on first use, so that the command line starts fast and reports render without torch
    "Context": "unlearnbench.unlearn.context",
    "Ema": "unlearnbench.models.training",
    "Start": "unlearnbench.models.sampler",
    "Term": "unlearnbench.unlearn.terms",
    "attacked": "unlearnbench.measure.attacks",
    "backward": "unlearnbench.unlearn.terms",
    "relearning_curve": "unlearnbench.measure.attacks",
    "eps_loss": "unlearnbench.models.diffusion",
    "predict_noise": "unlearnbench.models.diffusion",
    "fit_denoiser": "unlearnbench.models.training",
    "reinitialise": "unlearnbench.models.training",
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
