"""One board's files: tables (.md, .tex, .csv), figures (.png, .pdf), and the page that shows them."""

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from unlearnbench.errors import one_line
from unlearnbench.report import ablation, figures, robustness
from unlearnbench.report.board import Board
from unlearnbench.report.checks import DISTRUST, alarms
from unlearnbench.report.latex import to_latex, write_paper
from unlearnbench.report.pareto import undominated
from unlearnbench.report.tables import all_tables, frames
from unlearnbench.report.writers import escape_markdown, to_csv, to_markdown

MOST_ALARMS = 10  # spelled out in the banner
MOST_PIXELS = 2400  # of a picture's longer side
MOST_DRAWN = 40  # rows of a figure: no more looks can be told apart
WHOLE = ("sweep",)  # figures that show every row all the same
MOST_WORDS = (
    f"Figures show {MOST_DRAWN} of {{}} rows: references, those that no other one beats in forgetting, retention and "
    f"cost, then the first of the table; those of swept settings show all.\n"
)
MOST_PROCESSES = 4  # that draw figures
FIGURE_WORDS = {
    "tradeoff": "Forgetting against retention; size is run time with priors; small dots are forget classes.",
    "pareto": (
        "Forgetting, retention and cost in pairs, with 95 % intervals: the dotted line is the front of a pair; a "
        "method is grey where another one is at least as good in all three and better in one."
    ),
    "confusion": (
        "What the rejecting judge sees: in samples asked for the class that was to be forgotten, and in samples asked "
        "for the classes that were to stay; rows are the classes asked for, in percent."
    ),
    "sweep": (
        "Metrics along swept settings: points are joined in the order of the value written to them, bars are one "
        "standard deviation over forget classes, black are the references; better is up and to the right."
    ),
    "timesteps": (
        "Denoising loss of the unlearned model by timestep, on training images of the forget class and of retained "
        "classes; at 1 the model does as well as if it predicted zero."
    ),
    "robustness": (
        "Forgetting before and after each attack, over the cells that were attacked; the broken line and the band are "
        "the gold standard after it, which cannot be blamed for what it never saw."
    ),
    "relearning": "Forgetting along fine-tuning on few images of the forget class, or on retained images only.",
    "heatmaps": "Headline metrics per forget class.",
    "phases": "Where the time of a cell goes; a reused prior is charged at its original cost, a warm-up is in no RTE.",
    "samples": "Samples of a forget class and of a retained class; a column starts from the same noise in every row.",
    "samples-all": "The first samples of each forget class, ten classes at most.",
}


FIGURES: Mapping[str, Callable[[Board, figures.Canvas | None], figures.Canvas | None]] = {
    "tradeoff": figures.tradeoff,
    "pareto": figures.pareto,
    "sweep": ablation.sweep,
    "timesteps": ablation.timesteps,
    "robustness": robustness.robustness,
    "relearning": robustness.relearning,
    "heatmaps": figures.heatmaps,
    "phases": figures.phases,
    "confusion": figures.confusion,
    "samples": figures.samples,
    "samples-all": figures.samples_overview,
}


def write_tables(board: Board, folder: Path) -> None:
    """Write the tables of a board into a folder: .md, .tex and .csv each, and every cell and confusion as .csv."""
    for table in all_tables(board):
        for ending, write in (("md", to_markdown), ("tex", to_latex), ("csv", to_csv)):
            (folder / f"{table.name}.{ending}").write_text(write(table), encoding="utf-8")
    for name, frame in frames(board).items():
        if not frame.empty:
            frame.to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")


def draw(board: Board, name: str, folder: Path) -> bool:
    """Write a figure of a board into a folder, as .png and .pdf; say whether the board has anything to draw."""
    plt.switch_backend("Agg")  # which needs no screen
    figures.set_style()
    figure = FIGURES[name](board if name in WHOLE else few_rows(board), None)
    if not isinstance(figure, Figure):
        return False
    dpi = min(figures.STYLE["savefig.dpi"], MOST_PIXELS / max(figure.get_size_inches()))
    if (engine := figure.get_layout_engine()) is not None:  # lay it out once: a save would, and draw it twice for that
        figure.set_dpi(dpi)
        engine.execute(figure)
        figure.set_layout_engine("none")
    figure.savefig(folder / f"{name}.png", metadata={"Software": None}, dpi=dpi)
    dates = {"CreationDate": None, "Creator": None, "Producer": None}  # the same records give the same bytes
    figure.savefig(folder / f"{name}.pdf", metadata=dates)
    plt.close(figure)
    return True


