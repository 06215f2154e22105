"""digits: 1,797 real 8x8 handwritten digits included in scikit-learn (UCI optical recognition of digits).

Everything is sized so that a laptop CPU runs the whole benchmark without a download. Pixels 0..16 are mapped to 0..255.
The 80/20 split is stratified and fixed; base model and judges see the training part only.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from unlearnbench.datasets import Dataset, Images, Source, Split, resolve
from unlearnbench.datasets.conditions import Concept, Prompts
from unlearnbench.datasets.recipes import (
    AutoencoderRecipe,
    BaseRecipe,
    ClassifierRecipe,
    Profile,
    Protocol,
    RejectingRecipe,
    SvmRecipe,
    autoencoder_network,
    text_network,
    transformer_network,
    with_b4,
)
from unlearnbench.errors import UsageError

if TYPE_CHECKING:
    from unlearnbench.protocols import Progress
    from unlearnbench.store.artifacts import ArtifactStore

TITLE = "digits (8x8, scikit-learn)"
FLIP = False
TUNING_CLASSES = (2, 5, 8)  # of `tune`


def load(store: "ArtifactStore", progress: "Progress") -> Images:
    """Return 1,437 training and 360 test images."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    pixels = np.round(images / 16 * 255).astype(np.uint8).reshape(-1, 1, 8, 8)
    split = train_test_split(pixels, labels.astype(np.int64), test_size=0.2, random_state=0, stratify=labels)
    return Images(Split(split[0], split[2]), Split(split[1], split[3]))


_JUDGE = ClassifierRecipe(
    network="small_cnn",
    epochs=15,
    batch=64,
    lr=4e-3,
    weight_decay=1e-2,
    label_smoothing=0.02,  # keeps the judge from being certain about unfamiliar images
    shift=1,
    seed=0,
    revision=2,
)

_UNET = BaseRecipe(
    network={
        "block_out_channels": [32, 32],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "add_attention": False,
        "norm_num_groups": 8,
    },
    steps=1500,
    batch=64,
    lr=2e-3,
    cosine=True,
    label_dropout=0.1,
    ema=0.995,
    clip=1.0,
)
_AUTOENCODER = AutoencoderRecipe(
    network=autoencoder_network(16, 32),
    steps=1100,
    batch=64,
    lr=4e-3,
    kl=1e-3,
)
_DIT = replace(_UNET, kind="dit", network=transformer_network(patch=1), lr=1.5e-3, autoencoder=_AUTOENCODER)
_TEXT = replace(_UNET, kind="text", network=text_network(tokens=12), steps=1900, autoencoder=_AUTOENCODER)
_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PROMPTS = Prompts(
    tuple(
        Concept(
            name=word,
            prompts=(f"a handwritten {word}", f"a photo of the digit {word}", f"a picture of the number {word}"),
            paraphrases=(f"an image of the figure {word}", f"{word} drawn by hand"),
            anchor="digit",
        )
        for word in _WORDS
    ),
    unrelated=("a photo", "a picture of something"),
)

_PROFILE = Profile(
    protocol=Protocol(
        name="digits-dpm12",
        solver="dpm++",
        steps=12,
        eta=0.0,
        guidance=0.5,
        forget_samples=100,
        retain_samples=50,
        batch_size=250,
    ),
    bases={"unet": _UNET, "dit": _DIT, "text": _TEXT},
    judges={"cnn": _JUDGE},
    second=SvmRecipe(c=10.0, gamma=0.05),
    # Of 6 trainings with two seeds each, at 5 thresholds: the one that rejects most blends (75 %) among those that
    # reject, with either seed, 99 % of noise, shuffled pixels and blanks and at most 3 % of any class of base samples.
    rejecting=RejectingRecipe(
        network="small_cnn",
        epochs=30,
        batch=64,
        lr=4e-3,
        weight_decay=1e-2,
        label_smoothing=0.0,
        shift=1,
        seed=2,
        negatives=0.25,
        threshold=0.8,
    ),
    own=replace(_JUDGE, seed=1),  # separate weights, so that FID does not use the judge's own features
    own_name="64-d features of a CNN trained on digits",
)


def profiles(image_shape: tuple[int, int, int]) -> Mapping[str, Profile]:
    """Return {protocol: profile}: two samplers, and their forms with the reference set that drops class 0."""
    ddim = replace(_PROFILE, protocol=replace(_PROFILE.protocol, name="digits-ddim25", solver="ddim", steps=25))
    return {profile.protocol.name: profile for profile in (_PROFILE, ddim, with_b4(_PROFILE), with_b4(ddim))}


def dataset(source: Source) -> Dataset:
    """Return the dataset."""
    if source.data_root is not None:
        raise UsageError("--data-root does not apply to digits, which are part of scikit-learn: name another --dataset")
    return resolve(
        source, name="digits", title=TITLE, class_names="0123456789", image_shape=(1, 8, 8), flip=FLIP, load=load,
        prompts=PROMPTS, tuning_classes=TUNING_CLASSES,
    )  # fmt: skip
