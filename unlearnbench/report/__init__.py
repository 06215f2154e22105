"""Reports: tables, figures and a page, from records alone. Never imports torch or a plugin.

The same records give the same bytes.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from unlearnbench.errors import UsageError
from unlearnbench.results import ResultStore

__all__ = ["Rendering", "render", "validation"]


@dataclass
class Rendering:
    """What a report wrote and has to say."""

    pages: list[Path] = field(default_factory=list)
    html: Path | None = None  # the page of all boards
    terminal: list[str] = field(default_factory=list)  # the main tables as plain text
    notes: list[str] = field(default_factory=list)
    alarms: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # (dataset, protocol) -> wrong controls

    def add_alarms(self, key: tuple[str, str], found: list[str]) -> None:
        """Add the sentences of one dataset and protocol, if there are any."""
        if found:
            self.alarms.setdefault(key, []).extend(found)


def render(results: Path, out: Path, source_hashes: Mapping[str, str]) -> Rendering:
    """Render every board of a results folder into `out/DATASET`.

    Args:
        results: folder of records.
        out: folder for the report; each board's own folder in it is replaced.
        source_hashes: {"method:NAME" or "metric:NAME": SHA-256} of the plugins as they are, to mark stale records.

    Raises:
        UsageError: there is no record, or the folder cannot be written.
    """
    from unlearnbench.report.board import boards
    from unlearnbench.report.checks import alarms
    from unlearnbench.report.page import write_board
    from unlearnbench.report.tables import showable
    from unlearnbench.report.terminal import to_terminal

    reading = ResultStore(results).read()
    records, problems = showable(reading.records)
    rendering = Rendering(notes=[*reading.problems, *problems])
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
        rendering.add_alarms(board.key, [f"{board.title}: {alarm}" for alarm in alarms(board)])
        rendering.notes += board.notes
    return rendering


def validation(results: Path, source_hashes: Mapping[str, str]) -> Rendering:
    """Return the tables of controls, and of how well metrics separate them, of every board of a results folder.

    Raises:
        UsageError: there is no control among the records.
    """
    from unlearnbench.report.board import boards
    from unlearnbench.report.checks import alarms, check_tables
    from unlearnbench.report.tables import showable
    from unlearnbench.report.writers import to_markdown

    reading = ResultStore(results).read()
    records, problems = showable(reading.records)
    found = Rendering(notes=[*reading.problems, *problems])
    for board in boards(records, source_hashes).values():
        found.notes += board.notes
        found.terminal += [f"## {board.title}\n\n{to_markdown(table)}" for table in check_tables(board)]
        found.add_alarms(board.key, [f"{board.title}: {alarm}" for alarm in alarms(board)])
    if not found.terminal:
        why = f" ({'; '.join(found.notes[:3])})" if found.notes else ""
        raise UsageError(
            f"no control in {results} has a number of a metric that controls are checked against{why}: run with "
            f"--controls first or every"
        )
    return found
