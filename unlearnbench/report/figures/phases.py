"""Figure of where the time of a cell goes."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.cost import PHASES
from unlearnbench.report.data.styles import COLOURS
from unlearnbench.report.data.values import Variant
from unlearnbench.report.figures.style import (
    COLUMN,
    MOST_LETTERS,
    MOST_ROWS,
    PAGE,
    Canvas,
    canvas,
    legend_below,
    legend_height,
    names_of,
)

PHASE_COLOURS = ("prior", "forget", "sample", "judge", "warmup", "attack")  # fixes the colour of each phase


def phases(board: Board, parent: Canvas | None = None, only: Sequence[Variant] = ()) -> Canvas | None:
    """Mean seconds per cell in each phase, stacked; reused priors at their original cost."""
    shown = only or board.variants
    frame = _phase_frame(board, shown)[:MOST_ROWS]
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
    axes.set_xlim(left=0.0)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("seconds per cell, mean over forget classes")
    legend_below(figure, bars, list(frame.columns), width, "phase")
    return figure


def _phase_frame(board: Board, shown: Sequence[Variant]) -> pd.DataFrame:
    """Return a row per variant and a column per phase that any cell has."""
    seconds = board.phase_seconds
    rows = {row.label: seconds[row.label] for row in shown if row.label in seconds}
    frame = pd.DataFrame.from_dict(rows, orient="index")
    return frame[[phase for phase in PHASES if phase in frame]].fillna(0.0)
