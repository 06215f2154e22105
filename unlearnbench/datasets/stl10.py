"""stl10: 13,000 photographs in 10 classes (Coates et al. 2011), reduced from 96 to 64 pixels as in the SA code.

That code trains on both parts together; here the test part is held out for the judge's accuracy.
"""

from typing import Any

import numpy as np
from PIL import Image

from unlearnbench.datasets import Dataset, Source, Split, resolve
from unlearnbench.datasets.downloads import loader
from unlearnbench.datasets.profiles import colour_profiles

TITLE = "STL-10 (64x64)"
FLIP = True
TRAIN_COUNT = 500  # training images of each class
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
SIDE = 64

profiles = colour_profiles


def open_part(root: str, train: bool, download: bool) -> Any:
    """Return torchvision's STL10."""
    import torchvision.datasets

    return torchvision.datasets.STL10(root, split="train" if train else "test", download=download)


def reduced(part: Any) -> Split:
    """Return the images at 64 pixels, reduced by bicubic interpolation with antialiasing."""
    images = [
        np.asarray(Image.fromarray(image.transpose(1, 2, 0)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        for image in part.data
    ]
    return Split(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2)), part.labels.astype(np.int64))


def dataset(source: Source) -> Dataset:
    """Return the dataset."""
    load = loader(source, "STL-10", open_part, reduced)
    return resolve(
        source, name="stl10", title=TITLE, class_names=CLASSES, image_shape=(3, SIDE, SIDE), flip=FLIP, load=load,
        train_counts=(TRAIN_COUNT,) * len(CLASSES),
    )  # fmt: skip
