r"""LaTeX: tables for `\input`.

A table needs the packages booktabs, graphicx, multirow and siunitx. Columns that together exceed the text width are
split into several tabulars below each other, and rows that exceed a page into several floats, so that no text shrinks.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from unlearnbench.errors import printable
from unlearnbench.report.data.values import MARK
from unlearnbench.report.tables.table import Table

TEXT, COLUMN = 488.0, 240.0  # points: widths of a page's text and of one column of it, a little less than they are
HIGH, LINE = 640.0, 9.6  # points: height of a page's text, of a line of a table
SEP = 3.0  # points at each side of a column
STUB, WORDS, LEAST = 150.0, 130.0, 32.0  # points: widest column of row names, of words; least where a header folds
MOST_DIGITS = 16  # of a number that siunitx aligns
LONG, MOST_HEADER = 24, 60  # characters of a word that may be divided, of a header
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
MEDIA_BOX = re.compile(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]")  # of a figure, in points
LATEX_MARK = r"^{\dagger}"
HEAD = r"""% All tables and figures of a report in their places, which `unlearnbench report` writes anew.
\documentclass[10pt,twocolumn,letterpaper]{article}
\usepackage[T1]{fontenc}
\usepackage{lmodern}
\usepackage[margin=0.7in]{geometry}
\usepackage{booktabs,graphicx,multirow,siunitx} % what the tables need
\graphicspath{{../figures/}}
\renewcommand{\topfraction}{.96}\renewcommand{\dbltopfraction}{.96}\renewcommand{\textfraction}{0}
\renewcommand{\floatpagefraction}{0.01}\renewcommand{\dblfloatpagefraction}{0.01}
\setcounter{dbltopnumber}{9}\setcounter{totalnumber}{9}
\makeatletter
\setlength{\@fptop}{0pt}\setlength{\@dblfptop}{0pt}
\makeatother
\sloppy
\begin{document}
"""
MOST_LETTERS = 240  # of a text that is cut
FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"  # for texts narrower than two columns
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\n": " ",
    MARK: f"${LATEX_MARK}$",
}  # fmt: skip


class Place(NamedTuple):
    """The content of one cell: a number with its suffix, or a word."""

    number: str
    rest: str
    best: bool = False


@dataclass(frozen=True)
class Sheet:
    """A table in layout form: names of rows, columns below groups, and cells."""

    corner: str
    names: list[str]  # of the rows
    groups: list[str]
    headers: list[str]
    cells: list[list[Place]]
    rules: set[int]  # rows that a line precedes

    @cached_property
    def stub(self) -> float:
        """The width of the column of names."""
        return min(max(map(width_of, [self.corner, *self.names])), STUB)

    @cached_property
    def columns(self) -> list[list[Place]]:
        """The cells of each column."""
        return [[row[k] for row in self.cells] for k in range(len(self.headers))]

    @cached_property
    def widths(self) -> list[float]:
        """The width of every other column, without its padding; at least that of the widest word of its header."""
        found = [
            max(_content(column), min(max(width_of(header) / 2.2, LEAST), width_of(header), STUB), _widest_word(header))
            for header, column in zip(self.headers, self.columns, strict=True)
        ]
        for run in _runs(self.groups):
            lacking = _widest_word(self.groups[run[0]]) - sum(found[k] for k in run) - 2 * SEP * (len(run) - 1)
            for k in run:
                found[k] += max(lacking, 0.0) / len(run)
        return found

    def span(self, columns: Sequence[int]) -> float:
        """Return the width of columns side by side."""
        return sum(self.widths[k] for k in columns) + 2 * SEP * (len(columns) - 1)

    @cached_property
    def high(self) -> float:
        """Height of the header in lines, rules included."""
        heads = [width_of(header) / width for header, width in zip(self.headers, self.widths, strict=True)]
        above = [width_of(self.groups[run[0]]) / self.span(run) for run in _runs(self.groups) if self.groups[run[0]]]
        return 1.7 + sum(max(map(_folds, some)) for some in (heads, above) if some)

    def lines(self, row: int) -> int:
        """Return how many lines a row takes."""
        cells = [width_of(place.rest) / WORDS for place in self.cells[row] if not place.number]
        return 1 + int(1.15 * max([width_of(self.names[row]) / STUB, *cells]))


class Layout(NamedTuple):
    """The layout of a table on a page."""

    sheet: Sheet
    caption: str
    spans: bool  # both columns of a page
    full: bool  # tabulars of the text's width
    floats: list[list[tuple[list[int], list[int]]]]  # (rows, columns) of each tabular


def lay_out(table: Table) -> Layout:
    """Return the layout of a table on a page."""
    sheet = _sheet(table)
    blocks = _blocks(sheet)
    caption = table.full_caption()
    spans = len(blocks) > 1 or sheet.stub + 2 * SEP + sum(sheet.widths[k] + 2 * SEP for k in blocks[0]) > COLUMN
    floats = list(_floats(sheet, blocks, _lines_per_page(caption, spans)))
    return Layout(sheet, caption, spans, len(blocks) > 1, floats)


def to_latex(table: Table) -> str:
    r"""Return the table for `\input`, as floats of a column's width, or of a page's where that is too narrow.

    Numbers are aligned at their decimal points, with intervals and marks after them. The caption names the records.
    """
    sheet, caption, spans, full, parts = lay_out(table)
    kind = "table*" if spans else "table"
    floats = []
    for number, tabulars in enumerate(parts):
        first = not number
        floats.append("\n".join([
            f"\\begin{{{kind}}}[t]",
            r"\centering\footnotesize",
            rf"\setlength{{\tabcolsep}}{{{SEP:g}pt}}\sisetup{{detect-weight=true,mode=text}}",
            *([] if first else [r"\addtocounter{table}{-1}"]),
            f"\\caption{{{breakable(caption if first else f'Continued. {caption}')}}}",
            *([f"\\label{{tab:{table.name}}}"] if first else []),
            "\\par\\smallskip\n"
            + "\n\\par\\medskip\n".join(f"{FIT}\n{_tabular(sheet, *one, full=full)}}}" for one in tabulars),
            f"\\end{{{kind}}}",
        ]))  # fmt: skip
    return "\n".join(floats) + "\n"


def _lines_per_page(caption: str, spans: bool) -> float:
    """Return how many lines of tabulars fit a page with the caption."""
    letters = 100 if spans else 46  # in a line of the caption
    return max((HIGH - 12.0 * (len(caption) / letters + 1) - 20.0) / LINE, 12.0)


def _sheet(table: Table) -> Sheet:
    names: list[str] = []
    rules: set[int] = set()
    rows: list[list[Place]] = []
    for index, (name, texts, values) in enumerate(zip(table.rows, table.parts(), table.values, strict=True)):
        if index in table.rules:
            rules.add(len(rows))
        row = [_place(*text, value.number is not None, value.best) for text, value in zip(texts, values, strict=True)]
        rows.append(row)
        names.append(name)
    groups, headers = ([cut(text, MOST_HEADER) for text in texts] for texts in (table.groups, table.headers))
    return Sheet(table.corner, names, groups, headers, rows, rules)


def _runs(groups: Sequence[str]) -> list[list[int]]:
    """Return the columns below each upper header; those without one stand alone."""
    runs = itertools.groupby(enumerate(groups), lambda pair: pair[1] or pair[0])
    return [[k for k, _ in run] for _, run in runs]


def _folds(share: float) -> int:
    """Return how many lines a text takes, given its width relative to its column."""
    return 1 if share <= 1 else 1 + int(1.15 * share)


def _place(number: str, rest: str, is_number: bool, best: bool) -> Place:
    """Return a cell; a number that siunitx cannot align is a word."""
    if is_number:
        number, _, spread = number.partition(" ± ")
        rest = (f" ± {spread}" if spread else "") + rest
        if NUMBER.fullmatch(number) and len(number) <= MOST_DIGITS:
            return Place(number, rest, best)
    return Place("", number + rest)


def width_of(text: str) -> float:
    """Return the approximate width of a text at 8 points, rounded up."""
    narrow, wide, signs = "iljtf.,:;'!|()[] ", "mwMWQ%@&", "<>~+=#^±↓↑"
    return sum(2.9 if c in narrow else 8.2 if c in wide else 6.7 if c.isupper() or c in signs else 4.5 for c in text)


def _widest_word(header: str) -> float:
    return 1.1 * max(width_of(word[:LONG]) for word in header.split() or [""])


def _content(column: Sequence[Place]) -> float:
    """Return the width of a column's cells."""
    words = max((width_of(place.rest) for place in column if not place.number), default=0.0)
    if not any(place.number for place in column):
        return min(words, WORDS)
    whole, decimals = _digits(column)
    bold = 1.16 if any(place.best for place in column) else 1.0
    numbers = bold * (4.3 * (len(whole) + len(decimals)) + 2.5)
    return max(numbers + width_of(_longest(column)), min(words, WORDS))


