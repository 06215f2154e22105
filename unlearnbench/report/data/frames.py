"""Records as one long, tidy frame, for a reader's own analysis."""

from collections.abc import Iterator
from typing import Any

import pandas as pd

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.values import variant_of
from unlearnbench.store.hashing import canonical_json
from unlearnbench.store.records import Record

COLUMNS = (
    "cell_id", "dataset", "protocol", "device", "method", "title", "role", "settings", "forget_class", "target", "seed",
    "base_seed", "sampling_seed", "status", "stale", "metric", "name", "shows", "value", "unit", "better", "n",
)  # fmt: skip


def long_frame(board: Board) -> pd.DataFrame:
    """Return one row per cell and metric or cost of a board, in `COLUMNS`: the numbers that its tables are made of.

    A cell without numbers, failed or stale, has one row with neither metric nor value, so that no gap is hidden; a
    metric without a value has NaN. Costs have the keys, titles and units of the report's tables, and no `n`.
    """
    rows = [{**_cell_columns(board, record), **numbers} for record, numbers in _numbers(board)]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype({"value": float, "n": "Int64"})


def _cell_columns(board: Board, record: Record) -> dict[str, Any]:
    cell, variant = record.cell, variant_of(record)
    return {
        "cell_id": cell.id, "dataset": cell.dataset, "protocol": cell.protocol,
        "device": record.provenance.get("device", {}).get("name"), "method": cell.method, "title": variant.label,
        "role": variant.role, "settings": canonical_json(dict(cell.settings)), "forget_class": cell.forget_class,
        "target": cell.target.label, "seed": cell.seed, "base_seed": cell.base_seed,
        "sampling_seed": cell.sampling_seed, "status": record.status, "stale": record.is_stale(board.source_hashes),
    }  # fmt: skip


def _numbers(board: Board) -> Iterator[tuple[Record, dict[str, Any]]]:
    """Yield each number of a board's records, whose costs have one unit each."""
    measures = list(dict.fromkeys([*board.cost.main, *board.cost.detailed]))
    for record in board.records:
        if record.cell.id not in board.ok_ids:
            yield record, {}
            continue
        for key, entry in record.metrics.items():
            kept = {name: entry[name] for name in ("shows", "value", "unit", "better", "n")}
            yield record, {"metric": key, "name": entry["title"], **kept}
        for measure in measures:
            number = board.cost.number(record, measure)
            if number is not None:
                yield record, {
                    "metric": measure.key, "name": measure.title, "shows": "cost", "value": number,
                    "unit": measure.unit, "better": measure.better,
                }  # fmt: skip
