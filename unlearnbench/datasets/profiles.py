"""Profiles of the colour image sets: base recipes, judges, extractors; protocols `paper`, `fast`, `brief`, `smoke`.

`paper` is the protocol of the SA and SalUn code without their bugs; `paper-b4` restores one of them, the reference set
that always drops class 0. `brief` takes some minutes on a GPU at 32 pixels: the paper's network, few samples, judges
that train in seconds. `smoke` is for a CPU: a small network, few samples, the dataset's own features.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from unlearnbench.datasets.recipes import (
    AutoencoderRecipe,
    BaseRecipe,
    ClassifierRecipe,
    Profile,
    Protocol,
    RejectingRecipe,
    autoencoder_network,
    text_network,
    transformer_network,
    with_b4,
)

CIFAR_SIDE = 32  # pixels


def _unet(levels: int) -> dict[str, Any]:
    """Return diffusers' form of the SA and SalUn code's denoiser: four levels, 35.8 M weights (64 px: five)."""
    return {
        "block_out_channels": [128, *[256] * (levels - 2), 256 if levels == 4 else 512],
        "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", *["DownBlock2D"] * (levels - 2)],
        "up_block_types": [*["UpBlock2D"] * (levels - 2), "AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": None,  # one head
        "dropout": 0.1,
        "norm_num_groups": 32,
    }


_RESNET = ClassifierRecipe(  # of the SA and SalUn code: 224 px, ImageNet weights, all layers fine-tuned
    network="resnet34_224", epochs=10, batch=128, lr=1e-4, body_lr=1e-5, weight_decay=5e-4, label_smoothing=0.0,
    shift=0, flip=True, schedule="constant", optimizer="adam", pretrained=True, seed=0,
)  # fmt: skip
_SCRATCH = ClassifierRecipe(  # needs no download; at the original resolution
    network="resnet34", epochs=30, batch=128, lr=2e-3, weight_decay=5e-2, label_smoothing=0.05, shift=4, flip=True,
    seed=0,
)  # fmt: skip
_CNN = ClassifierRecipe(  # for a CPU
    network="small_resnet", epochs=4, batch=128, lr=4e-3, weight_decay=2e-2, label_smoothing=0.05, shift=2, flip=True,
    seed=0,
)  # fmt: skip
_BRIEF_CNN = replace(_CNN, epochs=8, batch=512, lr=8e-3)  # batches that keep a GPU busy: some 800 steps on CIFAR-10
_CIFAR_RESNET = ClassifierRecipe(  # He et al.'s, in a few epochs
    network="cifar_resnet20", epochs=12, batch=512, lr=1e-2, weight_decay=5e-2, label_smoothing=0.05, shift=4,
    flip=True, seed=0,
)  # fmt: skip
_CIFAR_JUDGES = {
    "cifar-resnet20": _CIFAR_RESNET,
    "cifar-resnet56": replace(_CIFAR_RESNET, network="cifar_resnet56"),
}


_AUTOENCODER = AutoencoderRecipe(
    network=autoencoder_network(8, 16, 32),
    steps=1500,
    batch=32,
    lr=2e-3,
    kl=1e-3,
)


def _bases(unet: BaseRecipe) -> dict[str, BaseRecipe]:
    """Return the recipes of all kinds of models: beside a UNet small ones on latents, sized for a CPU."""
    small = replace(
        unet, steps=4000, batch=64, lr=1.5e-3, cosine=True, ema=0.999, precision="fp32", autoencoder=_AUTOENCODER
    )
    networks = {"dit": transformer_network(patch=2), "text": text_network(tokens=16)}
    return {"unet": unet} | {kind: replace(small, kind=kind, network=network) for kind, network in networks.items()}


def _paper(levels: int) -> Profile:
    return Profile(
        protocol=Protocol(
            name="paper", steps=1000, eta=1.0, guidance=2.0, forget_samples=500, retain_samples=5000, batch_size=500
        ),
        bases=_bases(
            BaseRecipe(
                network=_unet(levels), steps=800_000, batch=128, lr=2e-4, cosine=False, label_dropout=0.1, ema=0.9999,
                clip=1.0, precision="bf16",
            )
        ),
        judges={"resnet34": _RESNET, "resnet34-scratch": _SCRATCH, "small": _CNN},
        second=replace(_SCRATCH, network="vgg16", seed=2),
        rejecting=RejectingRecipe(**(asdict(_SCRATCH) | {"seed": 3, "label_smoothing": 0.0})),
        own=replace(_SCRATCH, seed=1),
        own_name="512-d features of a ResNet-34 trained on these images",
        extractor="inception",
    )  # fmt: skip


def _smoke() -> Profile:
    unet = {
        "block_out_channels": [16, 32, 64, 128],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D"] * 4,
        "up_block_types": ["UpBlock2D"] * 4,
        "add_attention": False,
        "norm_num_groups": 8,
    }
    return Profile(
        protocol=Protocol(
            name="smoke", steps=50, eta=1.0, guidance=2.0, forget_samples=40, retain_samples=40, batch_size=50,
            clip_x0=True,  # a small network's errors at large t are magnified 157 times otherwise
        ),
        bases=_bases(
            BaseRecipe(
                network=unet, steps=3000, batch=64, lr=1e-3, cosine=True, label_dropout=0.1, ema=0.999, clip=1.0
            )
        ),
        judges={"small": _CNN, "resnet34": _RESNET, "resnet34-scratch": _SCRATCH},
        second=replace(_CNN, network="small_vgg", seed=2),
        rejecting=RejectingRecipe(**(asdict(_CNN) | {"seed": 3, "label_smoothing": 0.0})),
        own=replace(_CNN, seed=1),
        own_name="128-d features of a small ResNet trained on these images",
    )  # fmt: skip


def _brief(paper: Profile) -> Profile:
    return Profile(
        protocol=replace(
            paper.protocol, name="brief", solver="dpm++", steps=20, eta=0.0, forget_samples=200, retain_samples=100,
            precision="bf16",
        ),
        bases=_bases(replace(paper.bases["unet"], steps=20_000, cosine=True)),
        judges={**_CIFAR_JUDGES, "small": _BRIEF_CNN, "resnet34": _RESNET, "resnet34-scratch": _SCRATCH},
        second=replace(_BRIEF_CNN, network="small_vgg", seed=2),
        rejecting=RejectingRecipe(**(asdict(_BRIEF_CNN) | {"seed": 3, "label_smoothing": 0.0})),
        own=replace(_BRIEF_CNN, seed=1),
        own_name="128-d features of a small ResNet trained on these images",
    )  # fmt: skip


def colour_profiles(image_shape: tuple[int, int, int]) -> Mapping[str, Profile]:
    """Return {protocol: profile} for colour images of this size, the default first.

    Attention sits at half the resolution: at 16 px for images of 32, as in the paper.
    """
    paper, smoke = _paper(5 if image_shape[1] >= 64 and image_shape[1] % 16 == 0 else 4), _smoke()
    fast = replace(
        paper,
        protocol=replace(
            paper.protocol,
            name="fast",
            solver="dpm++",
            steps=20,
            eta=0.0,
            forget_samples=500,
            retain_samples=500,
            precision="bf16",
        ),
    )
    profiles = [fast, paper, smoke]
    if image_shape[1] == CIFAR_SIDE:
        profiles = [replace(profile, judges={**profile.judges, **_CIFAR_JUDGES}) for profile in profiles]
        profiles.insert(2, _brief(paper))
    return {profile.protocol.name: profile for profile in [*profiles, *map(with_b4, profiles)]}
