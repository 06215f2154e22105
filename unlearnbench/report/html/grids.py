"""Tables as the page lays them out."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from unlearnbench.report.data.array import Numbers
from unlearnbench.report.data.board import Board
from unlearnbench.report.data.values import Measure
from unlearnbench.report.tables.table import Table, interval_text

LONG = 24  # characters of a text that needs a broad column
WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class Header:
    """A column's header."""

    text: str
    about: str = ""  # its tooltip
    has_words: bool = False  # in its column, which are set flush left


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    mark: str  # directly after the number
    gap: str  # after it: over how many of the cells expected
    rest: str  # smaller, below it: the interval
    best: bool
    number: float | None  # None for words

    @property
    def is_long(self) -> bool:
        """Whether it is text that may be broken into lines."""
        return self.number is None and len(self.text) > LONG


@dataclass(frozen=True)
class Row:
    """One line of a table; `label` is a row of the board, or empty."""

    name: str
    label: str
    cells: list[Cell]


@dataclass(frozen=True)
class HtmlTable:
    """A table with one or two header rows, and bodies that are sorted separately."""

    name: str
    title: str
    caption: str
    corner: str
    groups: list[tuple[str, int]]  # words and how many columns they span; empty for one line of headers
    headers: list[Header]
    bodies: list[list[Row]]


def grid(table: Table, board: Board) -> HtmlTable:
    """Return a table as the page lays it out."""
    groups = [(text, len(list(same))) for text, same in groupby(table.groups)] if any(table.groups) else []
    lines = [
        Row(name, name if name in board.styles else "", [
            Cell(number, value.mark, value.gap, "" if table.narrow else interval_text(value, form).strip(),
                 value.best, value.number)
            for value, (number, _), form in zip(values, parts, table.formats, strict=True)
        ])
        for name, values, parts in zip(table.rows, table.values, table.parts(), strict=True)
    ]  # fmt: skip
    known = {measure.header: about(measure, board.every) for measure in board.every.measures}
    columns = zip(*([cell.text for cell in line.cells] for line in lines), strict=True)
    headers = [
        Header(text, known.get(text, ""), has_words(column))
        for text, column in zip(table.headers, columns, strict=True)
    ]
    starts = [0, *table.rules, len(lines)]
    bodies = [lines[a:b] for a, b in pairwise(starts) if a < b]
    return HtmlTable(table.name, table.title, table.full_caption(), table.corner, groups, headers, bodies)


def has_words(texts: Sequence[str]) -> bool:
    """Say whether most of a column's texts hold a word, of more than the letter of `30x` or of `n/a`."""
    known = [text for text in texts if text.strip("-")]
    return 2 * sum(bool(WORD.search(text)) for text in known) > len(known)


def about(measure: Measure, numbers: Numbers) -> str:
    """Return what a reader of a column must know: title, unit, what is better, samples per cell."""
    unit = f" in {measure.unit}" if measure.unit else ""
    better = "a description, not better or worse" if measure.better == "neither" else f"{measure.better} is better"
    known = [n for n in numbers.samples(measure) if n > 0]
    ends = " to ".join(f"{n:,}" for n in dict.fromkeys([known[0], known[-1]])) if known else ""
    return f"{measure.title}{unit}: {better}{f'; n = {ends} samples per cell' if ends else ''}"
