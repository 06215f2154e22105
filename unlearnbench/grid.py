"""The grid of cells: class ranges, setting sweeps, cell ids. Pure: no torch, no files."""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import product
from typing import Any, Literal, NamedTuple

from unlearnbench.errors import UsageError
from unlearnbench.hashing import digest

Scalar = bool | int | float | str
Rerun = Literal["missing", "failed", "always"]
Controls = Literal["first", "every", "none"]
MOST_NAMED = 40  # letters of what is forgotten in a cell's id; the digest tells the rest


class Seeds(NamedTuple):
    """The seeds of one replicate."""

    base: int
    unlearning: int
    sampling: int

    @property
    def label(self) -> str:
        """The one seed they share, or all three with what each is of."""
        if self.base == self.unlearning == self.sampling:
            return str(self.unlearning)
        return f"{self.unlearning} (base {self.base}, sampling {self.sampling})"


class Target(NamedTuple):
    """What a cell forgets: one class or several at once, and what the model had forgotten before, step after step."""

    classes: tuple[int, ...]
    earlier: tuple[tuple[int, ...], ...] = ()

    @property
    def label(self) -> str:
        """`3`, `0+1`, or `2 after 0, 1`."""
        steps = ["+".join(map(str, classes)) for classes in (self.classes, *self.earlier)]
        return f"{steps[0]} after {', '.join(steps[1:])}" if self.earlier else steps[0]

    @property
    def gone(self) -> tuple[int, ...]:
        """Every class the model is not to know when the cell ends, sorted; all others are retained."""
        return tuple(sorted({c for classes in (self.classes, *self.earlier) for c in classes}))

    def retained(self, num_classes: int) -> tuple[int, ...]:
        """Return every other class, sorted: what the model is to keep."""
        return tuple(c for c in range(num_classes) if c not in self.gone)

    @property
    def steps(self) -> "list[Target]":
        """The targets of a sequence that leads here, this one the last."""
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
    sampling_seed: int = 0  # of the noise that samples start from
    further: tuple[int, ...] = ()  # classes forgotten at once with the first
    earlier: tuple[tuple[int, ...], ...] = ()  # classes the same method had the model forget before, step after step

    @property
    def target(self) -> Target:
        """What it forgets."""
        return Target(self.forget_classes, self.earlier)

    @property
    def forget_classes(self) -> tuple[int, ...]:
        """The classes it forgets at once, mostly one."""
        return (self.forget_class, *self.further)

    @property
    def seeds(self) -> "Seeds":
        """The three seeds: which replicate this is."""
        return Seeds(self.base_seed, self.seed, self.sampling_seed)

    @cached_property
    def id(self) -> str:
        """A readable name that ends in eight hex digits of the whole cell."""
        classes = self.target.label.replace(", ", "-").replace(" ", "-")[:MOST_NAMED]
        return f"{self.dataset}-{self.method}-c{classes}-s{self.seed}-{digest(self.to_json())[:8]}"

    def to_json(self) -> dict[str, Any]:
        """Return the cell as a JSON object; what has a default is left out where it has it."""
        values = ((field, getattr(self, field.name)) for field in fields(self))
        return {field.name: value for field, value in values if value != field.default}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Cell":
        """Return the cell that `to_json` wrote."""
        classes = {"further": tuple(value.get("further", ())), "earlier": tuple(map(tuple, value.get("earlier", ())))}
        return cls(**{**value, **classes})


