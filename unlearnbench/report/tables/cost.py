"""The table of costs: seconds by phase, memory, work, one row per method."""

from collections.abc import Iterable
from dataclasses import replace

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.cost import LEAST_TOLERANCE, repeats_of
from unlearnbench.report.data.values import Measure, Value, Variant
from unlearnbench.report.tables.table import Table


def cost_table(board: Board) -> Table:
    """Return what each variant cost: means over forget classes, without columns that are empty in every row."""
    variants, shown = board.variants, {}
    for measure in board.cost.detailed:
        column = [replace(board.numbers.mean(variant, measure), spread=None) for variant in variants]
        if any(value.number is not None for value in column):
            shown[measure] = column
    ranked = [[_rank(board, variant) for variant in variants]] if board.ranks else []
    columns = [*ranked, *shown.values()]
    return Table(
        name="cost",
        title="Cost",
        caption=board.caption(" ".join(["Means over forget classes.", *_cost_words(board, shown)])),
        corner="Method",
        rows=[variant.label for variant in variants],
        groups=[""] * len(columns),
        headers=[*["Rank" for _ in ranked], *[measure.header for measure in shown]],
        formats=[*[".0f" for _ in ranked], *[measure.format for measure in shown]],
        values=[[column[index] for column in columns] for index in range(len(variants))],
        narrow=True,
    )


def _rank(board: Board, variant: Variant) -> Value:
    """Return a variant's rank by run time, with the marks of its run time."""
    if variant not in board.ranks:
        return Value(None)
    rte = board.numbers.mean(variant, board.costs[0], interval=False)
    return Value(board.ranks[variant], disturbed=rte.disturbed)


def _cost_words(board: Board, measures: Iterable[Measure]) -> list[str]:
    """Return a sentence on each column that its header does not explain."""
    numbers = sorted({len(repeats) for record in board.ok_records if (repeats := repeats_of(record))})
    words = {
        "range": f"RTE is the median of a cell's repeats ({', '.join(map(str, numbers))}), RTE range their greatest "
        f"minus their least.",
        "amortised": "Amortised is RTE plus the seconds of each prior divided by the cells of the row that use it.",
        "warmup": "RTE excludes the warm-up.",
        "sampling": "Sampling is the time of all samples, in which the cost of methods without training lies.",
        "forward_images": "Forwards and backwards are images through the models in prior and forget.",
        "work": "Work is these images times the operations that each takes.",
        "share": f"Of peak is work per second of prior and forget, as a share of the rate measured on this device "
        f"in {', '.join(board.cost.peaks)}.",
        "growth": "Growth is the peak of memory less what the process held when the phase began (libraries, the base "
        "model), the larger of prior and forget.",
    }
    rank = (
        f"Rank is 1 + how many methods are separably faster by RTE, and never less than that of a faster one; equal "
        f"ranks are ties, and a method has none unless all its cells were repeated. Separably: the median ratio over "
        f"cells exceeds 1 by more than {100 * LEAST_TOLERANCE:.0f} % and by more than the median of both relative "
        f"ranges of repeats added."
    )
    shown = {measure.key for measure in measures}
    return [*([rank] if board.ranks else []), *[text for key, text in words.items() if key in shown]]
