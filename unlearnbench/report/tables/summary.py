"""The main table, and a table of all metrics of each side of unlearning."""

from collections.abc import Sequence
from dataclasses import replace

from unlearnbench.report.data.array import Numbers
from unlearnbench.report.data.board import Board
from unlearnbench.report.data.values import Measure, Value
from unlearnbench.report.tables.table import Table


def summary_table(board: Board) -> Table:
    """Return the main table: one row per variant, the headline metrics and the costs."""
    return _overview(board, "summary", "Summary", [*board.headlines, *board.costs])


def compact_table(board: Board) -> Table:
    """Return the main table ready for a column of a paper: means alone, with one cost of time and one of memory."""
    costs = [measure for measure in board.costs if measure.key in ("total", "memory")]
    measures = [*board.headlines, *costs]
    return Table(
        name="summary-compact",
        title="Summary in short",
        caption=board.caption("Mean over forget classes.", measures),
        corner="Method",
        rows=[row.label for row in board.variants],
        groups=[""] * len(measures),
        headers=[measure.header for measure in measures],
        formats=[measure.format for measure in measures],
        values=[
            [replace(board.numbers.mean(row, measure), spread=None) for measure in measures] for row in board.variants
        ],
        narrow=True,
    )


def untuned_tables(board: Board) -> list[Table]:
    """Return the main table of the classes on which no method was tuned; none where that is all classes, or none."""
    numbers, measures = board.beyond_tuning, [*board.headlines, *board.costs]
    if numbers is None:
        return []
    words = "Mean over the forget classes on which no setting was tuned [95 % interval]."
    caption = board.caption(words, measures, numbers)
    return [overview(numbers, "summary-untuned", "Summary without the classes of tuning", measures, caption)]


def _overview(board: Board, name: str, title: str, measures: Sequence[Measure]) -> Table:
    """Return a table of means over forget classes with their intervals, one row per variant."""
    words = "Mean over forget classes [95 % interval]."
    return overview(board.numbers, name, title, measures, board.caption(words, measures))


def overview(
    numbers: Numbers, name: str, title: str, measures: Sequence[Measure], caption: str,
    groups: Sequence[str] = (),
) -> Table:  # fmt: skip
    """Return a table of cells with numbers and means with intervals, one row per variant of some numbers."""
    return Table(
        name=name,
        title=title,
        caption=caption,
        corner="Method",
        rows=[row.label for row in numbers.rows],
        groups=["", *(groups or [""] * len(measures))],
        headers=["Cells", *[measure.header for measure in measures]],
        formats=["", *[measure.format for measure in measures]],
        values=[
            [
                Value(None, numbers.completeness(row)),
                *[replace(numbers.mean(row, measure), spread=None) for measure in measures],
            ]
            for row in numbers.rows
        ],
    )


def side_tables(board: Board) -> list[Table]:
    """Return a table of all metrics of each side, where it has more metrics than the main table."""
    titles = {"forgetting": "Forgetting", "retention": "Retained classes", "judging": "Judges"}
    sides = {aspect: [measure for measure in board.metrics if measure.aspect == aspect] for aspect in titles}
    return [
        _overview(board, aspect, titles[aspect], measures)
        for aspect, measures in sides.items() if any(not measure.headline for measure in measures)
    ]  # fmt: skip
