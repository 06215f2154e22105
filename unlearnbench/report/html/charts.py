"""Geometry of the page's charts: positions of dots, lines and ticks, which the templates draw as SVG."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.ticker import LogLocator, MaxNLocator

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.curves import SIDES, Curve, attack_curves, mean_curve, mean_curves
from unlearnbench.report.data.values import Measure, Value, Variant, spell_number
from unlearnbench.report.figures.style import HIGHEST_POWER, LOWEST_POWER, is_share, is_wide, limit_percentages
from unlearnbench.report.tables.table import interval_text

MARGIN = (66, 32, 14, 50)  # left, top, right, bottom, in units of the drawing
MOST_DOTS = 2000  # of single classes in one chart
MOST_TICKS = 9  # of a logarithmic axis at 1, 2 and 5 of each decade; beyond, at 1 alone


@dataclass(frozen=True)
class Axis:
    """One axis: its label, and the positions of its ticks."""

    label: str
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class Dot:
    """A small mark, and its tooltip."""

    x: float
    y: float
    words: str


@dataclass(frozen=True)
class Mean(Dot):
    """The mark of a row's means."""

    label: str  # of the row
    bars: tuple[tuple[float, float], tuple[float, float]]  # ends of the intervals


@dataclass(frozen=True)
class Cloud:
    """A row's dots, of single classes."""

    label: str
    dots: list[Dot]


@dataclass(frozen=True)
class ChartLine(Cloud):
    """A row's path along the horizontal axis, with the dots on it."""

    is_dashed: bool

    @property
    def path(self) -> str:
        """The path, as SVG writes it."""
        return "M" + "L".join(f"{dot.x:g} {dot.y:g}" for dot in self.dots)


@dataclass(frozen=True)
class Chart:
    """A drawing of `width` x `height` units with two axes."""

    title: str
    words: str  # text alternative for screen readers
    width: int
    height: int
    x: Axis
    y: Axis
    dots: list[Mean]
    clouds: list[Cloud]
    lines: list[ChartLine]


