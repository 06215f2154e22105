"""Records as frames with every raw number, for a reader's own analysis."""

import pandas as pd

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.confusion import confusion_frame
from unlearnbench.report.data.cost import flops
from unlearnbench.store.records import Record


def frames(board: Board) -> dict[str, pd.DataFrame]:
    """Return every cell, and the judges' verdicts on its samples, for a reader's own analysis."""
    return {"cells": tidy_frame(board), "confusion": confusion_frame(board.ok_records)}


def tidy_frame(board: Board) -> pd.DataFrame:
    """Return one line per cell with every raw number, for a reader's own analysis."""
    lines = []
    for record in sorted(board.records, key=lambda r: (r.cell.method, r.cell.target, r.cell.seed, r.cell.id)):
        cell: dict[str, object] = {
            "cell_id": record.cell.id, "dataset": record.cell.dataset, "protocol": record.cell.protocol,
            "method": record.cell.method, "forget_class": record.cell.forget_class, "seed": record.cell.seed,
            "base_seed": record.cell.base_seed, "sampling_seed": record.cell.sampling_seed,
            "target": record.cell.target.label, "status": record.status,
        }  # fmt: skip
        disturbances = "; ".join(f"{found['phase']}: {found['what']}" for found in record.disturbances)
        metrics = {name: entry.get("value") for name, entry in record.metrics.items()}
        parts = (metrics, _phase_columns(record), _count_columns(record), _wall_columns(record))
        lines.append((cell, *parts, {"disturbances": disturbances}))
    columns = list(lines[0][0])
    for part in list(zip(*lines, strict=True))[1:]:  # one order, independent of the first cells' columns
        columns += sorted({name for found in part for name in found} - set(columns))
    merged = [{name: value for part in line for name, value in part.items()} for line in lines]
    return pd.DataFrame(merged, columns=columns, dtype=object)  # a count beside a gap stays a whole number


def _phase_columns(record: Record) -> dict[str, object]:
    """Return the cost of each phase; repeats are joined by spaces."""
    line: dict[str, object] = {}
    for phase, cost in record.cost.items():
        line |= {f"{phase}_{key}": cost[key] for key in ("seconds", "reused_seconds", "side_by_side") if key in cost}
        line |= {f"{phase}_{probe}_bytes": peak for probe, peak in cost.get("memory_bytes", {}).items()}
        growth = cost.get("memory_growth_bytes", {})
        line |= {f"{phase}_{probe}_growth_bytes": grown for probe, grown in growth.items()}
        if repeats := cost.get("repeats"):
            line[f"{phase}_repeats"] = " ".join(map(str, repeats))
    return line


def _count_columns(record: Record) -> dict[str, object]:
    line = {name: count for name, count in record.counts.items() if name != "drawn"}
    line |= {f"drawn_{stream}": count for stream, count in record.counts.get("drawn", {}).items()}
    return line if (work := flops(record)) is None else line | {"flops": work}


def _wall_columns(record: Record) -> dict[str, object]:
    outside = {f"outside_{name}_seconds": seconds for name, seconds in record.outside.items()}
    return {**outside, "wall_seconds": record.wall_seconds}
