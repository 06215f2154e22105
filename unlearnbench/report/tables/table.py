"""The one table object that every table function makes and every writer takes."""

from dataclasses import dataclass
from functools import cached_property

from unlearnbench.report.data.values import MARK, Value, spell_number

MARK_WORDS = (
    f"{MARK} rests on cells that were measured while something else used the machine: see the report's notes, and "
    f"column disturbances of cells.csv."
)


BEST_WORDS = (
    "Bold: the best mean and those that follow it, up to the first that is significantly worse than one of them "
    "(paired permutation tests over forget classes, 5 % for all pairs together)."
)


@dataclass(frozen=True, eq=False)
class Table:
    """A table of values with named rows and one or two levels of column headers."""

    name: str  # file name without ending
    title: str
    caption: str
    corner: str  # header of the row names
    rows: list[str]
    groups: list[str]  # upper header of each column; empty strings for none
    headers: list[str]
    formats: list[str]
    values: list[list[Value]]  # by row
    rules: tuple[int, ...] = ()  # rows with a rule above
    narrow: bool = False  # intervals are in the CSV only

    def texts(self) -> list[list[str]]:
        """Return the cells as text: a number with its interval and marks, or a word in its place."""
        return [["".join(cell) for cell in row] for row in self.parts()]

    def parts(self) -> list[list[tuple[str, str]]]:
        """Return the cells as text: a number or a word in its place, and its interval and marks."""
        return self._parts

    @cached_property
    def _parts(self) -> list[list[tuple[str, str]]]:
        return [
            [_text(value, form, with_interval=not self.narrow) for value, form in zip(row, self.formats, strict=True)]
            for row in self.values
        ]  # fmt: skip

    def full_caption(self) -> str:
        """Return the caption, with the legend of the marks in its cells."""
        best = any(value.best for row in self.values for value in row)
        marked = any(MARK in text for row in self.texts() for text in row)
        return " ".join([self.caption, *([BEST_WORDS] if best else []), *([MARK_WORDS] if marked else [])])

    def flat_headers(self) -> list[str]:
        """Return one header per column, the upper one first."""
        return [f"{group} {header}".strip() for group, header in zip(self.groups, self.headers, strict=True)]


def _text(value: Value, form: str, *, with_interval: bool) -> tuple[str, str]:
    if value.number is None:
        return value.word, ""
    spread = f" ± {spell_number(value.spread, form)}" if value.spread is not None else ""
    interval = interval_text(value, form) if with_interval else ""
    return f"{spell_number(value.number, form)}{spread}", f"{value.mark}{value.gap}{interval}"


def interval_text(value: Value, form: str) -> str:
    """Return an interval as printed after its number; empty for none."""
    return "" if value.interval is None else f" [{', '.join(spell_number(end, form) for end in value.interval)}]"
