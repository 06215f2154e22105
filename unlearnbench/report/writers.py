"""One table object, and its writers: Markdown, CSV."""

import unicodedata
from dataclasses import dataclass
from functools import cached_property

import pandas as pd
from tabulate import tabulate

from unlearnbench.report.values import MARK, Value

ENDS = ("low", "high")  # of an interval
BREAKS = ("Cc", "Cf", "Cs", "Zl", "Zp")  # Unicode's categories of what breaks lines or turns the direction of text
MARK_WORDS = (
    f"{MARK} rests on cells that were measured while something else used the machine: see the report's notes, and "
    f"column disturbances of cells.csv."
)


BEST_WORDS = (
    "Bold: the best mean and those that follow it, up to the first that is separably worse than one of them (paired "
    "permutation tests over forget classes, 5 % for all pairs together)."
)


@dataclass(frozen=True)
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
    rules: tuple[int, ...] = ()  # rows that a line precedes
    narrow: bool = False  # intervals stand in the CSV alone

    def texts(self) -> list[list[str]]:
        """Return the cells as text: a number with what stands behind it, or the word that stands for it."""
        return [["".join(cell) for cell in row] for row in self.parts()]

    def parts(self) -> list[list[tuple[str, str]]]:
        """Return the cells as text: a number, or the word that stands for it, and what stands behind it."""
        return self._parts

    @cached_property
    def _parts(self) -> list[list[tuple[str, str]]]:
        return [
            [_text(value, form, with_interval=not self.narrow) for value, form in zip(row, self.formats, strict=True)]
            for row in self.values
        ]  # fmt: skip

    @cached_property
    def markdown(self) -> str:
        """The table in Markdown, which a report shows more than once."""
        return _markdown(self)

    def full_caption(self) -> str:
        """Return the caption, with what the marks in its cells mean."""
        best = any(value.best for row in self.values for value in row)
        marked = any(MARK in text for row in self.texts() for text in row)
        return " ".join([self.caption, *([BEST_WORDS] if best else []), *([MARK_WORDS] if marked else [])])

    def flat_headers(self) -> list[str]:
        """Return one header per column, the upper one first."""
        return [f"{group} {header}".strip() for group, header in zip(self.groups, self.headers, strict=True)]


def _text(value: Value, form: str, *, with_interval: bool) -> tuple[str, str]:
    if value.number is None:
        return value.word, ""
    spread = f" ± {value.spread:{form}}" if value.spread is not None else ""
    interval = interval_text(value, form) if with_interval else ""
    return f"{value.number:{form}}{spread}", f"{value.mark}{value.gap}{interval}"


def interval_text(value: Value, form: str) -> str:
    """Return an interval as it stands behind its number; empty for none."""
    return "" if value.interval is None else f" [{value.interval[0]:{form}}, {value.interval[1]:{form}}]"


def to_markdown(table: Table) -> str:
    """Return the table in Markdown, with its title and caption."""
    return table.markdown


def _markdown(table: Table) -> str:
    headers = [escape_markdown(text) for text in [table.corner, *table.flat_headers()]]
    body = [
        [escape_markdown(row), *[_markdown_cell(*cell) for cell in zip(values, texts, strict=True)]]
        for row, values, texts in zip(table.rows, table.values, table.parts(), strict=True)
    ]
    alignment = ["left", *["right"] * len(table.headers)]
    text = tabulate(body, headers, tablefmt="pipe", colalign=alignment, disable_numparse=True)
    return f"### {escape_markdown(table.title)}\n\n{text}\n\n{escape_markdown(table.full_caption())}\n"


def _markdown_cell(value: Value, text: tuple[str, str]) -> str:
    number, rest = map(escape_inside_markdown, text)
    return (f"**{number}**" if value.best else number) + rest


def to_csv(table: Table) -> str:
    """Return the table as CSV, numbers in full; what stands behind a number has columns of its own."""
    columns: dict[str, list[object]] = {table.corner: list(table.rows)}
    for index, header in enumerate(table.flat_headers()):
        cells = [row[index] for row in table.values]
        columns[header] = [cell.word if cell.number is None else cell.number for cell in cells]
        if any(cell.spread is not None for cell in cells):
            columns[f"{header} std"] = [cell.spread for cell in cells]
        if any(cell.interval for cell in cells):
            columns |= {f"{header} {e}": [c.interval and c.interval[k] for c in cells] for k, e in enumerate(ENDS)}
        if any(cell.best for cell in cells):
            columns[f"{header} best"] = [cell.best for cell in cells]
        if any(cell.mark for cell in cells):
            columns[f"{header} disturbed cells"] = [cell.disturbed if cell.mark else 0 for cell in cells]
    return str(pd.DataFrame(columns).to_csv(index=False, lineterminator="\n"))


def escape_markdown(text: str) -> str:
    """Return text that stays inside its table cell and is not taken for markup."""
    return escape_inside_markdown(text).strip()


def escape_inside_markdown(text: str) -> str:
    """Return text that is not taken for markup, in one line and one direction, with the spaces around it."""
    text = "".join(" " if unicodedata.category(c) in BREAKS else c for c in text) if not text.isprintable() else text
    for old, new in (
        ("\\", "\\\\"),
        ("|", "\\|"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("*", "\\*"),
        ("`", "\\`"),
    ):
        text = text.replace(old, new)
    return text
