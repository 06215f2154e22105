"""The judge that may reject an image: a classifier with one more class, "no object", and a threshold for it.

The threshold is part of a dataset's recipe (`datasets/recipes.py`, `RejectingRecipe`).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from unlearnbench.judges.forward import forward_batches
from unlearnbench.models.networks import Classifier
from unlearnbench.plugins.spec import NO_OBJECT


@dataclass(frozen=True)
class RejectingJudge:
    """Predicts the likeliest class, or NO_OBJECT where the network's last output, "no object", exceeds a threshold."""

    network: Classifier
    threshold: float

    def names(self, images: NDArray[np.uint8], device: torch.device) -> NDArray[np.int64]:
        """Return the class or NO_OBJECT for each image (n, C, H, W): (n,)."""
        probs = forward_batches(self.network, images, device).double().softmax(dim=1)
        named = probs[:, :-1].argmax(dim=1)
        named[probs[:, -1] > self.threshold] = NO_OBJECT
        result: NDArray[np.int64] = named.numpy()
        return result
