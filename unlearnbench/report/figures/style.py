"""Shared by all figures: style, sizes, axes, ticks and legends."""

import math
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axis import Axis
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from unlearnbench.report.data.styles import Style
from unlearnbench.report.data.values import Measure, Variant

Canvas = Figure | SubFigure  # where a figure is drawn

DPI = 190
STYLE = {
    "font.family": "DejaVu Sans",  # bundled with matplotlib, so the same everywhere
    "pdf.fonttype": 42,  # embedded TrueType, which publishers ask for
    "figure.dpi": 100,
    "savefig.dpi": DPI,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.title_fontsize": 7,
    "axes.labelpad": 2,
    "xtick.major.pad": 1,
    "ytick.major.pad": 1,
    "axes.linewidth": 0.8,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar in a title is a dollar
}
COLUMN, PAGE, HIGHEST = 3.4, 7.0, 9.0  # inches: width of a paper's column and of its text, height of its text
LETTER, LINE = 0.058, 0.135  # inches: a letter's mean width and a line's height at 7 points
SMALL = 6  # points of the smallest words
SHORTEST, LONGEST = 8, 18  # letters that names of classes are cut to at the least, and at the most
PITCH = 0.085  # inches between lines of the smallest words
MOST_LETTERS = 64  # of a row's name
MOST_ROWS, MOST_LINES = 60, 34  # of a figure: more would be thinner than a line of text; of a legend
FEW = 14  # lines that one panel holds
LOWEST_POWER, HIGHEST_POWER = -307, 308  # of ten, that a number can hold
LIGHTEST, DARKEST = -0.5, 0.5  # shares of white and of black in the colours of lines of one method
LEAST_POINTS = 10.0  # that an axis of percentages spans


def set_style() -> None:
    """Set matplotlib's defaults to the style of the figures: fonts of 6 to 9 points at printed size."""
    import seaborn as sns  # takes a second to import, and only drawing needs it

    sns.set_theme(context="paper", style="whitegrid", rc=STYLE)


