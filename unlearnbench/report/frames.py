"""Records as one long, tidy frame, for a reader's own analysis."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pandas as pd

from unlearnbench.hashing import canonical_json
from unlearnbench.report.cost import Costs
from unlearnbench.report.values import variant_of
from unlearnbench.results import Record

COLUMNS = (
    "cell_id", "dataset", "protocol", "device", "method", "title", "role", "settings", "forget_class", "target", "seed",
    "base_seed", "sampling_seed", "status", "stale", "metric", "name", "shows", "value", "unit", "better", "n",
)  # fmt: skip


def long_frame(records: Iterable[Record], source_hashes: Mapping[str, str]) -> pd.DataFrame:
    """Return one row per cell and metric or cost, in `COLUMNS`.

    A cell without numbers has one row with neither metric nor value, so that no gap is hidden; a metric without a value
    has NaN. Costs have the keys, titles and units of the report's tables, and no `n`.

    Args:
        records: of any datasets.
        source_hashes: of the plugins as they are, to mark stale records.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        groups.setdefault((record.cell.dataset, record.cell.protocol, *record.device_model), []).append(record)
    rows = [
        {**_cell_columns(record, source_hashes), **numbers}
        for group in groups.values()
        for record, numbers in _numbers(group)
    ]
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return frame.astype({"value": float, "n": "Int64"})


def _cell_columns(record: Record, source_hashes: Mapping[str, str]) -> dict[str, Any]:
    cell, variant = record.cell, variant_of(record)
    return {
        "cell_id": cell.id, "dataset": cell.dataset, "protocol": cell.protocol,
        "device": record.provenance.get("device", {}).get("name"), "method": cell.method, "title": variant.label,
        "role": variant.role, "settings": canonical_json(dict(cell.settings)), "forget_class": cell.forget_class,
        "target": cell.target.label, "seed": cell.seed, "base_seed": cell.base_seed,
        "sampling_seed": cell.sampling_seed, "status": record.status, "stale": record.is_stale(source_hashes),
    }  # fmt: skip


def _numbers(records: list[Record]) -> Iterator[tuple[Record, dict[str, Any]]]:
    """Yield each number of records of one dataset, protocol and device, whose costs have one unit each."""
    costs = Costs([record for record in records if record.status == "ok"])
    measures = list(dict.fromkeys([*costs.main, *costs.detailed]))
    for record in records:
        if record.status != "ok":
            yield record, {}
            continue
        for key, entry in record.metrics.items():
            kept = {name: entry[name] for name in ("shows", "value", "unit", "better", "n")}
            yield record, {"metric": key, "name": entry["title"], **kept}
        for measure in measures:
            number = costs.number(record, measure)
            if number is not None:
                yield record, {
                    "metric": measure.key, "name": measure.title, "shows": "cost", "value": number,
                    "unit": measure.unit, "better": measure.better,
                }  # fmt: skip
