"""Checkpoints of the reference code, as diffusers folders: the same function in a UNet2DModel.

The class-conditional CIFAR-10 code of Selective Amnesia, and SalUn, SFRon and EraseDiff after it, share a network and a
file: the list [weights, optimiser, step, averaged weights], the last only where an average was kept.

Each of their residual blocks adds W [silu(e_t), silu(e_c)] + b, where e_t is of the time and e_c = MLP(v_c) of the
class; v_c is a row of a table, or a learned vector for the null class. UNet2DModel adds W silu(e) + b for a sum e of
time and class. With e = [e_t, 0] + [0, e_c] they are equal: the time's layers are padded with zeros, since silu(0) = 0,
and the table of UNet2DModel holds MLP(v_c) of every class, the null class last.
"""

import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from unlearnbench.errors import UsageError, one_line
from unlearnbench.models.checkpoints import write_checkpoint
from unlearnbench.models.unet import build_unet, checked

FIXED: Mapping[str, Any] = {  # of the reference code, in diffusers' words; of its configs: the dropout
    "freq_shift": 1, "flip_sin_to_cos": False, "downsample_padding": 0, "norm_eps": 1e-6, "norm_num_groups": 32,
    "attention_head_dim": None, "dropout": 0.1,
}  # fmt: skip
ATTENTION_SIDE = 16  # pixels where all of its configs put the attention
RENAMED = (  # diffusers' names, and the reference code's
    (r"^conv_norm_out\.", "norm_out."),
    (r"^mid_block\.resnets\.0\.", "mid.block_1."),
    (r"^mid_block\.resnets\.1\.", "mid.block_2."),
    (r"^mid_block\.attentions\.0\.", "mid.attn_1."),
    (r"^(down|up)_blocks\.", r"\1."),
    (r"\.resnets\.", ".block."),
    (r"\.attentions\.", ".attn."),
    (r"\.(down|up)samplers\.0\.", r".\1sample."),
    (r"\.time_emb_proj\.", ".temb_cemb_proj."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.group_norm\.", ".norm."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".proj_out."),
)
EMBEDDINGS = ("time_embedding.", "class_embedding.")  # diffusers' weights that are not the reference code's renamed
SHOWN = 3  # names in an error


@dataclass(frozen=True)
class Conversion:
    """What a checkpoint turned out to hold."""

    averaged: bool  # the averaged weights (EMA) were taken
    classes: int  # without the null class
    side: int  # pixels
    parameters: int  # of the UNet2DModel


def convert(file: Path, out: Path, *, averaged: bool | None = None, side: int | None = None) -> Conversion:
    """Write a checkpoint of the reference code as a diffusers folder that predicts the same noise.

    Args:
        file: the checkpoint.
        out: the folder.
        averaged: take the averaged weights (EMA), or not; None for those where the file has them.
        side: pixels of its images; None where the place of the attention tells them.

    Raises:
        UsageError: it is not such a checkpoint, or the folder cannot be written.
    """
    weights, is_averaged = _choose(file, _load(file), averaged)
    config = _read_config(file, weights, side)
    model = checked(str(file), config, _translate(file, weights, config))
    write_checkpoint(out, model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Conversion(is_averaged, config["num_class_embeds"] - 1, config["sample_size"], parameters)


def _load(file: Path) -> Any:
    """Return what a file of torch.save holds, without running code of it."""
    if file.is_dir():
        raise UsageError(f"{file} is a folder: give the checkpoint in it, such as {file}/ckpt.pth")
    if not file.is_file():
        raise UsageError(f"there is no file {file}: give a checkpoint of the reference code, such as ckpts/ckpt.pth")
    with file.open("rb") as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about files that are refused below
        try:
            return torch.load(opened, weights_only=True, map_location="cpu")
        except MemoryError:
            raise
        except Exception as error:  # a damaged or foreign file raises anything, OSError too
            raise _refusal(file, error) from error


def _refusal(file: Path, error: Exception) -> UsageError:
    """Return the error for a file that torch does not read as weights."""
    found = re.search(r"GLOBAL (\S+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if found:
        return UsageError(
            f"{file} holds more than weights ({one_line(found[1], 60)}), and reading that could run code: where it was "
            f"made, write them alone with torch.save([model.state_dict()], FILE)"
        )
    return UsageError(
        f"{file} is not a checkpoint of torch.save, or is cut short: give a whole ckpt.pth of the reference code"
    )


def _choose(file: Path, states: Any, averaged: bool | None) -> tuple[dict[str, Tensor], bool]:
    """Return weights without the prefix of DataParallel, and whether they are the averaged ones.

    As in the reference code, the average replaces the weights it has; those that were never trained may not be in it.
    """
    states = states if isinstance(states, list | tuple) else [states]
    if not states or not _are_weights(states[0]):
        raise UsageError(
            f"{file} does not begin with a network's weights: give a checkpoint of the reference code, a list of "
            f"weights, optimiser, step and averaged weights, or the weights alone"
        )
    has_average = len(states) > 1 and _are_weights(states[-1])
    if averaged and not has_average:
        raise UsageError(f"{file} has no averaged weights: leave --ema out")
    chosen = states[:1] if averaged is False or not has_average else [states[0], states[-1]]
    return {name.removeprefix("module."): tensor for state in chosen for name, tensor in state.items()}, len(chosen) > 1


def _are_weights(state: Any) -> bool:
    """Say whether this is a dict of tensors of floats."""
    return (
        isinstance(state, dict)
        and bool(state)
        and all(
            isinstance(name, str)
            and isinstance(tensor, Tensor)
            and tensor.is_floating_point()
            and tensor.layout == torch.strided
            and tensor.device.type == "cpu"
            for name, tensor in state.items()
        )
    )


def _read_config(file: Path, weights: Mapping[str, Tensor], side: int | None) -> dict[str, Any]:
    """Return the config of the UNet2DModel, read off the names and shapes of the weights."""
    if "classes_emb.weight" not in weights:
        raise UsageError(
            f"{file} lacks classes_emb.weight, the class labels of the reference code's denoiser, so it has no class "
            f"to unlearn: give a checkpoint of its Conditional_Model"
        )
    widths: list[int] = []
    while f"down.{len(widths)}.block.0.conv1.weight" in weights:
        widths.append(_length(file, weights, f"down.{len(widths)}.block.0.conv1.weight"))
    if not widths:
        _refuse(file, "lacks", ["down.0.block.0.conv1.weight"])
    blocks = 0
    while f"down.0.block.{blocks}.conv1.weight" in weights:
        blocks += 1
    attentive = [f"down.{level}.attn.0.q.weight" in weights for level in range(len(widths))]
    down = ["AttnDownBlock2D" if attention else "DownBlock2D" for attention in attentive]
    up = ["AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attentive)]
    return {
        **FIXED, "sample_size": _side(file, attentive, side), "block_out_channels": widths, "layers_per_block": blocks,
        "down_block_types": down, "up_block_types": up,
        "in_channels": _length(file, weights, "conv_in.weight", axis=1),
        "out_channels": _length(file, weights, "conv_out.weight"),
        "time_embedding_dim": sum(_length(file, weights, f"{part}.dense.1.bias") for part in ("temb", "cemb")),
        "num_class_embeds": _length(file, weights, "classes_emb.weight") + 1,
    }  # fmt: skip


def _length(file: Path, weights: Mapping[str, Tensor], name: str, axis: int = 0) -> int:
    """Return the length of a weight along an axis."""
    if name not in weights:
        _refuse(file, "lacks", [name])
    if weights[name].ndim <= axis:
        _refuse(file, "has other dimensions of", [name])
    return weights[name].shape[axis]


def _side(file: Path, attentive: list[bool], side: int | None) -> int:
    """Return the images' pixels."""
    if side is None and attentive.count(True) != 1:
        raise UsageError(f"{file} does not say how large its images are: give --image-size")
    pixels = ATTENTION_SIDE * 2 ** attentive.index(True) if side is None else side
    if pixels % (halved := 2 ** (len(attentive) - 1)):
        raise UsageError(f"--image-size {pixels}: the network of {file} needs a multiple of {halved}")
    return pixels


def _translate(file: Path, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the weights of the UNet2DModel, after checking that these are all, in the reference code's shapes."""
    try:
        with torch.device("meta"):  # takes no memory at any size
            wanted = {name: tensor.shape for name, tensor in build_unet(config).state_dict().items()}
    except Exception as error:  # diffusers and torch raise various errors on impossible sizes
        raise UsageError(
            f"{file}: widths of {config['block_out_channels']} are not of the reference code's denoiser, which "
            f"normalises in {config['norm_num_groups']} groups"
        ) from error
    levels = len(config["block_out_channels"])
    sources = {name: _source(name, levels) for name in wanted if not name.startswith(EMBEDDINGS)}
    shapes = {
        source: (*wanted[name], 1, 1) if ".attn" in source and len(wanted[name]) == 2 else tuple(wanted[name])
        for name, source in sources.items()
    }  # convolutions of one pixel stand for linear layers there
    _check_shapes(file, weights, {**shapes, **_embedding_shapes(weights, config)})
    renamed = {name: weights[source].float().reshape(wanted[name]) for name, source in sources.items()}
    return {**renamed, **_embeddings(weights)}


def _source(name: str, levels: int) -> str:
    """Return the reference code's name of a weight; it numbers the levels of the way up by their size too."""
    for pattern, replacement in RENAMED:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"^up\.([0-9]+)", lambda level: f"up.{levels - 1 - int(level[1])}", name)


def _embedding_shapes(weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights for time and class."""
    width = config["block_out_channels"][0]
    shapes: dict[str, tuple[int, ...]] = {
        "classes_emb.weight": (config["num_class_embeds"] - 1, width), "null_classes_emb": (width,),
    }  # fmt: skip
    for part in ("temb", "cemb"):
        inner = len(weights[f"{part}.dense.1.bias"])
        for layer, inputs in enumerate((width, inner)):
            shapes |= {f"{part}.dense.{layer}.weight": (inner, inputs), f"{part}.dense.{layer}.bias": (inner,)}
    return shapes


def _check_shapes(file: Path, weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise UsageError unless these are exactly the wanted weights."""
    if missing := [name for name in shapes if name not in weights]:
        _refuse(file, "lacks", missing)
    if foreign := [name for name in weights if name not in shapes]:
        _refuse(file, "has the unknown", foreign)
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            found, needed = (" x ".join(map(str, sizes)) or "1" for sizes in (weights[name].shape, shape))
            raise UsageError(f"{file}: its {name} is {found}, but the reference code's denoiser has {needed} here")


def _refuse(file: Path, verb: str, names: Iterable[str]) -> None:
    shown = [one_line(name, 60) for name in names]
    more = f" and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""
    raise UsageError(
        f"{file} {verb} {', '.join(shown[:SHOWN])}{more}: only the denoiser of the reference code can be converted"
    )


def _embeddings(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights for time, in the first half of the embedding, and the table of classes, in the second."""
    time = {name: weights[f"temb.dense.{name}"].float() for name in ("0.weight", "0.bias", "1.weight", "1.bias")}
    first, second = (
        (weights[f"cemb.dense.{layer}.weight"].double(), weights[f"cemb.dense.{layer}.bias"].double())
        for layer in (0, 1)
    )
    vectors = torch.cat([weights["classes_emb.weight"], weights["null_classes_emb"][None]]).double()
    table = functional.linear(functional.silu(functional.linear(vectors, *first)), *second).float()
    before, after = time["1.bias"].numel(), table.shape[1]
    return {
        "time_embedding.linear_1.weight": functional.pad(time["0.weight"], (0, 0, 0, after)),
        "time_embedding.linear_1.bias": functional.pad(time["0.bias"], (0, after)),
        "time_embedding.linear_2.weight": functional.pad(time["1.weight"], (0, after, 0, after)),
        "time_embedding.linear_2.bias": functional.pad(time["1.bias"], (0, after)),
        "class_embedding.weight": functional.pad(table, (before, 0)),
    }
