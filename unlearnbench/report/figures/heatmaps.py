"""Figures of matrices: metrics by forget class, and verdicts by requested class."""

import math
from collections.abc import Sequence
from itertools import count, islice
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import LinearSegmentedColormap, LogNorm, Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.confusion import Matrix, confusion_sides
from unlearnbench.report.data.shades import Span, as_printed, span_of
from unlearnbench.report.data.values import Measure, Value, Variant, class_name, spell_number
from unlearnbench.report.figures.style import (
    HIGHEST,
    LETTER,
    LINE,
    LONGEST,
    MOST_ROWS,
    PAGE,
    PITCH,
    SMALL,
    Canvas,
    ClassTicks,
    canvas,
    class_ticks,
    fold,
    is_wide,
    legend_below,
    legend_height,
    names_of,
    without_method,
)

# steps of one percentage are equal in CIELAB to a fifth, which matplotlib's "Blues" miss by half at the light end
BLUES = LinearSegmentedColormap.from_list("even blues", ["#f4f8fc", "#5b9ac4", "#08306b"])
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])  # of red, green and blue (ITU-R BT.709)


PANELS_ACROSS = 7  # of confusions
VERDICT = "verdict (x: no object)"  # along their horizontal axes


MOST_CONFUSIONS = 21  # rows with confusions in one figure


HEATMAPS_ACROSS = 2  # panels side by side


MOST_WRITTEN = 14  # forget classes whose numbers are written into a heat map


def heatmaps(board: Board, parent: Canvas | None = None, only: Sequence[Variant] = ()) -> Canvas | None:
    """One panel per headline metric: methods down, forget classes across; words where there is no number.

    As many as a page holds; the HTML page has one of every metric.
    """
    shown = only or board.variants
    rows = shown[:MOST_ROWS]
    across = HEATMAPS_ACROSS if len(board.targets) <= MOST_WRITTEN else 1
    names, left = names_of(variant.label for variant in rows)
    ticks = class_ticks([board.name_of(target) for target in board.targets], (PAGE - left) / across - 0.1)
    line = 0.25 if any("\n" in name for name in names) else 0.135 if len(rows) <= MOST_WRITTEN else 0.2
    height = min(line * len(rows), HIGHEST - 0.7 - ticks.space) + 0.5 + ticks.space
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
    values = [[board.numbers.cell(variant, t, measure, interval=False) for t in board.targets] for variant in rows]
    printed = [[as_printed(value.number, measure) for value in row] for row in values]
    numbers = np.array(printed, dtype=float)  # None becomes NaN
    written = len(board.targets) <= MOST_WRITTEN and len(rows) <= MOST_ROWS // 2
    texts = [[_short(value, measure) for value in row] for row in values] if written else []
    span = span_of(numbers.ravel().tolist(), measure) or Span(0.0, 1.0, is_log=False)
    mesh = _draw_matrix(
        axes, numbers, texts, size=SMALL - 0.5 if len(board.targets) > 8 else SMALL,
        cmap="viridis" if measure.better == "higher" else "viridis_r",
        norm=(LogNorm if span.is_log else Normalize)(span.low, span.high),
    )  # fmt: skip
    if not texts:
        ticks_of = LogLocator(subs=(1.0, 2.0, 5.0)) if is_wide([span.low, span.high]) else MaxNLocator(5)
        axes.figure.colorbar(mesh, ax=axes, fraction=0.03, pad=0.01, ticks=ticks_of, format="{x:g}")
    axes.set_xticks(*ticks.places(len(board.targets)), rotation=90 if ticks.upright else 0)
    axes.set_title(measure.header, pad=3)
    axes.tick_params(axis="x", labelsize=SMALL, pad=1)


def _short(value: Value, measure: Measure) -> str:
    """Return a number in about five characters and its gap below, or the word in its place."""
    if value.number is None:
        return value.word
    text = spell_number(value.number, measure.format)
    return f"{text if len(text) <= 5 else f'{value.number:.3g}'}{value.gap.replace(' ', chr(10))}"


