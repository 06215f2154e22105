"""Figure of what came instead of the forget class."""

from collections.abc import Sequence

import numpy as np

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.styles import COLOURS, REFERENCES
from unlearnbench.report.data.values import Variant
from unlearnbench.report.figures.style import MOST_ROWS, PAGE, Canvas, canvas, legend_below, legend_height, names_of

# of the parts in order: what meets a goal in colour, a blank like paper, and what shows something else in greys
SHADES = (COLOURS[1], COLOURS[0], "#f2f2f2", "#b4b4b4", REFERENCES["gold"][0])


def instead(board: Board, parent: Canvas | None = None, only: Sequence[Variant] = ()) -> Canvas | None:
    """A bar per row with numbers: shares of the samples by what they became, which fill it."""
    numbers = board.instead
    if numbers is None:
        return None
    means = {
        row: [numbers.mean(row, measure, interval=False).number for measure in numbers.measures]
        for row in only or board.variants
    }
    rows = [row for row, shares in means.items() if None not in shares][:MOST_ROWS]
    if not rows:
        return None
    names, _ = names_of(row.label for row in rows)
    words = [measure.title for measure in numbers.measures]
    line = 0.25 if any("\n" in name for name in names) else 0.145
    figure = canvas(parent, (PAGE, max(line * len(rows), 0.5) + 0.4 + legend_height(words, PAGE)))
    axes = figure.subplots()
    left, bars = np.zeros(len(rows)), []
    for word, colour, shares in zip(words, SHADES, np.array([means[row] for row in rows], dtype=float).T, strict=True):
        bars.append(
            axes.barh(
                range(len(rows)), shares, left=left, height=0.7, color=colour, edgecolor="#767676", linewidth=0.3,
                label=word,
            )
        )  # fmt: skip
        left += shares
    axes.set_yticks(range(len(rows)), names)
    axes.set(xlim=(0, 100), ylim=(len(rows) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("samples requested for the forget class (%)")
    legend_below(figure, bars, words, PAGE)
    return figure
