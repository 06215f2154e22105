"""What a model is conditioned on: classes, or concepts with their prompts. Data only; `models` builds from it.

Labels number the conditions: 0 to K - 1 are the classes, K is the null condition. Where the classes are concepts of a
text-to-image model, label c is the first training prompt of concept c, and further labels stand for all other prompts,
so that methods, samplers and attacks, which know labels only, work on prompts as they do on classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any


@dataclass(frozen=True)
class Concept:
    """A concept of a text-to-image model."""

    name: str  # its words in prompts
    prompts: tuple[str, ...]  # of training: methods see them, and the evaluation samples them
    paraphrases: tuple[str, ...] = ()  # held out: no method sees them
    anchor: str = ""  # what its prompts should mean instead: the name of another concept, or of a wider one


@dataclass(frozen=True)
class Prompts:
    """The prompts of all concepts, and prompts that name none of them."""

    concepts: tuple[Concept, ...]
    unrelated: tuple[str, ...] = ()

    @cached_property
    def _groups(self) -> dict[str, list[tuple[str, ...]]]:
        """Return {use: texts by concept} of all labels after the null condition, in order."""
        return {
            "further": [concept.prompts[1:] for concept in self.concepts],
            "paraphrases": [concept.paraphrases for concept in self.concepts],
            "anchors": [self._anchor_prompts(concept) for concept in self.concepts],
            "unrelated": [self.unrelated],
        }

    def _anchor_prompts(self, concept: Concept) -> tuple[str, ...]:
        """Return the concept's first prompt with the anchor's name; none where the anchor is a concept, or missing."""
        known = {other.name for other in self.concepts}
        return (concept.prompts[0].replace(concept.name, concept.anchor),) if concept.anchor not in {"", *known} else ()

    @cached_property
    def texts(self) -> tuple[str, ...]:
        """The prompt of every label."""
        first = [concept.prompts[0] for concept in self.concepts]
        return (*first, "", *chain.from_iterable(chain.from_iterable(self._groups.values())))

    @cached_property
    def _labels(self) -> dict[str, list[tuple[int, ...]]]:
        """Return the labels of `_groups`."""
        numbers = iter(range(len(self.concepts) + 1, len(self.texts)))
        return {use: [tuple(islice(numbers, len(texts))) for texts in groups] for use, groups in self._groups.items()}

    def training(self, c: int) -> tuple[int, ...]:
        """Return the labels of a concept's training prompts."""
        return (c, *self._labels["further"][c])

    def paraphrases(self, c: int) -> tuple[int, ...]:
        """Return the labels of a concept's held-out paraphrases."""
        return self._labels["paraphrases"][c]

    def anchor(self, c: int) -> int | None:
        """Return the label of a concept's anchor; None where it has none."""
        names = [concept.name for concept in self.concepts]
        if (anchor := self.concepts[c].anchor) in names:
            return names.index(anchor)
        return next(iter(self._labels["anchors"][c]), None)

    @property
    def unrelated_labels(self) -> tuple[int, ...]:
        """The labels of the unrelated prompts."""
        return self._labels["unrelated"][0]

    def to_json(self) -> dict[str, Any]:
        """Return the prompts as a JSON object."""
        return {"concepts": [asdict(concept) for concept in self.concepts], "unrelated": list(self.unrelated)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Prompts":
        """Return the prompts of a JSON object. Raises what wrong types raise."""
        concepts = [
            Concept(str(c["name"]), tuple(c["prompts"]), tuple(c["paraphrases"]), str(c["anchor"]))
            for c in value["concepts"]
        ]
        return cls(tuple(concepts), tuple(value["unrelated"]))


@dataclass(frozen=True)
class Conditions:
    """The conditions that a dataset needs of a model, and the images that it needs for them."""

    name: str  # of the dataset, for messages
    class_names: tuple[str, ...]
    image_shape: tuple[int, int, int]  # (C, H, W)
    guided: bool = True  # whether there is a null condition
    prompts: Prompts | None = None  # of the concepts, where the classes are such
    labels: tuple[int, ...] = ()  # of the classes in a given model that knows more of them

    @property
    def null_class(self) -> int | None:
        """The label of the null condition; None for a model without one."""
        return len(self.class_names) if self.guided else None

    def requests(self, c: int) -> tuple[int, ...]:
        """Return the labels that ask for a class: itself or, of a concept, its training prompts; others stay."""
        return (c,) if self.prompts is None or c >= len(self.class_names) else self.prompts.training(c)

    def spread(self, classes: Sequence[int]) -> list[int]:
        """Return a label for each one in a sequence: a concept's training prompts in turn; further labels stay."""
        seen: dict[int, int] = {}
        labels = []
        for c in classes:
            known = self.requests(c)
            labels.append(known[seen.get(c, 0) % len(known)])
            seen[c] = seen.get(c, 0) + 1
        return labels

    def paraphrases(self, c: int) -> tuple[int, ...]:
        """Return the labels of a class's held-out paraphrases; none where it is not a concept."""
        return () if self.prompts is None else self.prompts.paraphrases(c)

    @property
    def unrelated(self) -> tuple[int, ...]:
        """The labels of prompts that name no class."""
        return () if self.prompts is None else self.prompts.unrelated_labels

    def anchor(self, c: int, retained: Sequence[int]) -> int:
        """Return the label of a class's anchor: the declared one, or the next retained class, cyclically."""
        declared = None if self.prompts is None else self.prompts.anchor(c)
        return declared if declared is not None else next((r for r in retained if r > c), retained[0])

    def to_json(self) -> dict[str, Any]:
        """Return the conditions as a JSON object."""
        prompts = None if self.prompts is None else self.prompts.to_json()
        return {**asdict(self), "prompts": prompts}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Conditions":
        """Return the conditions of a JSON object. Raises what wrong types raise."""
        channels, height, width = map(int, value["image_shape"])
        prompts = None if value["prompts"] is None else Prompts.from_json(value["prompts"])
        names, labels = tuple(map(str, value["class_names"])), tuple(map(int, value["labels"]))
        return cls(str(value["name"]), names, (channels, height, width), bool(value["guided"]), prompts, labels)
