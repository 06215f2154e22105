"""Reports: tables, figures and a page, from records alone. Never imports torch or a plugin.

The same records give the same bytes.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from unlearnbench.errors import UsageError
from unlearnbench.results import Hashes, hashes_of, open_results

if TYPE_CHECKING:
    from unlearnbench.report.board import Board

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


def render(results: Path, out: Path, source_hashes: Hashes) -> Rendering:
    """Render every board of a results folder into `out/DATASET`.

    Args:
        results: folder of records.
        out: folder for the report; each board's own folder in it is replaced.
        source_hashes: {"method:NAME" or "metric:NAME": SHA-256} of the plugins as they are, to mark stale records, or
            what returns it for records.

    Raises:
        UsageError: there is no record, or the folder cannot be written.
    """
    from unlearnbench.report.board import boards
    from unlearnbench.report.tables import shown_boards

    with open_results(results) as reading:
        hashes = hashes_of(source_hashes, reading.records)
        fault: Exception | None = None
        if not any(record.is_stale(hashes) for record in reading.records):
            try:  # as if all of them could be shown, so that drawing need not wait until that is known
                return _write(boards(reading.records, hashes), reading.problems, results, out)
            except UsageError:
                raise
            except Exception as error:  # of whatever kind: the records at fault are looked for below
                fault = error
        found, problems = shown_boards(reading.records, hashes)
        if fault is not None and not problems:
            raise fault  # no record's
        return _write(found, [*reading.problems, *problems], results, out)


def _write(found: "Mapping[str, Board]", problems: Sequence[str], results: Path, out: Path) -> Rendering:
    """Write everything and return what it has to say; boards of one folder at a time.

    Raises:
        UsageError: there is nothing to say, or the folder cannot be written.
    """
    from unlearnbench.report.page import write_nothing

    rendering = Rendering(notes=list(problems))
    if not found and not problems:
        raise UsageError(
            f"there is no record in {results} to show: run 'unlearnbench run' first or name a folder with --results"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        with FileLock(out / ".write.lock"):  # two runs that end together would clear each other's folders
            if found:
                _write_boards(found, out, rendering)
            else:
                rendering.pages.append(write_nothing(rendering.notes, out))
    except OSError as error:
        raise UsageError(
            f"cannot write {out} ({error.strerror or error}): free space or give another folder with --out"
        ) from error
    return rendering


def _write_boards(found: "Mapping[str, Board]", out: Path, rendering: Rendering) -> None:
    """Write tables, figures and page of every board, and add to the rendering what they have to say."""
    from unlearnbench.report.checks import alarms
    from unlearnbench.report.html import write_html
    from unlearnbench.report.page import Drawing, write_page, write_tables
    from unlearnbench.report.terminal import to_terminal

    for name in found:
        for part in ("tables", "figures"):
            shutil.rmtree(out / name / part, ignore_errors=True)
            (out / name / part).mkdir(parents=True)
    with Drawing({name: (board, out / name / "figures") for name, board in found.items()}) as drawing:
        for name, board in found.items():
            write_tables(board, out / name / "tables")
            rendering.terminal.append(to_terminal(board))
            rendering.add_alarms(board.key, [f"{board.title}: {alarm}" for alarm in alarms(board)])
            rendering.notes += board.notes
        for name, board in found.items():
            rendering.pages.append(write_page(board, drawing.drawn(name), out / name))
    rendering.html = write_html(found, list(rendering.notes), out / "report.html")


def validation(results: Path, source_hashes: Hashes) -> Rendering:
    """Return the tables of controls, and of how well metrics separate them, of every board of a results folder.

    Raises:
        UsageError: there is no control among the records.
    """
    from unlearnbench.report.checks import alarms, check_tables
    from unlearnbench.report.tables import shown_boards
    from unlearnbench.report.writers import to_markdown

    with open_results(results) as reading:
        shown, problems = shown_boards(reading.records, hashes_of(source_hashes, reading.records))
    found = Rendering(notes=[*reading.problems, *problems])
    for board in shown.values():
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