class Scale:
    """From numbers of a measure to positions between two ends; better is always towards the second end."""

    def __init__(self, numbers: Iterable[float], measure: Measure, ends: tuple[float, float]) -> None:
        """Span the numbers, logarithmically where they need it; shares as the figures do."""
        known = list(numbers)
        low, high = min(known), max(known)
        self.is_log = measure.unit != "%" and is_wide(known)
        if self.is_log:
            low, high = math.log10(low), math.log10(high)
        margin = 0.04 * (high - low) or max(0.5, 1e-6 * abs(high))
        low, high = low - margin, high + margin
        if is_share(measure, known):
            low, high = limit_percentages(low, high)
        self._span = (high, low) if measure.better == "lower" else (low, high)
        self._ends, self._limits = ends, (low, high)

    def __call__(self, number: float) -> float:
        """Return a number's position, within the ends."""
        if self.is_log:
            number = math.log10(number) if number > 0 else -math.inf
        share = (number - self._span[0]) / (self._span[1] - self._span[0])
        return round(self._ends[0] + min(max(share, 0.0), 1.0) * (self._ends[1] - self._ends[0]), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Return positions and words of the ticks within the span."""
        low, high = self._limits
        if self.is_log:
            ends = 10.0 ** max(low, LOWEST_POWER), 10.0 ** min(high, HIGHEST_POWER)
            for subs in ((1.0, 2.0, 5.0), (1.0,)):
                steps = [math.log10(v) for v in LogLocator(subs=subs).tick_values(*ends) if v > 0]
                steps = [step for step in steps if low <= step <= high]
                if len(steps) <= MOST_TICKS:
                    break
            return [(self(10**step), f"{10**step:g}") for step in steps]
        ticks = MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
        return [(self(float(tick)), f"{tick:g}") for tick in ticks if low <= tick <= high]


def scatter(board: Board, x: Measure, y: Measure, title: str, *, width: int = 520, height: int = 470) -> Chart | None:
    """Return two measures of every row against each other: the mean with its intervals, and a dot per forget class.

    References have no comparable cost, so they are left out where an axis is one.
    """
    rows = [v for v in board.variants if v.role != "reference" or "cost" not in (x.aspect, y.aspect)]
    means = {v: (board.numbers.mean(v, x), board.numbers.mean(v, y)) for v in rows}
    means = {v: pair for v, pair in means.items() if None not in (pair[0].number, pair[1].number)}
    if not means:
        return None
    singles = {
        variant: [
            (board.name_of(target), a, b) for target in board.targets
            if None not in ((a := board.numbers.cell(variant, target, x, interval=False)).number,
                            (b := board.numbers.cell(variant, target, y, interval=False)).number)
        ] for variant in means
    }  # fmt: skip
    if len(board.targets) == 1 or sum(map(len, singles.values())) > MOST_DOTS:
        singles = {}
    pairs = [*means.values(), *((a, b) for found in singles.values() for _, a, b in found)]
    left, top, right, bottom = MARGIN
    across = Scale(_reach([pair[0] for pair in pairs]), x, (left, width - right))
    up = Scale(_reach([pair[1] for pair in pairs]), y, (height - bottom, top))
    clouds = [
        Cloud(variant.label, [
            Dot(across(_number(a)), up(_number(b)), f"{variant.label}, class {name}: {_say(x, a)}; {_say(y, b)}")
            for name, a, b in found
        ])
        for variant, found in singles.items()
    ]  # fmt: skip
    dots = [
        Mean(across(_number(a)), up(_number(b)), f"{variant.label}: {_say(x, a)}; {_say(y, b)}", variant.label,
             (_ends(across, a), _ends(up, b)))
        for variant, (a, b) in means.items()
    ]  # fmt: skip
    words = f"{title}. {len(means)} rows, {x.header} across and {y.header} upwards; better is up and to the right."
    axes = Axis(x.header, across.ticks()), Axis(y.header, up.ticks())
    return Chart(title, words, width, height, *axes, dots, clouds, [])


def relearning(board: Board) -> list[Chart]:
    """Return a chart per attack that has steps: what is forgotten along them, a line per row."""
    part = board.attacked
    curves = {} if part is None else attack_curves(part, board.robustness)
    return [_relearning_chart(measure, rows) for measure, rows in curves.items()]


def _relearning_chart(measure: Measure, rows: dict[Variant, dict[Any, Curve]]) -> Chart:
    width, height = 330, 300
    left, top, right, bottom = MARGIN
    means = {variant: mean_curve(found) for variant, found in rows.items()}
    last = max(steps[-1] for steps, _ in means.values())
    across = Scale([0, last], Measure("", "", "", "higher", "", ""), (left, width - right))
    up = Scale([0, 100], Measure("", "", "%", "higher", "", ""), (height - bottom, top))
    lines = [
        ChartLine(
            variant.label,
            [
                Dot(across(step), up(share), f"{variant.label}, {step} steps: {share:.1f}%")
                for step, share in zip(*curve, strict=True)
            ],
            variant.role == "gold",
        )
        for variant, curve in means.items()
    ]  # fmt: skip
    words = f"{measure.title}: percent still forgotten along the steps of fine-tuning, {len(lines)} rows."
    axes = Axis("steps", across.ticks()), Axis("forgotten (%)", up.ticks())
    return Chart(measure.title, words, width, height, *axes, [], [], lines)


def losses(board: Board) -> list[Chart]:
    """Return the denoising loss by timestep on the forget class and on retained classes, a line per row."""
    curves = mean_curves(board.numbers)
    if not curves:
        return []
    edges = next(iter(curves.values()))[0].edges
    every = [1.0, *(y for curve, _ in curves.values() for side in SIDES for y in getattr(curve, side))]
    plain = Measure("", "", "", "higher", "", "")
    width, height = 520, 400
    left, top, right, bottom = MARGIN
    across = Scale([edges[0], edges[-1]], plain, (left, width - right))
    up = Scale([y for y in every if math.isfinite(y)], plain, (height - bottom, top))
    centres = [(a + b) / 2 for a, b in pairwise(edges)]
    axes = Axis("timestep (bin centre)", across.ticks()), Axis("loss per pixel", up.ticks())
    charts = []
    for side, words in SIDES.items():
        lines = [
            ChartLine(variant.label, [
                Dot(across(centre), up(y), f"{variant.label}{_gap(board, count)}, timestep {centre:g}: {y:.3g}")
                for centre, y in zip(centres, getattr(curve, side).tolist(), strict=True) if math.isfinite(y)
            ], not variant.competes)
            for variant, (curve, count) in curves.items()
        ]  # fmt: skip
        alternative = f"Denoising loss of the {words} by timestep, {len(lines)} rows."
        charts.append(Chart(f"On the {words}", alternative, width, height, *axes, [], [], lines))
    return charts


def _gap(board: Board, count: int) -> str:
    return Value(0.0, ok=count, expected=board.numbers.expected).gap


def _number(value: Value) -> float:
    return float(value.number or 0.0)


def _reach(values: Sequence[Value]) -> list[float]:
    """Return numbers and interval ends; ends that are not positive are left out where all numbers are."""
    numbers = [_number(value) for value in values]
    ends = [end for value in values for end in value.interval or ()]
    return numbers + [end for end in ends if end > 0 or min(numbers) <= 0]


def _ends(scale: Scale, value: Value) -> tuple[float, float]:
    low, high = value.interval or (_number(value), _number(value))
    return scale(low), scale(high)


def _say(measure: Measure, value: Value) -> str:
    """Return a value in words: title, number, unit, interval, gaps."""
    unit = f" {measure.unit}".replace(" %", "%") if measure.unit else ""
    inside = interval_text(value, measure.format)
    return f"{measure.title} {spell_number(_number(value), measure.format)}{unit}{inside}{value.gap}{value.mark}"
