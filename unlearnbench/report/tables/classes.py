"""Tables per forget class: classes down, methods across, as the paper prints them."""

from collections.abc import Sequence
from dataclasses import replace

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.values import Measure, Value, target_name
from unlearnbench.report.tables.table import Table, interval_text
from unlearnbench.store.cell import Target

MOST_MEASURES = 4  # of one table with a group of columns for each method


def paper_tables(board: Board) -> list[Table]:
    """Return the paper's two tables, quality and cost, and forgetting: forget classes down, methods across.

    Metrics that the papers do not have follow in separate tables, a few in each.
    """
    quality = [measure for measure in board.headlines if measure.aspect == "retention"]
    costs = [measure for measure in board.costs if measure.headline]
    forgetting = [measure for measure in board.metrics if measure.aspect == "forgetting"]
    kept = [measure for measure in board.metrics if measure.aspect == "retention" and not measure.headline]
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


def _per_class(board: Board, name: str, title: str, measures: Sequence[Measure]) -> Table:
    columns = [(variant, measure) for variant in board.variants for measure in measures]
    body = [[board.numbers.cell(variant, t, measure) for variant, measure in columns] for t in board.targets]
    overall = [board.numbers.mean(variant, measure) for variant, measure in columns]
    rows = [_target_name(t, board.class_names) for t in board.targets]
    return Table(
        name=name,
        title=title,
        caption=board.caption(
            f"{title}; 95 % is the mean's interval, std the sample standard deviation over classes.", measures
        ),
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
