"""Forgetting against retention against cost: the non-dominated methods. There is no composite score."""

from dataclasses import replace

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.front import axes_of, places, undominated
from unlearnbench.report.data.values import Value
from unlearnbench.report.tables.table import Table


def pareto_tables(board: Board) -> list[Table]:
    """Return the table of the three axes and of dominated methods; none with fewer than two complete methods."""
    placed, best = places(board), undominated(board)
    if len(placed) < 2:
        return []
    measures = axes_of(board)
    return [
        Table(
            name="pareto",
            title="Forgetting, retention and cost",
            caption=board.caption(
                "Mean over forget classes [95 % interval]. Dominated: another method is at least as good in all three "
                "and better in one, by the means.",
                measures,
            ),
            corner="Method",
            rows=[variant.label for variant in placed],
            groups=[""] * 4,
            headers=[*[measure.header for measure in measures], "Front"],
            formats=[*[measure.format for measure in measures], ""],
            values=[
                [
                    *[replace(value, spread=None, best=False) for value in values],
                    Value(None, "front" if variant in best else "dominated"),
                ]
                for variant, values in placed.items()
            ],
        )
    ]
