"""A LaTeX document of a board's main tables and figures, ready to compile."""

from collections.abc import Mapping, Sequence, Set

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.environment import code_words, software_words
from unlearnbench.report.tables.table import Table
from unlearnbench.report.write.latex import (
    FIRST,
    HEAD,
    LETTER,
    MOST_LETTERS,
    MOST_NOTES,
    ORDER,
    TABLES,
    TITLE,
    WORDS_HIGH,
    breakable,
    cut,
    lay_out,
)


def paper(
    board: Board, tables: Sequence[Table], sizes: Mapping[str, tuple[float, float]], words: Mapping[str, str]
) -> str:
    """Return `main.tex` of a two-page paper: figures first, then tables and others that fit.

    Args:
        board: what it shows.
        tables: those in the folder `../tables`.
        sizes: {name: width and height in inches} of the figures in the folder `../figures`.
        words: {name: caption} of the figures.
    """
    column = [n for n in ("tradeoff", "phases") if n in sizes and sizes[n][0] < 3.6]
    below = 4.0 if column else WORDS_HIGH
    teaser = next((n for n in FIRST if n in sizes and n not in column and sizes[n][1] < LETTER - TITLE - below), None)
    space = LETTER - TITLE - (sizes[teaser][1] + 0.5 if teaser else 0.0)
    column = [n for n, most in zip(column, (space, space - WORDS_HIGH), strict=False) if sizes[n][1] + 0.5 < most]
    spanning = _second_page(tables, sizes, words, {teaser, *column})
    few = [lay_out(table) for table in tables if table.name == TABLES[0]]
    alone = not spanning or not few[0].spans  # tables of one column's width, which need text to float in
    return "\n".join([
        HEAD + _front(board, teaser, words),
        *[_figure(name, words[name], "figure") for name in column],
        *([] if alone else spanning),
        *_about(board, tables),
        r"\clearpage",
        *([r"The table of the report.", rf"\input{{../tables/{TABLES[0]}}}"] if alone else []),
        r"\end{document}",
    ]) + "\n"  # fmt: skip


def _second_page(
    tables: Sequence[Table], sizes: Mapping[str, tuple[float, float]], words: Mapping[str, str], used: Set[str | None]
) -> list[str]:
    """Return the tables and figures over both columns that one page holds, the main table first."""
    chosen, left = [], LETTER
    by_name = {table.name: table for table in tables}
    for name in ORDER:
        if name in TABLES and name in by_name:
            layout = lay_out(by_name[name])
            high = layout.inches if layout.spans and len(layout.floats) == 1 else LETTER + 1
            text = rf"\input{{../tables/{name}}}"
        elif name in sizes and name not in used:
            high, text = sizes[name][1] + 0.8, _figure(name, words[name], "figure*")
        else:
            continue
        if high <= left:
            chosen.append(text)
            left -= high
    return chosen


def _front(board: Board, teaser: str | None, words: Mapping[str, str]) -> str:
    """Return the title over both columns, with a figure below it."""
    title = rf"{{\Large\bfseries Class unlearning: {breakable(cut(board.title))}\par}}"
    shown = []
    if teaser is not None:
        caption = rf"\figurecaption{{{breakable(words[teaser])}}}"
        shown = [rf"\medskip\includegraphics{{{teaser}}}", caption, rf"\label{{fig:{teaser}}}"]
    return "\n".join([r"\twocolumn[{%", r"\centering", title, *shown, r"\bigskip}]"])


def _figure(name: str, words: str, kind: str) -> str:
    return "\n".join([
        rf"\begin{{{kind}}}[!t]", r"\centering", rf"\includegraphics{{{name}}}", rf"\caption{{{breakable(words)}}}",
        rf"\label{{fig:{name}}}", rf"\end{{{kind}}}",
    ])  # fmt: skip


def _about(board: Board, tables: Sequence[Table]) -> list[str]:
    """Return paragraphs on the run, its notes, and the other files of the report."""
    failed = sum(record.status != "ok" for record in board.rows)
    rows = cut(", ".join(cut(variant.label, 60) for variant in board.variants), 2 * MOST_LETTERS)
    parts = [
        f"Rows: {rows}. Forget classes: {len(board.targets)}. Seeds: "
        f"{len(board.seeds)}. Cells: {len(board.rows)}, without numbers: {failed}. Device: "
        f"{cut(board.device_words, 60)}; {cut(software_words(board.records), 120)}; commit "
        f"{cut(code_words(board.records), 160)}.",
        *[cut(note) for note in board.notes[:MOST_NOTES]],
        *[f"{name}: {cut(words)}." for name, words in board.setup],
        f"Every number follows from the records {board.digest}, which each caption names: unlearnbench verify checks a "
        f"table against them.",
        f"Other tables of the report stand beside these: {', '.join(table.name for table in tables)}.",
    ]
    return ["\n\n".join(map(breakable, parts))]
