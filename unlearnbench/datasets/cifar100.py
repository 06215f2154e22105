"""cifar100: 60,000 photographs of 32x32 pixels in 100 classes (Krizhevsky 2009)."""

from functools import partial

from unlearnbench.datasets import Dataset, Source, resolve
from unlearnbench.datasets.cifar10 import open_part
from unlearnbench.datasets.downloads import images_of_arrays, loader
from unlearnbench.datasets.profiles import colour_profiles

TITLE = "CIFAR-100 (32x32)"
FLIP = True
TRAIN_COUNT = 500  # training images of each class
CLASSES = (
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish",
    "forest", "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion",
    "lizard", "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange",
    "orchid", "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine",
    "possum", "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk",
    "skyscraper", "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank",
    "telephone", "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale",
    "willow_tree", "wolf", "woman", "worm",
)  # fmt: skip

profiles = colour_profiles


def dataset(source: Source) -> Dataset:
    """Return the dataset."""
    load = loader(source, "CIFAR-100", partial(open_part, "CIFAR100"), images_of_arrays)
    return resolve(
        source, name="cifar100", title=TITLE, class_names=CLASSES, image_shape=(3, 32, 32), flip=FLIP, load=load,
        train_counts=(TRAIN_COUNT,) * len(CLASSES),
    )  # fmt: skip
