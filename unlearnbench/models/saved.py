"""Saved unlearned models: diffusers folders with a model card, and grids of their samples.

A cell's process stages the weights after unlearning; the process that records the cell adds the model card and moves
the folder to its place, so that folders appear atomically.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unlearnbench.errors import UsageError, one_line, spell_error
from unlearnbench.models.checkpoints import build_checked, check_schedule, read_folder
from unlearnbench.store.cell import Cell

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import nn

    from unlearnbench.protocols import Progress

CARD, FACTS = "README.md", "unlearnbench.json"
DEFAULT_SAMPLER: Mapping[str, Any] = {  # of folders without a sampler
    "steps": 50, "eta": 0.0, "guidance": 0.0, "clip_x0": False, "dropout": False, "batch_size": 64, "bf16": False,
}  # fmt: skip
LEAST_SIDE = 64  # pixels; smaller images are enlarged by an integer factor to at least this
MOST_SIDE = 4096  # pixels of a sample
GAP = 2  # white pixels between images
WHITE = 255


@dataclass(frozen=True)
class SavedModel:
    """A model in a folder, with the parameters of its samples."""

    network: "nn.Module"
    cell: Cell  # its dataset and sampling seed determine the initial noise
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (C, H, W)
    sampler: Mapping[str, Any]  # arguments of diffusion.sample
    null_class: int | None  # None: it has none, and cannot be guided


def open_model(folder: Path, device: "torch.device") -> SavedModel:
    """Read a model that `--save-models` wrote, or any diffusers UNet2DModel with class labels.

    For the latter, classes are named by number, the last label counts as the null class, and sampling uses DDIM with 50
    steps without guidance.

    Raises:
        UsageError: the folder is missing, or holds no such model.
    """
    from unlearnbench.models.networks import placed

    network, config = _read_network(folder)
    network = placed(network, device).eval().requires_grad_(False)
    cell, facts = Cell("model", "", "", {}, 0, 0), read_facts(folder)
    shape, labels = config["image_shape"], config["num_class_embeds"]
    names = tuple(map(str, range(labels)))
    if facts is None:
        return SavedModel(network, cell, names, shape, DEFAULT_SAMPLER, labels - 1)
    try:
        cell, names = Cell.from_json(facts["cell"]), tuple(map(str, facts["dataset"]["class_names"]))
        sampler = {name: facts["sampler"][name] for name in DEFAULT_SAMPLER}
        return SavedModel(network, cell, names, shape, sampler, facts["null_class"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"{folder / FACTS} cannot be read ({spell_error(error)}): save the model again") from error


def _read_network(folder: Path) -> "tuple[nn.Module, Mapping[str, Any]]":
    if not folder.is_dir():
        raise UsageError(f"there is no model folder {folder}: 'unlearnbench run --save-models DIR' writes them")
    config, weights, schedule = read_folder(str(folder), folder)
    if config.get("_class_name") != "UNet2DModel":
        raise UsageError(f"{folder} holds a {one_line(str(config.get('_class_name')), 60)}, not a UNet2DModel")
    if not config.get("num_class_embeds"):
        raise UsageError(f"{folder} has no class labels (num_class_embeds), so no class to sample")
    side, channels = config.get("sample_size"), config.get("in_channels")
    height, width = side if isinstance(side, list) and len(side) == 2 else [side, side]
    shape: list[Any] = [channels, height, width]
    if channels not in (1, 3) or any(type(n) is not int or not 0 < n <= MOST_SIDE for n in (height, width)):
        raise UsageError(f"{folder} does not predict images of 1 or 3 channels and a known size: give another model")
    network = build_checked(str(folder), config, weights, shape)
    check_schedule(str(folder), schedule)
    return network, {**config, "image_shape": tuple(shape)}


def read_facts(folder: Path) -> dict[str, Any] | None:
    """Return the facts saved with a model of this package; None for any other model."""
    path = folder / FACTS
    try:
        facts: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({spell_error(error)}): save the model again") from error
    return facts


def draw(
    saved: SavedModel, classes: Sequence[int], n: int, *, seed: int | None, steps: int | None, guidance: float | None,
    progress: "Progress",
) -> NDArray[np.uint8]:  # fmt: skip
    """Sample n images of each class, from the same initial noise as images 0 to n - 1 of that class in the evaluation.

    Args:
        saved: the model.
        classes: labels.
        n: images of each.
        seed: of the sampling noise; None for that of the model's evaluation.
        steps: of DDIM; None for the protocol's.
        guidance: w; None for the protocol's.
        progress: shows how far it is.

    Returns:
        (len(classes), n, C, H, W).

    Raises:
        UsageError: the steps do not divide the schedule's, or guidance needs a null class that the model lacks.
    """
    import torch

    from unlearnbench.models.diffusion import Schedule
    from unlearnbench.models.sampler import sample
    from unlearnbench.store.cell import sample_seeds

    changed = {name: value for name, value in (("steps", steps), ("guidance", guidance)) if value is not None}
    sampler = {**saved.sampler, **changed}
    if sampler["guidance"] and saved.null_class is None:
        raise UsageError(f"--guidance {sampler['guidance']}: the model has no null class, so give 0")
    schedule = Schedule.linear(device=next(saved.network.parameters()).device)
    if schedule.timesteps % sampler["steps"]:
        raise UsageError(f"--steps {sampler['steps']} does not divide the {schedule.timesteps} timesteps: give 50, say")
    cell = saved.cell if seed is None else replace(saved.cell, sampling_seed=seed)
    labels = [c for c in classes for _ in range(n)]
    images = sample(
        saved.network, schedule, torch.tensor(labels), sample_seeds(cell, labels), saved.image_shape,
        null_class=saved.null_class, **sampler,
        progress=lambda done: progress("sample", done, len(labels) * sampler["steps"]),
    )  # fmt: skip
    pictures: NDArray[np.uint8] = images.numpy().reshape(len(classes), n, *saved.image_shape)
    return pictures


def image_grid(images: NDArray[np.uint8]) -> "Image":
    """Return images (classes, n, C, H, W) as one picture: a row per class, or nearly a square for a single class."""
    from PIL import Image as pillow

    rows, n, channels, height, width = images.shape
    columns = n
    if rows == 1:
        columns = int(np.ceil(np.sqrt(n)))
        rows = -(-n // columns)
    factor = max(1, -(-LEAST_SIDE // min(height, width)))
    tall, wide = factor * height + GAP, factor * width + GAP
    picture = np.full((rows * tall - GAP, columns * wide - GAP, channels), WHITE, dtype=np.uint8)
    for k, image in enumerate(images.reshape(-1, channels, height, width)):
        top, left = k // columns * tall, k % columns * wide
        enlarged = image.transpose(1, 2, 0).repeat(factor, axis=0).repeat(factor, axis=1)
        picture[top : top + tall - GAP, left : left + wide - GAP] = enlarged
    return pillow.fromarray(picture.squeeze(2) if channels == 1 else picture)
