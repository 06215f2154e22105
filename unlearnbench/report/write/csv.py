"""CSV of tables and frames, in which no text is a formula of a spreadsheet."""

import csv
import io
import re
from functools import lru_cache

import pandas as pd

from unlearnbench.errors import printable
from unlearnbench.report.tables.table import Table

ENDS = ("low", "high")  # of an interval


FORMULA = re.compile(r"[=+\-@\uff1d\uff0b\uff0d\uff20]")  # starts a formula in spreadsheets; full-width too


def to_csv(table: Table) -> str:
    """Return the table as CSV, numbers in full; intervals and marks have separate columns."""
    columns: list[tuple[str, list[object]]] = [(table.corner, list(table.rows))]
    for index, header in enumerate(table.flat_headers()):
        cells = [row[index] for row in table.values]
        columns.append((header, [_csv_word(cell.word) if cell.number is None else cell.number for cell in cells]))
        if any(cell.spread is not None for cell in cells):
            columns.append((f"{header} std", [cell.spread for cell in cells]))
        if any(cell.interval for cell in cells):
            columns += [(f"{header} {e}", [c.interval and c.interval[k] for c in cells]) for k, e in enumerate(ENDS)]
        if any(cell.best for cell in cells):
            columns.append((f"{header} best", [cell.best for cell in cells]))
        if any(cell.mark for cell in cells):
            columns.append((f"{header} disturbed cells", [cell.disturbed if cell.mark else 0 for cell in cells]))
    frame = pd.DataFrame({
        number: pd.Series(cells, dtype=object if None in cells else None) for number, (_, cells) in enumerate(columns)
    })  # fmt: skip
    return frame_to_csv(frame.set_axis([name for name, _ in columns], axis=1))


def frame_to_csv(frame: pd.DataFrame) -> str:
    """Return a frame as CSV in which no text is a formula of a spreadsheet."""
    columns = [column.astype(object).where(column.notna(), None).tolist() for _, column in frame.items()]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([csv_text(str(name)) for name in frame.columns])
    writer.writerows(
        zip(*([csv_text(c) if isinstance(c, str) else c for c in cells] for cells in columns), strict=True)
    )
    return file.getvalue()


@lru_cache(maxsize=2**16)  # many cells of a frame are alike
def csv_text(text: str) -> str:
    """Return text for a cell of a CSV file: in one line, and after an apostrophe where it would begin a formula."""
    flat = printable(text).replace("\n", " ").strip()
    return f"'{flat}" if FORMULA.match(flat) and not _is_number(flat) else flat


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _csv_word(word: str) -> str | None:
    """Return the word in place of a number; None where no cell was run."""
    return None if word == "-" else word