def _draw_matrix(
    axes: Axes, numbers: Matrix, texts: Sequence[Sequence[str]], *, size: float, **colouring: Any
) -> QuadMesh:
    """Draw numbers as coloured cells with words in them; seaborn's heatmap redraws the whole figure for each panel.

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


def confusion(board: Board, parent: Canvas | None = None, only: Sequence[Variant] = ()) -> Canvas | None:
    """Two matrices per variant: verdicts on samples of the forgotten class, and on samples of retained classes."""
    shown = only or board.variants
    rows = ((variant, confusion_sides(board.numbers, variant)) for variant in shown)
    confusions = dict(islice(((variant, sides) for variant, sides in rows if sides is not None), MOST_CONFUSIONS))
    if not confusions:
        return None
    classes = next(iter(confusions.values()))[0].shape[0]
    columns = min(len(confusions), PANELS_ACROSS)
    names = [class_name(number, board.class_names) for number in range(classes)]
    longest = LETTER * SMALL / 7 * min(max(map(len, names)), LONGEST)
    side = min((PAGE - 0.9 - longest) / columns, 2.2)
    across, down = class_ticks([*names, "x"], side), max(1, math.ceil(PITCH * classes / side))
    blocks = -(-len(confusions) // columns)
    width = columns * side + 0.9 + longest
    titles, key, method = _titles([variant.label for variant in confusions], max(8, int(side / LETTER)))
    below = legend_height(key, width, SMALL) + LINE if key else 0.0
    figure = canvas(parent, (width, blocks * (2 * side + 0.35) + 0.3 + across.space + below))
    grid = figure.subplots(2 * blocks, columns, squeeze=False, sharex=True, sharey=True)
    for axes in grid[-2:, len(confusions) - columns * (blocks - 1) :].flat:
        axes.set_visible(False)
    words = side / (classes + 1) > 0.17  # inches: a number does not fit into less
    mesh = None
    for place, matrices in enumerate(confusions.values()):
        pair = grid[2 * (place // columns) :, place % columns][:2]
        for axes, matrix in zip(pair, matrices, strict=True):
            texts = [["" if not x >= 0.5 else f"{x:.0f}" for x in row] for row in matrix] if words else []
            mesh = _draw_matrix(axes, matrix, texts, size=SMALL, cmap=BLUES, vmin=0, vmax=100)
            axes.set_aspect("equal")
            axes.tick_params(labelsize=SMALL, pad=0)
        pair[0].set_title(titles[place], fontsize=SMALL + 1, pad=2)
    places, named = across.places(classes)
    for axes in grid.flat:
        axes.set_xticks([*places, classes + 0.5], [*named, "x"], rotation=90 if across.upright else 0)
    grid[0][0].set_yticks([k + 0.5 for k in range(0, classes, down)], across.names[:classes:down])
    for k, axes in enumerate(grid[:, 0]):
        axes.set_ylabel("retained, requested" if k % 2 else "forgotten, requested", fontsize=SMALL + 1)
    if not key:
        figure.supxlabel(VERDICT, fontsize=SMALL + 1)
    if mesh is not None and not words:
        figure.colorbar(mesh, ax=grid, fraction=0.02, pad=0.01, aspect=40, label="%")
    if key:
        unmarked = [Line2D([], [], linestyle="none")] * len(key)
        legend_below(figure, unmarked, key, width, f"{VERDICT}\n{method}".rstrip(), SMALL)
    return figure


def _titles(labels: Sequence[str], letters: int) -> tuple[list[str], list[str], str]:
    """Return titles of panels of some letters' width, and a key of those that are numbers, with its title."""
    folded = [fold(label, letters) for label in labels]
    words, method = without_method([label for label, text in zip(labels, folded, strict=True) if "…" in text])
    numbers = count(1)
    titles = [str(next(numbers)) if "…" in text else text for text in folded]
    return titles, [f"{number}: {word}" for number, word in enumerate(words, start=1)], method
