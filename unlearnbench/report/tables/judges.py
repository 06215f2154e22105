"""The judges on images of the untouched model, per class asked for."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from unlearnbench.report.data.array import Numbers
from unlearnbench.report.data.board import Board
from unlearnbench.report.data.judges import AGREED, RECOGNISED, is_part
from unlearnbench.report.data.values import Measure, Value, Variant
from unlearnbench.report.tables.classes import class_label
from unlearnbench.report.tables.table import Table
from unlearnbench.store.cell import Target

BY_JUDGE, INSTEAD, BOTH = "Recognised by the judge of", "Seen instead", "Both judges"
WORDS = {
    BY_JUDGE: "the share in which a metric's judge recognises the class (100 % less the metric)",
    INSTEAD: "what is seen instead",
    BOTH: "the share on which judges of different kinds agree",
}  # of the groups of columns


def judges_tables(board: Board) -> list[Table]:
    """Return the table of what judges make of the untouched model's images; none where no record says."""
    numbers = board.untouched
    if numbers is None:
        return []
    measures = [measure for measure in numbers.measures if not np.isnan(numbers.of(measure)).all()]
    targets, several = numbers.targets, len(numbers.targets) > 1
    labels = [*[class_label(board, target) for target in targets], *(["mean"] if several else [])]
    shown = dict.fromkeys(WORDS[_group(measure)] for measure in measures)
    words = (
        f"Images of the untouched model, per class asked for [95 % interval]: {'; '.join(shown)}. On test images: "
        f"accuracy {board.test_accuracy or 'unknown'}. These are upper limits for the other tables: an image that is "
        "not recognised here would count as forgotten without any unlearning."
    )
    return [
        Table(
            name="judges",
            title="Judges on images of the untouched model",
            caption=board.caption(words, [], numbers),
            corner="Class",
            rows=[f"{row.label}: {label}" if len(numbers.rows) > 1 else label for row in numbers.rows
                  for label in labels],
            groups=["", *[_group(measure) for measure in measures]],
            headers=["Images", *[f"{measure.title} (%)" for measure in measures]],
            formats=["", *[measure.format for measure in measures]],
            values=[values for row in numbers.rows for values in _rows(numbers, row, measures, with_mean=several)],
            rules=tuple(k * len(labels) + len(targets) for k in range(len(numbers.rows))) if several else (),
        )
    ]  # fmt: skip


def _group(measure: Measure) -> str:
    if is_part(measure, RECOGNISED):
        return BY_JUDGE
    return BOTH if is_part(measure, AGREED) else INSTEAD


def _rows(numbers: Numbers, row: Variant, measures: Sequence[Measure], *, with_mean: bool) -> list[list[Value]]:
    """Return a line per class, and one of the means over them."""
    lines = [
        [_images(numbers, row, [target], measures), *[numbers.cell(row, target, measure) for measure in measures]]
        for target in numbers.targets
    ]
    if with_mean:
        means = [replace(numbers.mean(row, measure), spread=None) for measure in measures]
        lines.append([_images(numbers, row, numbers.targets, measures), *means])
    return lines


def _images(numbers: Numbers, row: Variant, targets: Sequence[Target], measures: Sequence[Measure]) -> Value:
    """Return the number of images of some classes; from the least to the greatest where measures differ in it."""
    counts = {sum(numbers.total_samples(row, target, measure) for target in targets) for measure in measures} - {0}
    ends = dict.fromkeys([min(counts), max(counts)]) if counts else ()
    return Value(None, " to ".join(map(str, ends)) or "-")