def parse_integers(text: str, what: str, low: int = 0, high: int | None = None) -> list[int]:
    """Parse `0-9` or `0,3,5-7` strictly; doubles are dropped, order is kept.

    Args:
        text: what the user typed.
        what: the word for one item in error messages ("class", "seed").
        low: smallest value allowed.
        high: largest value allowed; None for no limit.

    Raises:
        UsageError: an item that is no number or range, a reversed range, or a value out of bounds.
    """
    values: dict[int, None] = {}
    for item in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", item, re.ASCII)
        if match is None:
            raise UsageError(
                f"cannot read {item.strip()!r} in {text!r} as a {what} or a range of them: write numbers and "
                f"ranges separated by commas, such as 0,3,5-7"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise UsageError(f"the {what} range {item.strip()} runs backwards: write {last}-{first}")
        if first < low or (high is not None and last > high):
            bounds = f"from {low} to {high}" if high is not None else f"of at least {low}"
            raise UsageError(f"{what} {last if first >= low else first} does not exist: give a {what} {bounds}")
        if last - first >= 100_000:
            raise UsageError(f"the {what} range {item.strip()} has {last - first + 1} members: give fewer than 100,000")
        values.update(dict.fromkeys(range(first, last + 1)))
    return list(values)


def parse_classes(text: str, names: Sequence[str]) -> list[int]:
    """Parse classes given by number, range or name, such as `0-2,cat`; a name wins over a number.

    Args:
        text: what the user typed.
        names: of the classes, in order of their numbers.

    Raises:
        UsageError: an item that is no class.
    """
    known = {name.casefold(): number for number, name in enumerate(names)}
    chosen: dict[int, None] = {}
    for item in text.split(","):
        named = known.get(item.strip().casefold())
        if named is None and re.search(r"[^\W\d_]", item):
            close = difflib.get_close_matches(item.strip(), names, n=1, cutoff=0.5)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise UsageError(f"there is no class {item.strip()!r}{hint}: classes are {', '.join(names)}")
        numbers = parse_integers(item, "class", high=len(names) - 1) if named is None else [named]
        chosen.update(dict.fromkeys(numbers))
    return list(chosen)


def parse_targets(text: str, names: Sequence[str]) -> list[Target]:
    """Parse what to forget, such as `0-2,cat` one class at a time or `0+1,cat+dog` several at once.

    Args:
        text: what the user typed.
        names: of the classes, in order of their numbers.

    Raises:
        UsageError: an item that is no class, a class twice in one item, or no class left to retain.
    """
    chosen: dict[Target, None] = {}
    for item in text.split(","):
        parts = item.split("+")
        if len(parts) == 1 or item.strip().casefold() in {name.casefold() for name in names}:
            chosen |= {Target((c,)): None for c in parse_classes(item, names)}
            continue
        classes = [c for part in parts for c in parse_classes(part, names)]
        if len(set(classes)) < len(classes) or len(classes) > len(parts):
            raise UsageError(f"cannot read {item.strip()!r}: join single classes, each once, such as 0+1")
        chosen[Target(tuple(sorted(classes)))] = None
    for target in chosen:
        _check_retained(target, names)
    return list(chosen)


def parse_sequence(text: str, names: Sequence[str]) -> list[Target]:
    """Parse `0,1,2` or `0+1,2`, classes to forget one step after another, into one target for each step.

    Raises:
        UsageError: as `parse_targets`, and for a class in two steps.
    """
    steps = [target.classes for target in parse_targets(text, names)]
    told = [c for item in text.split(",") for c in (parse_classes(item, names) if "+" not in item else ())]
    flat = [c for classes in steps for c in classes]
    again = len({tuple(sorted(item.split("+"))) for item in text.split(",")}) < len(text.split(","))
    if len(set(flat)) < len(flat) or len(set(told)) < len(told) or again:
        raise UsageError(f"--sequence {text!r} forgets a class twice: write each class once")
    found = Target(steps[-1], tuple(steps[:-1])).steps
    _check_retained(found[-1], names)
    return found


def _check_retained(target: Target, names: Sequence[str]) -> None:
    if len(target.gone) >= len(names):
        raise UsageError(f"forgetting {target.label} leaves none of {len(names)} classes to retain: forget fewer")


def parse_sweeps(texts: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """Parse `METHOD.NAME=V1,V2` items into {method: {setting: [raw values]}}.

    Raises:
        UsageError: an item of another form, an empty or repeated value, or a setting given twice.
    """
    sweeps: dict[str, dict[str, list[str]]] = {}
    for text in texts:
        match = re.fullmatch(r"([A-Za-z_]\w*)\.([A-Za-z_]\w*)=(.*)", text, re.DOTALL)
        if match is None:
            raise UsageError(f"cannot read --set {text!r}: write METHOD.NAME=VALUE or METHOD.NAME=V1,V2")
        method, name, values = match[1], match[2], [value.strip() for value in match[3].split(",")]
        if "" in values:
            raise UsageError(f"--set {text!r} has an empty value: write METHOD.NAME=V1,V2")
        if len(set(values)) < len(values):
            raise UsageError(f"--set {text!r} gives a value twice: write each value once")
        if name in sweeps.setdefault(method, {}):
            raise UsageError(f"--set gives {method}.{name} twice: put all its values into one --set")
        sweeps[method][name] = values
    return sweeps


def combinations(swept: Mapping[str, Sequence[Scalar]]) -> Iterator[dict[str, Scalar]]:
    """Yield every combination of swept settings; one empty dict when nothing is swept."""
    for values in product(*swept.values()):
        yield dict(zip(swept, values, strict=True))


def replicates(seeds: str, base_seeds: str, sampling_seeds: str) -> list[Seeds]:
    """Return the replicates that a user asked for.

    Args:
        seeds: of unlearning, such as `0-2`; base model and sampling take the same one where theirs are not given.
        base_seeds: of the base model's training, each with every seed of unlearning; empty for the same.
        sampling_seeds: of the sampling noise, likewise.

    Raises:
        UsageError: no numbers or ranges of them.
    """
    found: dict[Seeds, None] = {}
    for seed in parse_integers(seeds, "seed"):
        bases = parse_integers(base_seeds, "base seed") if base_seeds else [seed]
        samplings = parse_integers(sampling_seeds, "sampling seed") if sampling_seeds else [seed]
        found |= {Seeds(base, seed, sampling): None for base in bases for sampling in samplings}
    return list(found)


def make_cells(
    dataset: str,
    protocol: str,
    variants: Sequence[tuple[str, Mapping[str, Scalar]]],
    targets: Sequence[Target],
    replicates: Sequence[Seeds],
) -> list[Cell]:
    """Return the flat list of cells: per replicate and target all methods, so that an early look compares them all.

    Args:
        dataset: its name.
        protocol: the name of its evaluation protocol.
        variants: (method, all its settings resolved), in table order.
        targets: what to forget.
        replicates: the seeds of each.
    """
    return [
        Cell(
            dataset, protocol, method, settings, target.classes[0], seeds.unlearning, seeds.base, seeds.sampling,
            target.classes[1:], target.earlier,
        )
        for seeds in replicates
        for target in targets
        for method, settings in variants
    ]  # fmt: skip
