"""One table object, and its writers: Markdown, LaTeX, CSV."""

import unicodedata
from dataclasses import dataclass, replace

import pandas as pd
from tabulate import tabulate

from unlearnbench.report.values import MARK, Value

ENDS = ("low", "high")  # of an interval
MARK_WORDS = (
    f"{MARK} rests on cells that were measured while something else used the machine: see the report's notes, and "
    f"column disturbances of cells.csv."
)


BEST_WORDS = (
    "Bold: the best method and those that cannot be told from it (paired permutation tests over forget classes, Holm, "
    "5 %), where another one can."
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
        return [
            [_text(replace(value, interval=None) if self.narrow else value, form)
             for value, form in zip(row, self.formats, strict=True)]
            for row in self.values
        ]  # fmt: skip

    def full_caption(self) -> str:
        """Return the caption, with what the marks in its cells mean."""
        best = any(value.best for row in self.values for value in row)
        marked = any(MARK in text for row in self.texts() for text in row)
        return " ".join([self.caption, *([BEST_WORDS] if best else []), *([MARK_WORDS] if marked else [])])

    def flat_headers(self) -> list[str]:
        """Return one header per column, the upper one first."""
        return [f"{group} {header}".strip() for group, header in zip(self.groups, self.headers, strict=True)]


def _text(value: Value, form: str) -> tuple[str, str]:
    if value.number is None:
        return value.word, ""
    spread = f" ± {value.spread:{form}}" if value.spread is not None else ""
    return f"{value.number:{form}}{spread}", f"{value.mark}{value.gap}{interval_text(value, form)}"


def interval_text(value: Value, form: str) -> str:
    """Return an interval as it stands behind its number; empty for none."""
    return "" if value.interval is None else f" [{value.interval[0]:{form}}, {value.interval[1]:{form}}]"


def to_markdown(table: Table) -> str:
    """Return the table in Markdown, with its title and caption."""
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


def to_latex(table: Table) -> str:
    r"""Return the table for `\input`: booktabs rules, siunitx columns, everything else escaped.

    Needs the packages booktabs, siunitx and graphicx; a table wider than the line is shrunk to it.
    """
    grouped = any(table.groups)
    pairs = list(zip(table.groups, table.headers, strict=True))
    columns = pd.MultiIndex.from_tuples(pairs) if grouped else pd.Index(table.headers)
    texts = [
        [_latex_cell(*text, value) for text, value in zip(row, values, strict=True)]
        for row, values in zip(table.parts(), table.values, strict=True)
    ]
    frame = pd.DataFrame(texts, columns=columns, index=table.rows)
    styler = frame.style.format_index(escape_latex, axis=0)
    for level in range(columns.nlevels):
        styler = styler.format_index(escape_latex, axis=1, level=level)
    text = str(
        styler.to_latex(
            column_format="l" + "".join(_column_format(table, index) for index in range(len(pairs))),
            hrules=True,
            siunitx=True,
            multicol_align="c",
            position="t",
            position_float="centering",
            caption=escape_latex(table.full_caption()),
            label=f"tab:{table.name}",
        )
    )
    return _shrunk(_with_rules(text, table))


def _latex_cell(number: str, rest: str, value: Value) -> str:
    """Return a cell: a bare number for siunitx, a braced number with what stands behind it, or a braced word."""
    if value.number is None:
        return f"{{{escape_latex(number)}}}"
    if value.spread is not None:
        inside = f"{number}{rest}".replace(" ± ", r" \pm ").replace(MARK, LATEX_MARK)
        return f"{{${inside}$}}"
    behind = escape_latex(rest).replace("-", "$-$")
    if value.best:
        return f"{{$\\mathbf{{{number}}}${behind}}}"
    return f"{{{number.replace('-', '$-$')}{behind}}}" if rest else number


def _column_format(table: Table, index: int) -> str:
    """Return siunitx's S with the digits this column needs, or r where no cell is a bare number."""
    cells = [(row[index], text[index]) for row, text in zip(table.values, table.parts(), strict=True)]
    bare = [(cell, number) for cell, (number, rest) in cells if not rest and not cell.best and cell.spread is None]
    numbers = [number for cell, number in bare if cell.number is not None]
    if not numbers:
        return "r"
    whole = max(len(number.split(".")[0]) for number in numbers)
    decimals = max(len(number.partition(".")[2]) for number in numbers)
    return f"S[table-format={whole}.{decimals}]"


def _with_rules(text: str, table: Table) -> str:
    r"""Put \midrule before the rows that `rules` names, counting from the first row of the body."""
    lines = text.split("\n")
    first = next(index for index, line in enumerate(lines) if line == r"\midrule") + 1
    for rule in sorted(table.rules, reverse=True):
        lines.insert(first + rule, r"\midrule")
    return "\n".join(lines)


def _shrunk(text: str) -> str:
    """Let a tabular that is wider than the line shrink to it."""
    fit = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"
    return text.replace(r"\begin{tabular}", fit + "\n" + r"\begin{tabular}").replace(
        r"\end{tabular}", r"\end{tabular}}"
    )


LATEX_MARK = r"^{\dagger}"
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\n": " ",
    MARK: f"${LATEX_MARK}$",
}  # fmt: skip


def escape_latex(text: object) -> str:
    """Return text that LaTeX prints as it stands; characters pdflatex cannot print become a question mark."""
    return "".join(_LATEX.get(c, c if 31 < ord(c) < 127 else _to_ascii(c)) for c in str(text))


def _to_ascii(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return "".join(_LATEX.get(c, c) for c in plain) or "?"


def escape_markdown(text: str) -> str:
    """Return text that stays inside its table cell and is not taken for markup."""
    return escape_inside_markdown(text).strip()


def escape_inside_markdown(text: str) -> str:
    """Return text that is not taken for markup, with the spaces around it."""
    for old, new in (
        ("\\", "\\\\"),
        ("|", "\\|"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("*", "\\*"),
        ("`", "\\`"),
        ("\n", " "),
    ):
        text = text.replace(old, new)
    return text
