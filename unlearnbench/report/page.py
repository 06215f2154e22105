"""One board's files: tables (.md, .tex, .csv), figures (.png, .pdf), and the page that shows them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from unlearnbench.report import ablation, figures, robustness
from unlearnbench.report.board import Board
from unlearnbench.report.checks import alarms
from unlearnbench.report.confusion import confusion_frame
from unlearnbench.report.tables import all_tables, tidy_frame
from unlearnbench.report.writers import escape_markdown, to_csv, to_latex, to_markdown

MOST_ALARMS = 10  # spelled out in the banner
MOST_PIXELS = 2400  # of a picture's longer side
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
    "heatmaps": "Every metric per forget class.",
    "phases": "Where the time of a cell goes; a reused prior is charged at its original cost, a warm-up is in no RTE.",
    "samples": "Samples of a forget class and of a retained class; a column starts from the same noise in every row.",
    "samples-all": "The first samples of every forget class.",
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


def draw_all(board: Board) -> dict[str, Figure]:
    """Return {file name: figure} of every figure the board has numbers for."""
    figures.set_style()
    drawn = {name: make(board, None) for name, make in FIGURES.items()}
    return {name: figure for name, figure in drawn.items() if isinstance(figure, Figure)}


def write_board(board: Board, folder: Path) -> Path:
    """Write all files of a board into a folder that has `tables` and `figures`; return the page's path."""
    tables = all_tables(board)
    for table in tables:
        for ending, write in (("md", to_markdown), ("tex", to_latex), ("csv", to_csv)):
            (folder / "tables" / f"{table.name}.{ending}").write_text(write(table), encoding="utf-8")
    frames = {"cells": tidy_frame(board), "confusion": confusion_frame(board)}
    for name, frame in frames.items():
        if not frame.empty:
            frame.to_csv(folder / "tables" / f"{name}.csv", index=False, lineterminator="\n")
    plt.switch_backend("Agg")  # which needs no screen
    drawn = draw_all(board)
    for name, figure in drawn.items():
        dpi = min(figures.STYLE["savefig.dpi"], MOST_PIXELS / max(figure.get_size_inches()))
        figure.savefig(folder / "figures" / f"{name}.png", metadata={"Software": None}, dpi=dpi)
        dates = {"CreationDate": None, "Creator": None, "Producer": None}  # the same records give the same bytes
        figure.savefig(folder / "figures" / f"{name}.pdf", metadata=dates)
        plt.close(figure)
    page = folder / "report.md"
    parts = [
        f"# {board.title}\n",
        *_banner(board),
        *[f"> {escape_markdown(note)}\n" for note in board.notes],
        to_markdown(tables[0]),
        *[f"![{FIGURE_WORDS[name]}](figures/{name}.png)\n\n{FIGURE_WORDS[name]}\n" for name in drawn],
        *[to_markdown(table) for table in tables[1:]],
        *_failures(board),
    ]
    page.write_text("\n".join(parts), encoding="utf-8")
    return page


def _banner(board: Board) -> list[str]:
    """Return a red warning where a control is on the wrong side."""
    found = alarms(board)
    if not found:
        return []
    lines = ["[!CAUTION]", "**The suite fails its own checks: trust none of these numbers until it is known why.**"]
    shown = [*lines, *[f"- {escape_markdown(alarm)}" for alarm in found[:MOST_ALARMS]]]
    more = [f"- and {len(found) - MOST_ALARMS} more"] if len(found) > MOST_ALARMS else []
    return ["\n".join(f"> {line}" for line in [*shown, *more]) + "\n"]


def _failures(board: Board) -> list[str]:
    lines = [f"- `{record.cell.id}`: {record.status}, {record.reason}" for record in board.failures()]
    return ["### Cells without numbers\n\n" + "\n".join(lines) + "\n"] if lines else []
