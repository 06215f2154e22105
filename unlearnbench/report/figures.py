"""Figures, each a function from a board to a matplotlib figure; one colour per variant everywhere."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import NDArray
from PIL import Image

from unlearnbench.grid import Target
from unlearnbench.report.board import Board
from unlearnbench.report.confusion import Matrix, confusion_sides
from unlearnbench.report.cost import PHASES
from unlearnbench.report.pareto import axes_of, front, places, undominated
from unlearnbench.report.values import Measure, Value, Variant
from unlearnbench.results import Record

Canvas = Figure | SubFigure  # where a figure is drawn

STYLE = {
    "pdf.fonttype": 42,  # embedded TrueType, which publishers ask for
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "font.size": 9,
    "axes.titlesize": 10,
    "legend.frameon": False,
    "text.parse_math": False,  # a dollar in a title is a dollar
}
FEW = 10  # variants that colours alone keep apart, panels that one page's width holds
IMAGE_INCHES = 0.6  # three dots per pixel of a 32-pixel image
PHASE_COLOURS = ("prior", "forget", "sample", "judge", "warmup", "attack")  # one colour each, whichever there are
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of red, green and blue (ITU-R BT.709)
PANELS_ACROSS = 7  # of confusions
MOST_CONFUSIONS, MOST_CLASSES = 21, 20  # rows with confusions in one figure; classes whose numbers are written out
LEAST_POINTS = 10.0  # that an axis of percentages spans
GREY = (0.72, 0.72, 0.72)
PAIRS = ((1, 0), (2, 0), (2, 1))  # panels of the fronts: retention and forgetting, cost and both
SAMPLES_PER_CLASS = 2  # images of each forget class in the overview


def set_style() -> None:
    """Make the look of all figures matplotlib's own."""
    sns.set_theme(context="paper", style="whitegrid", rc=STYLE)


def canvas(parent: Canvas | None, size: tuple[float, float], layout: str | None = "constrained") -> Canvas:
    """Return where to draw: the parent as it is, or without one a figure of its own.

    Args:
        parent: a part of somebody's figure, whose size and layout are theirs.
        size: width and height in inches of a figure of its own.
        layout: its layout engine; None for none.
    """
    return plt.figure(figsize=size, layout=layout) if parent is None else parent


def colours(board: Board) -> dict[str, tuple[float, float, float]]:
    """Return {label: RGB}: ten that colour-blind readers can tell apart, or hues with lightness to and fro."""
    labels = [variant.label for variant in board.variants]
    if len(labels) <= FEW:
        palette = list(sns.color_palette("colorblind", len(labels)))
    else:
        dark, light = (sns.husl_palette(len(labels), s=0.9, l=lightness) for lightness in (0.45, 0.72))
        palette = [(dark, light)[k % 2][k] for k in range(len(labels))]
    return dict(zip(labels, palette, strict=True))


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
    """Forgetting against retention with run time as size: a dot per forget class, a ringed dot for the mean."""
    forgetting, retention = board.headline("forgetting"), board.headline("retention")
    if forgetting is None or retention is None:
        return None
    total = next(measure for measure in board.costs if measure.key == "total")
    frame = _tradeoff_frame(board, [retention, forgetting, total])
    if frame.empty:
        return None
    mean = frame.groupby("method", sort=False, as_index=False).mean()
    palette = colours(board)
    numbered = len(mean) > FEW  # too many for the eye to match colours: number dots and legend
    names = max(len(label) for label in mean["method"])
    size = (6.2 + 0.066 * names, max(4.2, 0.2 * len(mean) + 0.9))
    figure = canvas(parent, size)
    axes = figure.subplots()
    common: dict[str, Any] = {"x": "x", "y": "y", "hue": "method", "palette": palette, "legend": False, "ax": axes}
    sns.scatterplot(frame, s=18, alpha=0.45, **common)
    sns.scatterplot(mean, size="cost", sizes=(90, 300) if numbered else (40, 420), edgecolor="black", **common)
    for number, row in enumerate(mean.itertuples(), start=1):
        label = f"{row.method} ({row.cost:.1f} {total.unit})"
        if numbered:
            label = f"{number}  {label}"
            ink = "white" if np.mean(palette[row.method]) < 0.5 else "black"
            axes.text(row.x, row.y, str(number), color=ink, ha="center", va="center", fontsize=6, zorder=5)
        axes.scatter([], [], color=palette[row.method], edgecolor="black", s=60, label=label)
    axes.set_xlabel(f"{retention.header}, {retention.shows}")
    axes.set_ylabel(f"{forgetting.header}, {forgetting.shows}")
    for axis, measure, column in ((axes.xaxis, retention, "x"), (axes.yaxis, forgetting, "y")):
        set_scale(axis, frame[column], measure)
        point_to_better(axis, measure)
    axes.legend(title="RTE with priors (size)", loc="center left", bbox_to_anchor=(1.0, 0.5), alignment="left")
    axes.set_title(f"{board.title}: forgetting against retention")
    return figure


