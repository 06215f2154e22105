"""Figure of the unlearned model's denoising loss by timestep."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.curves import SIDES, LossCurve, mean_curves
from unlearnbench.report.data.values import Value, Variant
from unlearnbench.report.figures.style import (
    FEW,
    PAGE,
    SMALL,
    Canvas,
    canvas,
    is_wide,
    legend_below,
    legend_height,
    line_colours,
    set_log,
    without_method,
)
from unlearnbench.report.figures.sweep import DASHES

MOST_LOSSES = 3  # pairs of panels that one page holds


def timesteps(board: Board, parent: Canvas | None = None, only: Sequence[Variant] = ()) -> Canvas | None:
    """Denoising loss by timestep, on the forget class and on retained classes, one line per variant."""
    shown = only or board.variants
    curves = mean_curves(board.numbers.sel(rows=shown))
    if not curves:
        return None
    rows = _loss_rows(list(curves))[:MOST_LOSSES]
    expected = board.numbers.expected
    lengths = [1.9 + legend_height(_names(curves, row, expected)[0], PAGE, SMALL) for row in rows]
    figure = canvas(parent, (PAGE, sum(lengths) + 0.1))
    blocks = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=lengths)[:, 0]
    log = is_wide([1.0, *(y for c, _ in curves.values() for y in [*c.forget, *c.retain] if np.isfinite(y))])
    edges = next(iter(curves.values()))[0].edges
    for block, variants in zip(blocks, rows, strict=True):
        pair = block.subplots(1, 2, sharex=True, sharey=True)
        if log:
            set_log(pair[0].yaxis)
        for axes, (side, words) in zip(pair, SIDES.items(), strict=True):
            _draw_losses(axes, board, variants, curves, side)
            axes.set_title(words)
            axes.set(xlabel="timestep (bin centre)", xlim=(edges[0], edges[-1]))
        pair[0].set_ylabel("denoising loss per pixel")
        pair[1].text(  # in this panel lines rarely come close to 1
            0.99, 1.0, "predicting zero", transform=pair[1].get_yaxis_transform(), ha="right", va="top",
            color="grey", fontsize=SMALL,
        )  # fmt: skip
        handles, _ = pair[0].get_legend_handles_labels()
        names, title = _names(curves, variants, expected)
        legend_below(block, handles, names, PAGE, title, SMALL)
    return figure


def _names(
    curves: Mapping[Variant, tuple[LossCurve, int]], variants: Sequence[Variant], expected: int
) -> tuple[list[str], str]:
    """Return the words of a legend, with the gap of each row, and its title."""
    words, title = without_method([variant.label for variant in variants])
    gaps = [Value(0.0, ok=curves[variant][1], expected=expected).gap for variant in variants]
    return [f"{word}{gap}" for word, gap in zip(words, gaps, strict=True)], title


def _loss_rows(variants: Sequence[Variant]) -> list[list[Variant]]:
    """Return the variants of each pair of panels: all in one, or, when they are many, one pair per method.

    Methods of one variant share pairs, and every pair has the references.
    """
    references = [variant for variant in variants if variant.role == "reference"]
    others = [variant for variant in variants if variant.role != "reference"]
    if len(others) <= FEW:
        return [[*references, *others]]
    methods: dict[str, list[Variant]] = {}
    for variant in others:
        methods.setdefault(variant.method, []).append(variant)
    single = [group[0] for group in methods.values() if len(group) == 1]
    shared = [single[k : k + FEW] for k in range(0, len(single), FEW)]
    return [[*references, *group] for group in [*shared, *(g for g in methods.values() if len(g) > 1)]]


def _draw_losses(
    axes: Axes,
    board: Board,
    variants: Sequence[Variant],
    curves: Mapping[Variant, tuple[LossCurve, int]],
    side: str,
) -> None:
    """Draw one line per variant over the bins' centres, references black and broken, and the line at 1."""
    dashes, colours = cycle(DASHES), line_colours(variants, board.styles)
    for variant in variants:
        curve, _ = curves[variant]
        line: dict[str, Any] = {
            "color": colours[variant], "marker": board.styles[variant.label].shape, "markersize": 3,
        }  # fmt: skip
        if variant.role == "reference":
            line = {"color": "black", "linestyle": next(dashes), "zorder": 4}
        centres = np.add(curve.edges[1:], curve.edges[:-1]) / 2
        axes.plot(centres, getattr(curve, side), linewidth=1.0, label=variant.label, **line)
    axes.axhline(1.0, color="grey", linewidth=0.8)
