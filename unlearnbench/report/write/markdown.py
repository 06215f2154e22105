"""Markdown of tables, in which no text is taken for markup."""

import re
from weakref import WeakKeyDictionary

from tabulate import tabulate

from unlearnbench.errors import printable
from unlearnbench.report.data.values import Value
from unlearnbench.report.tables.table import Table

# Markdown's signs: brackets but those around numbers, which begin no link, underscores but those within a word
LIVE = re.compile(r"[\\|*`~$]|!(?=\[)|\[(?![^\[\]!^]*\](?![(\[:]))|(?<![^\W_])_|_(?![^\W_])")
BLOCK = re.compile(r"^([0-9]*)([#=]|[+-](?=[\s-])|[.)](?=\s|$))")  # begins a heading, a line or a list
ADDRESS = re.compile(r":(?=//)|\bwww(?=\.)|@", re.IGNORECASE)  # what viewers make links of
NO_BREAK = "\u00a0"  # so that no interval wraps
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
    return (f"**{number}**" if value.best else number) + rest.replace(" ", NO_BREAK)


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