def few_rows(board: Board) -> Board:
    """Return a board with MOST_DRAWN rows at most, as more could not be told apart.

    References come first, then what no other row beats in forgetting, retention and cost, so that a row which is drawn
    as dominated has one that dominates it beside it.
    """
    if len(board.variants) <= MOST_DRAWN:
        return board
    best = undominated(board)
    order = sorted(board.variants, key=lambda variant: (variant.role == "method") + (variant not in best))
    return board.narrowed(order[:MOST_DRAWN])


class Drawing:
    """The figures of boards, drawn by processes of their own where there are cores for them; the bytes are the same.

    The processes are forked, so that each has all boards without a copy being made. Figures are drawn as `drawn` asks
    for them where that cannot be done.
    """

    def __init__(self, folders: Mapping[str, tuple[Board, Path]]) -> None:
        """Begin to draw every figure of {name: (board, folder for its figures)}."""
        self._folders = folders
        self._pool = _start_pool(folders)
        self._begun: dict[tuple[str, str], Future[bool]] = {}
        if self._pool is not None:
            for figure in FIGURES:  # the same one of every board in turn, since some take long
                for name in folders:
                    self._begun[name, figure] = self._pool.submit(_draw_inherited, name, figure)

    def drawn(self, name: str) -> list[str]:
        """Return the names of a board's figures, in the order of FIGURES, once all of them are written."""
        return [figure for figure in FIGURES if self._wait(name, figure)]

    def _wait(self, name: str, figure: str) -> bool:
        if (name, figure) in self._begun:
            with suppress(BrokenProcessPool):  # killed from outside, for want of memory say: draw it here
                return self._begun[name, figure].result()
        board, folder = self._folders[name]
        return draw(board, figure, folder)

    def __enter__(self) -> "Drawing":
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stop: figures that nobody waits for any more are not begun."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


_inherited: Mapping[str, tuple[Board, Path]] = {}  # what a forked process draws


def _start_pool(folders: Mapping[str, tuple[Board, Path]]) -> ProcessPoolExecutor | None:
    """Return a forked process for each core, MOST_PROCESSES at most; None with a single core, or where none forks."""
    count = min(len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1, MOST_PROCESSES)
    if count < 2 or not folders or multiprocessing.current_process().daemon:
        return None
    fork = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(count, mp_context=fork, initializer=_inherit, initargs=(folders,))


def _inherit(folders: Mapping[str, tuple[Board, Path]]) -> None:
    """Keep what the parent process handed over by forking."""
    global _inherited
    _inherited = folders


def _draw_inherited(name: str, figure: str) -> bool:
    board, folder = _inherited[name]
    return draw(board, figure, folder)


def write_page(board: Board, drawn: Sequence[str], folder: Path) -> Path:
    """Write the page that shows the tables of a board and the figures that were drawn of it; return its path."""
    main, *tables = all_tables(board)
    page = folder / "report.md"
    parts = [
        f"# {escape_markdown(board.title)}\n",
        *_banner(board),
        *[f"> {escape_markdown(note)}\n" for note in board.notes],
        to_markdown(main),
        *([MOST_WORDS.format(len(board.variants))] if len(board.variants) > MOST_DRAWN else []),
        *[f"![{FIGURE_WORDS[name]}](figures/{name}.png)\n\n{FIGURE_WORDS[name]}\n" for name in drawn],
        *[to_markdown(table) for table in tables],
        *_failures(board),
    ]
    page.write_text("\n".join(parts), encoding="utf-8")
    write_paper(board, [main, *tables], {name: FIGURE_WORDS[name] for name in drawn}, folder)
    return page


def write_nothing(problems: Sequence[str], out: Path) -> Path:
    """Write the page of a results folder in which nothing can be shown: why; return its path."""
    out.mkdir(parents=True, exist_ok=True)
    page = out / "report.md"
    lines = [f"- {escape_markdown(problem)}" for problem in problems]
    words = "No record can be shown. There are some, but:"
    page.write_text("\n".join(["# No numbers\n", f"{words}\n", *lines, ""]), encoding="utf-8")
    return page


def _banner(board: Board) -> list[str]:
    """Return a red warning where a control is on the wrong side."""
    found = alarms(board)
    if not found:
        return []
    lines = ["[!CAUTION]", f"**{DISTRUST}**"]
    shown = [*lines, *[f"- {escape_markdown(alarm)}" for alarm in found[:MOST_ALARMS]]]
    more = [f"- and {len(found) - MOST_ALARMS} more"] if len(found) > MOST_ALARMS else []
    return ["\n".join(f"> {line}" for line in [*shown, *more]) + "\n"]


def _failures(board: Board) -> list[str]:
    lines = [
        f"- `{record.cell.id}`: {record.status}, {escape_markdown(one_line(str(record.reason)))}"
        for record in board.failures()
    ]
    return ["### Cells without numbers\n\n" + "\n".join(lines) + "\n"] if lines else []
