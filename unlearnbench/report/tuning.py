"""The report of `tune`: what was tried, what the rule chooses, and what a smaller budget would have given."""

from collections.abc import Set
from pathlib import Path

from unlearnbench.errors import UsageError, one_line
from unlearnbench.report.data.board import Board, boards
from unlearnbench.report.data.rendering import Rendering
from unlearnbench.report.data.tuning import FLOOR, Tuned, tunings
from unlearnbench.report.tables.table import Table
from unlearnbench.report.tables.tuning import titles_of, tuning_tables, written
from unlearnbench.report.write.csv import to_csv
from unlearnbench.report.write.files import publish
from unlearnbench.report.write.latex import to_latex
from unlearnbench.report.write.markdown import escape_markdown, to_markdown
from unlearnbench.store.records import Reading

PAGE, FIGURE = "tuning.md", "figures/tuning.png"
WORDS = (
    "Every trial by its number, and the choice among the first ones; open dots lie below the floor of retention, and a "
    "line begins with the first trial that reaches it."
)
WRITERS = {"md": to_markdown, "tex": to_latex, "csv": to_csv}


def render_tuning(reading: Reading, out: Path, stale: Set[str] = frozenset(), floor: float = FLOOR) -> Rendering:
    """Write `out/BOARD/tuning.md` with its tables and figure, for every board of a folder that has trials.

    Args:
        reading: of the folder.
        out: folder for the report; other files in it stay unchanged.
        stale: ids of cells with stale records.
        floor: least retention of an eligible trial.

    Raises:
        UsageError: there is no trial among the records, or the folder cannot be written.
    """
    from unlearnbench.report.figures.tuning import budget  # takes a second to import

    rendering, files = Rendering(notes=list(reading.problems)), dict[str, str | bytes]()
    for name, board in boards(reading.records, stale).items():
        if not (tuned := tunings(board, floor)):
            continue
        tables = tuning_tables(board, tuned)
        files[f"{name}/{PAGE}"] = _page(board, tuned, tables)
        files[f"{name}/{FIGURE}"] = budget(tuned, titles_of(board)["forgetting"])
        files |= {
            f"{name}/tables/{table.name}.{end}": write(table) for table in tables for end, write in WRITERS.items()
        }
        rendering.pages.append(out / name / PAGE)
        rendering.terminal.append("\n".join([*map(to_markdown, tables), *_values(tuned)]))
        rendering.notes += board.left_out
    if not rendering.pages:
        raise UsageError(f"there is no trial of tune in {reading.root}: run 'unlearnbench tune' first")
    publish(files, out, [page.parent.name for page in rendering.pages])
    return rendering


def _page(board: Board, tuned: list[Tuned], tables: list[Table]) -> str:
    """Return the page of a board."""
    choices, against = map(to_markdown, tables)
    setup = [f"- {name}: {escape_markdown(one_line(words))}" for name, words in board.setup]
    values = "\n".join(_values(tuned))
    parts = [
        f"# Tuning on {escape_markdown(board.title)}\n",
        choices,
        f"As they stand in the methods' files:\n\n```python\n{values}\n```\n",
        against,
        f"![{WORDS}]({FIGURE})\n\n{WORDS}\n",
        *_failures(tuned),
        "### Setup\n\n" + "\n".join(setup) + "\n",
    ]
    return "\n".join(parts)


def _values(tuned: list[Tuned]) -> list[str]:
    """Return a line for each method with the values that were chosen."""
    lines = {each.method: (each.tuned_as, each.chosen) for each in tuned}
    return [
        f'# {method}: tuned={{"{name}": {written(chosen.settings)}}}' if chosen else f"# {method}: no trial counts"
        for method, (name, chosen) in lines.items()
    ]


def _failures(tuned: list[Tuned]) -> list[str]:
    """Return the list of trials that count as failed."""
    lines = [
        f"- {escape_markdown(each.title)}, trial {trial.number}: {escape_markdown(one_line(trial.problem, 200))}"
        for each in tuned
        for trial in each.trials
        if not trial.counts
    ]
    return ["### Trials that failed\n\n" + "\n".join(lines) + "\n"] if lines else []
