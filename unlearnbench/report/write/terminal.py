"""The main table as plain text, for a terminal of any width and for a log."""

import re
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, chop_cells
from rich.text import Text

from unlearnbench.errors import printable
from unlearnbench.report.data.board import Board
from unlearnbench.report.data.values import MARK, Measure, Variant, spell_number
from unlearnbench.report.tables.table import interval_text

WIDTH = 80  # of a terminal of unknown width
LEAST_WIDTH = 20  # of a table: in a narrower window the terminal itself wraps its lines
LEAST_NAME, GOOD_NAME = 10, 20  # columns for the methods' names: at least, and where there is space
TIGHT_NAME = 4  # beside a single column that is too wide
LONGEST_NAME = 160  # characters of a name
LONGEST_WORD, MOST_WORDS = 14, 4  # of a header
BEST = "*"  # after the number of a method marked as best
BEST_WORDS = "the best mean, and those that follow it up to the first that is significantly worse"
WORDS = {"interrupted": "stopped"}  # shorter, so that its column is no wider than numbers


@dataclass(frozen=True)
class Column:
    """A column of the table: its header's lines and a text per row."""

    header: list[str]
    cells: list[str]

    @property
    def width(self) -> int:
        """Columns of the terminal that its widest line takes."""
        return max(cell_len(text) for text in [*self.header, *self.cells])


def to_terminal(board: Board, width: int | None = None) -> str:
    """Return the main table as plain text that fits a width: no colour, no frame, and numbers are never cut.

    A wide window shows the intervals too. In a narrow one columns move together, names fold, and columns that still do
    not fit follow in a table below.

    Args:
        board: to show.
        width: columns; without it those of the terminal, or of the variable COLUMNS, or 80.
    """
    width = max(width or shutil.get_terminal_size((WIDTH, 24)).columns, LEAST_WIDTH)
    measures = [*board.headlines, *(measure for measure in board.costs if measure.key != "total")]
    names = [_printable(variant.label) for variant in board.variants]
    counts = Column(["cells"], [board.numbers.completeness(variant) for variant in board.variants])
    whole = [counts, *[_column(board, measure, with_interval=True) for measure in measures]]
    columns = [counts, *[_column(board, measure) for measure in measures]]
    title = _printable(f"{board.title} on {board.device_name}: mean over forget classes")
    if whole != columns and _taken(whole, 2) + _longest(names) <= width:
        columns, title = whole, f"{title} [95 % interval]"
    tables = [_laid_out(part, names, width) for part in _parts(columns, names, width)]
    legend = [line for sentence in _legend(columns) for line in _folded(sentence, width)]
    return "\n".join([*_folded(title, width), "\n\n".join("\n".join(lines) for lines in tables), *legend])


def styled(text: str) -> Text:
    """Return a printed table with its best numbers in bold, for a terminal that can show it."""
    shown = Text(text)
    shown.highlight_regex(rf"(?<!\S)[-\d.]+{MARK}?{re.escape(BEST)}(?!\S)", "bold")
    return shown


def _column(board: Board, measure: Measure, with_interval: bool = False) -> Column:
    """Return a measure's column; numbers are padded for marks, so that digits align."""
    title = _printable(measure.title).replace("+", " +").split()
    words = [part for word in title for part in _folded(word, LONGEST_WORD)][:MOST_WORDS]
    cells = [_cell(board, variant, measure, with_interval) for variant in board.variants]
    marks, rests = (max(len(cell[k]) for cell in cells) for k in (1, 2))
    return Column(
        [*words, _printable(f"{measure.unit} {measure.arrow}".strip())],
        [number + mark.ljust(marks) + (rest.rjust(rests) if with_interval else rest) for number, mark, rest in cells],
    )


def _cell(board: Board, variant: Variant, measure: Measure, with_interval: bool) -> tuple[str, str, str]:
    """Return a number or the word in its place, its marks, and its gap and interval.

    A number over fewer cells than expected has a gap, unless the row's count of cells shows it.
    """
    value = board.numbers.mean(variant, measure)
    if value.number is None:
        return WORDS.get(value.word, _printable(value.word)), "", ""
    gap = "" if value.gap == f" ({board.numbers.completeness(variant)})" else value.gap
    interval = interval_text(value, measure.format) if with_interval else ""
    return spell_number(value.number, measure.format), f"{value.mark}{BEST if value.best else ''}", f"{gap}{interval}"


def _legend(columns: Sequence[Column]) -> list[str]:
    """Return a line on each mark that the table has."""
    counts, *numbers = [" ".join(column.cells) for column in columns]
    short = [
        (some, every) for some, every in (count.split("/") for count in counts.split()) if 0 < int(some) < int(every)
    ]
    return [
        *([f"{BEST} {BEST_WORDS}"] if any(BEST in text for text in numbers) else []),
        *([f"{MARK} measured while something else used the machine"] if any(MARK in text for text in numbers) else []),
        *(["{0}/{1}: numbers over {0} of {1} cells".format(*short[0])] if short else []),
    ]


def _parts(columns: Sequence[Column], names: Sequence[str], width: int) -> list[list[Column]]:
    """Return the columns split into tables that fit the width."""
    if _taken(columns, 1) + min(_longest(names), LEAST_NAME) <= width:
        return [list(columns)]
    name = min(_longest(names), max(LEAST_NAME, width // 3))
    parts: list[list[Column]] = [[]]
    for column in columns:
        if parts[-1] and name + _taken([*parts[-1], column], 1) > width:
            parts.append([])
        parts[-1].append(column)
    return parts


def _laid_out(columns: Sequence[Column], names: Sequence[str], width: int) -> list[str]:
    """Return the lines of a table: columns as far apart, and names folded as little, as the width allows."""
    longest = _longest(names)
    choices = [(2, longest), (1, longest), (2, GOOD_NAME)]
    gap = next((gap for gap, least in choices if width - _taken(columns, gap) >= least), 1)
    name = min(longest, max(width - _taken(columns, gap), TIGHT_NAME))
    height = max(len(column.header) for column in columns)
    headers = [[""] * (height - len(column.header)) + column.header for column in columns]
    lines = [("method" if k == height - 1 else "", [header[k] for header in headers]) for k in range(height)]
    for index, label in enumerate(names):
        first, *more = _folded(label, name) or [""]
        lines += [(first, [column.cells[index] for column in columns]), *[(part, []) for part in more]]
    return [_line(begin, name, cells, [gap + column.width for column in columns]) for begin, cells in lines]


def _line(begin: str, name: int, cells: Sequence[str], widths: Sequence[int]) -> str:
    """Return a line: a text on the left, then right-aligned cells."""
    placed = [" " * (width - cell_len(cell)) + cell for cell, width in zip(cells, widths, strict=False)]
    return "".join([begin, " " * (name - cell_len(begin)), *placed]).rstrip()


def _taken(columns: Sequence[Column], gap: int) -> int:
    """Return the width of columns with the gaps before them."""
    return sum(column.width + gap for column in columns)


def _longest(names: Sequence[str]) -> int:
    return max(cell_len(text) for text in [*names, "method"])


def _folded(text: str, width: int) -> list[str]:
    """Return a text in lines of a width, broken at blanks and hyphens, inside a word only where it exceeds a line."""
    lines = textwrap.wrap(text, width, break_long_words=False)
    return [part for line in lines for part in (chop_cells(line, width) if cell_len(line) > width else [line])]


def _printable(text: str) -> str:
    """Return a text of a record as a line that a terminal shows as it is; a long one is cut."""
    shown = printable(text).replace("\n", " ")
    return shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME - 3]}..."
