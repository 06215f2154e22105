"""unlearnbench: class unlearning in diffusion models, measured under one harness.

This module is the SDK, all that a plugin imports:

    from unlearnbench import Context, method, metric, Score
"""

import importlib
from typing import TYPE_CHECKING, Any

from unlearnbench.sdk import SDK
from unlearnbench.version import __version__ as __version__

if TYPE_CHECKING:  # a type checker does not read SDK
    from unlearnbench.errors import NonFiniteError as NonFiniteError
    from unlearnbench.errors import PluginError as PluginError
    from unlearnbench.errors import Unmeasurable as Unmeasurable
    from unlearnbench.errors import UsageError as UsageError
    from unlearnbench.measure.arrays import at_most as at_most
    from unlearnbench.measure.arrays import check_features as check_features
    from unlearnbench.measure.attacks import attacked as attacked
    from unlearnbench.measure.attacks import relearning_curve as relearning_curve
    from unlearnbench.models.diffusion import eps_loss as eps_loss
    from unlearnbench.models.diffusion import predict_noise as predict_noise
    from unlearnbench.models.sampler import Start as Start
    from unlearnbench.models.training import Ema as Ema
    from unlearnbench.models.training import fit_denoiser as fit_denoiser
    from unlearnbench.models.training import reinitialise as reinitialise
    from unlearnbench.plugins.spec import NO_OBJECT as NO_OBJECT
    from unlearnbench.plugins.spec import Score as Score
    from unlearnbench.plugins.spec import method as method
    from unlearnbench.plugins.spec import metric as metric
    from unlearnbench.unlearn.context import Context as Context
    from unlearnbench.unlearn.terms import Term as Term
    from unlearnbench.unlearn.terms import backward as backward

__all__ = [*SDK]


def __getattr__(name: str) -> Any:
    """Import a name on first use, so that the command line starts fast and reports render without torch."""
    if name in SDK:
        return getattr(importlib.import_module(SDK[name]), name)
    raise AttributeError(f"module 'unlearnbench' has no attribute {name!r}")
