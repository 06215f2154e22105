"""All files of a report, from the records of a results folder and the ids of stale cells."""

import warnings
from collections.abc import Callable, Collection, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING

from unlearnbench.errors import UsageError
from unlearnbench.report.data.rendering import Rendering
from unlearnbench.store.records import Reading

if TYPE_CHECKING:
    from unlearnbench.report.data.board import Board
    from unlearnbench.report.figures.drawing import Drawn

Files = dict[str, str | bytes]  # by path within the report's folder


def render(reading: Reading, out: Path, stale: Set[str] = frozenset(), methods: Collection[str] = ()) -> Rendering:
    """Render every board of a results folder into `out/DATASET`.

    Args:
        reading: of the folder.
        out: folder for the report; other files in it stay unchanged.
        stale: ids of cells with stale records, and `ID NAME` of stale attacks of others.
        methods: whose rows the paper's two tables have; without them all rows, if they are few.

    Raises:
        UsageError: there is no record, the methods have none or too many rows, or the folder cannot be written.
    """
    from unlearnbench.report.data.board import boards
    from unlearnbench.report.figures.drawing import Drawing
    from unlearnbench.report.write.files import publish
    from unlearnbench.report.write.page import nothing, raw_files

    rendering = Rendering(notes=list(reading.problems))
    if not reading.records and not rendering.notes:
        raise UsageError(
            f"there is no record in {reading.root} to show: run 'unlearnbench run' first or name a folder with "
            f"--results"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's on odd numbers, which the report explains itself
        shown = boards(reading.records, stale)
        _check_choice(shown, methods)
        with Drawing(shown, {"raw": raw_files}) as drawing:
            files = _files(shown, drawing.drawn, rendering, methods)
            files |= {f"{b}/tables/{file}": text for b in shown for file, text in drawing.made(b, "raw").items()}
        publish(files if shown else {"report.md": nothing(rendering.notes)}, out, shown)
    rendering.pages = [out / name / "report.md" for name in shown] or [out / "report.md"]
    rendering.html = out / "report.html" if shown else None
    return rendering


def _files(
    shown: "Mapping[str, Board]", drawn: "Callable[[str], Mapping[str, Drawn]]", rendering: Rendering,
    methods: Collection[str] = (),
) -> "Files":  # fmt: skip
    """Return all files of a report, and add the messages of boards to the rendering.

    Args:
        shown: {name: board}.
        drawn: returns the figures of a board by its name; asked once all tables and charts are made.
        rendering: takes messages about the records.
        methods: whose rows the paper's two tables have.
    """
    from unlearnbench.report.html import page
    from unlearnbench.report.tables.controls import alarms
    from unlearnbench.report.write.page import page_files, table_files
    from unlearnbench.report.write.terminal import to_terminal

    files: Files = {}
    problems = list(rendering.notes)  # of reading: a board's notes stand with it
    for name, board in shown.items():
        files |= {f"{name}/tables/{file}": text for file, text in table_files(board, methods).items()}
        rendering.terminal.append(to_terminal(board))
        rendering.add_alarms(board.key, [f"{board.title}: {alarm}" for alarm in alarms(board)])
        rendering.notes += board.notes
    if shown:
        files["report.html"] = page(shown, problems, drawn)
    figures = {name: drawn(name) for name in shown}
    for name, board in shown.items():
        files |= {f"{name}/{file}": text for file, text in page_files(board, figures[name], methods).items()}
        for key, both in figures[name].items():
            files |= {f"{name}/figures/{key}.{ending}": content for ending, content in both.items()}
    return files


def _check_choice(shown: "Mapping[str, Board]", methods: Collection[str]) -> None:
    """Raise UsageError unless the paper's tables of some board can show the rows of these methods."""
    from unlearnbench.report.tables.classes import MOST_ACROSS, rows_of

    counts = {name: len(rows_of(board, methods)) for name, board in shown.items()}
    if methods and not any(counts.values()):
        raise UsageError(f"--methods: there is no record of {', '.join(methods)}")
    if wide := [f"{name} has {count}" for name, count in counts.items() if count > MOST_ACROSS]:
        raise UsageError(
            f"--methods: the paper's tables have room for {MOST_ACROSS} rows, and {wide[0]} of these methods: "
            f"name fewer"
        )


def validation(reading: Reading, stale: Set[str] = frozenset()) -> Rendering:
    """Return the tables of controls, and of how well metrics separate them, of every board of a results folder.

    Raises:
        UsageError: there is no control among the records.
    """
    from unlearnbench.report.data.board import boards
    from unlearnbench.report.tables.controls import alarms, check_tables
    from unlearnbench.report.write.markdown import to_markdown

    rendering = Rendering(notes=list(reading.problems))
    for board in boards(reading.records, stale).values():
        rendering.notes += board.notes
        rendering.terminal += [f"## {board.title}\n\n{to_markdown(table)}" for table in check_tables(board)]
        rendering.add_alarms(board.key, [f"{board.title}: {alarm}" for alarm in alarms(board)])
    if not rendering.terminal:
        why = f" ({'; '.join(rendering.notes[:3])})" if rendering.notes else ""
        raise UsageError(
            f"no control in {reading.root} has a number of a metric that controls are checked against{why}: run with "
            f"--controls first or every"
        )
    return rendering
