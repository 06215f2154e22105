"""The unlearned model as a product: a diffusers folder with a model card, and grids of its samples.

A cell's process stages the weights, when unlearning is done; the process that records the cell adds what only the
record knows and moves the folder to its place. So a folder is there whole or not at all.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError

from unlearnbench.datasets import WEIGHTS, Protocol
from unlearnbench.errors import UsageError, one_line, spell_error
from unlearnbench.models.checkpoints import build_checked, check_schedule, read_folder, write_scheduler
from unlearnbench.store.cell import Cell
from unlearnbench.store.hashing import file_digest
from unlearnbench.store.records import Record, records_digest
from unlearnbench.store.scratch import moved, owned, refusal, remove, remove_at_once, sweep

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import nn

    from unlearnbench.run.workers import Progress

CARD, FACTS = "README.md", "unlearnbench.json"
STAGED = ".writing-"  # begins the name of a folder that is not whole
PROBES = (0, 333, 666, 999)  # timesteps at which a saved model must predict what the unlearned one does
TOLERANCE = 1e-3  # of these predictions on CUDA; on a CPU they are equal bit for bit
DEFAULT_SAMPLER: Mapping[str, Any] = {  # of folders that say nothing of theirs
    "steps": 50, "eta": 0.0, "guidance": 0.0, "clip_x0": False, "dropout": False, "batch_size": 64, "bf16": False,
}  # fmt: skip
LEAST_SIDE = 64  # pixels; smaller images are enlarged by a whole factor to at least so many
MOST_SIDE = 4096  # pixels of a sample
GAP = 2  # white pixels between images
WHITE = 255


def staging(models: Path, cell: Cell) -> Path:
    """Return where this process, which records the cell, lets its model be staged."""
    return models / owned(f"{STAGED}{cell.id}")


def stage(folder: Path, cell: Cell, model: "nn.Module", image_shape: Sequence[int]) -> dict[str, str]:
    """Write a cell's unlearned model to where `settle` finds it.

    Args:
        folder: what `staging` returned in the process that records the cell.
        cell: that the model is of.
        model: as the method left it.
        image_shape: (C, H, W).

    Returns:
        What the record says of it: the SHA-256 of its weights, or the `reason` for which no folder can hold it: it
        predicts what the weights alone do not, as a model with hooks or a forward of its own.

    Raises:
        UsageError: the folder cannot be written.
    """
    from diffusers import UNet2DModel
    from torch import device

    from unlearnbench.models.networks import build_unet, frozen, is_plain, placed
    from unlearnbench.models.training import global_rng_kept

    config = {key: value for key, value in dict(getattr(model, "config", {})).items() if not key.startswith("_")}
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    try:
        with global_rng_kept(device("cpu")):  # its first weights are random
            written: Any = frozen(build_unet(config), weights, device("cpu"))
    except (RuntimeError, TypeError, ValueError) as error:
        return {"reason": f"its weights fit no UNet2DModel of its config ({one_line(spell_error(error), 120)})"}
    try:
        sweep(folder.parent, f"{STAGED}*")
        remove(folder)
        written.save_pretrained(folder, safe_serialization=True)
        write_scheduler(folder / "scheduler")
    except (OSError, SafetensorError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise _unwritable(folder.parent, error) from error
    with global_rng_kept(device("cpu")):
        read = UNet2DModel.from_pretrained(folder, use_safetensors=True, low_cpu_mem_usage=False)
    if is_plain(model) and _predict_alike(model, placed(read, next(model.parameters()).device), cell, image_shape):
        return {"sha256": file_digest(folder / WEIGHTS)}
    shutil.rmtree(folder, ignore_errors=True)
    return {"reason": "it predicts what its weights alone do not, so a folder of weights would be another model"}


def _predict_alike(model: "nn.Module", other: Any, cell: Cell, image_shape: Sequence[int]) -> bool:
    """Say whether two models predict the same noise for the forget class, the null class, and one between."""
    import torch

    from unlearnbench.models.diffusion import evaluating, predict_noise

    device = next(model.parameters()).device
    x = torch.randn((len(PROBES), *image_shape), generator=torch.Generator().manual_seed(0)).to(device)
    t = torch.tensor(PROBES, device=device)
    null = int(other.config["num_class_embeds"]) - 1
    y = torch.tensor([cell.forget_class, null, (cell.forget_class + 1) % null, cell.forget_class], device=device)
    with evaluating(model), evaluating(other):
        ours, theirs = predict_noise(model, x, t, y), predict_noise(other, x, t, y)
    return torch.equal(ours, theirs) if device.type == "cpu" else torch.allclose(ours, theirs, TOLERANCE, TOLERANCE)


def settle(models: Path, record: Record) -> None:
    """Put a sound record's staged model to its place, with card and facts; drop that of any other record.

    Raises:
        UsageError: the folder cannot be written.
    """
    staged, folder = staging(models, record.cell), models / record.cell.id
    if record.status != "ok" or "sha256" not in record.artifacts.get("model", {}):
        shutil.rmtree(staged, ignore_errors=True)
        return
    try:
        (staged / FACTS).write_text(json.dumps(_facts(record), indent=2) + "\n", encoding="utf-8")
        (staged / CARD).write_text(card(record), encoding="utf-8")
        while not moved(staged, folder):
            remove_at_once(folder)
    except OSError as error:
        shutil.rmtree(staged, ignore_errors=True)
        raise _unwritable(models, error) from error


def is_saved(models: Path, record: Record) -> bool:
    """Say whether the model of a record is where `settle` puts it; so is what no folder can hold."""
    if "reason" in record.artifacts.get("model", {}):
        return True
    folder = models / record.cell.id
    try:
        facts = json.loads((folder / FACTS).read_text("utf-8"))
        return (folder / WEIGHTS).is_file() and bool(facts["record"] == records_digest([record]))
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _unwritable(models: Path, error: Exception) -> UsageError:
    return UsageError(f"cannot write {models} ({refusal(error)}): free space or give another folder with --save-models")


def _facts(record: Record) -> dict[str, Any]:
    """Return what `unlearnbench sample` must know of a model."""
    names = ("title", "class_names", "image_shape")
    return {
        "cell_id": record.cell.id, "cell": record.cell.to_json(), "record": records_digest([record]),
        "dataset": {name: record.dataset[name] for name in names}, "sampler": _protocol(record).sampler,
        "null_class": _null_class(record),
    }  # fmt: skip


def _null_class(record: Record) -> int | None:
    return None if (record.dataset.get("choices") or {}).get("unguided") else len(record.dataset["class_names"])


def _null_words(record: Record) -> str:
    label = _null_class(record)
    return "no null class, so no guidance" if label is None else f"label {label} is the null class of guidance"


def _protocol(record: Record) -> Protocol:
    return Protocol(**record.protocol)


def card(record: Record) -> str:
    """Return a model card in the form of the Hugging Face Hub."""
    cell, method, title = record.cell, record.method, record.method.get("title", record.cell.method)
    paper = f" ([arXiv:{method['paper']}](https://arxiv.org/abs/{method['paper']}))" if method.get("paper") else ""
    dataset, protocol = record.dataset, _protocol(record)
    forgotten = _named(cell.forget_classes, dataset["class_names"])
    earlier = [_named(classes, dataset["class_names"]) for classes in cell.earlier]
    before = f" Before that the same method had it forget {', then '.join(earlier)}." if earlier else ""
    settings = [f"| `{name}` | {value} |" for name, value in cell.settings.items()] or ["| none | |"]
    clipped = ", x0 clipped to [-1, 1] at every step" if protocol.clip_x0 else ""
    parts = [
        "---\nlibrary_name: diffusers\ntags:\n- diffusion\n- machine-unlearning\n- class-conditional\n- unlearnbench\n"
        f"---\n\n# {title}: {dataset['title']} without {forgotten}",
        f"A class-conditional `UNet2DModel` of {dataset['title']} from which {title}{paper} unlearned {forgotten}."
        f"{before} Written by unlearnbench; this is the model that was measured, and not another run of the method.",
        f"- Cell `{cell.id}`, seeds: unlearning {cell.seed}, base model {cell.base_seed}, sampling "
        f"{cell.sampling_seed}\n- Record digest `{records_digest([record])}`\n"
        f"- Weights SHA-256 `{record.artifacts['model']['sha256']}`\n"
        f"- Classes: {', '.join(_labelled(k, name) for k, name in enumerate(dataset['class_names']))}; "
        f"{_null_words(record)}\n"
        f"- Noise schedule: 1,000 steps, linear betas from 1e-4 to 0.02, predicts the noise (`scheduler/`)\n"
        f"- Sampler of the protocol {protocol.name}: DDIM, {protocol.steps} steps, eta {protocol.eta}, guidance w "
        f"{protocol.guidance}, (1 + w) eps(class) - w eps(null class){clipped}",
        "## Settings\n\n| setting | value |\n| --- | --- |\n" + "\n".join(settings),
        "## Metrics\n\n| metric | value | unit | better | n |\n| --- | --- | --- | --- | --- |\n"
        + "\n".join(_metric_row(entry) for entry in record.metrics.values()),
        _cost_words(record),
        _usage(record, protocol),
        _limits(record),
    ]
    return "\n\n".join(parts) + "\n"


def _named(classes: Sequence[int], names: Sequence[str]) -> str:
    """Return classes as people name them: `class 3 (cat) and class 5 (dog)`."""
    return " and ".join(f"class {_labelled(c, names[c])}" for c in classes)


def _labelled(label: int, name: str) -> str:
    return str(label) if name == str(label) else f"{label} ({name})"


def _metric_row(entry: Mapping[str, Any]) -> str:
    value = f"not measurable: {entry.get('reason')}"
    if entry["value"] is not None:
        value = f"{entry['value']:{entry['format']}}"
    return f"| {entry['title']} | {value} | {entry['unit'] or '-'} | {entry['better']} | {entry['n']} |"


def _cost_words(record: Record) -> str:
    seconds = {phase: record.cost.get(phase, {}).get("seconds", 0.0) for phase in ("forget", "prior")}
    device = record.provenance.get("device", {}).get("name", "an unknown device")
    return f"Unlearning took {seconds['forget']:.2f} s, and {seconds['prior']:.2f} s of preparation, on {device}."


def _usage(record: Record, protocol: Protocol) -> str:
    """Return how to load and sample the model, with diffusers alone and with this package."""
    c, k, (channels, height, width) = record.cell.forget_class, _null_class(record), _shape(record)
    null, eps, w = "", "model(x, t, y).sample", ""
    if k is not None:
        null, w = f"; {k} is the null class", f", {protocol.guidance}"
        eps = f"(1 + w) * model(x, t, y).sample - w * model(x, t, torch.full_like(y, {k})).sample"
    return f"""## Use

