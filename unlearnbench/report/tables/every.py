"""All tables of a report, in order."""

from weakref import WeakKeyDictionary

from unlearnbench.report.data.board import Board
from unlearnbench.report.tables.classes import paper_tables
from unlearnbench.report.tables.controls import check_tables
from unlearnbench.report.tables.cost import cost_table
from unlearnbench.report.tables.pareto import pareto_tables
from unlearnbench.report.tables.robustness import robustness_tables
from unlearnbench.report.tables.settings import settings_tables
from unlearnbench.report.tables.summary import side_tables, summary_table
from unlearnbench.report.tables.table import Table

_MADE: WeakKeyDictionary[Board, list[Table]] = WeakKeyDictionary()  # so that no table of a board is made twice


def all_tables(board: Board) -> list[Table]:
    """Return every table of a report, the main one first."""
    if board not in _MADE:
        costs = [cost_table(board)] if board.ok_records else []
        wide = [*paper_tables(board), *check_tables(board), *settings_tables(board)]
        sides = [*side_tables(board), *robustness_tables(board)]
        _MADE[board] = [summary_table(board), *pareto_tables(board), *sides, *costs, *wide]
    return _MADE[board]
