"""Checks that every number of a table still follows from the records its caption names. Never imports torch.

The table may be in a report, or pasted into a paper: it is found by its label or heading and by the digest of its
caption, rendered again from the records, and compared cell by cell.
"""

import difflib
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from unlearnbench.errors import UsageError, one_line, plural
from unlearnbench.report.data.board import Board, boards
from unlearnbench.report.data.published import load_source, source_names
from unlearnbench.report.data.tuning import tunings
from unlearnbench.report.pasted import DIGEST, ParsedTable, latex_grids, markdown_grids, without_comments
from unlearnbench.report.tables.classes import paper_tables
from unlearnbench.report.tables.every import all_tables
from unlearnbench.report.tables.published import compare_rows, comparison_tables, sides_of
from unlearnbench.report.tables.table import Table
from unlearnbench.report.tables.tuning import tuning_tables
from unlearnbench.report.write.latex import to_latex
from unlearnbench.report.write.markdown import to_markdown
from unlearnbench.store.records import Reading

__all__ = ["Verdict", "verify"]

MOST = 3  # differences that are spelled out


@dataclass(frozen=True)
class Verdict:
    """Whether all tables of a file hold, and a line on each."""

    holds: bool
    lines: list[str]


@dataclass(frozen=True)
class Match:
    """A table of the records beside the one of the file, and how that differs."""

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
    named = [grid.digest for grid in grids if grid.digest]
    if not named:
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
    outside = Counter(DIGEST.findall(without_comments(text) if latex else text)) - Counter(named)
    lines += [f"records {digest} are named outside a table too: not checked" for digest in outside]
    return Verdict(all(ok for _, ok, _ in found), [*lines, *[f"note: {note}" for note in reading.problems]])


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


class _Reference:
    """The tables of the records, rendered and parsed in the format of the file."""

    def __init__(self, reading: Reading, stale: Set[str], latex: bool) -> None:
        """Make the boards of a results folder.

        Raises:
            UsageError: it has no record.
        """
        if not reading.root.is_dir():
            raise UsageError(
                f"there is no results folder {reading.root}: run 'unlearnbench run' first or name one with --results"
            )
        if not reading.records:
            why = f" ({'; '.join(reading.problems[:3])})" if reading.problems else ""
            raise UsageError(
                f"there is no record in {reading.root} to check against{why}: name a folder with --results"
            )
        self.root, self.stale = reading.root, stale
        self.write, self.read = (to_latex, latex_grids) if latex else (to_markdown, markdown_grids)
        self.now = boards(reading.records, stale)
        self.recorded = boards(reading.records) if stale else self.now  # with the numbers of stale ones too
        self._made: dict[Board, list[tuple[Table, ParsedTable]]] = {}

    def check(self, grid: ParsedTable) -> tuple[str, bool, str]:
        """Return a table's title, whether it holds, and an explanation."""
        if not grid.digest:
            return grid.label, True, "not verifiable: it names no records"
        if grid.trouble:
            return grid.label, False, f"does not hold: it cannot be read ({grid.trouble})"
        matches = {
            board: self._match(grid, board)
            for board in (*self.now.values(), *self.recorded.values()) if board.digest == grid.digest
        }  # fmt: skip
        if not matches:
            return self._unknown(grid)
        board, best = min(matches.items(), key=lambda pair: len(pair[1].differences))
        if best.differences:
            return best.title, False, f"does not hold: {_spell(best.differences)}"
        if board not in self.now.values():
            outdated = {name.partition(" ")[0] for name in self.stale}  # of stale attacks, too
            stale = sum(record.cell.id in outdated for record in board.records)
            return best.title, False, (
                f"does not hold: these are the numbers of records {grid.digest}, but {stale} of them are stale (their "
                f"method, a metric or the dataset's recipe has changed since): run their cells again"
            )  # fmt: skip
        cells = plural(sum(len(row) - 1 for row in grid.rows), "cell")
        words = "; the words added to its caption are not checked" if best.added else ""
        return best.title, True, f"holds (records {grid.digest}, {cells}{words})"

    def _unknown(self, grid: ParsedTable) -> tuple[str, bool, str]:
        """Return the verdict on a table with an unknown digest; it differs in its caption from the records at least."""
        text = (
            f"does not hold: {self.root} has no board with records {grid.digest}: a record was changed, added or "
            f"removed since, or they are in another folder (--results)"
        )
        for name, board in self.now.items():
            if f"{board.origin};" in grid.caption:
                match = self._match(grid, board)
                other = [words for words in match.differences if not words.startswith("its caption")]
                beside = f", where {_spell(other)}" if other else " with the same cells"
                return match.title, False, f"{text}; {name} has records {board.digest} now{beside}"
        return grid.label, False, text

    def _match(self, grid: ParsedTable, board: Board) -> Match:
        """Return the table of a board that equals the file's, or else the one of its label, or the most alike."""
        if board not in self._made:
            trials = tuning_tables(board, tuned) if (tuned := tunings(board)) else []
            self._made[board] = list(self._parsed([*all_tables(board), *self._comparisons(board), *trials]))
        rows = [row for row in board.variants if any(head.startswith(f"{row.label} ") for head in grid.header)]
        chosen = paper_tables(board, rows) if rows else []  # of these methods alone, as `report --methods` makes them
        tables = [*self._made[board], *self._parsed(chosen)]
        matches = [_compare(grid, table, parsed) for table, parsed in tables]
        best = min(matches, key=lambda match: (bool(match.differences), not match.is_named, len(match.differences)))
        known = {header for _, parsed in tables for header in parsed.header[1:]}
        if not best.is_named and known.isdisjoint(grid.header[1:]):
            return Match(grid.label, False, (f"no table of records {board.digest} has columns like these",), False)
        return best

    def _parsed(self, tables: Iterable[Table]) -> Iterator[tuple[Table, ParsedTable]]:
        return ((table, grid) for table in tables for grid in self.read(self.write(table)))

    def _comparisons(self, board: Board) -> list[Table]:
        """Return the tables that `compare` writes of a board."""
        family = self.now if board in self.now.values() else self.recorded
        return [
            table
            for source in map(load_source, source_names())
            for side, twin in sides_of(source, family).values() if side.board is board
            for table in comparison_tables(side, twin, compare_rows(side))
        ]  # fmt: skip


