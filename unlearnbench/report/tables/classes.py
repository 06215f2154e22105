"""Tables per forget class: the two of the papers for few methods, and one per metric, laid out as the heat maps."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.values import Measure, Value, Variant, target_name
from unlearnbench.report.tables.table import Table, interval_text
from unlearnbench.store.cell import Target

MOST_ACROSS = 4  # methods with a group of columns each: more do not fit a page
MOST_MEASURES = 4  # columns of such a group
PAPERS = ("efficiency", "uncertainty")


def paper_tables(board: Board, rows: Sequence[Variant] = ()) -> list[Table]:
    """Return the paper's two tables: forget classes down, methods across, mean and standard deviation below.

    The first has quality and cost, the second forgetting. None where there are more rows than a page is wide.

    Args:
        board: to show.
        rows: at most MOST_ACROSS of its rows; without them all, if they are no more.
    """
    shown = rows or board.variants
    if len(shown) > MOST_ACROSS:
        return []
    quality = [measure for measure in board.headlines if measure.aspect == "retention"]
    costs = [measure for measure in board.costs if measure.headline]
    forgetting = [measure for measure in board.metrics if measure.aspect == "forgetting"]
    tables = (
        (PAPERS[0], "Quality of the retained classes and cost, per forget class", [*quality, *costs]),
        (PAPERS[1], "Forgetting, per forget class", forgetting[:MOST_MEASURES]),
    )
    return [_paper_table(board, shown, *table) for table in tables if table[-1]]


def _paper_table(board: Board, rows: Sequence[Variant], name: str, title: str, measures: Sequence[Measure]) -> Table:
    numbers = board.numbers
    columns = [(row, measure) for row in rows for measure in measures]
    means = [numbers.mean(row, measure, interval=False) for row, measure in columns]
    return Table(
        name=name,
        title=title,
        caption=board.caption(f"{title}; std is the sample standard deviation over classes.", measures),
        corner="Class",
        rows=[*class_labels(board), "mean", "std"],
        groups=[row.label for row, _ in columns],
        headers=[measure.header for _, measure in columns],
        formats=[measure.format for _, measure in columns],
        values=[
            *[[numbers.cell(row, target, measure) for row, measure in columns] for target in board.targets],
            [replace(mean, spread=None) for mean in means],
            [Value(mean.spread, disturbed=mean.disturbed) for mean in means],
        ],
        rules=(len(board.targets),),
        narrow=True,
    )


def class_tables(board: Board) -> list[Table]:
    """Return a table of each metric and main cost, methods down, forget classes across; none for a single class."""
    measures = [*board.metrics, *(measure for measure in board.costs if measure.headline and board.ok_records)]
    return [_class_table(board, measure) for measure in measures] if len(board.targets) > 1 else []


def _class_table(board: Board, measure: Measure) -> Table:
    title = f"{measure.title}, per forget class"
    names = [*class_labels(board), "mean", "95 %", "std"]
    return Table(
        name=f"classes-{measure.key}".replace("_", "-"),
        title=title,
        caption=board.caption(f"{title}{_unit(measure)}; 95 % is the mean's interval, std the sample standard "
                              "deviation over classes.", [measure]),
        corner="Method",
        rows=[row.label for row in board.variants],
        groups=[""] * len(names),
        headers=names,
        formats=[measure.format] * len(names),
        values=[_class_row(board, row, measure) for row in board.variants],
        narrow=True,
    )  # fmt: skip


def _unit(measure: Measure) -> str:
    better = [f"{measure.better} is better"] if measure.arrow else []
    facts = [*([f"in {measure.unit}"] if measure.unit else []), *better]
    return f" ({', '.join(facts)})" if facts else ""


def _class_row(board: Board, row: Variant, measure: Measure) -> list[Value]:
    mean = board.numbers.mean(row, measure)
    return [
        *[board.numbers.cell(row, target, measure) for target in board.targets],
        replace(mean, spread=None, interval=None),
        Value(None, interval_text(mean, measure.format).strip() or "-"),
        Value(mean.spread, disturbed=mean.disturbed),
    ]


def is_in_page(table: Table) -> bool:
    """Whether the HTML page shows a table: it has heat maps per forget class, and the main table whole."""
    return table.name not in (*PAPERS, "summary-compact") and not table.name.startswith("classes-")


def rows_of(board: Board, methods: Collection[str]) -> list[Variant]:
    """Return the rows of some methods, by name."""
    return [row for row in board.variants if row.method in methods]


def class_labels(board: Board) -> list[str]:
    """Return a label for each forget class."""
    return [class_label(board, target) for target in board.targets]


def class_label(board: Board, target: Target) -> str:
    """Return a label for a forget class: its number and its name."""
    label, name = target.label, target_name(target, board.class_names)
    return label if name == label else f"{label} {name}"
