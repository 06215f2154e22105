"""Checks that every number of a table still follows from the records its caption names. Never imports torch.

The table may be in a report, or pasted into a paper: it is parsed from Markdown or LaTeX, rendered again from the
records, and both are compared cell by cell.
"""

import difflib
import html
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from unlearnbench.errors import UsageError, one_line, plural
from unlearnbench.report.data.board import Board, boards
from unlearnbench.report.data.published import load_source, source_names
from unlearnbench.report.tables.classes import paper_tables
from unlearnbench.report.tables.every import all_tables
from unlearnbench.report.tables.published import Side, compare_rows, comparison_tables
from unlearnbench.report.tables.table import Table
from unlearnbench.report.write.latex import to_latex
from unlearnbench.report.write.markdown import to_markdown
from unlearnbench.store.records import Reading

__all__ = ["Verdict", "verify"]

DIGEST = re.compile(r"\brecords\s+([0-9a-f]{12})\b")
LABEL = re.compile(r"\\label\s*\{([^{}]*)\}")
MOST = 3  # differences that are spelled out
BOLD = "bold "  # prefix of a cell in bold
BOLD_MARKDOWN = re.compile(r"(?<![\\*])\*\*(?!\*)")
BOLD_LATEX = re.compile(r"\\(?:mathbf|textbf|bfseries|boldmath)\b")


@dataclass(frozen=True)
class Verdict:
    """Whether all tables of a file hold, and a line on each."""

    holds: bool
    lines: list[str]


@dataclass(frozen=True)
class ParsedTable:
    """A table read from a file: texts with single spaces, without markup."""

    line: int  # where it begins, from 1
    last: int  # its caption's last line
    caption: str
    label: str = ""  # in LaTeX without "tab:", in Markdown the heading above it
    header: tuple[str, ...] = ()  # the corner first
    rows: tuple[tuple[str, ...], ...] = ()  # the row's name first
    trouble: str = ""  # why it cannot be read

    @property
    def digest(self) -> str:
        """Digest of the records that the caption names; empty if it names none."""
        match = DIGEST.search(self.caption)
        return match[1] if match else ""

    @property
    def cells(self) -> int:
        """Number of cells."""
        return sum(len(row) - 1 for row in self.rows)


@dataclass(frozen=True)
class Match:
    """A table of the file beside the one of the records that it is compared with."""

    title: str
    is_named: bool  # the file's table has its label or its title
    differences: tuple[str, ...]
    added: bool  # the file's caption has further words before or after


def verify(path: Path, reading: Reading, stale: Set[str] = frozenset()) -> Verdict:
    """Check every table of a file against the records its caption names.

    Args:
        path: a report, a table, or a text with pasted tables: .md or .tex.
        reading: of a results folder.
        stale: ids of cells with stale records, and `ID NAME` of stale attacks of others.

    Raises:
        UsageError: the file cannot be read or has no table that names its records, or there are no records.
    """
    text, latex = _read(path)
    grids = latex_grids(text) if latex else markdown_grids(text)
    if not any(grid.digest for grid in grids):
        hint = r" (\input is not followed)" if latex and r"\input" in text else ""
        raise UsageError(
            f"no table in {path} has a caption that names its records, as 'records' and 12 hex digits do: paste the "
            f"caption with the table"
            if grids
            else f"there is no table in {path}{hint}: name a .md or .tex file that holds one of a report"
        )
    reference = _Reference(reading, stale, latex)
    found = [reference.check(grid) for grid in grids]
    titles = Counter(title for title, _, _ in found)
    lines = [
        f"{f'{title} (line {grid.line})' if titles[title] > 1 else title or f'table at line {grid.line}'}: {words}"
        for grid, (title, _, words) in zip(grids, found, strict=True)
    ]
    lines += _mentions(text, grids, latex)
    holds = all(ok for _, ok, _ in found)
    return Verdict(holds, [*lines, *[f"note: {note}" for note in reading.problems]])


def _read(path: Path) -> tuple[str, bool]:
    """Return a file's text, and whether it is LaTeX."""
    ending = path.suffix.lower()
    try:
        if path.is_dir():
            raise UsageError(f"{path} is a folder: name a .md or .tex file in it")
        if not path.exists():
            raise UsageError(f"there is no file {path}: name a .md or .tex file that holds a table")
        if not path.is_file():
            raise UsageError(f"{path} is a pipe or device: save the table in a .md or .tex file")
        if ending not in (".md", ".tex"):
            raise UsageError(f"{path} is neither .md nor .tex: only these two forms of a table can be checked")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"cannot read {path}: it is not UTF-8 text (byte {error.start})") from error
    return text.replace("\r\n", "\n"), ending == ".tex"


