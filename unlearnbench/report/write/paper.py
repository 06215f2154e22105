"""A LaTeX document with all tables and figures of a board in their places, ready to compile."""

from collections.abc import Iterator, Mapping, Sequence

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.environment import code_words
from unlearnbench.report.tables.table import Table
from unlearnbench.report.write.latex import COLUMN, breakable, cut

HEAD = r"""% All tables and figures of a report in their places, which `unlearnbench report` writes anew.
\documentclass[10pt,twocolumn,letterpaper]{article}
\usepackage[T1]{fontenc}
\usepackage{lmodern}
\usepackage[margin=0.7in]{geometry}
\usepackage{booktabs,graphicx,makecell,siunitx} % what the tables need
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
SECTIONS = {  # of the document: the tables and figures of each, others are in the appendix
    "Summary": ("summary", "instead", "pareto", "tradeoff", "equal-retention"),
    "Classes": ("efficiency", "uncertainty", "heatmaps", "samples", "samples-all"),
    "Attacks": ("robustness", "relearning"),
    "Cost": ("cost", "phases"),
    "Settings": ("settings", "sweep", "timesteps"),
    "Sanity checks": ("judges", "controls", "validation", "confusion"),
}
IN_SHORT = "summary-compact"  # stands in the text, where a paper would have it


def paper(
    board: Board, tables: Sequence[Table], sizes: Mapping[str, tuple[float, float]], words: Mapping[str, str]
) -> str:
    """Return `main.tex`: the set-up, a guide to tables and figures by section, then all of these.

    Args:
        board: to show.
        tables: those in the folder `../tables`.
        sizes: {name: width and height in inches} of the figures in the folder `../figures`.
        words: {name: caption} of the figures.
    """
    title = rf"{{\Large\bfseries Class unlearning: {breakable(cut(board.title))}\par}}"
    placed = {IN_SHORT, *(name for names in SECTIONS.values() for name in names)}
    appendix = [name for name in [*(table.name for table in tables), *sizes] if name not in placed]
    there = {table.name for table in tables}
    guide, floats = [r"\section*{Tables and figures}"], list[str]()
    for section, names in {**SECTIONS, "Appendix": tuple(appendix)}.items():
        parts = [
            *[(rf"Table~\ref{{tab:{name}}}", rf"\input{{../tables/{name}}}") for name in names if name in there],
            *[
                (rf"Figure~\ref{{fig:{name}}}", _figure(name, words[name], sizes[name][0]))
                for name in names if name in sizes
            ],
        ]  # fmt: skip
        if parts:
            guide.append(rf"\noindent\textbf{{{section}.}} {', '.join(name for name, _ in parts)}.\par")
            floats += [*(text for _, text in parts), r"\clearpage"]
    head = rf"{HEAD}\twocolumn[\centering {title}\bigskip]"
    return "\n".join([head, *_about(board), *guide, r"\clearpage", *floats, r"\end{document}"]) + "\n"


def _figure(name: str, words: str, inches: float) -> str:
    kind = "figure" if 72 * inches <= COLUMN + 10 else "figure*"
    return "\n".join([
        rf"\begin{{{kind}}}[t]", r"\centering", rf"\includegraphics[width=\linewidth]{{{name}}}",
        rf"\caption{{{breakable(words)}}}", rf"\label{{fig:{name}}}", rf"\end{{{kind}}}",
    ])  # fmt: skip


def _about(board: Board) -> Iterator[str]:
    """Yield paragraphs on the set-up, the notes and the table in short."""
    yield r"\section*{Setup}"
    failed = sum(record.status != "ok" for record in board.rows)
    facts = [
        *board.setup,
        ("Cells", f"{len(board.rows)}, {failed} without numbers"),
        ("Commit", code_words(board.records)),
        ("Records", f"{board.digest}, from which every number follows: unlearnbench verify checks a table"),
    ]
    for name, text in facts:
        yield rf"\noindent\textbf{{{name}.}} {breakable(cut(text))}.\par"
    for note in board.notes:
        yield rf"\noindent {breakable(cut(note))}.\par"
    yield rf"\input{{../tables/{IN_SHORT}}}"
