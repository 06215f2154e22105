"""Reports: tables, figures and a page, from records alone. Never imports torch or a plugin.

The same records give the same bytes.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unlearnbench.errors import UsageError, spell_error
from unlearnbench.results import ResultStore

__all__ = ["Rendering", "render"]


@dataclass
class Rendering:
    """What a report wrote and has to say."""

    pages: list[Path] = field(default_factory=list)
    terminal: list[str] = field(default_factory=list)  # the main tables as plain text
    notes: list[str] = field(default_factory=list)


def render(results: Path, out: Path, source_hashes: Mapping[str, str]) -> Rendering:
    """Render every board of a results folder into `out/DATASET`.

    Args:
        results: folder of records.
        out: folder for the report; each board's own folder in it is replaced.
        source_hashes: {"method:NAME" or "metric:NAME": SHA-256} of the plugins as they are, to mark stale records.

    Raises:
        UsageError: there is no record, or the folder cannot be written.
    """
    from unlearnbench.report.board import Board, boards
    from unlearnbench.report.page import write_board
    from unlearnbench.report.tables import all_tables, tidy_frame, to_markdown, to_terminal

    reading = ResultStore(results).read()
    rendering = Rendering(notes=list(reading.problems))
    records = []
    for record in reading.records:
        try:
            board = Board([record], {})
            for table in all_tables(board):
                to_markdown(table)
            tidy_frame(board)
        except Exception as error:  # edited by hand, or of a plugin that put odd things into it: show the rest
            rendering.notes.append(f"{record.cell.id} is left out, it cannot be shown: {spell_error(error)}")
        else:
            records.append(record)
    if not records:
        reasons = f" ({'; '.join(rendering.notes[:3])})" if rendering.notes else ""
        raise UsageError(
            f"there is no record in {results} to show{reasons}: run 'unlearnbench run' first or name a folder with "
            f"--results"
        )
    for name, board in boards(records, source_hashes).items():
        folder = out / name
        try:
            for part in ("tables", "figures"):
                shutil.rmtree(folder / part, ignore_errors=True)
                (folder / part).mkdir(parents=True)
            rendering.pages.append(write_board(board, folder))
        except OSError as error:
            raise UsageError(
                f"cannot write {folder} ({error.strerror or error}): free space or give another folder with --out"
            ) from error
        rendering.terminal.append(to_terminal(board))
        rendering.notes += board.notes
    return rendering
