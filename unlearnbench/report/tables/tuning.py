"""Tables of what was tuned: the choice of each method, and what a smaller budget would have given."""

from collections.abc import Mapping, Sequence

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.tuning import NEAR, PARTS, TIE, Tuned
from unlearnbench.report.data.values import Value
from unlearnbench.report.tables.table import Table
from unlearnbench.store.cell import Scalar


def tuning_tables(board: Board, tuned: Sequence[Tuned]) -> list[Table]:
    """Return the table of choices, and that of forgetting against the number of trials."""
    return [_choices(board, tuned), _budget(board, tuned)]


def titles_of(board: Board) -> dict[str, str]:
    """Return {part: header} of the metrics that the choice rests on, as their records title them."""
    entries = {name: entry for record in board.ok_records for name, entry in record.metrics.items()}
    measures = next(record.tuning["measures"] for record in board.records if record.tuning)
    names = {part: measures[part] for part in PARTS}
    return {
        part: str(entries[name]["title"]) + (f" ({unit})" if (unit := entries[name]["unit"]) else "")
        if name in entries
        else name
        for part, name in names.items()
    }


def written(settings: Mapping[str, Scalar]) -> str:
    """Return settings as they stand in a decorator."""
    return "{" + ", ".join(f'"{name}": {_literal(value)}' for name, value in settings.items()) + "}"


def _literal(value: Scalar) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _choices(board: Board, tuned: Sequence[Tuned]) -> Table:
    titles, floor = titles_of(board), tuned[0].floor
    return Table(
        name="tuning",
        title="What was chosen",
        caption=board.caption(
            f"Eligible: {titles['retention']} of {floor:g} or more or, where no trial reaches that, within {NEAR:g} "
            f"points of the highest. Of the eligible trials within {TIE:g} points of the best {titles['forgetting']}, "
            f"the one with the lowest {titles['ties']}, then with fewest images, then the first. Means over forget "
            f"classes. Failed: trials without a result, or beyond the budget of images. Seconds: of all trials "
            f"together. Chosen: the number of that trial. Grow: settings whose chosen value lies at the edge of their "
            f"range."
        ),
        corner="Method",
        rows=[each.title for each in tuned],
        groups=[""] * 10,
        headers=[
            "Trials", "Failed", "Budget (images)", "Seconds", "Chosen", *titles.values(), "Images", "Grow",
        ],
        formats=["", "d", ",d", ",.0f", "d", ".1f", ".1f", ".2f", ",.0f", ""],
        values=[_row(each) for each in tuned],
    )  # fmt: skip


def _row(tuned: Tuned) -> list[Value]:
    chosen = tuned.chosen
    found = [] if chosen is None else [chosen.number, chosen.forgetting, chosen.retention, chosen.ties, chosen.images]
    return [
        Value(None, f"{len(tuned.trials)}/{tuned.of}"),
        Value(tuned.failed),
        Value(tuned.budget),
        Value(tuned.seconds),
        *([Value(number) for number in found] or [Value(None, "none")] * 5),
        Value(None, ", ".join(tuned.edges()) or "-"),
    ]


def counts(tuned: Sequence[Tuned]) -> list[int]:
    """Return the numbers of first trials that are compared: 1, 2, 4, ... and all."""
    most = max(each.of for each in tuned)
    return sorted({2**k for k in range(most.bit_length()) if 2**k <= most} | {most})


def _budget(board: Board, tuned: Sequence[Tuned]) -> Table:
    titles, columns = titles_of(board), counts(tuned)
    return Table(
        name="tuning-budget",
        title="Forgetting against the number of trials",
        caption=board.caption(
            f"{titles['forgetting']} of the trial that would have been chosen from the first ones alone; none where "
            f"none of them reaches the floor."
        ),
        corner="Method",
        rows=[each.title for each in tuned],
        groups=["Trials"] * len(columns),
        headers=[str(count) for count in columns],
        formats=[".1f"] * len(columns),
        values=[[_best(each, count) for count in columns] for each in tuned],
    )


def _best(tuned: Tuned, count: int) -> Value:
    best = tuned.best_of_first(count)
    return Value(best, "none")
