"""One table object, and its writers: Markdown, CSV."""

import re
from weakref import WeakKeyDictionary

import pandas as pd
from pandas.api.types import is_numeric_dtype
from tabulate import tabulate

from unlearnbench.errors import printable
from unlearnbench.report.data.values import Value
from unlearnbench.report.tables.table import Table

ENDS = ("low", "high")  # of an interval
FORMULA = re.compile(r"[=+\-@\uff1d\uff0b\uff0d\uff20]")  # what spreadsheets take for one, wide letters included
# Markdown's signs: brackets but those around numbers, which begin no link, underscores but those within a word
LIVE = re.compile(r"[\\|*`~$]|!(?=\[)|\[(?![^\[\]!^]*\](?![(\[:]))|(?<![^\W_])_|_(?![^\W_])")
BLOCK = re.compile(r"^([0-9]*)([#=]|[+-](?=[\s-])|[.)](?=\s|$))")  # begins a heading, a line or a list
ADDRESS = re.compile(r":(?=//)|\bwww(?=\.)|@", re.IGNORECASE)  # what viewers make links of
PART = "&#8288;"  # a word joiner
_MARKDOWN: WeakKeyDictionary[Table, str] = WeakKeyDictionary()


def to_markdown(table: Table) -> str:
    """Return the table in Markdown, with its title and caption; made once, since a report shows it more than once."""
    if table not in _MARKDOWN:
        _MARKDOWN[table] = _markdown(table)
    return _MARKDOWN[table]


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
    columns: list[tuple[str, list[object]]] = [(table.corner, list(table.rows))]
    for index, header in enumerate(table.flat_headers()):
        cells = [row[index] for row in table.values]
        columns.append((header, [_csv_word(cell.word) if cell.number is None else cell.number for cell in cells]))
        if any(cell.spread is not None for cell in cells):
            columns.append((f"{header} std", [cell.spread for cell in cells]))
        if any(cell.interval for cell in cells):
            columns += [(f"{header} {e}", [c.interval and c.interval[k] for c in cells]) for k, e in enumerate(ENDS)]
        if any(cell.best for cell in cells):
            columns.append((f"{header} best", [cell.best for cell in cells]))
        if any(cell.mark for cell in cells):
            columns.append((f"{header} disturbed cells", [cell.disturbed if cell.mark else 0 for cell in cells]))
    frame = pd.DataFrame({
        number: pd.Series(cells, dtype=object if None in cells else None) for number, (_, cells) in enumerate(columns)
    })  # fmt: skip
    return frame_to_csv(frame.set_axis([name for name, _ in columns], axis=1))


def frame_to_csv(frame: pd.DataFrame) -> str:
    """Return a frame as CSV in which no text is a formula of a spreadsheet."""
    plain = {
        number: column
        if is_numeric_dtype(column)
        else pd.Series([csv_text(cell) if isinstance(cell, str) else cell for cell in column], dtype=object)
        for number, (_, column) in enumerate(frame.items())
    }
    names = [csv_text(str(name)) for name in frame.columns]
    return str(pd.DataFrame(plain).to_csv(index=False, header=names, lineterminator="\n"))


def csv_text(text: str) -> str:
    """Return text for a cell of a CSV file: in one line, and after an apostrophe where it would begin a formula."""
    flat = printable(text).replace("\n", " ").strip()
    return f"'{flat}" if FORMULA.match(flat) and not _is_number(flat) else flat


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _csv_word(word: str) -> str | None:
    """Return the word that stands for a number; nothing where no cell was run."""
    return None if word == "-" else word


def escape_markdown(text: str) -> str:
    """Return text that stays inside its table cell or line and is not taken for markup."""
    return BLOCK.sub(r"\g<1>\\\g<2>", escape_inside_markdown(text).strip())


def escape_inside_markdown(text: str) -> str:
    """Return text that is not taken for markup, in one line and one direction, with the spaces around it.

    Addresses are no links: an invisible letter parts them, as viewers look for them even in escaped text.
    """
    text = LIVE.sub(r"\\\g<0>", printable(text).replace("\n", " ").replace("&", "&amp;"))
    text = text.replace("<", "&lt;").replace(">", "&gt;")
    return ADDRESS.sub(rf"\g<0>{PART}", text)
