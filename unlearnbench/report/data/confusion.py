"""Confusion matrices from records: requested class against the judge's verdict."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from unlearnbench.report.data.array import Numbers
from unlearnbench.report.data.values import Variant, kept
from unlearnbench.store.records import Record

Matrix = NDArray[np.float64]
NOTHING = "no object"


@kept
def confusion_of(record: Record) -> Matrix | None:
    """Return a record's matrix: rows are requested classes, columns verdicts, the last one no object."""
    for entry in record.metrics.values():
        detail = entry.get("detail")
        if entry.get("value") is not None and isinstance(detail, Mapping) and detail.get("confusion") is not None:
            return np.asarray(detail["confusion"], dtype=float)
    return None


def confusion_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return every count that is not zero, one per line."""
    known = [(record.cell, matrix) for record in records if (matrix := confusion_of(record)) is not None]
    if not known:
        return pd.DataFrame()
    places = [np.argwhere(matrix) for _, matrix in known]
    asked, verdicts = np.concatenate(places).T
    nothing = np.repeat([len(matrix) for _, matrix in known], list(map(len, places)))
    of_cells = pd.DataFrame(
        [(cell.id, cell.method, cell.forget_class, cell.seed) for cell, _ in known],
        columns=["cell_id", "method", "forget_class", "seed"],
    )
    frame = of_cells.loc[of_cells.index.repeat(list(map(len, places)))].reset_index(drop=True)
    images = np.concatenate([matrix[matrix != 0] for _, matrix in known])
    return frame.assign(
        asked=asked, verdict=np.where(verdicts == nothing, NOTHING, verdicts.astype(object)), images=images.astype(int)
    )


def confusion_sides(numbers: Numbers, row: Variant) -> tuple[Matrix, Matrix] | None:
    """Return the shares in percent of verdicts where a row's class was forgotten, and where it was retained."""
    forgotten, retained = np.zeros(()), np.zeros(())
    for target in numbers.targets:
        found = [matrix for r in numbers.sound(row, target) if (matrix := confusion_of(r)) is not None]
        if found:
            counts = np.sum(found, axis=0)
            is_asked = np.arange(len(counts))[:, None] == target.classes[0]
            forgotten, retained = forgotten + np.where(is_asked, counts, 0), retained + np.where(is_asked, 0, counts)
    return (_shares(forgotten), _shares(retained)) if forgotten.ndim else None


def _shares(counts: Matrix) -> Matrix:
    """Return counts in percent of their rows; NaN in rows of classes that were not requested."""
    total = counts.sum(axis=1, keepdims=True)
    shares: Matrix = np.divide(100 * counts, total, out=np.full_like(counts, np.nan), where=total > 0)
    return shares
