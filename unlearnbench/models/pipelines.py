"""Diffusers pipelines as tensors: the parts besides the network that is unlearned, for an artifact, and back.

Weights of a component are called `COMPONENT.NAME`, and small files, such as configs and a tokenizer's vocabulary,
`file:PATH`, as bytes.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from unlearnbench.datasets import WEIGHTS
from unlearnbench.errors import UsageError, spell_bytes
from unlearnbench.models.checkpoints import (
    arguments,
    build_checked,
    check_arguments,
    read_component,
    shown,
)
from unlearnbench.models.codec import Latents
from unlearnbench.store.artifacts import Tensors

FILE = "file:"
TEXT_WEIGHTS = "model.safetensors"  # of transformers
NAMES: Mapping[str, str] = {"text_encoder": TEXT_WEIGHTS}  # component -> file of its weights, if not diffusers' usual
MOST_IN_FILE = 2**24  # bytes of a small file
INDEX = "model_index.json"
VAE_VALUES: Mapping[str, Sequence[Any]] = {  # others expect other latents
    "latents_mean": (None,), "latents_std": (None,), "use_quant_conv": (True, False),
    "use_post_quant_conv": (True, False),
}  # fmt: skip


def read_vae(what: str, folder: Path, channels: int | None) -> Tensors:
    """Return the weights of a pipeline's autoencoder, as tensors of an artifact, after checking that they fit.

    Args:
        what: begins the error messages.
        folder: of the pipeline.
        channels: of the images; None for 1 or 3.

    Raises:
        UsageError: it cannot be read, or does not fit.
    """
    from diffusers import AutoencoderKL

    config, weights = read_component(what, folder, "vae", "AutoencoderKL")
    usual = (3, 1) if channels is None else (channels,)
    wanted = {**VAE_VALUES, "in_channels": usual, "out_channels": usual}
    check_arguments(f"{what}, vae", AutoencoderKL, config, wanted, len(weights))
    if not isinstance(config.get("scaling_factor", 1.0), float | int) or not config.get("scaling_factor", 1.0) > 0:
        raise UsageError(f"{what}, vae: its config has scaling_factor {shown(config['scaling_factor'])}")
    build_checked(f"{what}, vae", lambda: AutoencoderKL(**arguments(config)), weights)
    return {f"vae.{name}": tensor for name, tensor in weights.items()}


def read_files(what: str, folder: Path, places: Sequence[str]) -> Tensors:
    """Return the small files of a pipeline, those of a network's weights excepted.

    Args:
        what: begins the error messages.
        folder: of the pipeline.
        places: its subfolders that count, besides its index.

    Raises:
        UsageError: one cannot be read or is too large.
    """
    found: Tensors = {}
    paths = [folder / INDEX, *(path for place in places for path in sorted((folder / place).glob("*")))]
    for path in paths:
        if path.suffix not in (".json", ".txt") or path.name.endswith(".index.json") or not path.is_file():
            continue
        if path.stat().st_size > MOST_IN_FILE:
            raise UsageError(f"{what}: its {path.relative_to(folder)} is larger than {spell_bytes(MOST_IN_FILE)}")
        content = bytearray(path.read_bytes())
        found[f"{FILE}{path.relative_to(folder).as_posix()}"] = torch.frombuffer(content, dtype=torch.uint8)
    return found


def write_shared(folder: Path, shared: Mapping[str, Tensor]) -> None:
    """Write files and weights into the folder of a pipeline."""
    components: dict[str, Tensors] = {}
    for name, tensor in shared.items():
        if name.startswith(FILE):
            path = folder / name.removeprefix(FILE)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tensor.numpy().tobytes())
        else:
            component, weight = name.split(".", 1)
            components.setdefault(component, {})[weight] = tensor
    for component, weights in components.items():
        (folder / component).mkdir(exist_ok=True)
        save_file(weights, folder / component / NAMES.get(component, WEIGHTS), metadata={"format": "pt"})


def file_in(shared: Mapping[str, Tensor], path: str) -> dict[str, Any]:
    """Return the object in a JSON file among shared tensors."""
    value: dict[str, Any] = json.loads(shared[f"{FILE}{path}"].numpy().tobytes())
    return value


def codec_in(shared: Mapping[str, Tensor]) -> Latents:
    """Return the codec of the autoencoder among shared tensors."""
    from diffusers import AutoencoderKL

    weights = {name.removeprefix("vae."): tensor for name, tensor in shared.items() if name.startswith("vae.")}
    network: nn.Module = AutoencoderKL(**arguments(file_in(shared, "vae/config.json")))
    network.load_state_dict(weights)
    return Latents(network, tensors_digest(weights))


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a hash of names and bytes of tensors on the CPU."""
    content = hashlib.sha256()
    for name in sorted(tensors):
        content.update(name.encode())
        content.update(tensors[name].detach().contiguous().numpy().tobytes())
    return content.hexdigest()
