r"""LaTeX: tables for `\input`, which need the packages booktabs, graphicx, makecell and siunitx.

Columns that together exceed the text width are split into several tabulars below each other, and rows that exceed a
page into several floats, so that no text shrinks. Widths are estimates for this split: TeX measures what it sets.
"""

import itertools
import re
import textwrap
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from unlearnbench.errors import printable
from unlearnbench.report.data.values import MARK, Value
from unlearnbench.report.tables.table import Table

TEXT, COLUMN = 485.0, 240.0  # points: widths of a page's text and of one column of it, a little less than they are
HIGH, LINE = 640.0, 9.6  # points: height of a page's text, of a line of a table
SEP = 3.0  # points at each side of a column
WIDEST, LEAST = 200.0, 32.0  # points: of a column of words, of a header that folds
MOST_DIGITS = 16  # of a number that siunitx aligns
LONG, MOST_HEADER, MOST_LETTERS = 24, 60, 240  # characters of a word that may be divided, of a header, of a text
NUMBER = re.compile(r"[+-]?\d+(?:\.\d+)?")
NO_BREAK = "\u00a0"  # before an arrow
MEDIA_BOX = re.compile(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]")  # of a figure, in points
FIT = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%"  # for texts narrower than two columns
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "↓": r"$\downarrow$", "↑": r"$\uparrow$",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", "\n": " ",
    MARK: r"$^{\dagger}$",
}  # fmt: skip


class Place(NamedTuple):
    """The content of one cell: a number and what stands behind it, or a word."""

    number: str
    rest: str
    best: bool = False


class Column(NamedTuple):
    """A column as it is set: its place in the tabular's preamble, its width with padding, its texts and their lines."""

    form: str
    width: float
    group: str
    header: list[str]  # its lines
    cells: list[str]
    lines: list[int]  # that each cell takes


def to_latex(table: Table) -> str:
    r"""Return the table for `\input`, as floats of a column's width, or of a page's where that is too narrow.

    Numbers are aligned at their decimal points, with intervals and marks after them. The caption names the records.
    """
    places = [[_place(*one) for one in zip(*row, strict=True)] for row in zip(table.parts(), table.values, strict=True)]
    stub = _column("", table.corner, [Place("", name) for name in table.rows])
    columns = [
        _column(cut(group, MOST_HEADER), cut(header, MOST_HEADER), [row[k] for row in places])
        for k, (group, header) in enumerate(zip(table.groups, table.headers, strict=True))
    ]
    blocks, caption = _blocks(columns, TEXT - stub.width), table.full_caption()
    full = len(blocks) > 1  # tabulars of the text's width
    spans = full or stub.width + sum(column.width for column in columns) > COLUMN
    kind, letters = ("table*", 100) if spans else ("table", 46)  # letters in a line of the caption
    space = max((HIGH - 12.0 * (len(caption) / letters + 1) - 20.0) / LINE, 12.0)
    floats = []
    for number, (rows, some) in enumerate(_floats([stub, *columns], blocks, space)):
        tabulars = [_tabular([stub, *[columns[k] for k in block]], rows, table.rules, full=full) for block in some]
        floats.append("\n".join([
            rf"\begin{{{kind}}}[t]",
            r"\centering\footnotesize",
            rf"\setlength{{\tabcolsep}}{{{SEP:g}pt}}\sisetup{{detect-weight=true,mode=text}}",
            *([r"\addtocounter{table}{-1}"] if number else []),
            rf"\caption{{{breakable(f'Continued. {caption}' if number else caption)}}}",
            *([] if number else [rf"\label{{tab:{table.name}}}"]),
            "\\par\\smallskip\n" + "\n\\par\\medskip\n".join(f"{FIT}\n{tabular}}}" for tabular in tabulars),
            rf"\end{{{kind}}}",
        ]))  # fmt: skip
    return "\n".join(floats) + "\n"


def _place(text: tuple[str, str], value: Value) -> Place:
    """Return a cell; a number that siunitx cannot align is a word."""
    number, plus_minus, spread = text[0].partition(" ± ")
    if value.number is not None and NUMBER.fullmatch(number) and len(number) <= MOST_DIGITS:
        return Place(number, plus_minus + spread + text[1], value.best)
    return Place("", "".join(text))


def _column(group: str, header: str, places: Sequence[Place]) -> Column:
    """Return a column of numbers with what stands behind them, and of words, folded where they are too wide."""
    numbers = [place.number for place in places if place.number]
    behind = max((place.rest for place in places if place.number), key=width_of, default="")
    words = [[] if place.number else _fold(place.rest, WIDEST) for place in places]  # their lines
    widths = [width_of(line) for lines in words for line in lines]
    content = max([max(map(width_of, numbers), default=0.0) + width_of(behind), *widths])
    head = _fold(re.sub(r" (?=[↑↓]$)", NO_BREAK, header), max(content, LEAST))
    return Column(
        _siunitx(numbers, behind) if numbers else "r" if content < LEAST else "l",
        max([content, *map(width_of, head)]) + 2 * SEP,
        group,
        head,
        [
            _stack(lines, "tl", in_braces=bool(numbers)) if lines else _aligned(place)
            for place, lines in zip(places, words, strict=True)
        ],
        [max(len(lines), 1) for lines in words],
    )


