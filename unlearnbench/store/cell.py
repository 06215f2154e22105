"""Cells: targets, seeds, cell ids. Pure: no torch, no files."""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from unlearnbench.errors import one_line
from unlearnbench.store.hashing import derive_seed, digest

Scalar = bool | int | float | str
Precision = Literal["fp32", "bf16"]
SolverName = Literal["ddim", "dpm++"]
SOLVERS: Mapping[str, str] = MappingProxyType({"ddim": "DDIM", "dpm++": "DPM-Solver++(2M)"})
Rerun = Literal["missing", "failed", "always"]
Controls = Literal["first", "every", "none"]
Track = Literal["tuned", "published", "both"]  # which settings of methods run
UNLEARNED = "unlearned"  # the kind of artifact that holds the weights of a cell
MOST_NAMED = 40  # characters of the target in a cell's id; the digest covers the rest


class Seeds(NamedTuple):
    """The seeds of one replicate."""

    base: int
    unlearning: int
    sampling: int

    @property
    def label(self) -> str:
        """The common seed, or all three with their names."""
        if self.base == self.unlearning == self.sampling:
            return str(self.unlearning)
        return f"{self.unlearning} (base {self.base}, sampling {self.sampling})"


class Target(NamedTuple):
    """The target of a cell: one class or several at once, and the earlier steps of a sequence."""

    classes: tuple[int, ...]
    earlier: tuple[tuple[int, ...], ...] = ()

    @property
    def label(self) -> str:
        """`3`, `0+1`, or `2 after 0, 1`."""
        steps = ["+".join(map(str, classes)) for classes in (self.classes, *self.earlier)]
        return f"{steps[0]} after {', '.join(steps[1:])}" if self.earlier else steps[0]

    @property
    def gone(self) -> tuple[int, ...]:
        """Every class to be forgotten by the end of the cell, sorted; all others are retained."""
        return tuple(sorted({c for classes in (self.classes, *self.earlier) for c in classes}))

    def retained(self, num_classes: int) -> tuple[int, ...]:
        """Return every other class, sorted: those to retain."""
        return tuple(c for c in range(num_classes) if c not in self.gone)

    @property
    def steps(self) -> "list[Target]":
        """The targets of the sequence up to this one."""
        return [Target(c, self.earlier[:k]) for k, c in enumerate((*self.earlier, self.classes))]


@dataclass(frozen=True)
class Cell:
    """One (dataset and protocol, method, settings, target, seeds): the unit of work, of resume and of record."""

    dataset: str
    protocol: str
    method: str
    settings: Mapping[str, Scalar]  # every setting, resolved
    forget_class: int  # the first one where several are forgotten at once
    seed: int  # of unlearning
    base_seed: int = 0  # of the base model's training
    sampling_seed: int = 0  # of the initial noise of samples
    further: tuple[int, ...] = ()  # classes forgotten at once with the first
    earlier: tuple[tuple[int, ...], ...] = ()  # classes of the earlier steps of a sequence

    @cached_property
    def target(self) -> Target:
        """The target of the cell."""
        return Target(self.forget_classes, self.earlier)

    @property
    def forget_classes(self) -> tuple[int, ...]:
        """The classes it forgets at once, mostly one."""
        return (self.forget_class, *self.further)

    @property
    def seeds(self) -> "Seeds":
        """The three seeds, which identify the replicate."""
        return Seeds(self.base_seed, self.seed, self.sampling_seed)

    @cached_property
    def id(self) -> str:
        """A readable name with eight hex digits of the cell's digest."""
        classes = self.target.label.replace(", ", "-").replace(" ", "-")[:MOST_NAMED]
        return f"{self.dataset}-{self.method}-c{classes}-s{self.seed}-{digest(self.to_json())[:8]}"

    def to_json(self) -> dict[str, Any]:
        """Return the cell as a JSON object without default values."""
        values = ((field, getattr(self, field.name)) for field in fields(self))
        return {field.name: value for field, value in values if value != field.default}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Cell":
        """Return the cell that `to_json` wrote."""
        classes = {"further": tuple(value.get("further", ())), "earlier": tuple(map(tuple, value.get("earlier", ())))}
        return cls(**{**value, **classes})


def plain_name(text: str) -> str:
    """Return the normal form of a class's name: composed, printable characters, single blanks."""
    return one_line(unicodedata.normalize("NFC", text))


def sample_seeds(cell: Cell, labels: Sequence[int]) -> list[int]:
    """Return one seed per image, from dataset, seed, class and index alone.

    Independent of method, forget class and protocol: image i of class c starts from the same noise in every cell.
    """
    counter: dict[int, int] = {}
    seeds = []
    for label in labels:
        index = counter[label] = counter.get(label, -1) + 1
        seeds.append(derive_seed("sample", dataset=cell.dataset, seed=cell.sampling_seed, label=label, index=index))
    return seeds