def _digits(column: Sequence[Place]) -> tuple[str, str]:
    """Return the longest whole part of a column's numbers, with its sign, and the longest decimals."""
    parts = [place.number.lstrip("+-").partition(".") for place in column if place.number]
    signs = {place.number[0] for place in column if place.number} & set("+-")
    sign = "+" if "+" in signs else "-" if signs else ""
    return sign + max((whole for whole, _, _ in parts), key=len), max((rest for _, _, rest in parts), key=len)


def _longest(column: Sequence[Place]) -> str:
    return max((place.rest for place in column if place.number), key=width_of)


def _blocks(sheet: Sheet) -> list[list[int]]:
    """Return the columns of each tabular: groups stay together, tabulars are about equally wide."""
    widths = [width + 2 * SEP for width in sheet.widths]
    space = TEXT - sheet.stub - 2 * SEP
    units: list[list[int]] = []
    for unit in _runs(sheet.groups):
        units += [unit] if sum(widths[k] for k in unit) <= space else [[k] for k in unit]
    most = len(_filled(units, widths, space))
    limit = sum(widths) / max(most, 1)
    while len(found := _filled(units, widths, min(limit, space))) > most:
        limit *= 1.04
    return found or [[]]


def _filled(units: Sequence[Sequence[int]], widths: Sequence[float], space: float) -> list[list[int]]:
    blocks: list[list[int]] = []
    left = 0.0
    for unit in units:
        need = sum(widths[k] for k in unit)
        if not blocks or need > left:
            blocks.append([])
            left = space
        blocks[-1] += unit
        left -= need
    return blocks


