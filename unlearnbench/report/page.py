"""One board's files: tables (.md, .tex, .csv), figures (.png, .pdf), and the page that shows them."""

import io
import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from unlearnbench.errors import one_line
from unlearnbench.report.data.board import Board
from unlearnbench.report.data.environment import provenance_facts
from unlearnbench.report.figures import figures
from unlearnbench.report.figures import sweep as ablation
from unlearnbench.report.tables import robustness
from unlearnbench.report.tables.controls import DISTRUST, alarms
from unlearnbench.report.tables.pareto import undominated
from unlearnbench.report.tables.tables import all_tables, frames
from unlearnbench.report.write.latex import paper, size_of, to_latex
from unlearnbench.report.write.table import escape_markdown, frame_to_csv, to_csv, to_markdown

Drawn = Mapping[str, bytes]  # a figure's files by ending

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


class Undrawn(Exception):
    """A figure could not be drawn, for what its cause says."""

    def __init__(self, figure: str) -> None:
        """Keep the figure's name."""
        super().__init__(f"the figure {figure} cannot be drawn")
        self.figure = figure


def table_files(board: Board) -> dict[str, str]:
    """Return {file: text} of the tables of a board: .md, .tex and .csv each, every cell and confusion as .csv."""
    writers = {"md": to_markdown, "tex": to_latex, "csv": to_csv}
    files = {f"{table.name}.{end}": write(table) for table in all_tables(board) for end, write in writers.items()}
    return files | {f"{name}.csv": frame_to_csv(frame) for name, frame in frames(board).items() if not frame.empty}


def draw(board: Board, name: str) -> Drawn:
    """Return {ending: bytes} of a figure of a board, as .png and .pdf; empty if the board has nothing to draw."""
    with figures.own_style():
        plt.switch_backend("Agg")  # which needs no screen
        figure = FIGURES[name](board if name in WHOLE else few_rows(board), None)
        if not isinstance(figure, Figure):
            return {}
        dpi = min(figures.DPI, MOST_PIXELS / max(figure.get_size_inches()))
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

    def __init__(self, found: Mapping[str, Board]) -> None:
        """Begin to draw every figure of {name: board}."""
        self._boards = found
        self._pool = _start_pool(found)
        self._begun: dict[tuple[str, str], Future[Drawn]] = {}
        if self._pool is not None:
            for figure in FIGURES:  # the same one of every board in turn, since some take long
                for name in found:
                    self._begun[name, figure] = self._pool.submit(_draw_inherited, name, figure)

    def drawn(self, name: str) -> dict[str, Drawn]:
        """Return {figure: its bytes} of a board, in the order of FIGURES, once all of them are drawn.

        Raises:
            Undrawn: one of them cannot be drawn.
        """
        return {figure: files for figure in FIGURES if (files := self._wait(name, figure))}

    def _wait(self, name: str, figure: str) -> Drawn:
        try:
            if (name, figure) in self._begun:
                with suppress(BrokenProcessPool):  # killed from outside, for want of memory say: draw it here
                    return self._begun[name, figure].result()
            return draw(self._boards[name], figure)
        except Exception as error:
            raise Undrawn(figure) from error

    def __enter__(self) -> "Drawing":
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Stop: figures that nobody waits for any more are not begun."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


_inherited: Mapping[str, Board] = {}  # what a forked process draws


def _start_pool(found: Mapping[str, Board]) -> ProcessPoolExecutor | None:
    """Return a forked process for each core, MOST_PROCESSES at most; None with a single core, or where none forks."""
    count = min(len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1, MOST_PROCESSES)
    if count < 2 or not found or multiprocessing.current_process().daemon:
        return None
    fork = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(count, mp_context=fork, initializer=_inherit, initargs=(found,))


def _inherit(found: Mapping[str, Board]) -> None:
    """Keep what the parent process handed over by forking."""
    global _inherited
    _inherited = found


def _draw_inherited(name: str, figure: str) -> Drawn:
    return draw(_inherited[name], figure)


def page_files(board: Board, drawn: Mapping[str, Drawn]) -> dict[str, str]:
    """Return {file: text} of the page that shows tables and figures of a board, and of the paper that does."""
    main, *tables = all_tables(board)
    parts = [
        f"# {escape_markdown(board.title)}\n",
        *_banner(board),
        *[f"> {escape_markdown(note)}\n" for note in board.notes],
        to_markdown(main),
        *([MOST_WORDS.format(len(board.variants))] if len(board.variants) > MOST_DRAWN else []),
        *[f"![{FIGURE_WORDS[name]}](figures/{name}.png)\n\n{FIGURE_WORDS[name]}\n" for name in drawn],
        *[to_markdown(table) for table in tables],
        *_failures(board),
        *_origin(board),
    ]
    sizes = {name: size for name, files in drawn.items() if (size := size_of(files["pdf"])) is not None}
    words = {name: FIGURE_WORDS[name] for name in drawn}
    return {"report.md": "\n".join(parts), "paper/main.tex": paper(board, [main, *tables], sizes, words)}


def nothing(problems: Sequence[str]) -> str:
    """Return the page of a results folder in which nothing can be shown: why."""
    lines = [f"- {escape_markdown(problem)}" for problem in problems]
    words = "No record can be shown. There are some, but:"
    return "\n".join(["# No numbers\n", f"{words}\n", *lines, ""])


def _banner(board: Board) -> list[str]:
    """Return a red warning where a control is on the wrong side."""
    found = alarms(board)
    if not found:
        return []
    lines = ["[!CAUTION]", f"**{DISTRUST}**"]
    shown = [*lines, *[f"- {escape_markdown(alarm)}" for alarm in found[:MOST_ALARMS]]]
    more = [f"- and {len(found) - MOST_ALARMS} more"] if len(found) > MOST_ALARMS else []
    return ["\n".join(f"> {line}" for line in [*shown, *more]) + "\n"]


def _origin(board: Board) -> list[str]:
    """Return what the records say of where they come from; where they differ, with numbers of cells."""
    facts = provenance_facts(board.records, board.digest)
    lines = [f"- {escape_markdown(name)}: {escape_markdown(one_line(words))}" for name, words in facts]
    return ["### Where the numbers come from\n\n" + "\n".join(lines) + "\n"]


def _failures(board: Board) -> list[str]:
    lines = [
        f"- `{record.cell.id}`: {record.status}, {escape_markdown(one_line(str(record.reason)))}"
        for record in board.failures()
    ]
    return ["### Cells without numbers\n\n" + "\n".join(lines) + "\n"] if lines else []
