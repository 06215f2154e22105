"""The SDK: every name that a plugin may import from `unlearnbench`, and the module that defines it."""

from collections.abc import Mapping
from types import MappingProxyType

SDK: Mapping[str, str] = MappingProxyType(
    {
        "NO_OBJECT": "unlearnbench.plugins.spec",
        "Context": "unlearnbench.unlearn.context",
        "Ema": "unlearnbench.models.training",
        "NonFiniteError": "unlearnbench.errors",
        "PluginError": "unlearnbench.errors",
        "Score": "unlearnbench.plugins.spec",
        "Start": "unlearnbench.models.sampler",
        "Term": "unlearnbench.unlearn.terms",
        "Unmeasurable": "unlearnbench.errors",
        "UsageError": "unlearnbench.errors",
        "at_most": "unlearnbench.measure.arrays",
        "attacked": "unlearnbench.measure.attacks",
        "backward": "unlearnbench.unlearn.terms",
        "check_features": "unlearnbench.measure.arrays",
        "eps_loss": "unlearnbench.models.diffusion",
        "fit_denoiser": "unlearnbench.models.training",
        "method": "unlearnbench.plugins.spec",
        "metric": "unlearnbench.plugins.spec",
        "predict_noise": "unlearnbench.models.diffusion",
        "reinitialise": "unlearnbench.models.training",
        "relearning_curve": "unlearnbench.measure.attacks",
    }
)
