"""Confusion matrices from records: requested class against the judge's verdict."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unlearnbench.report.data.array import Numbers
from unlearnbench.report.data.values import Variant
from unlearnbench.store.records import Record

Matrix = NDArray[np.float64]
NOTHING = "no object"


def confusion_of(record: Record) -> Matrix | None:
    """Return a record's matrix: rows are requested classes, columns verdicts, the last one no object."""
    for entry in record.metrics.values():
        detail = entry.get("detail")
        if entry.get("value") is not None and isinstance(detail, Mapping) and detail.get("confusion") is not None:
            return np.asarray(detail["confusion"], dtype=float)
    return None


def confusion_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return every count that is not zero, one per line."""
    lines: list[dict[str, Any]] = []
    for record in records:
        cell, matrix = record.cell, confusion_of(record)
        if matrix is None:
            continue
        of_cell = {
            "cell_id": cell.id, "method": cell.method, "forget_class": cell.forget_class, "seed": cell.seed,
        }  # fmt: skip
        for asked, row in enumerate(matrix.tolist()):
            lines += [
                {**of_cell, "asked": asked, "verdict": NOTHING if k == len(matrix) else k, "images": int(images)}
                for k, images in enumerate(row) if images
            ]  # fmt: skip
    return pd.DataFrame(lines)


def confusion_sides(numbers: Numbers, row: Variant) -> tuple[Matrix, Matrix] | None:
    """Return the shares in percent of verdicts where a row's class was forgotten, and where it was retained."""
    forgotten: dict[int, list[Matrix]] = {}
    retained: dict[int, list[Matrix]] = {}
    size = 0
    for target in numbers.targets:
        for matrix in [found for record in numbers.sound(row, target) if (found := confusion_of(record)) is not None]:
            size = len(matrix)
            for asked, counts in enumerate(matrix):
                if not counts.sum():
                    continue  # forgotten earlier or together with another class: not requested
                (forgotten if asked == target.classes[0] else retained).setdefault(asked, []).append(counts)
    if not size:
        return None
    empty = np.full(size + 1, np.nan)

    def filled(side: dict[int, list[Matrix]]) -> Matrix:
        return np.array([_shares(side[asked]) if asked in side else empty for asked in range(size)])

    return filled(forgotten), filled(retained)


def _shares(counts: list[Matrix]) -> Matrix:
    total = np.sum(counts, axis=0)
    shares: Matrix = 100 * total / max(total.sum(), 1)
    return shares
