"""Every figure of a board as PNG and PDF, drawn in parallel processes where there are several cores."""

import io
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.front import undominated
from unlearnbench.report.data.values import Variant
from unlearnbench.report.figures.heatmaps import confusion, heatmaps
from unlearnbench.report.figures.images import samples, samples_overview
from unlearnbench.report.figures.instead import instead
from unlearnbench.report.figures.paths import mixed
from unlearnbench.report.figures.phases import phases
from unlearnbench.report.figures.robustness import relearning, robustness
from unlearnbench.report.figures.style import DPI, Canvas, own_style
from unlearnbench.report.figures.sweep import sweep
from unlearnbench.report.figures.timesteps import timesteps
from unlearnbench.report.figures.tradeoff import pareto, tradeoff

Drawn = Mapping[str, bytes]  # a figure's files by ending
Makers = Mapping[str, Callable[[Board], Any]]

MOST_PIXELS = 2400  # of a picture's longer side
MOST_DRAWN = 40  # rows of a figure: more styles cannot be distinguished
WHOLE = ("sweep",)  # figures that always show every row
MOST_PROCESSES = 4  # that draw figures


FIGURE_WORDS = {
    "tradeoff": (
        "Forgetting against retention; size is run time with priors; small dots are forget classes. Where marks "
        "crowd, that part is framed, and enlarged on the right."
    ),
    "pareto": (
        "Forgetting, retention and cost in pairs, with 95 % intervals: the dotted line is the front of a pair; a "
        "method is grey where another is at least as good in all three and better in one."
    ),
    "equal-retention": (
        "Forgetting against retention of the models between the base (lower right) and each unlearned one (the other "
        "end); the dotted line is the common level of retention, and the ringed mark the model nearest to the "
        "unlearned one that holds it. Means over forget classes."
    ),
    "instead": (
        "What the samples requested for the forget class became: noise (orange) and another class (blue) are what "
        "papers aim at, one or the other; means over forget classes."
    ),
    "confusion": (
        "Verdicts of the rejecting judge in percent, on samples requested for the class to forget, and on samples "
        "requested for the retained classes; rows are the requested classes."
    ),
    "sweep": (
        "One column per swept setting: forgetting and retention over its values, and against each other with the value "
        "at each point; faint lines are forget classes, black are the references; better is up and to the right."
    ),
    "timesteps": (
        "Denoising loss of the unlearned model by timestep, on training images of the forget class and of retained "
        "classes; at 1 the model does as well as if it predicted zero."
    ),
    "robustness": (
        "Forgetting before and after each attack, over the attacked cells; the broken line and the band are "
        "the gold standard after it, which never saw the class."
    ),
    "relearning": (
        "Forgetting along fine-tuning on few images of the forget class, or on retained images only; below the dotted "
        "line the class counts as back."
    ),
    "heatmaps": (
        "Headline metrics per forget class; percentages are coloured from 0 to 100, other metrics over a factor of "
        "four at least."
    ),
    "phases": "Time of a cell by phase; reused priors are charged at their original cost, RTE excludes the warm-up.",
    "samples": (
        "Samples of a forget class and of a retained class; a column starts from the same noise in every row, and a "
        "hatched place has no pictures."
    ),
    "samples-all": "The first samples of each forget class, ten classes at most; a hatched place has no pictures.",
}


# each draws into a part of a figure or a new one, some rows of a board or all
FIGURES: Mapping[str, Callable[[Board, Canvas | None, Sequence[Variant]], Canvas | None]] = {
    "tradeoff": tradeoff,
    "pareto": pareto,
    "equal-retention": mixed,
    "sweep": sweep,
    "timesteps": timesteps,
    "robustness": robustness,
    "relearning": relearning,
    "heatmaps": heatmaps,
    "phases": phases,
    "instead": instead,
    "confusion": confusion,
    "samples": samples,
    "samples-all": samples_overview,
}