def _tradeoff_frame(board: Board, measures: Sequence[Measure]) -> pd.DataFrame:
    """Return one line per variant and forget class that has all three numbers: x, y and cost."""
    lines = []
    for variant in board.variants:
        for target in board.targets:
            values = [board.value(variant, target, measure).number for measure in measures]
            if None not in values:
                lines.append([variant.label, *values])
    return pd.DataFrame(lines, columns=["method", "x", "y", "cost"])


def pareto(board: Board, parent: Canvas | None = None) -> Canvas | None:
    """Draw the three pairs of axes with intervals, the front of each pair as steps, dominated methods grey."""
    found, best, measures = places(board), undominated(board), axes_of(board)
    if len(found) < 2:
        return None
    palette = colours(board)
    figure = canvas(parent, (12.5, 3.9))
    panels = figure.subplots(1, len(PAIRS))
    for panel, (x, y) in zip(panels, PAIRS, strict=True):
        _draw_steps(panel, [(values[x], values[y]) for values in found.values()], measures[x], measures[y])
        for variant, values in found.items():
            colour = palette[variant.label] if variant in best else GREY
            _draw_point(panel, values[x], values[y], colour, variant.label)
        for axis, k in ((panel.xaxis, x), (panel.yaxis, y)):
            set_scale(axis, [float(values[k].number or 0.0) for values in found.values()], measures[k])
            widen(axis, measures[k])
            point_to_better(axis, measures[k])
            axis.set_label_text(measures[k].header)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper")
    figure.suptitle(f"{board.title}: no method is better than the coloured ones in all three; bars are 95 % intervals")
    return figure


