"""Feature extractors behind torch-fidelity's interface, so that a dataset's own network and Inception are one thing."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch_fidelity import register_feature_extractor
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor

FEATURE_LAYER = "features"


def extractor_for(name: str, network: nn.Module) -> nn.Module:
    """Register a network's `features` method with torch-fidelity and return the extractor it makes.

    Args:
        name: under which `torch_fidelity.calculate_metrics(feature_extractor=name)` finds it; a second registration
            replaces the first.
        network: has `features(images)`, (B, C, H, W) uint8 -> (B, D) float32.

    Returns:
        A frozen module in eval mode that maps images to a tuple with one tensor of features.
    """

    class Extractor(FeatureExtractorBase):  # type: ignore[misc]
        def __init__(self, name: str, features_list: Sequence[str], **_: Any) -> None:
            super().__init__(name, features_list)
            self.network = network

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return (FEATURE_LAYER,)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return FEATURE_LAYER

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        def forward(self, input: Tensor) -> tuple[Tensor, ...]:
            features: Tensor = self.network.features(input)  # type: ignore[operator]
            return (features,)

    FEATURE_EXTRACTORS_REGISTRY.pop(name, None)
    register_feature_extractor(name, Extractor)
    extractor: nn.Module = create_feature_extractor(name, [FEATURE_LAYER], cuda=False, verbose=False)
    return extractor
