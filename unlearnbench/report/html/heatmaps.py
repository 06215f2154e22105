"""Heat maps: numbers on shaded cells, stronger where better."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.confusion import NOTHING, confusion_sides
from unlearnbench.report.data.shades import as_printed, span_of
from unlearnbench.report.data.values import Measure, Value, class_name, spell_number
from unlearnbench.report.figures.heatmaps import MOST_CONFUSIONS
from unlearnbench.report.html.grids import Header, about
from unlearnbench.report.tables.table import interval_text

MOST_CLASSES = 20  # of a confusion matrix


@dataclass(frozen=True)
class HeatmapCell:
    """One cell of a heat map."""

    text: str
    share: float | None  # 0 worst to 1 best; None where there is no number
    interval: str  # of 95 %; empty for none


@dataclass(frozen=True)
class Heatmap:
    """A metric per row and forget class."""

    title: str
    columns: list[Header]
    rows: list[tuple[str, list[HeatmapCell]]]
    stronger: str = "better"  # what a stronger colour says of a number


@dataclass(frozen=True)
class Verdicts:
    """The judge's confusion matrices of one row: for requested classes that were forgotten, and that were retained."""

    label: str
    sides: list[Heatmap]


def shares(numbers: Sequence[float | None], measure: Measure) -> list[float | None]:
    """Return how good numbers are within their colour scale, 0 to 1; better is more."""
    numbers = [as_printed(number, measure) for number in numbers]
    span = span_of(numbers, measure)

    def share(number: float | None) -> float | None:
        if span is None or number is None or not math.isfinite(number):
            return None
        found = span.share(number)
        return round(1 - found if measure.better == "lower" else found, 2)

    return [share(number) for number in numbers]


def class_heatmap(board: Board, measure: Measure) -> Heatmap:
    """Return a measure per row and forget class, and its mean over several."""
    several = len(board.targets) > 1
    found = {
        variant: [
            *[board.numbers.cell(variant, target, measure) for target in board.targets],
            *([board.numbers.mean(variant, measure)] if several else []),
        ]
        for variant in board.variants
    }
    mean = [Header("mean", about(measure, board.numbers))] if several else []
    good = iter(shares([value.number for values in found.values() for value in values], measure))
    rows = [
        (variant.label, [_shade(value, measure, next(good)) for value in values]) for variant, values in found.items()
    ]
    return Heatmap(
        f"{measure.header} per forget class",
        [*[Header(board.name_of(target)) for target in board.targets], *mean],
        rows,
        "larger" if measure.better == "neither" else "better",
    )


def attack_heatmap(board: Board) -> Heatmap | None:
    """Return what is still forgotten after each attack, over the classes that were attacked."""
    part = board.attacked
    if part is None:
        return None
    before = board.headline("forgetting")
    measures = [*([before] if before else []), *board.robustness]
    columns = [
        Header(measure.title + (" before" if measure == before else ""), about(measure, part)) for measure in measures
    ]
    rows = []
    for variant in part.rows:
        values = [part.mean(variant, measure) for measure in measures]
        shades = [
            _shade(value, measure, *shares([value.number], measure))
            for value, measure in zip(values, measures, strict=True)
        ]
        rows.append((variant.label, shades))
    return Heatmap("Forgotten (%) before and after each attack, mean over the classes attacked", columns, rows)


def _shade(value: Value, measure: Measure, good: float | None) -> HeatmapCell:
    number = value.word if value.number is None else spell_number(value.number, measure.format)
    return HeatmapCell(f"{number}{value.mark}{value.gap}", good, interval_text(value, measure.format).strip())


def verdicts(board: Board) -> list[Verdicts]:
    """Return the confusion matrices, of as many rows and classes as fit a page."""
    found = []
    for variant in board.variants[:MOST_CONFUSIONS]:
        sides = confusion_sides(board.numbers, variant)
        if sides is None or len(sides[0]) > MOST_CLASSES:
            continue
        names = [class_name(number, board.class_names) for number in range(len(sides[0]))]
        columns = [Header(name) for name in [*names, NOTHING]]
        titles = ("class to forget requested", "retained classes requested")
        matrices = [
            Heatmap(title, columns, [(asked, [_share(float(percent)) for percent in row])
                                  for asked, row in zip(names, side, strict=True) if not np.isnan(row).all()])
            for title, side in zip(titles, sides, strict=True)
        ]  # fmt: skip
        found.append(Verdicts(variant.label, matrices))
    return found


def _share(percent: float) -> HeatmapCell:
    known = percent == percent  # NaN where no sample was requested
    return HeatmapCell(
        f"{percent:.0f}" if known and percent >= 0.5 else "", round(percent / 100, 2) if known else None, ""
    )