@contextmanager
def own_style() -> Iterator[None]:
    """Draw in the style of the reports inside; the user's matplotlib settings are restored."""
    with plt.style.context("default"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that the font lacks, for example, which show as boxes
        set_style()
        yield


def canvas(parent: Canvas | None, size: tuple[float, float], layout: str | None = "constrained") -> Canvas:
    """Return where to draw: the parent, or a new figure.

    Args:
        parent: a part of the caller's figure, which keeps its size and layout.
        size: width and height in inches of a new figure, limited to the height of a page.
        layout: its layout engine; None for none.
    """
    return plt.figure(figsize=(size[0], min(size[1], HIGHEST)), layout=layout) if parent is None else parent


def shorten(label: str, most: int = MOST_LETTERS) -> str:
    """Return a label of at most `most` characters; both ends stay, as swept settings differ at the end."""
    return label if len(label) <= most else f"{label[: most - most // 2 - 1]}…{label[len(label) - most // 2 :]}"


def fold(label: str, letters: int) -> str:
    """Return a label in two lines at most, each of about `letters` characters, a quarter more where words need it."""
    for text in (label, shorten(label, 2 * letters - 4)):
        for width in (letters, letters * 9 // 8, letters * 5 // 4):
            if len(lines := textwrap.wrap(text, width)) < 3:
                return "\n".join(lines)
    return shorten(label, letters)


def names_of(labels: Iterable[str]) -> tuple[list[str], float]:
    """Return rows' names for an axis of a page's width, folded where they are long, and the inches they take."""
    names = [fold(label, MOST_LETTERS // 2) for label in labels]
    return names, LETTER * max(len(line) for name in names for line in name.split("\n")) + 0.15


def without_method(labels: Sequence[str]) -> tuple[list[str], str]:
    """Return rows' names for a legend, and its title: the method of all rows with settings, if there is just one."""
    shared = [name for label in labels if (name := label.partition(" (")[0]) != label]
    if len(shared) < 2 or len(set(shared)) > 1:
        return list(labels), ""
    return [label.removeprefix(f"{shared[0]} (").removesuffix(")") for label in labels], shared[0]


def line_colours(rows: Sequence[Variant], styles: Mapping[str, Style]) -> dict[Variant, str]:
    """Return the colours of lines: each row's own, from light to dark where rows share a method."""
    groups: dict[str, list[Variant]] = {}
    for row in rows:
        groups.setdefault(row.method, []).append(row)
    found = {}
    for group in groups.values():
        for k, row in enumerate(group):
            share = LIGHTEST + (DARKEST - LIGHTEST) * k / (len(group) - 1) if len(group) > 1 else 0.0
            red, green, blue = ((1 - abs(share)) * part - min(share, 0.0) for part in to_rgb(styles[row.label].colour))
            found[row] = to_hex((red, green, blue))
    return found


@dataclass(frozen=True)
class ClassTicks:
    """Names of classes along an axis: those that fit, horizontal or vertical."""

    step: int
    names: list[str]
    upright: bool
    space: float  # inches that vertical names take

    def places(self, count: int) -> tuple[list[float], list[str]]:
        """Return the positions of names, in the middle of their classes, and the names."""
        return [k + 0.5 for k in range(0, count, self.step)], self.names[: count : self.step]


def class_ticks(names: Sequence[str], inches: float) -> ClassTicks:
    """Return the layout of class names along an axis: horizontal where all fit, otherwise vertical.

    Numbers stay horizontal; where they do not fit, some are left out.
    """
    shown = [shorten(name, LONGEST) for name in names]
    letters = max(map(len, shown), default=1)
    wide = LETTER * SMALL / 7 * (letters + 1)
    if letters <= len(str(len(names))) or wide * len(names) <= inches:
        return ClassTicks(max(1, math.ceil(wide * len(names) / inches)), shown, False, 0.0)
    return ClassTicks(max(1, math.ceil(PITCH * len(names) / inches)), shown, True, wide)


def legend_below(
    figure: Canvas, handles: Sequence[Any], labels: Sequence[str], width: float, title: str = "", size: float = 7
) -> None:
    """Put a legend below all panels, in as many columns as the width holds.

    Args:
        figure: to draw on.
        handles: the marks.
        labels: their words.
        width: in inches.
        title: above them.
        size: of the words in points.
    """
    shown, columns = _legend(labels, width, size)
    if len(shown) < len(labels):
        handles = [*handles[: len(shown) - 1], Line2D([], [], linestyle="none")]
    figure.legend(
        handles, shown, loc="outside lower center", ncols=columns, title=title or None, columnspacing=1.2,
        handletextpad=0.4, labelspacing=0.3, borderaxespad=0.2, fontsize=size,
    )  # fmt: skip


def _legend(labels: Sequence[str], width: float, size: float) -> tuple[list[str], int]:
    """Return the entries of a legend of at most MOST_LINES lines, and its number of columns."""
    letter = LETTER * size / 7
    shown = [shorten(label, int((width - 0.38) / letter)) for label in labels]
    columns = max(1, min(len(labels), int(width / (letter * max(map(len, shown), default=1) + 0.35))))
    if (more := len(shown) - MOST_LINES * columns) > 0:
        shown = [*shown[: -more - 1], f"{more + 1} more are in the tables"]
    return shown, columns


def legend_height(labels: Sequence[str], width: float, size: float = 7) -> float:
    """Return the height in inches of a legend below the panels, with its title."""
    shown, columns = _legend(labels, width, size)
    return LINE * size / 7 * (-(-len(shown) // columns) + 1) + 0.1


def is_wide(numbers: Iterable[float]) -> bool:
    """Say whether positive numbers span more than a decade, so that a linear axis would squeeze most rows together."""
    known = list(numbers)
    return bool(known) and min(known) > 0 and max(known) > 10 * min(known)


def set_log(axis: Axis) -> None:
    """Make an axis logarithmic, with plain numbers at 1, 2 and 5 of each decade."""
    (axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def set_scale(axis: Axis, numbers: Iterable[float], measure: Measure) -> None:
    """Make an axis logarithmic where its numbers need it; percentages never do."""
    if measure.unit != "%" and is_wide(numbers):
        set_log(axis)


def is_share(measure: Measure, numbers: Iterable[float]) -> bool:
    """Say whether numbers are percentages between 0 and 100."""
    return measure.unit == "%" and all(0 <= number <= 100 for number in numbers)


def limit_percentages(low: float, high: float) -> tuple[float, float]:
    """Return the limits of an axis of percentages: within 0 and 100, and ten points apart at least.

    Fewer points would let a tenth of one look large.
    """
    high = min(max(high, (low + high + LEAST_POINTS) / 2), 100.0)
    low = max(min(low, high - LEAST_POINTS), 0.0)
    return low, max(high, low + LEAST_POINTS)


def end_percentages(axis: Axis, measure: Measure) -> None:
    """Let an axis of percentages that is drawn on end at 0 and 100; marks there should not be clipped."""
    least, most = axis.get_data_interval()
    if is_share(measure, (least, most)):
        limits = limit_percentages(*sorted(axis.get_view_interval()))
        (axis.axes.set_xlim if axis is axis.axes.xaxis else axis.axes.set_ylim)(*limits)


def point_to_better(axis: Axis, measure: Measure) -> None:
    """Invert an axis when lower is better, so that better is always up and to the right."""
    if measure.better == "lower":
        axis.set_inverted(True)
