"""All tables of a report, in order."""

from collections.abc import Collection
from weakref import WeakKeyDictionary

from unlearnbench.report.data.board import Board
from unlearnbench.report.tables.classes import class_tables, paper_tables, rows_of
from unlearnbench.report.tables.controls import check_tables
from unlearnbench.report.tables.cost import cost_table
from unlearnbench.report.tables.instead import instead_tables
from unlearnbench.report.tables.judges import judges_tables
from unlearnbench.report.tables.pareto import pareto_tables
from unlearnbench.report.tables.robustness import robustness_tables
from unlearnbench.report.tables.settings import settings_tables
from unlearnbench.report.tables.summary import compact_table, side_tables, summary_table, untuned_tables
from unlearnbench.report.tables.table import Table

_MADE: WeakKeyDictionary[Board, dict[frozenset[str], list[Table]]] = WeakKeyDictionary()  # no table is made twice


def all_tables(board: Board, methods: Collection[str] = ()) -> list[Table]:
    """Return every table of a report, the main one first.

    Args:
        board: to show.
        methods: whose rows the paper's two tables have; without them all rows, if they are few.
    """
    made, chosen = _MADE.setdefault(board, {}), frozenset(methods)
    if chosen not in made:
        costs = [table for table in ([cost_table(board)] if board.ok_records else []) if table.headers]
        by_class = [*paper_tables(board, rows_of(board, chosen)), *class_tables(board)]
        sides = [*instead_tables(board), *side_tables(board), *robustness_tables(board)]
        made[chosen] = [
            summary_table(board), compact_table(board), *pareto_tables(board), *sides, *costs, *by_class,
            *judges_tables(board), *check_tables(board), *settings_tables(board),
            *untuned_tables(board),
        ]  # fmt: skip
    return made[chosen]
