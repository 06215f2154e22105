"""imagefolder: any folder of class folders, as `train/CLASS/*` and `test/CLASS/*`, or as `CLASS/*` split by hash.

Classes are numbered in the order of their names, numbers in them by value. Images become RGB; their shorter side is
resized to `--image-size` (32 by default) and the middle square is kept. In a single folder, one image in five, chosen
by the hash of its path within it, is a test image.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unlearnbench.datasets import Dataset, Images, Source, Split, resolve
from unlearnbench.datasets.profiles import colour_profiles
from unlearnbench.errors import UsageError
from unlearnbench.hashing import digest
from unlearnbench.results import PLAIN, natural

if TYPE_CHECKING:
    from unlearnbench.artifacts import ArtifactStore
    from unlearnbench.process import Progress

TITLE = "a folder of class folders (--data-root DIR)"
FLIP = True
ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
MOST_CORRUPT = 0.01  # share of unreadable files above which a folder is refused
TEST_SHARE = 5  # one image in so many, where the folder does not say
SIDE = 32  # pixels, unless --image-size says otherwise
Listing = Mapping[str, Mapping[str, Sequence[str]]]  # part -> class -> paths within the root

profiles = colour_profiles


def dataset(source: Source) -> Dataset:
    """Return the dataset in a folder, named after the folder."""
    if source.data_root is None:
        raise UsageError("--dataset imagefolder needs --data-root DIR, a folder with train/CLASS/* and test/CLASS/*")
    root, side = source.data_root.expanduser().resolve(), source.image_size or SIDE
    if side < 8 or side % 8:
        raise UsageError(f"--image-size {side}: give a multiple of 8, so that the network can halve it")
    listing, classes = list_images(root)
    name = root.name if PLAIN.fullmatch(root.name) else "imagefolder"
    if name in {"digits", "cifar10", "cifar100", "stl10"}:
        name = f"{name}-folder"  # not the bytes that this name stands for
    sizes = [(root / path).stat() for path in _paths(listing)]
    named = digest([listing, side, classes, [status.st_size for status in sizes]])
    stamp = digest([named, [status.st_mtime_ns for status in sizes]])  # a file edited in place is read anew
    return resolve(
        source, name=name, title=f"{name} ({side}x{side}, folder of images)", class_names=classes,
        image_shape=(3, side, side), flip=FLIP, load=partial(_load, root, side, stamp, classes),
        content=named, train_counts=tuple(len(listing["train"][name]) for name in classes),
    )  # fmt: skip


def list_images(root: Path) -> tuple[Listing, list[str]]:
    """Return the images of both parts by class, and the sorted class names.

    Raises:
        UsageError: the folder is missing, holds no two classes, or a class lacks images in a part.
    """
    if not root.is_dir():
        raise UsageError(f"--data-root {root}: there is no such folder")
    if (root / "train").is_dir() and (root / "test").is_dir():
        listing: Listing = {part: _class_folders(root, root / part) for part in ("train", "test")}
    else:
        listing = _split_by_hash(_class_folders(root, root))
    train, test = (sorted(listing[part], key=natural) for part in ("train", "test"))
    if train != test:
        odd = sorted(set(train) ^ set(test))
        raise UsageError(f"{root}: train and test must hold the same classes, but only one of them has {_few(odd)}")
    if len(train) < 2:
        raise UsageError(
            f"{root} holds {len(train)} class folders with images: lay it out as train/CLASS/* and test/CLASS/*, or as "
            f"CLASS/*, with two classes or more"
        )
    empty = [f"{part}/{name}" for part, classes in listing.items() for name, paths in classes.items() if not paths]
    if empty:
        raise UsageError(f"{root}: {_few(empty)} holds no image: add some or remove the class")
    return listing, train


def _class_folders(root: Path, folder: Path) -> dict[str, list[str]]:
    return {
        child.name: sorted(
            str(path.relative_to(root))
            for path in child.rglob("*")
            if path.suffix.lower() in ENDINGS and path.is_file()
        )
        for child in sorted(folder.iterdir())
        if child.is_dir() and not child.name.startswith(".")
    }


def _split_by_hash(classes: Mapping[str, Sequence[str]]) -> Listing:
    """Send every image to the part its path's hash says; a class of few images keeps one for the test part."""
    parts: dict[str, dict[str, Sequence[str]]] = {"train": {}, "test": {}}
    for name, paths in classes.items():
        numbers = {path: int(hashlib.sha256(os.fsencode(path)).hexdigest(), 16) for path in paths}
        ordered = sorted(paths, key=lambda path: numbers[path])
        tests = {path for path in ordered if numbers[path] % TEST_SHARE == 0}
        if len(ordered) > 1 and not 0 < len(tests) < len(ordered):
            tests = {ordered[0]}
        parts["train"][name] = [path for path in paths if path not in tests]
        parts["test"][name] = [path for path in paths if path in tests]
    return parts


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _paths(listing: Listing) -> list[str]:
    return [path for part in listing.values() for paths in part.values() for path in paths]