def _siunitx(numbers: Sequence[str], behind: str) -> str:
    """Return siunitx's column for these numbers, with space for the widest text behind one."""
    parts = [number.lstrip("+-").partition(".") for number in numbers]
    whole, decimals = (max(len(part[k]) for part in parts) for k in (0, 2))
    signs = {number[0] for number in numbers}
    sign = "+" if "+" in signs else "-" if "-" in signs else ""
    space = rf",table-space-text-post={{\mdseries{{}}{_behind(behind)}}},table-number-alignment=left" if behind else ""
    return f"S[table-format={sign}{whole}.{decimals}{',retain-explicit-plus' if sign == '+' else ''}{space}]"


def _aligned(place: Place) -> str:
    """Return a number for siunitx, and in braces what stands behind it."""
    begin, normal = (r"\bfseries ", r"\mdseries{}") if place.best else ("", "")
    return begin + place.number + (f"{{{normal}{_behind(place.rest)}}}" if place.rest else "")


def _behind(rest: str) -> str:
    return escape_latex(rest).replace("-", "$-$")


def _fold(text: str, width: float) -> list[str]:
    """Return a text in lines of about this width; only words that are long in themselves are divided."""
    longest = max(map(len, text.split()), default=1)
    letters = int(len(text) * width / max(width_of(text), 1.0))
    return textwrap.wrap(text, max(letters, min(longest, LONG)), break_on_hyphens=False) or [""]


def _stack(lines: Sequence[str], place: str, *, in_braces: bool = False) -> str:
    """Return lines for a cell; none begins with what a preceding line break would take as its argument."""
    plain = [("{}" if line[:1] in ("[", "*") else "") + escape_latex(line) for line in lines]
    text = plain[0] if len(plain) == 1 else rf"\makecell[{place}]{{" + r"\\ ".join(plain) + "}"
    return f"{{{text}}}" if in_braces else text


def width_of(text: str) -> float:
    """Return the approximate width of a text at 8 points."""
    narrow, wide, signs = "iljtf.,:;'!|()[] ", "mwMWQ%@&", "<>~+=#^±↓↑"
    return sum(2.8 if c in narrow else 7.6 if c in wide else 6.3 if c.isupper() or c in signs else 4.3 for c in text)


def _runs(groups: Sequence[str]) -> list[list[int]]:
    """Return the columns below each upper header; those without one stand alone."""
    runs = itertools.groupby(enumerate(groups), lambda pair: pair[1] or pair[0])
    return [[k for k, _ in run] for _, run in runs]


def _filled(sizes: Sequence[float], space: float) -> list[list[int]]:
    """Return the places of things in as few successive parts as have space for them, about equally large ones."""
    most = len(_cut_at(sizes, space))
    limit = sum(sizes) / most
    while len(_cut_at(sizes, limit)) > most:
        limit *= 1.04
    return _cut_at(sizes, min(limit, space))


def _cut_at(sizes: Sequence[float], space: float) -> list[list[int]]:
    parts: list[list[int]] = [[]]
    left = space
    for k, size in enumerate(sizes):
        if parts[-1] and size > left:
            parts.append([])
            left = space
        parts[-1].append(k)
        left -= size
    return parts


def _blocks(columns: Sequence[Column], space: float) -> list[list[int]]:
    """Return the columns of each tabular: groups stay together, tabulars are about equally wide."""
    units = [
        part
        for run in _runs([column.group for column in columns])
        for part in ([run] if sum(columns[k].width for k in run) <= space else [[k] for k in run])
    ]
    widths = [sum(columns[k].width for k in unit) for unit in units]
    return [[k for place in part for k in units[place]] for part in _filled(widths, space)]


def _floats(
    columns: Sequence[Column], blocks: Sequence[list[int]], space: float
) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Yield the rows and the tabulars' columns of each float, in all at most `space` lines."""
    high = 2.7 + max(len(column.header) for column in columns) + any(column.group for column in columns)  # with rules
    lines = [float(max(row)) for row in zip(*(column.lines for column in columns), strict=True)]
    for rows in _filled(lines, space - high):
        height = high + sum(lines[row] for row in rows)
        for part in _filled([height] * len(blocks), space):
            yield rows, [blocks[place] for place in part]


def _tabular(columns: Sequence[Column], rows: Sequence[int], rules: Sequence[int], *, full: bool) -> str:
    """Return one tabular of some rows, of the text's width if `full`; names that rows share are written once."""
    form = "".join(column.form for column in columns)
    kind, begin = ("tabular*", r"{\linewidth}{@{\extracolsep{\fill}}") if full else ("tabular", "{")
    lines = [rf"\begin{{{kind}}}{begin}{form}}}", r"\toprule", *_header(columns), r"\midrule"]
    for above, row in zip([None, *rows], rows, strict=False):
        if row in rules and above is not None:
            lines.append(r"\midrule")
        name, *cells = [column.cells[row] for column in columns]
        is_same = above is not None and columns[0].cells[above] == name
        lines.append(" & ".join(["" if is_same else name, *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", rf"\end{{{kind}}}"])


def _header(columns: Sequence[Column]) -> Iterator[str]:
    """Yield the rows of headers."""
    groups = [column.group for column in columns]
    if any(groups):
        cells, rules = [], ""
        for run in _runs(groups):
            group = _stack(_fold(groups[run[0]], sum(columns[k].width for k in run)), "b")
            cells.append(rf"\multicolumn{{{len(run)}}}{{c}}{{{group}}}" if group else "")
            rules += rf"\cmidrule(lr){{{run[0] + 1}-{run[-1] + 1}}}" if group else ""
        yield " & ".join(cells) + r" \\"
        yield rules
    stub, *heads = columns
    yield (
        " & ".join([_stack(stub.header, "bl"), *[_stack(head.header, "b", in_braces=True) for head in heads]]) + r" \\"
    )


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
