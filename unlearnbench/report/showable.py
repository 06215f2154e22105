"""Records that a report can show: one that breaks a table, edited or of a faulty plugin, is left out by name."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import suppress

from unlearnbench.errors import spell_error
from unlearnbench.report.data.board import Board, boards
from unlearnbench.report.data.frames import frames
from unlearnbench.report.tables.controls import alarms
from unlearnbench.report.tables.every import all_tables
from unlearnbench.report.write.markdown import to_markdown
from unlearnbench.store.records import Record


def shown_boards(records: Sequence[Record], stale: Set[str] = frozenset()) -> tuple[dict[str, Board], list[str]]:
    """Return the boards of the records that a report can show, and a sentence for each record left out.

    Args:
        records: of any datasets.
        stale: ids of cells with stale records.
    """
    if stale.isdisjoint(record.cell.id for record in records):
        with suppress(Exception):  # of any kind: the records at fault are searched for below
            shown = boards(records, stale)
            _show(shown)
            return shown, []
    kept, problems = showable(records)
    return boards(kept, stale), problems


def showable(
    records: Iterable[Record], attempt: Callable[[Sequence[Record]], None] | None = None
) -> tuple[list[Record], list[str]]:
    """Return the records that a report can show, and a sentence for each record left out.

    A record may be edited by hand, or hold odd values of a plugin. Staleness makes no difference.

    Args:
        records: of any datasets.
        attempt: renders records, and may raise anything; by default it renders all tables.
    """
    attempt = attempt or _show_tables
    kept, problems = [], []
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        groups.setdefault((record.cell.dataset, record.cell.protocol), []).append(record)
    for group in groups.values():
        odd = _unshowable(group, [], attempt)
        problems += [f"{name} is left out, it cannot be shown: {why}" for name, why in odd.items()]
        kept += [record for record in group if record.cell.id not in odd]
    return kept, problems


def _unshowable(
    records: Sequence[Record], beside: Sequence[Record], attempt: Callable[[Sequence[Record]], None]
) -> dict[str, str]:
    """Return {cell id: reason} of the records that cannot be shown together with `beside`, shown by bisection."""
    try:
        attempt([*beside, *records])
    except Exception as error:  # of any kind: the other records are shown
        if len(records) == 1:
            return {records[0].cell.id: spell_error(error)}
    else:
        return {}
    first, second = records[: len(records) // 2], records[len(records) // 2 :]
    odd = _unshowable(first, beside, attempt)
    return odd | _unshowable(second, [*beside, *[record for record in first if record.cell.id not in odd]], attempt)


def _show_tables(records: Sequence[Record]) -> None:
    _show(boards(records))


def _show(shown: Mapping[str, Board]) -> None:
    """Render every text of a report; a record that cannot be shown may raise anything."""
    for board in shown.values():
        for table in all_tables(board):
            to_markdown(table)
        frames(board), alarms(board)
