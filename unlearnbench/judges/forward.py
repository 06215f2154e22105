"""Outputs of a network on images."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unlearnbench.models.diffusion import evaluating

JUDGE_BATCH = 500  # images per forward pass of a judge or extractor


def forward_batches(network: nn.Module, images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Return a network's output for images, (n, D) on the CPU, computed batch by batch in eval mode."""
    home = next((weights.device for weights in network.parameters()), device)  # it must not add to a method's memory
    try:
        with evaluating(network.to(device)):
            outputs = [network(batch.to(device)) for batch in torch.split(torch.from_numpy(images), JUDGE_BATCH)]
    finally:
        network.to(home)
    return torch.cat([output[0] if isinstance(output, tuple) else output for output in outputs]).cpu()
