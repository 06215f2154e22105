"""Feature extractors behind torch-fidelity's interface, so that a dataset's own network and Inception are used alike.

torch-fidelity is imported where it is used: it brings torchvision and torch's compiler, which takes two seconds.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.errors import UsageError, spell_error
from unlearnbench.store.hashing import file_digest

FEATURE_LAYER = "features"
INCEPTION, POOL3 = "inception-v3-compat", "2048"  # torch-fidelity's port of the FID paper's own network


def extractor_for(name: str, network: nn.Module) -> nn.Module:
    """Register a network's `features` method with torch-fidelity and return the extractor it makes.

    Args:
        name: under which `torch_fidelity.calculate_metrics(feature_extractor=name)` finds it; a second registration
            replaces the first.
        network: has `features(images)`, (B, C, H, W) uint8 -> (B, D) float32.

    Returns:
        A frozen module in eval mode that maps images to a tuple with one tensor of features.
    """
    from torch_fidelity import register_feature_extractor
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
    from torch_fidelity.utils import create_feature_extractor

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


class _ThreeChannels(nn.Module):
    """Feeds grayscale images to a network that expects RGB."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Any:
        return self.network(images.expand(-1, 3, -1, -1))


def inception(weights: Path | None) -> tuple[nn.Module, dict[str, str]]:
    """Return torch-fidelity's Inception v3 (uint8 RGB of any size in, 2048 features out), and its weights' identity.

    Args:
        weights: the file `weights-inception-2015-12-05-6726825d.pth`; None lets torch-fidelity download it.

    Raises:
        UsageError: the weights are missing and cannot be downloaded, or the file holds something else.
    """
    from torch_fidelity.utils import create_feature_extractor

    path = str(weights) if weights is not None else None
    reference = inception_reference(weights)
    try:
        if path is not None:
            torch.load(path, map_location="cpu", weights_only=True)  # torch-fidelity would run code hidden in it
        network = create_feature_extractor(
            INCEPTION, [POOL3], cuda=False, verbose=False, feature_extractor_weights_path=path
        )
    except Exception as error:  # urllib's, pickle's and torch's errors: a missing network, a wrong file
        problem = f"--inception-weights {weights} cannot be used" if weights else "its weights cannot be downloaded"
        raise UsageError(
            f"FID's Inception network is not available: {problem} ({spell_error(error)}): name torch-fidelity's "
            f"weights file with --inception-weights, or give --extractor own for the dataset's own features, with FIDs "
            f"that are not comparable to published ones"
        ) from error
    return _ThreeChannels(network), reference


def inception_reference(weights: Path | None) -> dict[str, str]:
    """Return the record's entry on Inception's weights: those of a file, or torch-fidelity's own for None."""
    identity = file_digest(weights) if weights is not None else "torch-fidelity's download"
    return {"key": INCEPTION, "sha256": identity}
