"""The autoencoder of models on latents, trained on a dataset's images: an artifact that such models share."""

from typing import Any

import torch
from torch import Tensor, nn

from unlearnbench.datasets import Dataset, Split
from unlearnbench.datasets.recipes import AutoencoderRecipe
from unlearnbench.models.codec import BATCH, PIXELS, Codec, Latents
from unlearnbench.models.diffusion import evaluating, to_float
from unlearnbench.models.networks import placed
from unlearnbench.models.pipelines import tensors_digest
from unlearnbench.models.training import global_rng_kept
from unlearnbench.protocols import Progress
from unlearnbench.store.artifacts import ArtifactStore, Tensors, software
from unlearnbench.store.revisions import later


def untrained_codec(dataset: Dataset) -> Codec:
    """Return the codec of a dataset's recipe, its autoencoder with random weights."""
    recipe = dataset.base.autoencoder
    return PIXELS if recipe is None else Latents(_build(recipe, dataset), "untrained")


def trained_codec(
    dataset: Dataset, train: Split, source: str, store: ArtifactStore, device: torch.device, progress: Progress
) -> Codec:
    """Return the codec of a dataset's recipe; its autoencoder is trained where the cache lacks it.

    Args:
        dataset: of the recipe.
        train: training images.
        source: their hash.
        store: the cache.
        device: trains.
        progress: shows how far it is.
    """
    recipe = dataset.base.autoencoder
    if recipe is None:
        return PIXELS
    inputs = {
        "recipe": recipe.to_json(), "images": source, "flip": dataset.flip, "device": device.type,
        "software": software(), **later("base"),
    }  # fmt: skip
    with global_rng_kept(device):
        made = store.get("autoencoder", inputs, lambda: _train(recipe, dataset, train, device, progress))
    network = _build(recipe, dataset, **made.facts)
    network.load_state_dict(made.tensors)
    return Latents(network, tensors_digest(made.tensors))


def _build(recipe: AutoencoderRecipe, dataset: Dataset, **more: Any) -> nn.Module:
    from diffusers import AutoencoderKL

    channels, side, _ = dataset.image_shape
    sizes = {"in_channels": channels, "out_channels": channels, "sample_size": side}
    network: nn.Module = AutoencoderKL(**sizes, **recipe.network, **more)
    return network


def _train(
    recipe: AutoencoderRecipe, dataset: Dataset, train: Split, device: torch.device, progress: Progress
) -> tuple[Tensors, dict[str, Any]]:
    """Train with the absolute error per pixel and a small weight on the KL term; scale latents to unit variance."""
    torch.manual_seed(recipe.seed)
    network: Any = placed(_build(recipe, dataset), device).train()
    generator = torch.Generator(device).manual_seed(recipe.seed)
    images = torch.from_numpy(train.images).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=recipe.lr)
    annealing = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.steps)
    for step in range(recipe.steps):
        progress("train the autoencoder", step, recipe.steps)
        chosen = torch.randint(0, len(images), (recipe.batch,), generator=generator, device=device)
        x = to_float(images[chosen])
        posterior = network.encode(x).latent_dist
        noise = torch.empty_like(posterior.mean).normal_(generator=generator)
        error = (network.decode(posterior.mean + posterior.std * noise).sample - x).abs().mean()
        loss = error + recipe.kl * posterior.kl().mean() / x[0].numel()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        optimizer.step()
        annealing.step()
    with evaluating(network):
        means: list[Tensor] = [network.encode(to_float(part)).latent_dist.mean for part in torch.split(images, BATCH)]
    scale = 1 / float(torch.cat(means).std())
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    return weights, {"scaling_factor": scale}