def _mentions(text: str, grids: Iterable[ParsedTable], latex: bool) -> list[str]:
    """Return a line for each digest outside the parsed tables, so that none passes as checked."""
    lines = (_without_comments(text) if latex else text).split("\n")
    for grid in grids:
        lines[grid.line - 1 : grid.last] = [""] * (grid.last - grid.line + 1)
    rest = "\n".join(lines)
    return [
        f"line {rest.count(chr(10), 0, match.start()) + 1}: names records {match[1]} outside a table: not checked"
        for match in DIGEST.finditer(rest)
    ]


@dataclass
class _Reference:
    """The tables of the records, rendered and parsed in the format of the file."""

    reading: Reading
    stale: Set[str]
    latex: bool

    def __post_init__(self) -> None:
        root, problems = self.reading.root, self.reading.problems
        if not root.is_dir():
            raise UsageError(
                f"there is no results folder {root}: run 'unlearnbench run' first or name one with --results"
            )
        if not self.reading.records:
            why = f" ({'; '.join(problems[:3])})" if problems else ""
            raise UsageError(f"there is no record in {root} to check against{why}: name a folder with --results")
        self.now = boards(self.reading.records, self.stale)
        self.recorded = boards(self.reading.records) if self.stale else self.now  # with the numbers of stale ones too
        self._cache: dict[int, list[tuple[Table, ParsedTable]]] = {}

    def check(self, grid: ParsedTable) -> tuple[str, bool, str]:
        """Return a table's title, whether it holds, and an explanation."""
        if not grid.digest:
            return grid.label, True, "not verifiable: it names no records"
        now = next((board for board in self.now.values() if board.digest == grid.digest), None)
        recorded = next((board for board in self.recorded.values() if board.digest == grid.digest), None)
        if grid.trouble:
            return grid.label, False, f"does not hold: it cannot be read ({grid.trouble})"
        matches = [self._match(grid, board) for board in (now, recorded) if board is not None]
        if not matches:
            return self._unknown(grid)
        best = min(matches, key=lambda match: len(match.differences))
        if best.differences:
            return best.title, False, f"does not hold: {_spell(best.differences)}"
        if now is None or matches[0].differences:
            assert recorded is not None
            cells = {name.partition(" ")[0] for name in self.stale}  # of stale attacks, too
            stale = sum(record.cell.id in cells for record in recorded.records)
            return best.title, False, (
                f"does not hold: these are the numbers of records {grid.digest}, but {stale} of them are stale (their "
                f"method, a metric or the dataset's recipe has changed since): run their cells again"
            )  # fmt: skip
        words = "; the words added to its caption are not checked" if best.added else ""
        return best.title, True, f"holds (records {grid.digest}, {plural(grid.cells, 'cell')}{words})"

    def _unknown(self, grid: ParsedTable) -> tuple[str, bool, str]:
        """Return the verdict on a table with an unknown digest."""
        text = (
            f"does not hold: {self.reading.root} has no board with records {grid.digest}: a record was changed, added "
            f"or removed since, or they are in another folder (--results)"
        )
        for name, board in self.now.items():
            if f"{board.origin};" in grid.caption:
                match = self._match(grid, board)
                other = [words for words in match.differences if not words.startswith("its caption")]
                beside = f", where {_spell(other)}" if other else " with the same cells"
                return match.title, False, f"{text}; {name} has records {board.digest} now{beside}"
        return grid.label, False, text

    def _match(self, grid: ParsedTable, board: Board) -> Match:
        """Return the table of a board with the label of the file's, or, if that is another one, the one it equals."""
        tables = [*self._tables(board), *self._chosen(board, grid)]
        matches = [_compare(grid, table, parsed) for table, parsed in tables]
        best = min(matches, key=lambda match: (bool(match.differences), not match.is_named, len(match.differences)))
        known = {header for _, parsed in tables for header in parsed.header[1:]}
        if not best.is_named and known.isdisjoint(grid.header[1:]):
            return Match(grid.label, False, (f"no table of records {board.digest} has columns like these",), False)
        return best

    def _tables(self, board: Board) -> list[tuple[Table, ParsedTable]]:
        """Return every table of a board, also as the file would have it; comparisons with published numbers last."""
        if id(board) not in self._cache:
            self._cache[id(board)] = list(self._parsed([*all_tables(board), *self._comparisons(board)]))
        return self._cache[id(board)]

    def _chosen(self, board: Board, grid: ParsedTable) -> Iterator[tuple[Table, ParsedTable]]:
        """Yield the paper's tables of the methods that the file's table has (`report --methods`)."""
        rows = [row for row in board.variants if any(head.startswith(f"{row.label} ") for head in grid.header)]
        return self._parsed(paper_tables(board, rows) if rows else [])

    def _parsed(self, tables: Iterable[Table]) -> Iterator[tuple[Table, ParsedTable]]:
        write, read = (to_latex, latex_grids) if self.latex else (to_markdown, markdown_grids)
        return ((table, grid) for table in tables for grid in read(write(table)))

    def _comparisons(self, board: Board) -> list[Table]:
        """Return the tables that `compare` writes of a board."""
        family = self.now if any(board is other for other in self.now.values()) else self.recorded
        tables: list[Table] = []
        for source in map(load_source, source_names()):
            if (side := Side(source, board)).has_records:
                others = [Side(source, other) for other in family.values()]
                twin = next((other for other in others if other.has_records and other.is_twin_of(side)), None)
                tables += comparison_tables(side, twin, compare_rows(side))
        return tables