def _floats(sheet: Sheet, blocks: Sequence[Sequence[int]], space: float) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Yield the (rows, columns) of the tabulars of each float, each of at most `space` lines."""
    chunks: list[list[int]] = [[]]
    lines = sheet.high
    for row in range(len(sheet.names)):
        lines += sheet.lines(row)
        if lines > space and chunks[-1]:
            chunks.append([])
            lines = sheet.high + sheet.lines(row)
        chunks[-1].append(row)
    parts: list[tuple[list[int], list[int]]] = []
    used = 0.0
    for chunk, block in itertools.product(chunks, blocks):
        need = sum(sheet.lines(row) for row in chunk) + sheet.high
        if parts and (used + need > space or parts[-1][0] != chunk):
            yield parts
            parts, used = [], 0.0
        parts.append((chunk, list(block)))
        used += need
    yield parts


def _tabular(sheet: Sheet, rows: Sequence[int], columns: Sequence[int], *, full: bool) -> str:
    """Return one tabular of some rows and columns; of the text's width if it is one of several."""
    stub = "l" if sheet.stub < STUB else _wrapped(STUB)
    form = f"{stub}{''.join(_column(sheet.columns[k]) for k in columns)}"
    begin = r"\begin{tabular*}{\linewidth}{@{\extracolsep{\fill}}" if full else r"\begin{tabular}{"
    lines = [f"{begin}{form}}}", r"\toprule", *_header(sheet, columns), r"\midrule"]
    names = [sheet.names[row] for row in rows]
    for place, row in enumerate(rows):
        if row in sheet.rules and place:
            lines.append(r"\midrule")
        cells = [_cell(sheet.cells[row][k], sheet.columns[k]) for k in columns]
        lines.append(" & ".join([_name(names, place), *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular*}" if full else r"\end{tabular}"])


def _header(sheet: Sheet, columns: Sequence[int]) -> list[str]:
    """Return the rows of headers, the corner beside both."""
    lines = []
    groups, corner = [sheet.groups[k] for k in columns], breakable(sheet.corner)
    if any(groups):
        cells, rules, at = [""], [], 2
        for run in _runs(groups):
            group, width = groups[run[0]], sheet.span([columns[k] for k in run])
            head = rf"\multicolumn{{{len(run)}}}{{c}}{{{_folded(group, width)}}}"
            cells.append(head if group else "")
            rules += [rf"\cmidrule(lr){{{at}-{at + len(run) - 1}}}"] if group else []
            at += len(run)
        lines = [" & ".join(cells) + r" \\", "".join(rules)]
        corner = rf"\multirow{{-2}}{{*}}{{{corner}}}"
    heads = [f"{{{_folded(sheet.headers[k], sheet.widths[k])}}}" for k in columns]
    return [*lines, " & ".join([corner, *heads]) + r" \\"]


def _folded(text: str, width: float) -> str:
    """Return a header, in several lines where it is wider than its columns."""
    inside = breakable(text)
    return rf"\parbox[b]{{{width:.0f}pt}}{{\centering {inside}}}" if width_of(text) > width else inside


def _name(names: Sequence[str], place: int) -> str:
    """Return a row's name; one that several rows share is written once, if it fits a line."""
    name = names[place]
    guard = "{}" if name.lstrip()[:1] in ("[", "*") else ""  # which the preceding \\ would take as its argument
    size = len(list(itertools.takewhile(lambda other: other == name, names[place:])))
    if width_of(name) > STUB:
        return guard + breakable(name)
    if place and names[place - 1] == name:
        return ""
    return rf"\multirow[t]{{{size}}}{{*}}{{{breakable(name)}}}" if size > 1 else guard + breakable(name)


def _wrapped(width: float) -> str:
    return rf">{{\raggedright\arraybackslash}}p{{{width:.0f}pt}}"


def _column(column: Sequence[Place]) -> str:
    """Return siunitx's S with space for suffixes, or a column of words."""
    if not any(place.number for place in column):
        widest = max((width_of(place.rest) for place in column), default=0.0)
        return _wrapped(WORDS) if widest > WORDS else "r" if widest < 24 else "l"
    whole, decimals = _digits(column)
    sign, digits = ("", whole) if whole[0].isdigit() else (whole[0], whole[1:])
    options = f"table-format={sign}{len(digits)}.{len(decimals)}"
    if sign == "+":
        options += ",retain-explicit-plus"
    if behind := _longest(column):
        options += f",table-space-text-post={{\\mdseries{{}}{_behind(behind)}}},table-number-alignment=left"
    return f"S[{options}]"


def _cell(place: Place, column: Sequence[Place]) -> str:
    """Return a cell: a number for siunitx with its suffix in braces, or a word."""
    if not place.number:
        word = breakable(place.rest)
        if not any(one.number for one in column):
            return word
        return f"{{{word}}}" if width_of(place.rest) <= WORDS else rf"{{\parbox[t]{{{WORDS:.0f}pt}}{{{word}}}}}"
    behind = _behind(place.rest)
    if place.best:
        return rf"\bfseries {place.number}" + (rf"{{\mdseries{{}}{behind}}}" if behind else "")
    return place.number + (f"{{{behind}}}" if behind else "")


def _behind(rest: str) -> str:
    return escape_latex(rest).replace("-", "$-$")


def size_of(pdf: bytes) -> tuple[float, float] | None:
    """Return width and height of a figure in inches."""
    box = MEDIA_BOX.search(pdf)
    return None if box is None else (float(box[1]) / 72, float(box[2]) / 72)


def cut(text: str, most: int = MOST_LETTERS) -> str:
    """Return a text of at most `most` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def escape_latex(text: object) -> str:
    """Return text that LaTeX prints as it stands; characters pdflatex cannot print become a question mark."""
    return "".join(_LATEX.get(c, c if 31 < ord(c) < 127 else _to_ascii(c)) for c in printable(str(text)))


def _to_ascii(character: str) -> str:
    plain = unicodedata.normalize("NFKD", character).encode("ascii", "ignore").decode()
    return "".join(_LATEX.get(c, c) for c in plain) or "?"


def breakable(text: str) -> str:
    """Return text for LaTeX whose long words may be divided anywhere, so that none overflows."""
    parts = [re.findall(r"..?", word) if len(word) > LONG else [word] for word in re.split(r"(\s+)", text)]
    return "".join(r"\-".join(map(escape_latex, part)) for part in parts)