```python
import torch
from diffusers import DDIMScheduler, UNet2DModel

folder = "."  # this one
model = UNet2DModel.from_pretrained(folder).eval()
scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler", clip_sample={protocol.clip_x0})
scheduler.set_timesteps({protocol.steps})
y = torch.full((8,), {c})  # the class that was unlearned{null}
x{", w" if w else ""} = torch.randn(8, {channels}, {height}, {width}){w}
with torch.no_grad():
    for t in scheduler.timesteps:
        eps = {eps}
        x = scheduler.step(eps, t, x, eta={protocol.eta}).prev_sample  # images in [-1, 1] at the end
```

```bash
unlearnbench sample . --class {c} --n 64 --out grid.png
```"""


def _limits(record: Record) -> str:
    worth = record.judge
    judge = f" (test accuracy {100 * worth['test_accuracy']:.1f} %, n = {worth['n']})" if worth else ""
    return (
        "## Limits\n\n"
        f"- The metrics say what judges{judge} and features make of samples of this one model, as many as n; they "
        "prove nothing about what is left in the weights.\n"
        "- A class that was unlearned in the weights may come back: by fine-tuning, by other starting noise, by "
        "another label embedding. `unlearnbench list metrics` names the attacks; those that ran are in the table.\n"
        "- Other classes may have suffered in ways that no metric here sees. Look at samples before use."
    )


def _shape(record: Record) -> tuple[int, int, int]:
    channels, height, width = record.dataset["image_shape"]
    return int(channels), int(height), int(width)


@dataclass(frozen=True)
class SavedModel:
    """A model in a folder, with what its samples depend on."""

    network: "nn.Module"
    cell: Cell  # whose dataset and sampling seed name the noise that samples start from
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (C, H, W)
    sampler: Mapping[str, Any]  # arguments of diffusion.sample
    null_class: int | None  # None: it has none, and cannot be guided


def open_model(folder: Path, device: "torch.device") -> SavedModel:
    """Read a model that `--save-models` wrote, or any diffusers UNet2DModel with class labels.

    Of the latter nothing is known: its classes have numbers for names, its last label counts as the null class, and it
    is sampled with DDIM in 50 steps without guidance.

    Raises:
        UsageError: there is no such folder, or no such model in it.
    """
    from unlearnbench.models.networks import placed

    network, config = _read_network(folder)
    network = placed(network, device).eval().requires_grad_(False)
    cell, facts = Cell("model", "", "", {}, 0, 0), _read_facts(folder)
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
        raise UsageError(f"{folder} has no class labels (num_class_embeds), so no class to ask it for")
    side, channels = config.get("sample_size"), config.get("in_channels")
    height, width = side if isinstance(side, list) and len(side) == 2 else [side, side]
    shape: list[Any] = [channels, height, width]
    if channels not in (1, 3) or any(type(n) is not int or not 0 < n <= MOST_SIDE for n in (height, width)):
        raise UsageError(f"{folder} makes no images of 1 or 3 channels and a known size, so no grid can show them")
    network = build_checked(str(folder), config, weights, shape)
    check_schedule(str(folder), schedule)
    return network, {**config, "image_shape": tuple(shape)}


def _read_facts(folder: Path) -> dict[str, Any] | None:
    """Return what stands beside a model that this package wrote; None beside any other."""
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
    """Sample n images of each class, from the noise that the evaluation starts image 0 ... n - 1 of that class from.

    Args:
        saved: the model.
        classes: labels.
        n: images of each.
        seed: of the sampling noise; None for the one that the model was evaluated with.
        steps: of DDIM; None for the protocol's.
        guidance: w; None for the protocol's.
        progress: shows how far it is.

    Returns:
        (len(classes), n, C, H, W).

    Raises:
        UsageError: the steps do not divide the schedule's.
    """
    import torch

    from unlearnbench.measure.evidence import sample_seeds
    from unlearnbench.models.diffusion import Schedule, sample

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
    found: NDArray[np.uint8] = images.numpy().reshape(len(classes), n, *saved.image_shape)
    return found


def grid(images: NDArray[np.uint8]) -> "Image":
    """Return images (classes, n, C, H, W) as one picture: a row for each class, or nearly a square of one class."""
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
