"""Figures, each a function from a board to a matplotlib figure; one colour per variant everywhere."""

import base64
import math
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray
from PIL import Image

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.confusion import Matrix, confusion_sides
from unlearnbench.report.data.cost import PHASES
from unlearnbench.report.data.front import axes_of, front, places, undominated
from unlearnbench.report.data.styles import COLOURS
from unlearnbench.report.data.values import Measure, Value, Variant, class_name, spell_number
from unlearnbench.store.cell import Target
from unlearnbench.store.pictures import open_png
from unlearnbench.store.records import Record

Canvas = Figure | SubFigure  # where a figure is drawn

DPI = 190
STYLE = {
    "font.family": "DejaVu Sans",  # which matplotlib brings along: the same letters everywhere
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
MOST_STRIP_PIXELS = 2**21
LOWEST_POWER, HIGHEST_POWER = -307, 308  # of ten, that a number can hold
IMAGE_INCHES = (0.2, 0.42)  # least and most of a picture's side
PHASE_COLOURS = ("prior", "forget", "sample", "judge", "warmup", "attack")  # one colour each, whichever there are
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of red, green and blue (ITU-R BT.709)
PANELS_ACROSS = 7  # of confusions
MOST_CONFUSIONS = 21  # rows with confusions in one figure
HEATMAPS_ACROSS = 2  # panels side by side
MOST_WRITTEN = 14  # forget classes whose numbers are written into a heat map
LEAST_POINTS = 10.0  # that an axis of percentages spans
GREY = (0.72, 0.72, 0.72)
PAIRS = ((1, 0), (2, 0), (2, 1))  # panels of the fronts: retention and forgetting, cost and both
SAMPLES_PER_CLASS = 2  # images of each forget class in the overview
MOST_CLASSES_PICTURED = 10  # in the overview


def set_style() -> None:
    """Make the look of all figures matplotlib's own: letters of 6 to 9 points at the size a paper prints them."""
    import seaborn as sns  # takes a second, and only what draws needs it

    sns.set_theme(context="paper", style="whitegrid", rc=STYLE)


@contextmanager
def own_style() -> Iterator[None]:
    """Draw in the look of the reports within, whatever the user set for figures of their own, which stays as it is."""
    with plt.style.context("default"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font lacks, say, which a box stands for
        set_style()
        yield


def canvas(parent: Canvas | None, size: tuple[float, float], layout: str | None = "constrained") -> Canvas:
    """Return where to draw: the parent as it is, or without one a figure of its own.

    Args:
        parent: a part of somebody's figure, whose size and layout are theirs.
        size: width and height in inches of a figure of its own; it never grows higher than a page.
        layout: its layout engine; None for none.
    """
    return plt.figure(figsize=(size[0], min(size[1], HIGHEST)), layout=layout) if parent is None else parent


def shorten(label: str, most: int = MOST_LETTERS) -> str:
    """Return a label of at most so many letters; both ends stay, as swept settings differ in the last ones."""
    return label if len(label) <= most else f"{label[: most - most // 2 - 1]}…{label[len(label) - most // 2 :]}"


def fold(label: str, letters: int) -> str:
    """Return a label in two lines at most, each of about so many letters."""
    lines = textwrap.wrap(shorten(label, 2 * letters - 4), letters)
    return "\n".join(lines[:2] if len(lines) < 3 else [shorten(label, letters)])


def names_of(labels: Iterable[str]) -> tuple[list[str], float]:
    """Return rows' names for an axis of a page's width, folded where they are long, and the inches they take."""
    names = [fold(label, MOST_LETTERS // 2) for label in labels]
    return names, LETTER * max(len(line) for name in names for line in name.split("\n")) + 0.15


@dataclass(frozen=True)
class ClassTicks:
    """Names of classes along an axis: which ones there is room for, level or upright."""

    step: int
    names: list[str]
    upright: bool
    room: float  # inches that upright names take

    def places(self, count: int) -> tuple[list[float], list[str]]:
        """Return where names stand, in the middle of their classes, and the names."""
        return [k + 0.5 for k in range(0, count, self.step)], self.names[: count : self.step]


def class_ticks(names: Sequence[str], inches: float) -> ClassTicks:
    """Return how to write names of classes along so many inches: level where all fit, otherwise upright.

    Numbers stay level, and fewer of them are written.
    """
    shown = [shorten(name, LONGEST) for name in names]
    letters = max(map(len, shown), default=1)
    wide = LETTER * SMALL / 7 * (letters + 1)
    if letters <= len(str(len(names))) or wide * len(names) <= inches:
        return ClassTicks(max(1, math.ceil(wide * len(names) / inches)), shown, False, 0.0)
    return ClassTicks(max(1, math.ceil(PITCH * len(names) / inches)), shown, True, wide)


def legend_below(figure: Canvas, handles: Sequence[Any], labels: Sequence[str], width: float, title: str = "") -> None:
    """Put a legend below all panels, in as many columns as the width holds."""
    shown, columns = _legend(labels, width)
    if len(shown) < len(labels):
        handles = [*handles[: len(shown) - 1], Line2D([], [], linestyle="none")]
    figure.legend(
        handles, shown, loc="outside lower center", ncols=columns, title=title or None, columnspacing=1.2,
        handletextpad=0.4, labelspacing=0.3, borderaxespad=0.2,
    )  # fmt: skip


def _legend(labels: Sequence[str], width: float) -> tuple[list[str], int]:
    """Return what a legend shows, of at most MOST_LINES lines, and its number of columns."""
    shown = [shorten(label, int((width - 0.38) / LETTER)) for label in labels]
    columns = max(1, min(len(labels), int(width / (LETTER * max(map(len, shown), default=1) + 0.35))))
    if (more := len(shown) - MOST_LINES * columns) > 0:
        shown = [*shown[: -more - 1], f"{more + 1} more are in the tables"]
    return shown, columns


def legend_height(labels: Sequence[str], width: float) -> float:
    """Return the height in inches of a legend below the panels, with its title."""
    shown, columns = _legend(labels, width)
    return LINE * (-(-len(shown) // columns) + 1) + 0.1


def is_wide(numbers: Iterable[float]) -> bool:
    """Say whether positive numbers span more than a decade, so that one far row would press the others together."""
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


def widen(axis: Axis, measure: Measure) -> None:
    """Let an axis of percentages span ten points at least, so that a tenth of one is no gulf."""
    low, high = axis.get_view_interval()
    if measure.unit == "%" and high - low < LEAST_POINTS and high < 106:
        high = min(max((low + high + LEAST_POINTS) / 2, high), 100.5)
        axis.set_view_interval(high - LEAST_POINTS, high, ignore=True)


def point_to_better(axis: Axis, measure: Measure) -> None:
    """Turn an axis round when lower is better: better is always up and to the right."""
    if measure.better == "lower":
        axis.set_inverted(True)


def tradeoff(board: Board, parent: Canvas | None = None) -> Canvas | None:
    """Forgetting against retention with run time as size: a dot per forget class, a ringed mark for the mean."""
    forgetting, retention = board.headline("forgetting"), board.headline("retention")
    if forgetting is None or retention is None:
        return None
    total = next(measure for measure in board.costs if measure.key == "total")
    means = {v: [board.bare_mean(v, m) for m in (retention, forgetting, total)] for v in board.variants}
    means = {v: values for v, values in means.items() if all(value.number is not None for value in values)}
    if not means:
        return None
    labels = [_tradeoff_label(variant, values, total) for variant, values in means.items()]
    width = COLUMN if max(map(len, labels)) < 0.8 * MOST_LETTERS else PAGE
    figure = canvas(parent, (width, 2.5 + legend_height(labels, width)))
    axes = figure.subplots()
    dots = [
        (x, y, board.looks[variant.label].colour)
        for variant in means for target in board.targets
        if (x := board.bare(variant, target, retention).number) is not None
        and (y := board.bare(variant, target, forgetting).number) is not None
    ]  # fmt: skip
    xs, ys, costs = ([float(values[k].number or 0.0) for values in means.values()] for k in range(3))
    if dots:
        every_x, every_y, colours = zip(*dots, strict=True)
        axes.scatter(every_x, every_y, s=7, alpha=0.45, c=colours, linewidths=0)
    handles = []
    for variant, x, y, cost in zip(means, xs, ys, costs, strict=True):
        look = board.looks[variant.label]
        dress: dict[str, Any] = {"c": look.colour, "marker": look.shape, "edgecolors": "black", "linewidths": 0.6}
        size = 26 + 120 * cost / max(*costs, 1e-9)
        axes.scatter([x], [y], s=size, zorder=3, label=variant.label, **dress)
        handles.append(axes.scatter([], [], s=26, **dress))
    axes.set_xlabel(f"{retention.header}, {retention.shows}")
    axes.set_ylabel(f"{forgetting.header}, {forgetting.shows}")
    for axis, measure, means_of, singles in (
        (axes.xaxis, retention, xs, [x for x, *_ in dots]),
        (axes.yaxis, forgetting, ys, [y for _, y, _ in dots]),
    ):
        set_scale(axis, [*means_of, *singles], measure)
        point_to_better(axis, measure)
    legend_below(figure, handles, labels, width, "RTE with priors (size)")
    return figure


def _tradeoff_label(variant: Variant, values: Sequence[Value], total: Measure) -> str:
    """Return a row's name with its cost, and over how few cells the least complete of its numbers is."""
    least = min(values, key=lambda value: value.ok / max(value.expected, 1))
    return f"{variant.label} ({spell_number(values[2].number or 0.0, '.1f')} {total.unit}){least.gap}"


def pareto(board: Board, parent: Canvas | None = None) -> Canvas | None:
    """Draw the three pairs of axes with intervals, the front of each pair as steps, dominated methods grey."""
    found, best, measures = places(board), undominated(board), axes_of(board)
    if len(found) < 2:
        return None
    figure = canvas(parent, (PAGE, 2.2 + legend_height([variant.label for variant in found], PAGE)))
    panels = figure.subplots(1, len(PAIRS))
    for panel, (x, y) in zip(panels, PAIRS, strict=True):
        _draw_steps(panel, [(values[x], values[y]) for values in found.values()], measures[x], measures[y])
        for variant, values in found.items():
            look = board.looks[variant.label]
            colour = look.colour if variant in best else GREY
            _draw_point(panel, values[x], values[y], colour, look.shape, variant.label)
        for axis, k in ((panel.xaxis, x), (panel.yaxis, y)):
            set_scale(axis, [float(values[k].number or 0.0) for values in found.values()], measures[k])
            widen(axis, measures[k])
            point_to_better(axis, measures[k])
            axis.set_label_text(measures[k].header)
    handles, labels = panels[0].get_legend_handles_labels()
    legend_below(figure, handles, labels, PAGE)
    return figure


def _draw_point(panel: Axes, x: Value, y: Value, colour: Any, shape: str, label: str) -> None:
    def reach(value: Value) -> list[list[float]] | None:
        if value.interval is None or value.number is None:
            return None
        return [[max(value.number - value.interval[0], 0.0)], [max(value.interval[1] - value.number, 0.0)]]

    panel.errorbar(
        [float(x.number or 0.0)], [float(y.number or 0.0)], xerr=reach(x), yerr=reach(y), fmt=shape, color=colour,
        markersize=4.5, capsize=1.5, elinewidth=0.8, label=label,
    )  # fmt: skip


def _draw_steps(panel: Axes, points: Sequence[tuple[Value, Value]], x: Measure, y: Measure) -> None:
    """Draw the front of two axes as the border of what its methods reach."""
    signs = [-1 if measure.better == "lower" else 1 for measure in (x, y)]
    places = {
        k: (signs[0] * float(a.number or 0.0), signs[1] * float(b.number or 0.0)) for k, (a, b) in enumerate(points)
    }
    ends = sorted(places[k] for k in front(places))
    panel.step(
        [signs[0] * a for a, _ in ends], [signs[1] * b for _, b in ends], where="pre", color="black", lw=0.8, ls=":",
        zorder=0,
    )  # fmt: skip


def heatmaps(board: Board, parent: Canvas | None = None) -> Canvas | None:
    """One panel per headline metric: methods down, forget classes across; words where there is no number.

    As many as a page holds; the HTML page has one of every metric.
    """
    rows = board.variants[:MOST_ROWS]
    across = HEATMAPS_ACROSS if len(board.targets) <= MOST_WRITTEN else 1
    names, left = names_of(variant.label for variant in rows)
    ticks = class_ticks([board.name_of(target) for target in board.targets], (PAGE - left) / across - 0.1)
    line = 0.135 if len(rows) <= MOST_WRITTEN and not any("\n" in name for name in names) else 0.2
    height = min(line * len(rows), HIGHEST - 0.7 - ticks.room) + 0.5 + ticks.room
    measures = board.headlines[: across * int(max(1, (HIGHEST - 0.1) // height))]
    if not measures:
        return None
    lines = -(-len(measures) // across)
    figure = canvas(parent, (PAGE, lines * height + 0.1))
    grid = figure.subplots(lines, across, squeeze=False, sharey=True)
    for axes, measure in zip(grid.flat, measures, strict=False):
        _draw_heatmap(axes, board, rows, measure, ticks)
    for axes in list(grid.flat)[len(measures) :]:
        axes.set_visible(False)
    grid[0][0].set_yticks(np.arange(len(rows)) + 0.5, names)
    return figure


def _draw_heatmap(axes: Axes, board: Board, rows: Sequence[Variant], measure: Measure, ticks: ClassTicks) -> None:
    values = [[board.value(variant, t, measure) for t in board.targets] for variant in rows]
    numbers = np.array([[np.nan if v.number is None else v.number for v in row] for row in values])
    written = len(board.targets) <= MOST_WRITTEN and len(rows) <= MOST_ROWS // 2
    texts = [[_short(value, measure) for value in row] for row in values] if written else []
    limits: dict[str, Any] = {}
    if measure.unit == "%" and not np.any((numbers < 0) | (numbers > 100)):
        limits = {"vmin": 0, "vmax": 100}  # a point of accuracy is no rainbow
    elif is_wide(numbers[np.isfinite(numbers)]):
        limits = {"norm": LogNorm(np.nanmin(numbers), np.nanmax(numbers))}
    mesh = _draw_matrix(
        axes, numbers, texts, size=SMALL - 0.5 if len(board.targets) > 8 else SMALL,
        cmap="viridis" if measure.better == "higher" else "viridis_r", **limits,
    )  # fmt: skip
    if not texts:
        axes.figure.colorbar(mesh, ax=axes, fraction=0.03, pad=0.01)
    axes.set_xticks(*ticks.places(len(board.targets)), rotation=90 if ticks.upright else 0)
    axes.set_title(measure.header, pad=3)
    axes.tick_params(axis="x", labelsize=SMALL, pad=1)


def _short(value: Value, measure: Measure) -> str:
    """Return a number in five letters or so, and below it of how many cells, or the word that stands for it."""
    if value.number is None:
        return value.word
    text = spell_number(value.number, measure.format)
    return f"{text if len(text) <= 5 else f'{value.number:.3g}'}{value.gap.replace(' ', chr(10))}"


def _draw_matrix(
    axes: Axes, numbers: Matrix, texts: Sequence[Sequence[str]], *, size: float, **colouring: Any
) -> QuadMesh:
    """Draw numbers as coloured cells with words in them; seaborn's heatmap would draw the whole figure for each panel.

    Args:
        axes: to draw on.
        numbers: (rows, columns); NaN stays white.
        texts: the words, likewise; empty for none.
        size: of the words, in points.
        **colouring: of `Axes.pcolormesh`.
    """
    height, width = numbers.shape
    edge: dict[str, Any] = {"edgecolors": "white", "linewidth": 0.4} if texts else {}
    mesh = axes.pcolormesh(np.ma.masked_invalid(numbers), **edge, **colouring)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.grid(visible=False)
    shades = mesh.to_rgba(np.ma.masked_invalid(numbers))[..., :3] @ LUMINANCE
    for row, words in enumerate(texts):
        for column, word in enumerate(words):
            dark = np.isfinite(numbers[row, column]) and shades[row, column] < 0.45
            ink = "white" if dark else "black"
            if word:
                text = axes.text(column + 0.5, row + 0.5, word, ha="center", va="center", fontsize=size, color=ink)
                text.set_in_layout(False)  # a thousand of them would take the layout seconds
    return mesh


def confusion(board: Board, parent: Canvas | None = None) -> Canvas | None:
    """Two matrices per variant: verdicts on samples of the forgotten class, and on samples of retained classes."""
    rows = ((variant, confusion_sides(board, variant)) for variant in board.variants)
    found = dict(islice(((variant, sides) for variant, sides in rows if sides is not None), MOST_CONFUSIONS))
    if not found:
        return None
    classes = next(iter(found.values()))[0].shape[0]
    columns = min(len(found), PANELS_ACROSS)
    names = [class_name(number, board.class_names) for number in range(classes)]
    longest = LETTER * SMALL / 7 * min(max(map(len, names)), LONGEST)
    side = min((PAGE - 0.9 - longest) / columns, 2.2)
    across, down = class_ticks([*names, "x"], side), max(1, math.ceil(PITCH * classes / side))
    blocks = -(-len(found) // columns)
    figure = canvas(parent, (columns * side + 0.9 + longest, blocks * (2 * side + 0.35) + 0.3 + across.room))
    grid = figure.subplots(2 * blocks, columns, squeeze=False, sharex=True, sharey=True)
    for axes in grid[-2:, len(found) - columns * (blocks - 1) :].flat:
        axes.set_visible(False)
    words = side / (classes + 1) > 0.17  # inches: less holds no number
    mesh = None
    for place, (variant, matrices) in enumerate(found.items()):
        pair = grid[2 * (place // columns) :, place % columns][:2]
        for axes, matrix in zip(pair, matrices, strict=True):
            texts = [["" if not x >= 0.5 else f"{x:.0f}" for x in row] for row in matrix] if words else []
            mesh = _draw_matrix(axes, matrix, texts, size=SMALL, cmap="Blues", vmin=0, vmax=100)
            axes.set_aspect("equal")
            axes.tick_params(labelsize=SMALL, pad=0)
        pair[0].set_title(fold(variant.label, max(8, int(side / LETTER))), fontsize=SMALL + 1, pad=2)
    places, shown = across.places(classes)
    for axes in grid.flat:
        axes.set_xticks([*places, classes + 0.5], [*shown, "x"], rotation=90 if across.upright else 0)
    grid[0][0].set_yticks([k + 0.5 for k in range(0, classes, down)], across.names[:classes:down])
    for k, axes in enumerate(grid[:, 0]):
        axes.set_ylabel("others asked for" if k % 2 else "forgotten, asked for", fontsize=SMALL + 1)
    figure.supxlabel("verdict (x: no object)", fontsize=SMALL + 1)
    if mesh is not None and not words:
        figure.colorbar(mesh, ax=grid, fraction=0.02, pad=0.01, aspect=40, label="%")
    return figure


def phases(board: Board, parent: Canvas | None = None) -> Canvas | None:
    """Mean seconds per cell in each phase, stacked; reused priors at their original cost."""
    frame = _phase_frame(board)[:MOST_ROWS]
    if frame.empty:
        return None
    width = COLUMN if max(len(label) for label in frame.index) <= MOST_LETTERS // 3 else PAGE
    names, _ = names_of(map(str, frame.index))
    line = 0.25 if any("\n" in name for name in names) else 0.145
    legend = legend_height(list(frame.columns), width)
    figure = canvas(parent, (width, max(line * len(frame), 0.5) + 0.4 + legend))
    axes = figure.subplots()
    colour = dict(zip(PHASE_COLOURS, COLOURS, strict=False))
    left = np.zeros(len(frame))
    bars = []
    for phase in frame.columns:
        bars.append(axes.barh(range(len(frame)), frame[phase], left=left, height=0.7, color=colour[phase], label=phase))
        left += frame[phase].to_numpy()
    axes.set_yticks(range(len(frame)), names)
    axes.set_ylim(len(frame) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("seconds per cell, mean over forget classes")
    legend_below(figure, bars, list(frame.columns), width, "phase")
    return figure


def _phase_frame(board: Board) -> pd.DataFrame:
    """Return a row per variant and a column per phase that any cell has."""
    frame = pd.DataFrame.from_dict(board.phase_seconds, orient="index")
    return frame[[phase for phase in PHASES if phase in frame]].fillna(0.0)


def read_strip(entry: Mapping[str, object]) -> tuple[bytes, Image.Image] | None:
    """Return a record's strip of square images, as PNG and decoded; None where it is anything else."""
    try:
        content = base64.b64decode(str(entry["png"]), validate=True)
        picture = open_png(content)
    except (ValueError, KeyError):
        return None
    width, height = picture.size
    return None if width % height or width * height > MOST_STRIP_PIXELS else (content, picture)


def _strip(picture: Image.Image, most: int | None = None) -> NDArray[np.uint8]:
    """Return a strip of square images as (H, W, 3), with a white gap between the images."""
    pixels = np.asarray(picture)
    side = pixels.shape[0]
    images = np.split(pixels, pixels.shape[1] // side, axis=1)[:most]
    gap = np.full_like(pixels[:, : max(1, side // 16)], 255)
    parts = [part for image in images for part in (gap, image)][1:]
    return np.concatenate(parts, axis=1)


def _pictured(board: Board, variant: Variant, target: Target) -> tuple[Record, dict[str, Image.Image]] | None:
    """Return the first record that holds pictures, forgotten ones among them, which all can be read."""
    for record in board.cell_records(variant, target):
        if record.cell.id in board.ok_ids and "forget" in record.images:
            strips = {stream: read_strip(entry) for stream, entry in record.images.items()}
            read = {stream: strip[1] for stream, strip in strips.items() if strip is not None}
            if len(read) == len(strips):
                return record, read
    return None


def samples(board: Board, parent: Canvas | None = None) -> Canvas | None:
    """Samples of one forget class and of one retained class, methods down; a column is one initial noise."""
    for target in board.targets:
        found = [(v, *pair) for v in board.variants if (pair := _pictured(board, v, target)) is not None]
        if found:
            break
    else:
        return None
    streams = [name for name in ("forget", "retain") if all(name in pictures for *_, pictures in found)]
    strips = [[_strip(pictures[stream]) for stream in streams] for *_, pictures in found]
    entries = [(stream, found[0][1].images[stream]) for stream in streams]
    headers = [shorten(stream_name(board, stream, entry), MOST_LETTERS // 2) for stream, entry in entries]
    return _strip_grid([variant.label for variant, *_ in found], strips, headers, parent)


def samples_overview(board: Board, parent: Canvas | None = None) -> Canvas | None:
    """The first samples of the first forget classes, methods down, forget classes across."""
    found = {(v, t): pair for v in board.variants for t in board.targets if (pair := _pictured(board, v, t))}
    if not found:
        return None
    variants = [v for v in board.variants if any(key[0] == v for key in found)]
    targets = [t for t in board.targets if any(key[1] == t for key in found)][:MOST_CLASSES_PICTURED]
    strips = [
        [_strip(found[v, t][1]["forget"], SAMPLES_PER_CLASS) if (v, t) in found else None for t in targets]
        for v in variants
    ]
    most = max(SHORTEST, int((PAGE - names_of(v.label for v in variants)[1]) / len(targets) / LETTER))
    headers = [shorten(board.name_of(target), most) for target in targets]
    return _strip_grid([v.label for v in variants], strips, headers, parent)


def stream_name(board: Board, stream: str, entry: Mapping[str, object]) -> str:
    """Return what pictures of a record show: the forget class or a retained one, by name."""
    number = entry.get("class", "")
    name = class_name(number, board.class_names) if isinstance(number, int) else str(number)
    return f"{'forget class' if stream == 'forget' else 'retained class'} {name}".strip()


def _strip_grid(
    labels: Sequence[str], strips: Sequence[Sequence[NDArray[np.uint8] | None]], headers: Sequence[str],
    parent: Canvas | None = None,
) -> Canvas:  # fmt: skip
    """Return a figure of labelled rows of strips under headers; None leaves a place empty.

    Images are as large as width and height of a page allow, within IMAGE_INCHES, and no row stands below the page. A
    column is one picture: axes of their own for each strip would take seconds.
    """
    shapes = [strip.shape for row in strips for strip in row if strip is not None]
    side, wide = max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)
    gap = max(1, side // 8)  # pixels between rows
    names, left = names_of(labels)
    least, most = IMAGE_INCHES
    image = min((PAGE - left - 0.1 * len(headers)) * side / (wide * len(headers)), most)
    image = max(min(image, (HIGHEST - 0.3) / len(strips) * side / (side + gap)), least)
    pitch = image * (side + gap) / side
    rows = min(len(strips), int((HIGHEST - 0.3) / pitch))
    width = max(image * wide / side, LETTER * max(map(len, headers)))
    size = (left + (width + 0.1) * len(headers), 0.3 + pitch * rows)
    figure = canvas(parent, size, layout=None)
    panels = figure.subplots(1, len(headers), squeeze=False)[0]
    if parent is None:
        figure.subplots_adjust(left=left / size[0], right=0.995, bottom=0.01, top=1 - 0.2 / size[1], wspace=0.1 / width)
    for axes, header, column in zip(panels, headers, zip(*strips[:rows], strict=True), strict=True):
        axes.imshow(_stack(column, side, wide, gap), interpolation="nearest")
        axes.set_title(header, fontsize=SMALL + 1, pad=2)
        axes.set(xticks=[], yticks=[], frame_on=False)
        axes.grid(visible=False)
    panels[0].set_yticks([(side + gap) * k + side / 2 for k in range(rows)], names[:rows], fontsize=SMALL + 1)
    return figure


def _stack(strips: Sequence[NDArray[np.uint8] | None], side: int, wide: int, gap: int) -> NDArray[np.uint8]:
    """Return one picture of strips below each other, white where there is none."""
    sheet = np.full((len(strips) * (side + gap) - gap, wide, 3), 255, dtype=np.uint8)
    for k, strip in enumerate(strips):
        if strip is not None:
            top = k * (side + gap)
            sheet[top : top + strip.shape[0], : strip.shape[1]] = strip
    return sheet