def _load(
    root: Path, side: int, stamp: str, classes: Sequence[str], store: "ArtifactStore", progress: "Progress"
) -> Images:
    """Decode every image once into arrays that the cache keeps."""
    import torch

    def build() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        listing, _ = list_images(root)
        tensors, notes = _decode(root, listing, classes, side, progress)
        return {name: torch.from_numpy(array) for name, array in tensors.items()}, {"notes": notes}

    found = store.get("images", {"stamp": stamp, "revision": 1}, build)
    arrays = {name: tensor.numpy() for name, tensor in found.tensors.items()}
    parts = [Split(arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part in ("train", "test")]
    return Images(parts[0], parts[1], tuple(found.facts["notes"]))


def _decode(
    root: Path, listing: Listing, classes: Sequence[str], side: int, progress: "Progress"
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return the arrays of both parts, and a note on what was skipped or converted."""
    total, done, corrupt, grey = len(_paths(listing)), 0, [], 0
    arrays: dict[str, NDArray[Any]] = {}
    for part, by_class in listing.items():
        images, labels = [], []
        for label, name in enumerate(classes):
            for path in by_class[name]:
                image, was_grey = _read(root / path, side)
                done, grey = done + 1, grey + was_grey
                progress("decode images", done, total)
                if image is None:
                    corrupt.append(path)
                else:
                    images.append(image)
                    labels.append(label)
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = _stack(images, side), np.asarray(labels, dtype=np.int64)
        if missing := [name for label, name in enumerate(classes) if label not in labels]:
            raise UsageError(f"{root}: no image of {part}/{_few(missing)} can be read: replace them")
    if len(corrupt) > MOST_CORRUPT * total:
        raise UsageError(
            f"{root}: {len(corrupt)} of {total} image files cannot be read, such as {corrupt[0]}: replace or remove "
            f"them"
        )
    notes = []
    if corrupt:
        notes.append(f"{len(corrupt)} of {total} image files cannot be read and are skipped, such as {corrupt[0]}")
    if 0 < grey < total:
        notes.append(f"{grey} of {total} images are grayscale among colour ones; they are used as RGB")
    return arrays, notes


def _stack(images: Sequence[NDArray[np.uint8]], side: int) -> NDArray[np.uint8]:
    stacked = np.stack(images) if images else np.empty((0, side, side, 3), dtype=np.uint8)
    return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))


def _read(path: Path, side: int) -> tuple[NDArray[np.uint8] | None, bool]:
    """Return an image as (side, side, 3) uint8, None where it cannot be read, and whether it was grayscale."""
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as opened:
            grey = opened.mode in {"1", "L", "LA", "I", "I;16", "F"}
            image = opened.convert("RGB")
    except MemoryError:
        raise
    except Exception:  # Pillow's plugins raise whatever a damaged file made happen; the caller counts them
        return None, False
    if image.size != (side, side):
        image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(image), grey
