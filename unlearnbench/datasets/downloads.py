"""torchvision's data sets: read from their folder, or downloaded atomically."""

import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unlearnbench.datasets import Images, Source, Split
from unlearnbench.errors import UsageError, spell_error
from unlearnbench.store.scratch import owned, remove, sweep

if TYPE_CHECKING:
    from unlearnbench.protocols import Progress
    from unlearnbench.store.artifacts import ArtifactStore

Open = Callable[[str, bool, bool], Any]  # (root, train part?, download?) -> a torchvision data set


def loader(source: Source, title: str, open_part: Open, to_split: Callable[[Any], Split]) -> Callable[..., Images]:
    """Return the `load` of a torchvision dataset.

    Args:
        source: names the folder of the files; the cache's folder `data` by default.
        title: the dataset's name in messages.
        open_part: opens one part; raises RuntimeError where the files are missing or damaged.
        to_split: turns what torchvision returns into images and labels.
    """
    return partial(_load, source.data_root, title, open_part, to_split)


def _load(
    root: Path | None, title: str, open_part: Open, to_split: Callable[[Any], Split], store: "ArtifactStore",
    progress: "Progress",
) -> Images:  # fmt: skip
    folder = (root or store.root / "data").expanduser()
    try:
        parts = [open_part(str(folder), train, False) for train in (True, False)]
    except (RuntimeError, OSError, EOFError, ValueError):
        store.fetch(title)
        progress(f"download {title}", 0, 0)
        _download(folder, title, open_part)
        parts = [open_part(str(folder), train, False) for train in (True, False)]
    return Images(to_split(parts[0]), to_split(parts[1]))


def _download(folder: Path, title: str, open_part: Open) -> None:
    """Download into a temporary folder next to the target, and move the files only when all of them are sound."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, ".download-*")
        name = f"{owned('.download')}-"
        with tempfile.TemporaryDirectory(prefix=name, dir=folder) as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for train in (True, False):
                open_part(scratch, train, True)
            for path in Path(scratch).iterdir():
                target = folder / path.name
                remove(target)
                path.rename(target)
    except Exception as error:  # torchvision raises various errors of network, checksum and disk
        raise UsageError(
            f"{title} is not in {folder} and cannot be downloaded ({spell_error(error)}): fetch it on a machine with a "
            f"network and name its folder with --data-root, or use --dataset imagefolder"
        ) from error


def images_of_arrays(part: Any) -> Split:
    """Return torchvision's CIFAR arrays, (N, 32, 32, 3) uint8 and a list of labels, as a split."""
    return Split(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.asarray(part.targets, dtype=np.int64))
