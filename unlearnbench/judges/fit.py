"""Training of a classifier on a dataset's images: judges and feature extractors."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from unlearnbench.datasets import Split
from unlearnbench.datasets.recipes import ClassifierRecipe, RejectingRecipe
from unlearnbench.judges.negatives import negatives
from unlearnbench.models.diffusion import half_precision, to_float
from unlearnbench.models.networks import Classifier
from unlearnbench.models.training import flipped
from unlearnbench.models.transfer import upload


def shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Return images (B, C, H, W) each moved by up to `most` pixels along both axes, the border filled with -1."""
    height, width = x.shape[-2:]
    padded = functional.pad(x, [most] * 4, value=-1.0)
    offsets = upload(torch.randint(0, 2 * most + 1, (2, len(x)), generator=generator), x.device)
    rows = (offsets[0, :, None] + torch.arange(height, device=x.device))[:, None, :, None]
    columns = (offsets[1, :, None] + torch.arange(width, device=x.device))[:, None, None, :]
    image, channel = torch.arange(len(x), device=x.device), torch.arange(x.shape[1], device=x.device)
    return padded[image[:, None, None, None], channel[:, None, None], rows, columns]


def fit_classifier(
    model: Classifier, train: Split, recipe: ClassifierRecipe, progress: Callable[[int, int], None]
) -> None:
    """Train a classifier in place with cross-entropy, on the device it is on; in bfloat16 on CUDA."""
    device = next(model.parameters()).device
    if device.type == "cuda":
        model.to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(recipe.seed)  # on the CPU: every device sees the same order
    images, labels = torch.from_numpy(train.images).to(device), torch.from_numpy(train.labels).to(device)
    batches = max(1, len(images) // recipe.batch)
    total = recipe.epochs * batches
    body_lr = recipe.lr if recipe.body_lr is None else recipe.body_lr
    head = {id(parameter) for parameter in model.head.parameters()}
    groups = [
        {"params": [p for p in model.parameters() if id(p) not in head], "lr": body_lr},
        {"params": list(model.head.parameters()), "lr": recipe.lr},
    ]
    kind = torch.optim.AdamW if recipe.optimizer == "adamw" else torch.optim.Adam
    optimizer = kind(groups, weight_decay=recipe.weight_decay)
    schedule = None
    if recipe.schedule == "one-cycle":
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, [body_lr, recipe.lr], total_steps=total)
    model.train()
    for step in range(total):
        if step % batches == 0:
            order = upload(torch.randperm(len(images), generator=generator), device)
        chosen = order[step % batches * recipe.batch :][: recipe.batch]
        x = to_float(images[chosen])
        x = shifted(x, recipe.shift, generator) if recipe.shift else x
        x, y = flipped(x, generator) if recipe.flip else x, labels[chosen]
        if isinstance(recipe, RejectingRecipe):
            x, y = _with_negatives(x, y, recipe, model.head.out_features - 1, generator)
        with half_precision(device, wanted=True):
            loss = functional.cross_entropy(model(x), y, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if schedule is not None:
            schedule.step()
        progress(step + 1, total)
    model.eval()


def _with_negatives(
    x: Tensor, y: Tensor, recipe: RejectingRecipe, label: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return a batch extended by its share of no-object images, which get a separate label."""
    n = round(recipe.negatives * len(x))
    nothing = negatives(x[:n], y[:n], generator)
    return torch.cat([x, nothing]), torch.cat([y, y.new_full((n,), label)])