def _compare(found: ParsedTable, table: Table, expected: ParsedTable) -> Match:
    """Return how a table of the file differs from one of the records."""
    is_named = found.label in (" ".join(table.title.split()), table.name)
    added = expected.caption in found.caption and expected.caption != found.caption
    return Match(table.title, is_named, tuple(_differences(found, expected)), added)


def _differences(found: ParsedTable, expected: ParsedTable) -> Iterator[str]:
    """Yield every difference: columns, rows, cells, caption."""
    columns = list(_list_differences("column", found.header[1:], expected.header[1:]))
    names = [[row[0] for row in grid.rows] for grid in (found, expected)]
    yield from columns
    yield from _list_differences("row", names[0], names[1])
    if found.header[:1] != expected.header[:1]:
        yield f"the header of its rows: {_says(''.join(found.header[:1]), ''.join(expected.header[:1]))}"
    if not columns:
        here, there = (Counter(rows) for rows in names)
        comparable = {name for name in here if here[name] == there[name]}
        rows = [[row for row in grid.rows if row[0] in comparable] for grid in (found, expected)]
        for old, new in zip(*[sorted(part, key=lambda row: row[0]) for part in rows], strict=True):
            cells = itertools.zip_longest(expected.header[1:], old[1:], new[1:], fillvalue="")
            yield from (f"row {old[0]}, column {head}: {_says(a, b)}" for head, a, b in cells if a != b)
    if expected.caption not in found.caption:
        yield f"its caption: {_caption_difference(found.caption, expected.caption)}"


