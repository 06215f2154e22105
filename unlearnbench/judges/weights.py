"""Weights of a judge from a file: safetensors, named as in the usual PyTorch form of He et al.'s ResNets for CIFAR."""

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from unlearnbench.datasets import FROM_FILES, Dataset
from unlearnbench.datasets.recipes import GivenJudge
from unlearnbench.errors import UsageError, one_line, spell_error
from unlearnbench.models.networks import CLASSIFIERS
from unlearnbench.store.artifacts import Tensors
from unlearnbench.store.hashing import file_digest

HEAD = "linear."  # prefix of the last layer's tensors in a file; all others belong to the body
COUNTER = "num_batches_tracked"  # suffix of counters that no prediction depends on; a file may leave them out
CHANNELS = 3


class Weights(NamedTuple):
    """The weights in a file."""

    sha256: str  # of the file
    tensors: Tensors  # as the network names them, on the CPU


def read_weights(what: str, path: Path, network: str, classes: int) -> Weights:
    """Return the weights that a file holds for a classifier.

    Args:
        what: begins the error messages.
        path: of the file.
        network: a name in `FROM_FILES`.
        classes: number of classes of the classifier.

    Raises:
        UsageError: the file cannot be read, or holds something else.
    """
    if not path.is_file():
        raise UsageError(f"{what}: there is no such file")
    try:
        sha256, given = file_digest(path), load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(
            f"{what}: it cannot be read as safetensors ({spell_error(error)}): give a file of {FROM_FILES[network]}"
        ) from error
    with torch.device("meta"):  # shapes alone
        wanted = {_outer(name): tensor for name, tensor in CLASSIFIERS[network](CHANNELS, classes).state_dict().items()}
    _check_shapes(what, FROM_FILES[network], wanted, given)
    counters = {name: torch.tensor(0) for name in wanted if name.endswith(COUNTER)}
    tensors = {name: tensor.float() for name, tensor in given.items()} | counters
    if odd := [name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()]:
        raise UsageError(f"{what}: its {odd[0]} holds NaN or infinite numbers: give weights that were trained")
    return Weights(sha256, {_inner(name): tensor for name, tensor in tensors.items()})


def check_given(dataset: Dataset) -> None:
    """Check the weight files that a user gave for judges of a dataset.

    Raises:
        UsageError: one holds weights that do not fit its judge.
    """
    for option, judge in (("--judge-weights", dataset.judge), ("--second-judge-weights", dataset.second)):
        if isinstance(judge, GivenJudge):
            path = dataset.weights[judge.sha256]
            read_weights(f"{option} {path}", path, judge.network, dataset.num_classes)


def _check_shapes(what: str, judge: str, wanted: Tensors, given: Tensors) -> None:
    """Raise UsageError unless a file has all tensors of a network, in its shapes, and no other.

    Args:
        what: begins the error messages.
        judge: name of the expected network.
        wanted: tensors as the file should name them, of which only the shapes count.
        given: those in the file.
    """
    advice = f"give weights of {judge} for these classes"
    head = given.get(f"{HEAD}weight")
    if head is not None and head.ndim == 2 and len(head) != (classes := len(wanted[f"{HEAD}weight"])):
        raise UsageError(f"{what}: its network has {len(head)} classes, the dataset has {classes}: {advice}")
    for name, tensor in wanted.items():
        if name.endswith(COUNTER):
            continue
        if name not in given:
            raise UsageError(f"{what}: it lacks {name}: {advice}")
        if given[name].shape != tensor.shape:
            shapes = f"{tuple(given[name].shape)}, but {judge} has it as {tuple(tensor.shape)}"
            raise UsageError(f"{what}: its {name} has the shape {shapes}: {advice}")
    if more := [name for name in given if name not in wanted]:
        raise UsageError(f"{what}: it holds {one_line(more[0], 60)}, which {judge} does not have: {advice}")


def _inner(name: str) -> str:
    """Return the classifier's name for a tensor of a file."""
    return f"head.{name.removeprefix(HEAD)}" if name.startswith(HEAD) else f"body.{name}"


def _outer(name: str) -> str:
    """Return the file's name for a tensor of a classifier."""
    return HEAD + name.removeprefix("head.") if name.startswith("head.") else name.removeprefix("body.")
