"""The table of settings that are not a method's defaults."""

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.values import Value, variant_of
from unlearnbench.report.tables.table import Table


def settings_tables(board: Board) -> list[Table]:
    """Return the table of settings that are not the method's own defaults, which row labels may shorten."""
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
            caption=board.caption(
                "The defaults are the papers' values for CIFAR-10; each method's file says where they come from."
            ),
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
