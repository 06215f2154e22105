"""concepts: the concepts of a text-to-image model, from a file of TOML (`--concepts FILE`).

    unrelated = ["a photo of a mountain"]          # prompts that name no concept

    [[concept]]
    name = "dog"
    prompts = ["a photo of a dog", "a dog"]        # of training: methods see them
    paraphrases = ["a picture of a puppy"]         # held out: no method sees them
    anchor = "animal"                              # what its prompts should mean instead, or another concept's name
    images = "dogs"                                # folder of images, relative to this file

Images are read as those of `imagefolder`, one in five of each concept being a test image.
"""

import tomllib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from unlearnbench.datasets import Dataset, Source
from unlearnbench.datasets.conditions import Concept, Prompts
from unlearnbench.datasets.imagefolder import SIDE, Listing, from_listing, list_class, split_by_hash
from unlearnbench.datasets.profiles import colour_profiles
from unlearnbench.errors import UsageError, one_line
from unlearnbench.store.cell import plain_name
from unlearnbench.store.fields import PLAIN

TITLE = "concepts of a text-to-image model (--concepts FILE)"
FLIP = False  # mirror images of latents would have to be encoded too, and words and digits have no mirror images
MOST_IN_FILE = 2**20  # bytes
KEYS = {"name": str, "prompts": list, "paraphrases": list, "anchor": str, "images": str}
REQUIRED = ("name", "prompts", "images")

profiles = colour_profiles


def dataset(source: Source) -> Dataset:
    """Return the dataset of a file of concepts.

    Raises:
        UsageError: the file cannot be read, or a concept in it is incomplete.
    """
    if source.concepts is None:
        raise UsageError("--dataset concepts needs --concepts FILE, see 'unlearnbench list datasets'")
    if source.data_root is not None:
        raise UsageError("--data-root does not apply to --concepts: the file names the folders of images")
    path = source.concepts.expanduser().resolve()
    prompts, folders = read_concepts(path)
    name, side = path.stem if PLAIN.fullmatch(path.stem) else "concepts", source.image_size or SIDE
    look = partial(_list, path.parent, folders)
    return from_listing(source, path.parent, side, look, name=name, flip=FLIP, prompts=prompts)


def _list(root: Path, folders: Mapping[str, str]) -> Listing:
    """Return the images of every concept, split into parts."""
    listing = Listing()
    for name, folder in folders.items():
        if not (root / folder).is_dir():
            raise UsageError(
                f"--concepts: the images of {name} should lie in {one_line(folder, 100)}, which is no folder"
            )
    found = {name: list_class(root, folder, listing) for name, folder in folders.items()}
    for name, paths in found.items():
        if len(paths) < 2:
            raise UsageError(
                f"{one_line(str(root / folders[name]))}: the folder of {name} holds {len(paths)} images: give 2 or more"
            )
    return Listing(split_by_hash(found), listing.left_out)


def read_concepts(path: Path) -> tuple[Prompts, dict[str, str]]:
    """Return the prompts in a file of concepts, and the folder of images of each concept.

    Raises:
        UsageError: the file cannot be read, or a concept in it is incomplete.
    """
    what = f"--concepts {path}"
    try:
        if path.stat().st_size > MOST_IN_FILE:
            raise UsageError(f"{what}: it is larger than a megabyte, which no file of concepts is")
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{what}: it cannot be read ({error.strerror or error})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{what}: it is not TOML ({one_line(str(error), 100)}): mend it") from error
    entries = content.get("concept", [])
    if not isinstance(entries, list) or len(entries) < 2 or not all(isinstance(entry, dict) for entry in entries):
        raise UsageError(f"{what}: it needs two tables [[concept]] or more, one to forget and one to retain")
    concepts = [_concept(what, entry) for entry in entries]
    names = [concept.name for concept in concepts]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{what}: two concepts are called {name}: rename one")
    unrelated = _texts(what, "unrelated", content.get("unrelated", []))
    folders = {concept.name: str(entry["images"]) for concept, entry in zip(concepts, entries, strict=True)}
    return Prompts(tuple(concepts), unrelated), folders


def _concept(what: str, entry: Mapping[str, Any]) -> Concept:
    """Return a checked concept."""
    if unknown := sorted(entry.keys() - KEYS.keys()):
        raise UsageError(f"{what}: a concept has {one_line(unknown[0], 40)}, but it can have {', '.join(KEYS)}")
    for key in REQUIRED:
        if not entry.get(key):
            raise UsageError(f"{what}: a concept lacks {key}: give {', '.join(REQUIRED)}")
    for key, value in entry.items():
        if not isinstance(value, KEYS[key]):
            raise UsageError(f"{what}: {key} must be {'a list of texts' if KEYS[key] is list else 'a text'}")
    name = plain_name(entry["name"])
    if not name:
        raise UsageError(f"{what}: a concept's name has no printable character")
    prompts, paraphrases = (_texts(what, key, entry.get(key, [])) for key in ("prompts", "paraphrases"))
    if name not in prompts[0]:
        raise UsageError(f"{what}: the first prompt of {name} must contain its name, which the anchor's replaces")
    if both := sorted(set(prompts) & set(paraphrases)):
        raise UsageError(f"{what}: {one_line(both[0], 60)!r} is a training prompt and held out at once: keep one")
    return Concept(name, prompts, paraphrases, plain_name(entry.get("anchor", "")))


def _texts(what: str, key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) and text.strip() for text in value):
        raise UsageError(f"{what}: {key} must be a list of texts, none of them empty")
    return tuple(one_line(text, 300) for text in value)