def _list_differences(what: str, found: Sequence[str], expected: Sequence[str]) -> Iterator[str]:
    """Yield missing, additional and misplaced rows or columns of a table."""
    missing, extra = (list((a - b).elements()) for a, b in itertools.permutations(map(Counter, (expected, found))))
    if len(missing) == len(extra):
        yield from (f"{what} {old or 'without a name'} is {new} by the records" for old, new in zip(extra, missing))  # noqa: B905
    else:
        yield from (f"{what} {name} is missing" for name in missing)
        yield from (f"{what} {name or 'without a name'} is not in the records" for name in extra)
    if not missing and not extra and list(found) != list(expected):
        k = next(k for k, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
        yield f"its {what}s are in a different order: {what} {k + 1} is {found[k]}, by the records {expected[k]}"


def _says(found: str, expected: str) -> str:
    return f"the table says {one_line(found, 80) or 'nothing'}, the records say {one_line(expected, 80) or 'nothing'}"


def _caption_difference(found: str, expected: str) -> str:
    """Return the first words of a caption that differ from the expected ones."""
    old, new = found.split(), expected.split()
    steps = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    ends = [step for step in (steps[0], steps[-1]) if step[0] == "delete"] if steps else []  # the user's own words
    changed = [step for step in steps if step[0] != "equal" and step not in ends]
    _, a, b, c, d = (changed or ends)[0]
    return _says(" ".join(old[a:b]), " ".join(new[c:d]))


def _spell(differences: Sequence[str]) -> str:
    """Return the first differences, and how many more there are."""
    more = len(differences) - MOST
    return "; ".join(differences[:MOST]) + (f"; and {more} more" if more > 0 else "")


def markdown_grids(text: str) -> list[ParsedTable]:
    """Return the tables of a Markdown text, each with the heading above it and the paragraph below it."""
    lines = text.split("\n")
    grids, k = [], 0
    while k < len(lines):
        end = k
        while end < len(lines) and lines[end].lstrip().startswith("|"):
            end += 1
        if end - k >= 2 and re.fullmatch(r"[\s|:-]*-[\s|:-]*", lines[k + 1]):
            last, caption = _paragraph(lines, end)
            header, *rows = [_markdown_row(line) for line in [lines[k], *lines[k + 2 : end]]]
            grids.append(ParsedTable(k + 1, last, _markdown_plain(caption), _heading(lines, k), header, tuple(rows)))
        k = max(end, k + 1)
    return grids


def _skips(line: str) -> bool:
    return not line.strip() or (line.strip().startswith("<!--") and line.strip().endswith("-->"))


def _heading(lines: Sequence[str], k: int) -> str:
    """Return the heading above line k; empty where there is other text between."""
    above = next((line.strip() for line in reversed(lines[:k]) if not _skips(line)), "")
    return _markdown_plain(above.strip("#")) if above.startswith("#") else ""


def _paragraph(lines: Sequence[str], k: int) -> tuple[int, str]:
    """Return the paragraph below line k and its last line's number; line k itself where there is none."""
    start = next((j for j in range(k, len(lines)) if not _skips(lines[j])), len(lines))
    if start == len(lines) or lines[start].lstrip().startswith(("#", "|", "![", "```")):
        return k, ""
    end = next((j for j in range(start, len(lines)) if _skips(lines[j])), len(lines))
    return end, " ".join(lines[start:end])


def _markdown_row(line: str) -> tuple[str, ...]:
    cells = [""]
    for token in re.findall(r"\\.|[^\\]|\\$", line.strip()):
        if token == "|":
            cells.append("")
        else:
            cells[-1] += token
    inner = cells[1:-1] if not cells[-1].strip() else cells[1:]
    return tuple(_marked(_markdown_plain(cell), BOLD_MARKDOWN.search(cell)) for cell in inner)


def _marked(text: str, bold: object) -> str:
    """Return a cell's text, with BOLD before it where it is bold."""
    return f"{BOLD}{text}" if bold and re.match(r"-?\d", text) else text


def _markdown_plain(text: str) -> str:
    """Return text without markup: escapes undone, asterisks and backticks gone."""
    text = re.sub(r"\\([^A-Za-z0-9\s])|[*`]", lambda match: match[1] or "", text)
    return " ".join(html.unescape(text).split())


SIGNS = {
    r"\pm": "±", r"\textpm": "±", r"\uparrow": "↑", r"\downarrow": "↓", r"\dagger": "†", r"\textdagger": "†",
    r"\textbackslash": "\\", r"\textasciitilde": "~", r"\textasciicircum": "^", r"\textless": "<", r"\textgreater": ">",
    r"\textbar": "|", "{": "", "}": "", "$": "", "~": " ", r"\,": " ", r"\ ": " ", r"\\": " ", r"\-": "",
}  # fmt: skip
SIGNS |= dict.fromkeys(  # affects the look of a text, not its content
    [rf"\{name}" for name in (
        "textbf", "textit", "emph", "underline", "mathbf", "mathrm", "bfseries", "itshape", "boldmath", "num", "text",
        "textsuperscript", "ensuremath", "small", "footnotesize", "scriptsize", "mdseries", "centering", "raggedright",
    )], "",
)  # fmt: skip


def latex_grids(text: str) -> list[ParsedTable]:
    """Return the table environments of a LaTeX text."""
    text = _without_comments(text)
    grids = []
    for match in re.finditer(r"\\begin\{((?:sideways|wrap)?table\*?)\}(.*?)\\end\{\1\}", text, re.DOTALL):
        line, last = (text.count("\n", 0, place) + 1 for place in match.span())
        start = re.search(r"\\caption\*?\s*(?:\[[^\]]*\]\s*)?(?=\{)", match[2])
        caption = _group(match[2], start.end())[0] if start else ""
        caption = _latex_plain(re.sub(LABEL, "", caption))
        label = next((name[1].removeprefix("tab:") for name in re.finditer(LABEL, match[2])), "")
        bodies = list(re.finditer(r"\\begin\{(tabular[*xy]?)\}(.*?)\\end\{\1\}", match[2], re.DOTALL))
        parts = [_latex_body(body[2], widths=body[1] != "tabular") for body in bodies]
        bodies_by_name = [_by_name(rows) for _, rows in parts]
        if parts and all(one.keys() == bodies_by_name[0].keys() for one in bodies_by_name):
            header = parts[0][0] + tuple(itertools.chain(*[head[1:] for head, _ in parts[1:]]))
            rows = tuple((key[0], *itertools.chain(*[one[key] for one in bodies_by_name])) for key in bodies_by_name[0])
            grids.append(ParsedTable(line, last, caption, label, header, rows))
        else:
            trouble = f"its environment at line {line} holds {len(bodies)} tabulars of different rows"
            grids.append(ParsedTable(line, last, caption, label, trouble=trouble))
    return grids


def _by_name(rows: Iterable[Sequence[str]]) -> dict[tuple[str, int], Sequence[str]]:
    """Return {(name, number of earlier rows of this name): cells}, the key for joining tabulars side by side."""
    seen: Counter[str] = Counter()
    found: dict[tuple[str, int], Sequence[str]] = {}
    for name, *cells in rows:
        found[name, seen[name]] = cells
        seen[name] += 1
    return found


def _without_comments(text: str) -> str:
    return re.sub(r"(?<!\\)((?:\\\\)*)%[^\n]*", r"\1", text)


def _group(text: str, k: int) -> tuple[str, int]:
    """Return the content of the braces that open at k, and the position after them."""
    depth = 0
    for token in re.finditer(r"\\.|[{}]", text[k:], re.DOTALL):
        depth += {"{": 1, "}": -1}.get(token[0], 0)
        if depth == 0 and token[0] == "}":
            return text[k + 1 : k + token.start()], k + token.end()
    return text[k + 1 :], len(text)


def _latex_body(text: str, widths: bool) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Return header and rows of a tabular; a header of two levels becomes one, the upper one first."""
    for _ in range(2 if widths else 1):  # the width, the columns
        text = re.sub(r"^\s*\[[^\]]*\]", "", text)
        text = text[_group(text, text.index("{"))[1] :] if "{" in text else text
    text = re.sub(r"\\(?:cmidrule|cline)\s*(?:\([^)]*\))?\s*\{[^{}]*\}|\\addlinespace(?:\[[^\]]*\])?", "", text)
    levels: list[list[str]] = []
    rows: list[list[str]] = []
    for part in re.split(r"\\\\\*?(?:\s*\[[\d.]+\s*[a-z]{2}\])?", text):
        bare = re.sub(r"\\(?:top|mid|bottom)rule\b(?:\[[^\]]*\])?|\\hline\b", "", part)
        if bare != part and rows and not levels:
            levels, rows = rows, []
        if bare.strip():
            rows.append(_latex_row(bare))
    if not levels:
        levels, rows = rows[:1], rows[1:]
    header = [" ".join(" ".join(column).split()) for column in itertools.zip_longest(*levels, fillvalue="")]
    for above, row in itertools.pairwise(rows):
        row[0] = row[0] or above[0]  # which spans both
    return tuple(header), tuple(map(tuple, rows))


def _latex_row(text: str) -> list[str]:
    cells = []
    text = re.sub(r"\\parbox\s*\[[a-z]\]\s*\{[^{}]*\}|\\multirow(?:\[[a-z]\])?\s*\{-?\d+\}\s*\{[^{}]*\}", "", text)
    for cell in re.split(r"(?<!\\)&", text):
        spanning = re.fullmatch(r"\s*\\multicolumn\s*\{([0-9]{1,3})\}\s*\{[^{}]*\}\s*\{(.*)\}\s*", cell, re.DOTALL)
        text = spanning[2] if spanning else cell
        cells += [_marked(_latex_plain(text), BOLD_LATEX.search(text))] * (int(spanning[1]) if spanning else 1)
    return cells


def _latex_plain(text: str) -> str:
    """Return text as it is printed: escapes undone, signs as characters, braces and fonts gone."""
    text = re.sub(r"\^\s*(?:\{\s*\\dagger\s*\}|\\dagger\b)", r"\\dagger{}", text)
    tokens = re.findall(r"\\[A-Za-z]+\s*|\\.|[{}$~]|[^\\{}$~]+|\\", text, re.DOTALL)
    return " ".join(re.sub(r"\s*±\s*", " ± ", "".join(map(_sign, tokens))).split())


def _sign(token: str) -> str:
    if (name := token.strip() or token) in SIGNS:
        return SIGNS[name]
    return token[1:] if re.fullmatch(r"\\[^A-Za-z0-9\s]", token) else token
