"""The colour scale of a metric in heat maps, of the figures and of the page."""

import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass

from unlearnbench.report.data.values import Measure, spell_number

LEAST_FACTOR = 4.0  # between the ends of a scale, so that a small difference is a small step of colour


@dataclass(frozen=True)
class Span:
    """The ends of a colour scale, and whether equal factors are equal steps between them."""

    low: float
    high: float
    is_log: bool

    def share(self, number: float) -> float:
        """Return a number's place from the lower end, 0, to the upper one, 1."""
        low, high, place = (math.log(x) if self.is_log else x for x in (self.low, self.high, number))
        return (place - low) / (high - low)


def as_printed(number: float | None, measure: Measure) -> float | None:
    """Return a number as its cell shows it, so that cells of one text have one colour."""
    return None if number is None else float(spell_number(number, measure.format).replace(",", ""))


def span_of(numbers: Iterable[float | None], measure: Measure) -> Span | None:
    """Return the colour scale of a measure's numbers; None where there are none.

    Percentages span 0 to 100, positive numbers at least a factor of four, and others at least three quarters of the
    largest.
    """
    known = [number for number in numbers if number is not None and math.isfinite(number)]
    if not known:
        return None
    low, high = min(known), max(known)
    if measure.unit == "%" and low >= 0 and high <= 100:
        return Span(0.0, 100.0, is_log=False)
    if low > 0:
        wider = max(math.sqrt(LEAST_FACTOR * low / high), 1.0)
        least, most = math.ulp(0.0), sys.float_info.max  # that a number can be
        return Span(max(low / wider, least), min(high * wider, most), is_log=True)
    room = max(abs(low), abs(high)) * (1 - 1 / LEAST_FACTOR) or 1.0
    wider = max(room - (high - low), 0.0) / 2
    return Span(low - wider, high + wider, is_log=False)
