"""What stands in which table of a report."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.cost import LEAST_TOLERANCE, repeats_of
from unlearnbench.report.data.values import Measure, Value, Variant, target_name, variant_of
from unlearnbench.report.tables.controls import check_tables
from unlearnbench.report.tables.pareto import pareto_tables
from unlearnbench.report.tables.robustness import robustness_tables
from unlearnbench.report.tables.table import Table, interval_text
from unlearnbench.store.cell import Target

MOST_MEASURES = 4  # of one table with a group of columns for each method
_MADE: WeakKeyDictionary[Board, list[Table]] = WeakKeyDictionary()  # so that no table of a board is made twice


def summary_table(board: Board) -> Table:
    """Return the main table: one row per variant, the headline metrics and the costs."""
    return _overview(board, "summary", "Summary", [*board.headlines, *board.costs])


def _overview(board: Board, name: str, title: str, measures: Sequence[Measure]) -> Table:
    """Return a table of means over forget classes with their intervals, one row per variant."""
    counts = [Value(None, board.completeness(variant)) for variant in board.variants]
    return Table(
        name=name,
        title=title,
        caption=f"Mean over forget classes [95 % interval]. {board.caption(measures)}.",
        corner="Method",
        rows=[variant.label for variant in board.variants],
        groups=[""] * (1 + len(measures)),
        headers=["Cells", *[measure.header for measure in measures]],
        formats=["", *[measure.format for measure in measures]],
        values=[
            [count, *[replace(board.over_classes(variant, measure), spread=None) for measure in measures]]
            for variant, count in zip(board.variants, counts, strict=True)
        ],
    )


def side_tables(board: Board) -> list[Table]:
    """Return a table of all metrics of each side, where that is more than the main table has."""
    titles = {"forgetting": "Forgetting", "retention": "Retained classes", "judging": "Judges"}
    sides = {shows: [measure for measure in board.metrics if measure.shows == shows] for shows in titles}
    return [
        _overview(board, shows, titles[shows], measures)
        for shows, measures in sides.items() if any(not measure.headline for measure in measures)
    ]  # fmt: skip


def paper_tables(board: Board) -> list[Table]:
    """Return the paper's two tables, quality and cost, and forgetting: forget classes down, methods across.

    Metrics that the papers do not have follow in tables of their own, a few at a time.
    """
    quality = [measure for measure in board.headlines if measure.shows == "retention"]
    costs = [measure for measure in board.costs if measure.headline]
    forgetting = [measure for measure in board.metrics if measure.shows == "forgetting"]
    kept = [measure for measure in board.metrics if measure.shows == "retention" and not measure.headline]
    tables = [
        ("efficiency", "Quality of the retained classes and cost, per forget class", [*quality, *costs]),
        *_parts("uncertainty", "Forgetting, per forget class", forgetting),
        *_parts("retention-classes", "Retained classes, per forget class", kept),
    ]
    return [_per_class(board, name, title, measures) for name, title, measures in tables if measures]


def _parts(name: str, title: str, measures: Sequence[Measure]) -> list[tuple[str, str, Sequence[Measure]]]:
    """Return a table in parts of at most MOST_MEASURES."""
    parts = [measures[k : k + MOST_MEASURES] for k in range(0, len(measures), MOST_MEASURES)]
    return [
        (f"{name}-{number}" if number > 1 else name, f"{title} ({number})" if number > 1 else title, part)
        for number, part in enumerate(parts, start=1)
    ]


def all_tables(board: Board) -> list[Table]:
    """Return every table of a report, the main one first."""
    if board not in _MADE:
        costs = [cost_table(board)] if board.ok_records else []
        wide = [*paper_tables(board), *check_tables(board), *settings_tables(board)]
        sides = [*side_tables(board), *robustness_tables(board)]
        _MADE[board] = [summary_table(board), *pareto_tables(board), *sides, *costs, *wide]
    return _MADE[board]


def cost_table(board: Board) -> Table:
    """Return what each variant cost: means over forget classes, without the columns that no row has a number for."""
    variants, found = board.variants, {}
    for measure in board.cost.detailed:
        column = [replace(board.over_classes(variant, measure), spread=None) for variant in variants]
        if any(value.number is not None for value in column):
            found[measure] = column
    ranked = [[_rank(board, variant) for variant in variants]] if board.ranks else []
    columns = [*ranked, *found.values()]
    return Table(
        name="cost",
        title="Cost",
        caption=" ".join(
            ["Means over forget classes.", *_cost_words(board, found), f"{board.caption(board.headlines)}."]
        ),
        corner="Method",
        rows=[variant.label for variant in variants],
        groups=[""] * len(columns),
        headers=[*["Rank" for _ in ranked], *[measure.header for measure in found]],
        formats=[*[".0f" for _ in ranked], *[measure.format for measure in found]],
        values=[[column[index] for column in columns] for index in range(len(variants))],
        narrow=True,
    )


def _rank(board: Board, variant: Variant) -> Value:
    """Return a variant's rank by run time, marked like the run time it rests on."""
    if variant not in board.ranks:
        return Value(None)
    rte = board.over_classes(variant, board.costs[0])
    return Value(board.ranks[variant], disturbed=rte.disturbed)