def _compare(found: ParsedTable, table: Table, expected: ParsedTable) -> Match:
    """Return how a table of the file differs from one of the records."""
    is_named = found.label in (" ".join(table.title.split()), table.name)
    added = expected.caption in found.caption and expected.caption != found.caption
    return Match(table.title, is_named, tuple(_differences(found, expected)), added)


def _differences(found: ParsedTable, expected: ParsedTable) -> Iterator[str]:
    """Yield every difference: columns, rows, cells, caption."""
    yield from _list_differences("column", found.header, expected.header)
    yield from _list_differences("row", [row[0] for row in found.rows], [row[0] for row in expected.rows])
    if found.header[1:] == expected.header[1:]:
        there = expected.by_name
        for key, here in found.by_name.items():
            cells = itertools.zip_longest(expected.header[1:], here, there.get(key, here), fillvalue="")
            yield from (f"row {key[0]}, column {head}: {_says(a, b)}" for head, a, b in cells if a != b)
    if expected.caption not in found.caption:
        old, new = found.caption.split(), expected.caption.split()
        steps = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
        changed = sorted((step for step in steps if step[0] != "equal"), key=lambda step: step[0] == "delete")
        _, a, b, c, d = changed[0]  # deleted last: these may be the user's own words
        yield f"its caption: {_says(' '.join(old[a:b]), ' '.join(new[c:d]))}"


def _list_differences(what: str, found: Sequence[str], expected: Sequence[str]) -> Iterator[str]:
    """Yield missing, additional and misplaced rows or columns of a table."""
    missing, extra = Counter(expected) - Counter(found), Counter(found) - Counter(expected)
    yield from (f"{what} {name} is missing" for name in missing)
    yield from (f"{what} {name or 'without a name'} is not in the records" for name in extra)
    if not missing and not extra and list(found) != list(expected):
        yield f"its {what}s are in a different order: by the records {one_line(', '.join(expected), 80)}"


def _says(found: str, expected: str) -> str:
    return f"the table says {one_line(found, 80) or 'nothing'}, the records say {one_line(expected, 80) or 'nothing'}"


def _spell(differences: Sequence[str]) -> str:
    """Return the first differences, and how many more there are."""
    more = len(differences) - MOST
    return "; ".join(differences[:MOST]) + (f"; and {more} more" if more > 0 else "")
