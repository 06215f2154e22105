"""Parsing of a run's arguments: classes, seeds, sweeps, sequences; and the resulting cells."""

import difflib
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from unlearnbench.errors import UsageError, one_line
from unlearnbench.store.cell import Cell, Scalar, Seeds, Target, plain_name

MOST_LISTED = 40  # classes in an error message


MOST_DIGITS = 18  # of a class name that is compared by value


def parse_integers(text: str, what: str, low: int = 0, high: int | None = None) -> list[int]:
    """Parse `0-9` or `0,3,5-7` strictly; duplicates are dropped, order is kept.

    Args:
        text: what the user typed.
        what: noun of one item in error messages ("class", "seed").
        low: smallest value allowed.
        high: largest value allowed; None for no limit.

    Raises:
        UsageError: an item is not a number or range, a range is reversed, or a value is out of bounds.
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


class ClassNames:
    """Resolves class names of a dataset in user input.

    A text is compared with the names exactly, then ignoring case; then it is read as a range of names, in the order of
    the classes; and last as a number or a range of numbers, unless that is another class's name. `@3` is always the
    class with the number 3. A name may contain separators.
    """

    def __init__(self, names: Sequence[str]) -> None:
        """Take the names in the order of their numbers."""
        self.names = [plain_name(name) for name in names]
        self._exact: dict[str, list[int]] = {}
        self._folded: dict[str, list[int]] = {}
        self._values: dict[int, list[int]] = {}
        for number, name in enumerate(self.names):
            self._exact.setdefault(name, []).append(number)
            self._folded.setdefault(_fold(name), []).append(number)
            if name.isdecimal() and len(name) < MOST_DIGITS:
                self._values.setdefault(int(name), []).append(number)
        self._hyphens = 1 + 2 * max((name.count("-") for name in self.names), default=0)

    def groups(self, text: str, separators: str = ",+") -> list[list[list[int]]]:
        """Return the classes of every item, with those joined by a plus sign in one list.

        Raises:
            UsageError: an item is unknown or ambiguous.
        """
        pieces = re.split(f"([{separators}])", text)  # items and, between them, separators
        count = len(pieces) // 2 + 1
        reach = 1 + 2 * max((sum(map(name.count, separators)) for name in self.names), default=0)
        found: list[list[list[int]]] = [[]]
        start = 0
        while start < count:
            ends = range(min(start + reach, count), start, -1)
            end, classes = self._longest({end: "".join(pieces[2 * start : 2 * end - 1]) for end in ends})
            found[-1].append(classes)
            if end < count and pieces[2 * end - 1] == ",":
                found.append([])
            start = end
        return found

    def _longest(self, runs: Mapping[int, str]) -> tuple[int, list[int]]:
        """Return the key and the classes of the longest run that names classes; else the key of the last run."""
        for look in (self._exactly, self._without_case, self._between):
            for end, run in runs.items():
                if classes := look(run):
                    return end, classes
        end = min(runs)
        return end, self._numbered(runs[end])

    def _exactly(self, text: str) -> list[int]:
        return self._one_of(self._exact, plain_name(text), text)

    def _without_case(self, text: str) -> list[int]:
        return self._one_of(self._folded, _fold(plain_name(text)), text)

    def _one_of(self, known: Mapping[str, list[int]], key: str, text: str) -> list[int]:
        found = known.get(key, [])
        if len(found) > 1:
            meant = " or ".join(f"{self.names[c]} (@{c})" for c in found)
            raise UsageError(f"the class {one_line(text)!r} may be {meant}: write the name as it is, or the number")
        return found

    def _between(self, text: str) -> list[int]:
        """Return the classes from one name to another, in the order of the classes."""
        if not 0 < text.count("-") <= self._hyphens:
            return []
        cuts = [(text[: cut.start()], text[cut.end() :]) for cut in re.finditer("-", text)]
        ends = [[self._exactly(end) or self._without_case(end) for end in cut] for cut in cuts]
        ranges = [(first[0], last[0]) for first, last in ends if first and last]
        if len(ranges) > 1:
            raise UsageError(f"cannot read {one_line(text)!r}: it is ambiguous: write class numbers")
        for first, last in ranges:
            if last < first:
                names = f"{self.names[last]}-{self.names[first]}"
                raise UsageError(f"the class range {one_line(text)} runs backwards: write {names}")
            return list(range(first, last + 1))
        return []

    def _numbered(self, text: str) -> list[int]:
        forced = re.fullmatch(r"\s*@(\d{1,9})\s*(?:(-)\s*@?(\d{1,9})\s*)?", text, re.ASCII)
        if forced is not None:
            return parse_integers("".join(part or "" for part in forced.groups()), "class", high=len(self.names) - 1)
        if re.search(r"[^\W\d_]", text):
            raise UsageError(self._unknown(plain_name(text)))
        for number in parse_integers(text, "class"):
            for other in self._values.get(number, ()):
                if other != number:
                    raise UsageError(
                        f"the class {one_line(text)!r} may be the one called {self.names[other]} or the one with the "
                        f"number {number}: write names as they are, or @{text.strip()} for numbers"
                    )
        return parse_integers(text, "class", high=len(self.names) - 1)

    def _unknown(self, text: str) -> str:
        close = difflib.get_close_matches(text, self.names, n=1, cutoff=0.5)
        hint = f" (did you mean {close[0]}?)" if close else ""
        more = f" and {len(self.names) - MOST_LISTED} more" if len(self.names) > MOST_LISTED else ""
        return f"there is no class {text!r}{hint}: classes are {', '.join(self.names[:MOST_LISTED])}{more}"


def _fold(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())


def parse_classes(text: str, names: Sequence[str]) -> list[int]:
    """Parse classes given by name, number or range, such as `0-2,cat`, as `ClassNames` reads them.

    Args:
        text: what the user typed.
        names: of the classes, in order of their numbers.

    Raises:
        UsageError: an item is unknown or ambiguous.
    """
    groups = ClassNames(names).groups(text, separators=",")
    return list(dict.fromkeys(c for group in groups for classes in group for c in classes))


def parse_targets(text: str, names: Sequence[str]) -> list[Target]:
    """Parse targets, such as `0-2,cat` one class at a time or `0+1,cat+dog` several at once.

    Args:
        text: what the user typed.
        names: of the classes, in order of their numbers.

    Raises:
        UsageError: an item is not a class, has a class twice, or leaves no class to retain.
    """
    chosen = list(dict.fromkeys(_read_targets(text, names)))
    for target in chosen:
        _check_retained(target, names)
    return chosen


def _read_targets(text: str, names: Sequence[str]) -> Iterator[Target]:
    for group in ClassNames(names).groups(text):
        classes = [c for part in group for c in part]
        if len(group) == 1:
            yield from (Target((c,)) for c in classes)
        elif len(set(classes)) < len(classes) or len(classes) > len(group):
            item = "+".join(str(part[0]) if len(part) == 1 else f"{part[0]}-{part[-1]}" for part in group)
            raise UsageError(f"cannot read {item!r}: join single classes, each once, such as 0+1")
        else:
            yield Target(tuple(sorted(classes)))


def parse_sequence(text: str, names: Sequence[str]) -> list[Target]:
    """Parse `0,1,2` or `0+1,2`, classes to forget one step after another, into one target per step.

    Raises:
        UsageError: as `parse_targets`, and for a class in two steps.
    """
    steps = [target.classes for target in _read_targets(text, names)]
    flat = [c for classes in steps for c in classes]
    if len(set(flat)) < len(flat):
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
        UsageError: an item is malformed, a value is empty or repeated, or a setting is given twice.
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
    """Return the replicates of a run.

    Args:
        seeds: of unlearning, such as `0-2`; also of base model and sampling, unless given separately.
        base_seeds: of the base model's training, crossed with the seeds of unlearning; empty for the same.
        sampling_seeds: of the sampling noise, likewise.

    Raises:
        UsageError: a text is not numbers or ranges.
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
    """Return the list of cells: per replicate and target all methods, so that early results compare them all.

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