def _cost_words(board: Board, measures: Iterable[Measure]) -> list[str]:
    """Return a sentence on each column that its header does not explain."""
    numbers = sorted({len(repeats) for record in board.ok_records if (repeats := repeats_of(record))})
    words = {
        "range": f"RTE is the median of a cell's repeats ({', '.join(map(str, numbers))}), RTE range their greatest "
        f"minus their least.",
        "amortised": "Amortised is RTE plus the seconds of each prior divided by the cells of the row that use it.",
        "warmup": "The warm-up is part of no RTE.",
        "forward_images": "Forwards and backwards are images through the models in prior and forget.",
        "work": "Work is these images times the operations that each takes.",
        "share": f"Of peak is work by the seconds of prior and forget, as a share of the rate measured on this device "
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


def settings_tables(board: Board) -> list[Table]:
    """Return the table of settings that are not the method's own defaults, so that nothing is shortened silently."""
    changed: dict[tuple[str, str], tuple[object, object]] = {}
    labels = {variant: variant.label for variant in board.variants}  # a row has the title of its newest record
    for record in board.rows:
        label = labels[variant_of(record)]
        for name, (default, used) in sorted(dict(record.method.get("changed", {})).items()):
            changed[label, name] = (default, used)
    order = [variant.label for variant in board.variants]
    rows = sorted(changed, key=lambda key: (order.index(key[0]), key[1]))
    if not rows:
        return []
    return [
        Table(
            name="settings",
            title="Settings that are not the methods' defaults",
            caption="The defaults are the papers' values for CIFAR-10; each method's file says where they come from.",
            corner="Method",
            rows=[label for label, _ in rows],
            groups=[""] * 3,
            headers=["Setting", "Default", "Here"],
            formats=[""] * 3,
            values=[
                [Value(None, name), *[Value(None, _plain(v)) for v in changed[label, name]]] for label, name in rows
            ],
        )
    ]


def _plain(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _per_class(board: Board, name: str, title: str, measures: Sequence[Measure]) -> Table:
    columns = [(variant, measure) for variant in board.variants for measure in measures]
    body = [[board.value(variant, t, measure) for variant, measure in columns] for t in board.targets]
    overall = [board.over_classes(variant, measure) for variant, measure in columns]
    rows = [_target_name(t, board.class_names) for t in board.targets]
    return Table(
        name=name,
        title=title,
        caption=f"{title}; 95 % is the mean's interval, std the sample standard deviation over classes. "
        f"{board.caption(measures)}.",
        corner="Class",
        rows=[*rows, "mean", "95 %", "std", "cells"],
        groups=[variant.label for variant, _ in columns],
        headers=[measure.header for _, measure in columns],
        formats=[measure.format for _, measure in columns],
        values=[
            *body,
            [replace(value, spread=None, interval=None) for value in overall],
            [Value(None, _interval(value, measure)) for value, (_, measure) in zip(overall, columns, strict=True)],
            [Value(value.spread, disturbed=value.disturbed) for value in overall],
            [Value(None, f"{value.ok}/{value.expected}") for value in overall],
        ],
        rules=(len(rows),),
        narrow=True,
    )


def _interval(value: Value, measure: Measure) -> str:
    return interval_text(value, measure.format).strip() or "-"


def _target_name(target: Target, names: Sequence[object]) -> str:
    named = target_name(target, names)
    return named if named == target.label else f"{target.label} {named}"
