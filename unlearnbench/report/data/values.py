"""The values of a table, and its rows and columns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

from unlearnbench.errors import printable
from unlearnbench.store.cell import Target
from unlearnbench.store.hashing import canonical_json, digest
from unlearnbench.store.records import Record

MARK = "†"  # after a number that rests on disturbed cells
MOST_LETTERS = 100  # of a name in a table
Found = TypeVar("Found")
LARGEST = 1e12  # larger numbers are written in scientific notation
ROLES = {"reference": 0, "gold": 1, "method": 2, "given": 2}  # the order of rows; given: a model unlearned elsewhere
GIVEN = "given"
NOT_MEASURED, LACKING = "not measured", "n/a"


@dataclass(frozen=True)
class Measure:
    """A column of numbers: a metric, or a cost derived from the phases."""

    key: str
    title: str
    unit: str
    better: str  # "lower", "higher" or "neither"
    format: str
    aspect: str  # "forgetting", "retention", "judging", "robustness", "curve" (of an attack) or "cost"
    headline: bool = False
    phases: tuple[str, ...] = ()  # phases that a cost sums over; disturbances there affect it

    @property
    def arrow(self) -> str:
        """The direction of better; empty for a description."""
        return {"lower": "↓", "higher": "↑"}.get(self.better, "")

    @property
    def header(self) -> str:
        """Title, unit and an arrow towards better."""
        return " ".join([self.title, *([f"({self.unit})"] if self.unit else []), self.arrow]).rstrip()

    @property
    def is_cost(self) -> bool:
        """Whether it is a cost, not a metric."""
        return self.aspect == "cost"

    @property
    def is_share(self) -> bool:
        """Whether its values are percentages of samples."""
        return self.unit == "%" and self.aspect not in ("cost", "curve")


@dataclass(frozen=True)
class Variant:
    """A method with one choice of settings: a row, or a group of columns."""

    method: str
    settings: str  # canonical JSON; with the method it is the identity
    label: str = field(compare=False)
    role: str = field(compare=False)

    @property
    def competes(self) -> bool:
        """Whether it is marked where it is best: a method that unlearns, here or elsewhere."""
        return self.role in ("method", GIVEN)


@dataclass(frozen=True)
class Value:
    """One place in a table: a number over `ok` of `expected` cells, or a word for why there is none.

    Numbers over fewer cells than expected, or over disturbed cells, are always marked.
    """

    number: float | None
    word: str = "-"
    spread: float | None = None  # sample standard deviation over classes
    interval: tuple[float, float] | None = None  # of 95 %
    best: bool = False  # whether it is marked as best
    ok: int = 1
    expected: int = 1
    disturbed: int = 0  # cells among `ok` that were measured while something else used the machine

    @property
    def gap(self) -> str:
        """The mark of a number over missing cells, " (9/10)"; empty when none is missing."""
        return f" ({self.ok}/{self.expected})" if self.number is not None and self.ok < self.expected else ""

    @property
    def mark(self) -> str:
        """The mark of a number over disturbed cells; empty when none was disturbed."""
        return MARK if self.number is not None and self.disturbed else ""


def spell_number(number: float, form: str) -> str:
    """Return a number in its format, or with four digits where it is too large for a cell."""
    return f"{number:{form if abs(number) < LARGEST else '.4g'}}"


def short(name: object) -> str:
    """Return a name for display: a very long one is cut and ends in a digest, so that it stays unique.

    Control characters, bidirectional overrides and lone surrogates are replaced.
    """
    text = printable(str(name)).replace("\n", " ")
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 8]}… {digest(text)[:6]}"


def class_name(number: int, names: Sequence[object]) -> str:
    """Return the name of a class; its number where it has none."""
    return short(names[number]) if 0 <= number < len(names) else str(number)


def target_name(target: Target, names: Sequence[object]) -> str:
    """Return the name of a target: `cat`, `cat+dog`, `bird after cat, dog`; a class without a name by its number."""
    steps = ["+".join(class_name(c, names) for c in classes) for classes in (target.classes, *target.earlier)]
    return f"{steps[0]} after {', '.join(steps[1:])}" if target.earlier else steps[0]


def why_missing(record: Record, measure: Measure | None) -> str:
    """Return the word in place of a number that a cell with others lacks: why its attack has none, for example."""
    if measure is None:
        return LACKING
    if measure.is_cost:
        return NOT_MEASURED if record.method.get("role") == GIVEN else LACKING
    entry = record.metrics.get(measure.key.partition("/")[0], {})  # of a curve, that of its attack
    return "stale" if entry.get("stale") else str(entry.get("failed") or LACKING)


def kept(read: Callable[[Record], Found]) -> Callable[[Record], Found]:
    """Return a function of a record that keeps its results on the records, as a report asks many times."""
    name = f"kept {read.__name__}"  # no field has a name like this

    @wraps(read)
    def found(record: Record) -> Found:
        known: dict[str, Any] = vars(record)
        if name not in known:
            known[name] = read(record)
        value: Found = known[name]
        return value

    return found


@kept
def variant_of(record: Record) -> Variant:
    """Return the row of a record."""
    words = ["as published"] if record.method.get("track") == "published" else []
    words += [f"{name}={value}" for name, value in sorted((record.method.get("overrides") or {}).items())]
    suffix = f" ({', '.join(words)})" if words else ""
    return Variant(
        record.cell.method,
        canonical_json(dict(record.cell.settings)),
        short(f"{record.method.get('title', record.cell.method)}{suffix}"),
        str(record.method.get("role", "method")),
    )