def draw(board: Board, name: str) -> Drawn:
    """Return {ending: bytes} of a figure of a board, as .png and .pdf; empty if the board has nothing to draw."""
    with own_style():
        plt.switch_backend("Agg")  # which needs no screen
        figure = FIGURES[name](board, None, () if name in WHOLE else few_rows(board))
        if not isinstance(figure, Figure):
            return {}
        dpi = min(DPI, MOST_PIXELS / max(figure.get_size_inches()))
        if (engine := figure.get_layout_engine()) is not None:  # lay it out once: each save would do it again
            figure.set_dpi(dpi)
            engine.execute(figure)
            figure.set_layout_engine("none")
        png, pdf = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", metadata={"Software": None}, dpi=dpi)
        dates = {"CreationDate": None, "Creator": None, "Producer": None}  # the same records give the same bytes
        figure.savefig(pdf, format="pdf", metadata=dates)
        plt.close(figure)
    return {"png": png.getvalue(), "pdf": pdf.getvalue()}


def few_rows(board: Board) -> Sequence[Variant]:
    """Return MOST_DRAWN rows at most, as more styles cannot be distinguished.

    References come first, then rows that are not dominated in forgetting, retention and cost, so that every row drawn
    as dominated appears with a row that dominates it.
    """
    if len(board.variants) <= MOST_DRAWN:
        return board.variants
    best = undominated(board)
    order = sorted(board.variants, key=lambda variant: variant.competes + (variant not in best))
    kept = set(order[:MOST_DRAWN])
    return [variant for variant in board.variants if variant in kept]


class Drawing:
    """The figures of boards, drawn in parallel processes where there are several cores; the bytes are the same.

    The processes are forked, so that they share all boards without a copy. Where forking is not possible, the figures
    are drawn when they are asked for.
    """

    def __init__(self, boards: Mapping[str, Board], others: Makers | None = None) -> None:
        """Begin to draw every figure of {name: board}, and to make what `others` make of a board."""
        self._boards = boards
        self._makers: Makers = {**(others or {}), **{figure: partial(draw, name=figure) for figure in FIGURES}}
        self._pool = _start_pool(boards, self._makers)
        self._begun: dict[tuple[str, str], Future[Any]] = {}
        if self._pool is not None:
            for what in self._makers:  # figure by figure, since some take long
                for name in boards:
                    self._begun[name, what] = self._pool.submit(_make_inherited, name, what)

    def drawn(self, name: str) -> dict[str, Drawn]:
        """Return {figure: its bytes} of a board, in the order of FIGURES, once all of them are drawn."""
        return {figure: files for figure in FIGURES if (files := self.made(name, figure))}

    def made(self, name: str, what: str) -> Any:
        """Return what was made of a board, once it is."""
        if (name, what) in self._begun:
            with suppress(BrokenProcessPool):  # a process was killed, for lack of memory perhaps: make it here
                return self._begun[name, what].result()
        return self._makers[what](self._boards[name])

    def __enter__(self) -> "Drawing":
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Cancel the figures that were not begun."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


_inherited: tuple[Mapping[str, Board], Makers] = {}, {}  # of a forked process


def _start_pool(boards: Mapping[str, Board], makers: Makers) -> ProcessPoolExecutor | None:
    """Return a forked process per core, MOST_PROCESSES at most; None with a single core, or where forking fails."""
    count = min(len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1, MOST_PROCESSES)
    # other threads, as those of a run that goes on, may hold locks that a fork would never see released
    alone = threading.active_count() == 1 and not multiprocessing.current_process().daemon
    if count < 2 or not boards or not alone:
        return None
    fork = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(count, mp_context=fork, initializer=_inherit, initargs=(boards, makers))


def _inherit(boards: Mapping[str, Board], makers: Makers) -> None:
    """Keep the boards of the parent process, and the functions that make something of them."""
    global _inherited
    _inherited = boards, makers


def _make_inherited(name: str, what: str) -> Any:
    boards, makers = _inherited
    return makers[what](boards[name])