def _draw_point(panel: Axes, x: Value, y: Value, colour: tuple[float, float, float], label: str) -> None:
    def reach(value: Value) -> list[list[float]] | None:
        if value.interval is None or value.number is None:
            return None
        return [[max(value.number - value.interval[0], 0.0)], [max(value.interval[1] - value.number, 0.0)]]

    panel.errorbar(
        [float(x.number or 0.0)], [float(y.number or 0.0)], xerr=reach(x), yerr=reach(y), fmt="o", color=colour,
        markersize=6, capsize=2, label=label,
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
    """One panel per metric: methods down, forget classes across; words where there is no number."""
    measures = board.metrics
    if not measures:
        return None
    panel = max(0.42 * len(board.targets), 0.075 * max(len(measure.header) for measure in measures)) + 0.15
    inches = 9 if len(measures) <= FEW else 18
    rows = -(-len(measures) // max(2, int(inches / panel)))
    columns = -(-len(measures) // rows)
    names = max(len(variant.label) for variant in board.variants)
    size = (columns * panel + 0.07 * names + 0.5, (0.25 * len(board.variants) + 0.9) * rows)
    figure = canvas(parent, size)
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for axes, measure in zip(grid.flat, measures, strict=False):
        _draw_heatmap(axes, board, measure)
    for axes in list(grid.flat)[len(measures) :]:
        axes.set_visible(False)
    return figure


def _draw_heatmap(axes: Axes, board: Board, measure: Measure) -> None:
    values = [[board.value(variant, t, measure) for t in board.targets] for variant in board.variants]
    numbers = np.array([[np.nan if v.number is None else v.number for v in row] for row in values])
    texts = [[v.word if v.number is None else f"{v.number:{measure.format}}{v.gap}" for v in row] for row in values]
    limits: dict[str, Any] = {}
    if measure.unit == "%" and not np.any((numbers < 0) | (numbers > 100)):
        limits = {"vmin": 0, "vmax": 100}  # a point of accuracy is no rainbow
    elif is_wide(numbers[np.isfinite(numbers)]):
        limits = {"norm": LogNorm(np.nanmin(numbers), np.nanmax(numbers))}
    _draw_matrix(
        axes, numbers, texts, [target.label for target in board.targets], [v.label for v in board.variants], size=7,
        cmap="viridis" if measure.better == "higher" else "viridis_r", **limits,
    )  # fmt: skip
    axes.set_title(measure.header)
    axes.set_xlabel("forget class")


def _draw_matrix(
    axes: Axes, numbers: Matrix, texts: Sequence[Sequence[str]], columns: Sequence[str], rows: Sequence[str], *,
    size: float, **colouring: Any,
) -> None:  # fmt: skip
    """Draw numbers as coloured cells with words in them; seaborn's heatmap would draw the whole figure for each panel.

    Args:
        axes: to draw on.
        numbers: (rows, columns); NaN stays white.
        texts: the words, likewise; empty for none.
        columns: names below; empty for the axis's own.
        rows: names at the left, likewise.
        size: of the words, in points.
        **colouring: of `Axes.pcolormesh`.
    """
    height, width = numbers.shape
    edge: dict[str, Any] = {"edgecolors": "white", "linewidth": 0.4} if texts else {}
    mesh = axes.pcolormesh(np.ma.masked_invalid(numbers), **edge, **colouring)
    axes.set(xlim=(0, width), ylim=(height, 0))
    if columns and rows:
        axes.set_xticks(np.arange(width) + 0.5, columns)
        axes.set_yticks(np.arange(height) + 0.5, rows)
    axes.grid(visible=False)
    shades = mesh.to_rgba(np.ma.masked_invalid(numbers))[..., :3] @ LUMINANCE
    for row, words in enumerate(texts):
        for column, word in enumerate(words):
            dark = np.isfinite(numbers[row, column]) and shades[row, column] < 0.45
            ink = "white" if dark else "black"
            axes.text(column + 0.5, row + 0.5, word, ha="center", va="center", fontsize=size, color=ink)


def confusion(board: Board, parent: Canvas | None = None) -> Canvas | None:
    """Two matrices per variant: verdicts on samples of the forgotten class, and on samples of retained classes."""
    found = {v: sides for v in board.variants if (sides := confusion_sides(board, v)) is not None}
    found = dict(list(found.items())[:MOST_CONFUSIONS])
    if not found:
        return None
    classes = next(iter(found.values()))[0].shape[0]
    side = min(max(2.6, 0.27 * classes), 5.4)
    words = classes <= MOST_CLASSES  # beyond, they would be dust
    columns = min(len(found), PANELS_ACROSS)
    blocks = -(-len(found) // columns)
    figure = canvas(parent, (side * columns + 0.9, blocks * (2 * side + 0.7)))
    grid = figure.subplots(2 * blocks, columns, squeeze=False, sharex=True, sharey=True)
    names = [*map(str, range(classes)), "none"]
    for axes in grid[-2:, len(found) - columns * (blocks - 1) :].flat:
        axes.set_visible(False)
    for place, (variant, matrices) in enumerate(found.items()):
        pair = grid[2 * (place // columns) :, place % columns][:2]
        for axes, matrix, word in zip(pair, matrices, ("forget class", "other classes"), strict=True):
            texts = [["" if not x >= 0.5 else f"{x:.0f}" for x in row] for row in matrix] if words else []
            labels = (names, names[:-1]) if words else ((), ())
            _draw_matrix(axes, matrix, texts, *labels, size=6, cmap="Blues", vmin=0, vmax=100)
            axes.set_aspect("equal")
            axes.set_title(f"{variant.label}: {word}")
    for axes in grid[:, 0]:
        axes.set_ylabel("asked for")
    for axes in grid[-1]:
        axes.set_xlabel("verdict")
    return figure


def phases(board: Board, parent: Canvas | None = None) -> Canvas | None:
    """Mean seconds per cell in each phase, stacked; reused priors at their original cost."""
    frame = _phase_frame(board)
    if frame.empty:
        return None
    names = max(len(label) for label in frame.index)
    figure = canvas(parent, (5.4 + 0.07 * names, 0.4 * len(frame) + 1.5))
    axes = figure.subplots()
    colour = dict(zip(PHASE_COLOURS, sns.color_palette("colorblind", len(PHASE_COLOURS)), strict=True))
    frame.iloc[::-1].plot.barh(stacked=True, ax=axes, color=[colour[phase] for phase in frame.columns], width=0.7)
    axes.set_xlabel("seconds per cell, mean over forget classes")
    axes.set_ylabel("")
    axes.legend(title="phase", loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_title(f"{board.title}: time per phase on {board.device_name}")
    return figure


def _phase_frame(board: Board) -> pd.DataFrame:
    """Return a row per variant and a column per phase that any cell has; a mean is over the cells that have it."""
    lines: dict[str, dict[str, float]] = {}
    for variant in board.variants:
        records = [r for t in board.targets for r in board.cell_records(variant, t) if r.cell.id in board.ok_ids]
        if records:
            found = {phase: [r.cost[phase]["seconds"] for r in records if phase in r.cost] for phase in PHASES}
            lines[variant.label] = {phase: float(np.mean(times)) for phase, times in found.items() if times}
    frame = pd.DataFrame.from_dict(lines, orient="index")
    return frame[[phase for phase in PHASES if phase in frame]].fillna(0.0)


def _strip(entry: Mapping[str, object], most: int | None = None) -> NDArray[np.uint8]:
    """Decode a base64 PNG strip of square images to (H, W) or (H, W, 3), with a white gap between the images."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(str(entry["png"])))))
    side = pixels.shape[0]
    images = np.split(pixels, pixels.shape[1] // side, axis=1)[:most]
    gap = np.full_like(pixels[:, : max(1, side // 16)], 255)
    parts = [part for image in images for part in (gap, image)][1:]
    return np.concatenate(parts, axis=1)


def _pictured(board: Board, variant: Variant, target: Target) -> Record | None:
    records = board.cell_records(variant, target)
    return next((record for record in records if record.cell.id in board.ok_ids and _has_strip(record)), None)


def _has_strip(record: Record) -> bool:
    """Say whether the record holds pictures that can be read."""
    try:
        return bool([_strip(entry) for entry in record.images.values()]) and "forget" in record.images
    except (OSError, ValueError):
        return False


def samples(board: Board, parent: Canvas | None = None) -> Canvas | None:
    """Samples of one forget class and of one retained class, methods down; a column is one initial noise."""
    for target in board.targets:
        found = [(v, r) for v in board.variants if (r := _pictured(board, v, target)) is not None]
        if found:
            break
    else:
        return None
    streams = [name for name in ("forget", "retain") if all(name in record.images for _, record in found)]
    strips = [[_strip(record.images[stream]) for stream in streams] for _, record in found]
    pictures = [(stream, found[0][1].images[stream]["class"]) for stream in streams]
    headers = [f"{'forget class' if stream == 'forget' else 'retained class'} {number}" for stream, number in pictures]
    return _strip_grid([variant.label for variant, _ in found], strips, headers, parent=parent)


def samples_overview(board: Board, parent: Canvas | None = None) -> Canvas | None:
    """The first samples of every forget class, methods down, forget classes across."""
    found = {(v, t): r for v in board.variants for t in board.targets if (r := _pictured(board, v, t)) is not None}
    if not found:
        return None
    variants = [v for v in board.variants if any(key[0] == v for key in found)]
    strips = [
        [_strip(found[v, t].images["forget"], SAMPLES_PER_CLASS) if (v, t) in found else None for t in board.targets]
        for v in variants
    ]
    labels, headers = [variant.label for variant in variants], [target.label for target in board.targets]
    return _strip_grid(labels, strips, headers, "samples asked for the forget class", parent)


def _strip_grid(
    labels: Sequence[str], strips: Sequence[Sequence[NDArray[np.uint8] | None]], headers: Sequence[str],
    title: str = "", parent: Canvas | None = None,
) -> Canvas:  # fmt: skip
    """Return a figure of labelled rows of strips under headers; None leaves a place empty.

    Its size follows from the images', each IMAGE_INCHES high, and from the labels'; in a parent all fit as they can.
    """
    shapes = [strip.shape for row in strips for strip in row if strip is not None]
    wide = max(max(shape[1] / shape[0] for shape in shapes) * IMAGE_INCHES, 0.09 * max(map(len, headers)))
    top, gap = 0.58 if title else 0.3, 0.12
    left = max(0.075 * max(map(len, labels)), 0.075 * len(title) - wide * len(headers)) + 0.3
    size = (left + (wide + gap) * len(headers), top + (IMAGE_INCHES + gap) * len(strips))
    figure = canvas(parent, size, layout=None)
    grid = figure.subplots(len(strips), len(headers), squeeze=False)
    if parent is None:
        figure.subplots_adjust(
            left=left / size[0], right=1 - gap / size[0], bottom=gap / size[1], top=1 - top / size[1],
            wspace=gap / wide, hspace=gap / IMAGE_INCHES,
        )  # fmt: skip
        figure.text(1 - gap / size[0], 1 - 0.08 / size[1], title, ha="right", va="top", fontsize=10)
    elif title:
        figure.suptitle(title, fontsize=10)
    for axes, header in zip(grid[0], headers, strict=True):
        axes.set_title(header)
    for axes_row, label, row in zip(grid, labels, strips, strict=True):
        for axes, strip in zip(axes_row, row, strict=True):
            axes.set(xticks=[], yticks=[], frame_on=False)
            axes.grid(visible=False)
            if strip is not None:
                axes.imshow(strip, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        axes_row[0].set_ylabel(label, rotation=0, ha="right", va="center")
    return figure
