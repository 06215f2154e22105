"""`--compile`: every block of a network is compiled, and once for all copies of it."""

import copy

import torch
import torch._dynamo
from torch._dynamo.utils import counters

from unlearnbench.datasets import Source, resolve
from unlearnbench.models.diffusion import predict_noise
from unlearnbench.models.networks import compile_blocks
from unlearnbench.models.unet import build_unet, unet_config

SIZES = {
    "block_out_channels": [8, 8], "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip


def papers_network():
    """Return the paper's network for images of 32 pixels, narrow, with one block of each kind and one layer in it."""
    dataset = resolve(
        Source("cifar10", "paper", extractor="own"), name="cifar10", title="", class_names="0123456789",
        image_shape=(3, 32, 32), flip=True, load=None,
    )  # fmt: skip
    return build_unet({**unet_config(dataset), **SIZES})


def use(model):
    """Run a network forward and backward, and forward alone with two sizes of batch; return the last prediction."""
    for n in (2, 4):
        x, t = torch.ones(n, 3, 32, 32), torch.zeros(n, dtype=torch.long)
        if n == 2:
            predict_noise(model, x, t, t).sum().backward()
        with torch.no_grad():
            prediction = predict_noise(model, x, t, t)
    return prediction


def test_all_blocks_are_compiled_once_for_all_copies(monkeypatch):
    compile_one = torch.nn.Module.compile  # the compiler behind it takes a minute, and is not what this is about
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block: compile_one(block, backend="eager"))
    base = papers_network().eval()
    expected = use(copy.deepcopy(base))
    compiled = []
    limit = torch._dynamo.config.recompile_limit  # put back behind compile_blocks, which raises it
    with torch._dynamo.config.patch(recompile_limit=limit, fail_on_recompile_limit_hit=True):
        for _ in range(2):
            model = copy.deepcopy(base)
            compile_blocks(model)
            assert torch.equal(use(model), expected)
            compiled.append(counters["frames"]["ok"])
    assert compiled[0] > 15
    assert compiled[1] == compiled[0], "a copy takes what was compiled"
