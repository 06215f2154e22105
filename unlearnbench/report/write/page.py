"""One board's files: tables (.md, .tex, .csv), figures (.png, .pdf), and the page that shows them."""

from collections.abc import Collection, Mapping, Sequence

from unlearnbench.errors import one_line
from unlearnbench.report.data.board import Board
from unlearnbench.report.data.environment import provenance_facts
from unlearnbench.report.data.frames import frames
from unlearnbench.report.figures.drawing import FIGURE_WORDS, MOST_DRAWN, Drawn
from unlearnbench.report.tables.controls import DISTRUST, alarms
from unlearnbench.report.tables.every import all_tables
from unlearnbench.report.write.csv import frame_to_csv, to_csv
from unlearnbench.report.write.latex import size_of, to_latex
from unlearnbench.report.write.markdown import escape_markdown, to_markdown
from unlearnbench.report.write.paper import IN_SHORT, paper

MOST_ALARMS = 10  # spelled out in the banner
MOST_WORDS = (
    f"Figures show {MOST_DRAWN} of {{}} rows: references, those that no other one beats in forgetting, retention and "
    f"cost, then the first of the table; those of swept settings show all.\n"
)


def table_files(board: Board, methods: Collection[str] = ()) -> dict[str, str]:
    """Return {file: text} of the tables of a board: .md, .tex and .csv each.

    Args:
        board: to show.
        methods: whose rows the paper's two tables have.
    """
    writers = {"md": to_markdown, "tex": to_latex, "csv": to_csv}
    tables = all_tables(board, methods)
    return {f"{table.name}.{end}": write(table) for table in tables for end, write in writers.items()}


def raw_files(board: Board) -> dict[str, str]:
    """Return {file: text} of every cell and of the judges' verdicts, as .csv."""
    return {f"{name}.csv": frame_to_csv(frame) for name, frame in frames(board).items() if not frame.empty}


def page_files(board: Board, drawn: Mapping[str, Drawn], methods: Collection[str] = ()) -> dict[str, str]:
    """Return {file: text} of the page of a board's tables and figures, and of its paper."""
    made = all_tables(board, methods)
    main, *tables = [table for table in made if table.name != IN_SHORT]
    parts = [
        f"# {escape_markdown(board.title)}\n",
        *_banner(board),
        *[f"> {escape_markdown(note)}\n" for note in board.notes],
        to_markdown(main),
        *_setup(board),
        *([MOST_WORDS.format(len(board.variants))] if len(board.variants) > MOST_DRAWN else []),
        *[f"![{FIGURE_WORDS[name]}](figures/{name}.png)\n\n{FIGURE_WORDS[name]}\n" for name in drawn],
        *[to_markdown(table) for table in tables],
        *_failures(board),
        *_origin(board),
    ]
    sizes = {name: size for name, files in drawn.items() if (size := size_of(files["pdf"])) is not None}
    words = {name: FIGURE_WORDS[name] for name in drawn}
    return {"report.md": "\n".join(parts), "paper/main.tex": paper(board, made, sizes, words)}


def nothing(problems: Sequence[str]) -> str:
    """Return the page of a results folder without records that can be shown, with the reasons."""
    lines = [f"- {escape_markdown(problem)}" for problem in problems]
    words = "No record can be shown. There are some, but:"
    return "\n".join(["# No numbers\n", f"{words}\n", *lines, ""])


def _banner(board: Board) -> list[str]:
    """Return a red warning where a control is on the wrong side."""
    wrong = alarms(board)
    if not wrong:
        return []
    lines = ["[!CAUTION]", f"**{DISTRUST}**"]
    shown = [*lines, *[f"- {escape_markdown(alarm)}" for alarm in wrong[:MOST_ALARMS]]]
    more = [f"- and {len(wrong) - MOST_ALARMS} more"] if len(wrong) > MOST_ALARMS else []
    return ["\n".join(f"> {line}" for line in [*shown, *more]) + "\n"]


def _setup(board: Board) -> list[str]:
    """Return what all tables share, which their captions do not repeat."""
    lines = [f"- {name}: {escape_markdown(one_line(words))}" for name, words in board.setup]
    return ["### Setup\n\n" + "\n".join(lines) + "\n"]


def _origin(board: Board) -> list[str]:
    """Return the records' provenance; where they differ, with numbers of cells."""
    facts = provenance_facts(board.records, board.digest)
    lines = [f"- {escape_markdown(name)}: {escape_markdown(one_line(words))}" for name, words in facts]
    return ["### Where the numbers come from\n\n" + "\n".join(lines) + "\n"]


def _failures(board: Board) -> list[str]:
    """Return the lists of cells and of attacks that failed."""
    cells = [(record, record.status, str(record.reason)) for record in board.failures()]
    attacks = [
        (record, attack["failed"], f"{attack['title']}: {attack.get('reason')}")
        for record, attack in board.failed_attacks
    ]
    return [
        f"### {title} without numbers\n\n"
        + "\n".join(f"- `{r.cell.id}`: {status}, {escape_markdown(one_line(words))}" for r, status, words in failed)
        + "\n"
        for title, failed in (("Cells", cells), ("Attacks", attacks))
        if failed
    ]
