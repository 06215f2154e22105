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

from unlearnbench.datasets import kind_in
from unlearnbench.datasets.conditions import Conditions
from unlearnbench.errors import UsageError, spell_error
from unlearnbench.store.cell import SOLVERS, Cell

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

    from unlearnbench.models.denoiser import Denoiser
    from unlearnbench.protocols import Progress

CARD, FACTS = "README.md", "unlearnbench.json"
DEFAULT_SAMPLER: Mapping[str, Any] = {  # of folders without a sampler
    "solver": "ddim", "steps": 50, "eta": 0.0, "guidance": 0.0, "clip_x0": False, "dropout": False, "batch_size": 64,
    "bf16": False,
}  # fmt: skip
LEAST_SIDE = 64  # pixels; smaller images are enlarged by an integer factor to at least this
GAP = 2  # white pixels between images
WHITE = 255


@dataclass(frozen=True)
class SavedModel:
    """A model in a folder, with the parameters of its samples."""

    denoiser: "Denoiser"
    cell: Cell  # its dataset and sampling seed determine the initial noise
    class_names: tuple[str, ...]  # of other models numbers
    conditions: Conditions | None  # None for other models
    sampler: Mapping[str, Any]  # arguments of sampler.sample
    null_class: int | None  # None: it has none, and cannot be guided


def open_model(folder: Path, device: "torch.device") -> SavedModel:
    """Read a model that `--save-models` wrote, or any that `--base` takes and that has class labels.

    For the latter, classes are named by number, the last label counts as the null class, and sampling uses DDIM with 50
    steps without guidance.

    Raises:
        UsageError: the folder is missing, or holds no such model.
    """
    from unlearnbench.models.denoiser import denoiser_class
    from unlearnbench.models.networks import placed

    if not folder.is_dir():
        raise UsageError(f"there is no model folder {folder}: 'unlearnbench run --save-models DIR' writes them")
    facts, cell, sampler, wanted = read_facts(folder), Cell("model", "", "", {}, 0, 0), DEFAULT_SAMPLER, None
    if facts is not None:
        try:
            cell, wanted = Cell.from_json(facts["cell"]), Conditions.from_json(facts["conditions"])
            sampler = {"solver": "ddim", **facts["sampler"]}  # which earlier folders do not name
            sampler = {name: sampler[name] for name in DEFAULT_SAMPLER}
            _ = SOLVERS[sampler["solver"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UsageError(f"{folder / FACTS} cannot be read ({spell_error(error)}): save the model again") from error
    denoiser = denoiser_class(kind_in(folder)).read(str(folder), folder, wanted)
    denoiser = placed(denoiser, device).eval().requires_grad_(False)
    if wanted is None:
        labels = denoiser.labels
        return SavedModel(denoiser, cell, tuple(map(str, range(labels))), None, sampler, labels - 1)
    return SavedModel(denoiser, cell, wanted.class_names, wanted, sampler, wanted.null_class)


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
        steps: of sampling; None for the protocol's.
        guidance: w; None for the protocol's.
        progress: shows how far it is.

    Returns:
        (len(classes), n, C, H, W).

    Raises:
        UsageError: the steps do not divide the schedule's, or guidance needs a null class that the model lacks.
    """
    import torch

    from unlearnbench.store.cell import sample_seeds

    changed = {name: value for name, value in (("steps", steps), ("guidance", guidance)) if value is not None}
    sampler = {**saved.sampler, **changed}
    if sampler["guidance"] and saved.null_class is None:
        raise UsageError(f"--guidance {sampler['guidance']}: the model has no null class, so give 0")
    timesteps = saved.denoiser.schedule.timesteps
    if sampler["solver"] != "ddim" and sampler["steps"] > timesteps // 2:
        raise UsageError(f"--steps {sampler['steps']}: give at most half of the {timesteps} timesteps")
    if sampler["solver"] == "ddim" and timesteps % sampler["steps"]:
        raise UsageError(f"--steps {sampler['steps']} does not divide the {timesteps} timesteps: give 50, say")
    cell = saved.cell if seed is None else replace(saved.cell, sampling_seed=seed)
    asked = [c for c in classes for _ in range(n)]
    labels = asked if saved.conditions is None else saved.conditions.spread(asked)
    images = saved.denoiser.draw(
        torch.tensor(labels), sample_seeds(cell, asked), null_class=saved.null_class, **sampler,
        progress=lambda done: progress("sample", done, len(labels) * sampler["steps"]),
    )  # fmt: skip
    pictures: NDArray[np.uint8] = images.numpy().reshape(len(classes), n, *images.shape[1:])
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
