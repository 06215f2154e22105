"""imagefolder: any folder of class folders, as `train/CLASS/*` and `test/CLASS/*`, or as `CLASS/*` split by hash.

The test part may be called test, testing, val, valid or validation, in any case; test goes before the others. Classes
are numbered in the order of their names, numbers in them by value. Images become upright RGB; their shorter
side is resized to `--image-size` (32 by default) and the middle square is kept. In a single folder, one image in five,
chosen by the hash of its path within it, is a test image.

Links to files and folders are followed, also out of the folder; within a class every folder is read once, so that
loops of links end. Hidden files and folders are left out at every depth.
"""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unlearnbench.datasets import Dataset, Images, Source, Split, resolve
from unlearnbench.datasets.conditions import Prompts
from unlearnbench.datasets.profiles import colour_profiles
from unlearnbench.errors import UsageError, one_line
from unlearnbench.store.cell import plain_name
from unlearnbench.store.fields import PLAIN
from unlearnbench.store.hashing import digest
from unlearnbench.store.pictures import ENDINGS, BadPicture, UnclearPicture, read_picture
from unlearnbench.store.records import natural

if TYPE_CHECKING:
    from unlearnbench.protocols import Progress
    from unlearnbench.store.artifacts import ArtifactStore

TITLE = "a folder of class folders (--data-root DIR)"
FLIP = True
TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing")
VALIDATION_NAMES = ("val", "valid", "validation")  # the test part where there is none of the above
HIDDEN_NAMES = frozenset({"__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "@eadir", "lost+found"})
MOST_CORRUPT = 0.01  # share of unreadable files above which a folder is refused
TEST_SHARE = 5  # one image in TEST_SHARE, where the folder has no test part
SIDE = 32  # pixels, unless --image-size says otherwise
MOST_NAME = 60  # characters of the folder's name used in the dataset's
MOST_HEADS = 1000  # files with first bytes that identify a folder, besides names and sizes
HEAD_BYTES = 65536
TRAIT_NOTES = {
    "deep": "{n} of {total} images have more than 8 bits per pixel; the upper 8 are used",
    "transparent": "{n} of {total} images have transparent pixels; they are laid over white",
    "turned": "{n} of {total} images are turned as their EXIF orientation says",
    "several": "{n} of {total} image files hold several frames; the first one is used",
}


HIDDEN = ("hidden file or folder is", "hidden files and folders are")
OTHER = ("file of another kind is", "files of other kinds are")
BESIDE = ("file beside the class folders is", "files beside the class folders are")
LINKS = ("link that leads nowhere or in a circle is", "links that lead nowhere or in a circle are")
UNUSED = ("folder beside the two parts is", "folders beside the two parts are")


@dataclass
class Listing:
    """The image files of a folder, and the entries left out."""

    parts: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # part -> class -> paths within the root
    left_out: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # reason (singular, plural) -> paths
    notes: list[str] = field(default_factory=list)

    @property
    def paths(self) -> list[str]:
        """Every image's path, part by part."""
        return [path for part in self.parts.values() for paths in part.values() for path in paths]

    def leave_out(self, what: tuple[str, str], path: str) -> None:
        """Count a file or folder that is not used."""
        self.left_out.setdefault(what, []).append(path)

    def sentences(self) -> list[str]:
        """Return the notes for the user on how the folder was read."""
        counts = [
            f"{len(paths)} {what[len(paths) > 1]} left out: {_few(paths)}" for what, paths in self.left_out.items()
        ]
        return self.notes + counts


profiles = colour_profiles


def dataset(source: Source) -> Dataset:
    """Return the dataset in a folder, named after the folder and its content."""
    if source.data_root is None:
        raise UsageError("--dataset imagefolder needs --data-root DIR, a folder with train/CLASS/* and test/CLASS/*")
    root, side = source.data_root.expanduser().resolve(), source.image_size or SIDE
    name = root.name if PLAIN.fullmatch(root.name) else "imagefolder"
    return from_listing(source, root, side, partial(list_images, root), name=name, flip=FLIP)


def from_listing(
    source: Source, root: Path, side: int, look: Callable[[], Listing], *, name: str, flip: bool,
    prompts: Prompts | None = None,
) -> Dataset:  # fmt: skip
    """Return the dataset of listed images.

    Args:
        source: the user's choices.
        root: folder that paths of images are relative to.
        side: pixels that images are resized to.
        look: lists the images, now and when they are read; its classes are in the order of their labels.
        name: of the dataset, to which six digits of its content are added.
        flip: whether methods and training see random horizontal flips.
        prompts: of the classes, where they are concepts.
    """
    if side < 8 or side % 8:
        raise UsageError(f"--image-size {side}: give a multiple of 8, so that the network can halve it")
    listing = look()
    classes = list(listing.parts["train"])
    files = [(root / path).stat() for path in listing.paths]
    content = _content(root, listing, side, classes, [status.st_size for status in files])
    stamp = digest([content, [status.st_mtime_ns for status in files]])  # a file edited in place is read anew
    met = Counter((status.st_dev, status.st_ino) for status in files if status.st_ino)
    if again := sum(n - 1 for n in met.values()):
        listing.notes.append(f"{again} of {len(files)} images are additional links to the same file")
    what = "folder of images" if prompts is None else "concepts"
    return resolve(
        source, name=f"{name[:MOST_NAME]}-{content[:6]}", class_names=classes, image_shape=(3, side, side), flip=flip,
        title=f"{plain_name(root.name if prompts is None else name)[:MOST_NAME] or 'images'} ({side}x{side}, {what})",
        load=partial(_load, root, side, stamp, classes, tuple(listing.sentences()), look), content=content,
        train_counts=tuple(len(listing.parts["train"][name]) for name in classes), prompts=prompts,
    )  # fmt: skip


def _content(root: Path, listing: Listing, side: int, classes: Sequence[str], sizes: Sequence[int]) -> str:
    """Return a machine-independent identity of the folder: names, sizes, and the first bytes of some files."""
    paths = {part: {name: [_nfc(p) for p in found] for name, found in of.items()} for part, of in listing.parts.items()}
    some = listing.paths[:: -(-len(listing.paths) // MOST_HEADS)]
    return digest([paths, side, classes, sizes, [_head(root / path) for path in some]])


def _head(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.sha256(file.read(HEAD_BYTES)).hexdigest()
    except OSError:  # counted among the files that cannot be read, when all are
        return ""


def list_images(root: Path) -> Listing:
    """Return the images of both parts by class, classes sorted by name.

    Raises:
        UsageError: the folder is missing, holds fewer than two classes, a class lacks images in a part, or the parts
            are ambiguous.
    """
    if not root.is_dir():
        raise UsageError(f"--data-root {root}: there is no such folder")
    listing = Listing()
    parts = _part_folders(root, listing)
    if parts is None:
        listing = Listing(split_by_hash(_classes(root, "", listing)), listing.left_out)
    else:
        listing.parts = {part: _classes(root, name, listing) for part, name in parts.items()}
    train, test = (sorted(listing.parts[part], key=natural) for part in ("train", "test"))
    if train != test:
        odd = sorted(set(train) ^ set(test))
        raise UsageError(f"{root}: train and test must hold the same classes, but only one of them has {_few(odd)}")
    if len(train) < 2:
        raise UsageError(
            f"{root} holds {len(train)} class folder{'' if len(train) == 1 else 's'} with images: lay it out as "
            f"train/CLASS/* and test/CLASS/*, or as CLASS/*, with two classes or more"
        )
    empty = [
        f"{part}/{name}" for part, classes in listing.parts.items() for name, paths in classes.items() if not paths
    ]
    if empty:
        raise UsageError(f"{root}: {_few(empty)} holds no image: add some or remove the class")
    listing.parts = {part: {name: classes[name] for name in train} for part, classes in listing.parts.items()}
    return listing


def _part_folders(root: Path, listing: Listing) -> dict[str, str] | None:
    """Return the folder of each part, or None where the folder holds the classes themselves.

    A part has one of the usual names and holds class folders with images, since a class may be called train.
    """
    entries = _entries(root, "", Listing())
    folders = [entry.name for entry in entries if _is_folder(entry)]
    trains, tests, validations = (
        [name for name in folders if name.casefold() in names] for names in (TRAIN_NAMES, TEST_NAMES, VALIDATION_NAMES)
    )
    sound = {name for name in (*trains, *tests, *validations) if any(_classes(root, name, Listing()).values())}
    if not sound and not (trains and (tests or validations)):
        return None
    test = [name for name in tests if name in sound] or [name for name in validations if name in sound]
    train = [name for name in trains if name in sound]
    for several in (train, test):
        if len(several) > 1:
            raise UsageError(f"{root} holds {' and '.join(several)}, which is ambiguous: keep one of them")
    if not train or not test:
        raise UsageError(
            f"{root}: train and test (or val) must both hold class folders with images, but only {_few(sorted(sound))} "
            f"does: lay it out as train/CLASS/* and test/CLASS/*, or as CLASS/*"
            if sound
            else f"{root}: {_few([*trains, *tests, *validations])} hold no class folders with images: lay it out as "
            f"train/CLASS/* and test/CLASS/*, or as CLASS/*"
        )
    if test[0].casefold() not in TEST_NAMES:
        listing.notes.append(f"the test images are those of {test[0]}")
    elif validations:
        listing.notes.append(f"the test images are those of {test[0]}; not used: {_few(validations)}")
    for entry in _entries(root, "", listing):
        if entry.name not in (train[0], test[0], *validations):
            listing.leave_out(UNUSED if _is_folder(entry) else BESIDE, entry.name)
    return {"train": train[0], "test": test[0]}


def _entries(root: Path, within: str, listing: Listing) -> list["os.DirEntry[str]"]:
    """Return the entries of a folder, by name, without hidden ones."""
    shown = []
    try:
        with os.scandir(root / within) as found:
            entries = sorted(found, key=lambda entry: _nfc(entry.name))
    except OSError as error:
        raise UsageError(
            f"{one_line(str(root / within))} cannot be read ({error.strerror}): allow it, or give another --data-root"
        ) from error
    for entry in entries:
        if entry.name.startswith(".") or entry.name.casefold() in HIDDEN_NAMES:
            listing.leave_out(HIDDEN, _join(within, entry.name))
        else:
            shown.append(entry)
    return shown


def _classes(root: Path, within: str, listing: Listing) -> dict[str, list[str]]:
    """Return the image files of every class folder, by the class's name."""
    classes: dict[str, list[str]] = {}
    for entry in _entries(root, within, listing):
        path = _join(within, entry.name)
        if not _is_folder(entry):
            listing.leave_out(BESIDE if _is_file(entry) else LINKS, path)
            continue
        name = plain_name(entry.name)
        if not name or name in classes:
            raise UsageError(f"{root}: the class folder {name!r} has another's printable name, or none: rename it")
        classes[name] = list_class(root, path, listing)
    return classes


def list_class(root: Path, folder: str, listing: Listing) -> list[str]:
    """Return the paths of the images in a class's folder, within the root; others are left out of the listing."""
    return sorted(_images(root, folder, listing), key=_nfc)


def _images(root: Path, folder: str, listing: Listing) -> Iterator[str]:
    """Yield the paths of a class's images; a folder that a link leads back to is not read again."""
    waiting, met = [folder], set()
    while waiting:
        within = waiting.pop()
        status = (root / within).stat()
        if (status.st_dev, status.st_ino) in met:
            listing.leave_out(LINKS, within)
            continue
        met.add((status.st_dev, status.st_ino))
        for entry in _entries(root, within, listing):
            path = _join(within, entry.name)
            if _is_folder(entry):
                waiting.append(path)
            elif not _is_file(entry):
                listing.leave_out(LINKS, path)
            elif Path(entry.name).suffix.lower() in ENDINGS:
                yield path
            else:
                listing.leave_out(OTHER, path)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _join(within: str, name: str) -> str:
    return f"{within}/{name}" if within else name


def _nfc(text: str) -> str:
    """Return a path in composed Unicode (NFC): file systems of Macs decompose accented letters."""
    return unicodedata.normalize("NFC", text)


def split_by_hash(classes: Mapping[str, Sequence[str]]) -> dict[str, dict[str, list[str]]]:
    """Assign every image to a part by the hash of its path; a class of few images keeps one for the test part."""
    parts: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for name, paths in classes.items():
        numbers = {path: int(hashlib.sha256(os.fsencode(_nfc(path))).hexdigest(), 16) for path in paths}
        ordered = sorted(paths, key=lambda path: numbers[path])
        tests = {path for path in ordered if numbers[path] % TEST_SHARE == 0}
        if len(ordered) > 1 and not 0 < len(tests) < len(ordered):
            tests = {ordered[0]}
        parts["train"][name] = [path for path in paths if path not in tests]
        parts["test"][name] = [path for path in paths if path in tests]
    return parts


def _few(names: Sequence[str]) -> str:
    shown = ", ".join(one_line(name) for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _load(
    root: Path, side: int, stamp: str, classes: Sequence[str], notes: tuple[str, ...], look: Callable[[], Listing],
    store: "ArtifactStore", progress: "Progress",
) -> Images:  # fmt: skip
    """Decode every image once into arrays that the cache keeps."""
    import torch

    def build() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        tensors, notes = _decode(root, look(), classes, side, progress)
        return {name: torch.from_numpy(array) for name, array in tensors.items()}, {"notes": notes}

    found = store.get("images", {"stamp": stamp, "revision": 2}, build)
    arrays = {name: tensor.numpy() for name, tensor in found.tensors.items()}
    parts = [Split(arrays[f"{part}_images"], arrays[f"{part}_labels"]) for part in ("train", "test")]
    return Images(parts[0], parts[1], (*notes, *found.facts["notes"]))


def _decode(
    root: Path, listing: Listing, classes: Sequence[str], side: int, progress: "Progress"
) -> tuple[dict[str, NDArray[Any]], list[str]]:
    """Return the arrays of both parts, and a note on what was skipped or converted."""
    total, corrupt = len(listing.paths), dict[str, str]()
    traits: Counter[str] = Counter()
    arrays: dict[str, NDArray[Any]] = {}
    done = 0
    for part, by_class in listing.parts.items():
        images, labels = [], []
        for label, name in enumerate(classes):
            for path in by_class[name]:
                done += 1
                progress("decode images", done, total)
                try:
                    image, found = _read(root / path, side)
                except UnclearPicture as error:
                    raise UsageError(f"{root}: {one_line(path)} cannot be used: {error}") from error
                except BadPicture as error:
                    corrupt[path] = str(error)
                else:
                    traits.update(found)
                    images.append(image)
                    labels.append(label)
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = _stack(images, side), np.asarray(labels, dtype=np.int64)
        if missing := [name for label, name in enumerate(classes) if label not in labels]:
            raise UsageError(f"{root}: no image of {part}/{_few(missing)} can be read: replace them")
    return arrays, _remarks(root, corrupt, traits, total)


def _remarks(root: Path, corrupt: Mapping[str, str], traits: Mapping[str, int], total: int) -> list[str]:
    """Return notes on images that were skipped or converted; raises UsageError where too many were skipped."""
    notes = []
    if corrupt:
        path, why = next(iter(corrupt.items()))
        which = f"{len(corrupt)} of {total} image files cannot be read"
        example = f"such as {one_line(path)} ({why})"
        if len(corrupt) > MOST_CORRUPT * total:
            raise UsageError(f"{root}: {which}, {example}: replace or remove them")
        notes.append(f"{which} and are skipped, {example}")
    if 0 < traits["grey"] < total:
        notes.append(f"{traits['grey']} of {total} images are grayscale among colour ones; they are used as RGB")
    notes += [note.format(n=traits[name], total=total) for name, note in TRAIT_NOTES.items() if traits[name]]
    return notes


def _stack(images: Sequence[NDArray[np.uint8]], side: int) -> NDArray[np.uint8]:
    stacked = np.stack(images) if images else np.empty((0, side, side, 3), dtype=np.uint8)
    return np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))


def _read(path: Path, side: int) -> tuple[NDArray[np.uint8], Iterable[str]]:
    """Return an image as (side, side, 3) uint8, and its traits."""
    from PIL import Image, ImageOps

    image, traits = read_picture(path)
    if image.size != (side, side):
        image = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
    return np.asarray(image), traits
