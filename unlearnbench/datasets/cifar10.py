"""cifar10: 60,000 photographs of 32x32 pixels in 10 classes (Krizhevsky 2009), the paper's data set."""

from functools import partial
from typing import Any

from unlearnbench.datasets import Dataset, Source, resolve
from unlearnbench.datasets.downloads import images_of_arrays, loader
from unlearnbench.datasets.profiles import colour_profiles

TITLE = "CIFAR-10 (32x32)"
FLIP = True
TRAIN_COUNT = 5000  # training images of each class
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

profiles = colour_profiles


def open_part(kind: str, root: str, train: bool, download: bool) -> Any:
    """Return torchvision's CIFAR10 or CIFAR100."""
    import torchvision.datasets

    return getattr(torchvision.datasets, kind)(root, train=train, download=download)


def dataset(source: Source) -> Dataset:
    """Return the dataset."""
    load = loader(source, "CIFAR-10", partial(open_part, "CIFAR10"), images_of_arrays)
    return resolve(
        source, name="cifar10", title=TITLE, class_names=CLASSES, image_shape=(3, 32, 32), flip=FLIP, load=load,
        train_counts=(TRAIN_COUNT,) * len(CLASSES),
    )  # fmt: skip
