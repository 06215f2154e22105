"""One HTML file per results folder: self-contained, and readable without its script."""

import base64
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from unlearnbench.errors import printable
from unlearnbench.report.data.board import Board
from unlearnbench.report.data.styles import Style
from unlearnbench.report.data.values import spell_number
from unlearnbench.report.figures.drawing import FIGURE_WORDS, Drawn
from unlearnbench.report.figures.style import line_colours
from unlearnbench.report.html.charts import MARGIN
from unlearnbench.report.html.images import ImageBudget
from unlearnbench.report.html.view import BoardView, stills, view_of
from unlearnbench.report.tables.controls import DISTRUST
from unlearnbench.version import __version__

__all__ = ["page"]

SHAPES = {  # matplotlib's markers, as SVG draws them around the origin
    "o": "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "s": "M-4.5-4.5h9v9h-9z",
    "^": "M0-5.6L5.4 4h-10.8z",
    "v": "M0 5.6L5.4-4h-10.8z",
    "D": "M0-6.2L6.2 0L0 6.2L-6.2 0z",
    "<": "M-5.6 0L4-5.4v10.8z",
    ">": "M5.6 0L-4-5.4v10.8z",
    "p": "M0-5.8L5.5-1.8L3.4 4.7L-3.4 4.7L-5.5-1.8z",
    "*": "M0-6.1L1.7-1.8L6.3-1.5L2.8 1.4L3.9 5.8L0 3.4L-3.9 5.8L-2.8 1.4L-6.3-1.5L-1.7-1.8z",
    "d": "M0-6.4L3.8 0L0 6.4L-3.8 0z",
    "X": "M-5-3L-3-5L0-2L3-5L5-3L2 0L5 3L3 5L0 2L-3 5L-5 3L-2 0z",
    "P": "M-2-5.5h4v3.5h3.5v4h-3.5v3.5h-4v-3.5h-3.5v-4h3.5z",
}
SECTIONS = {
    "summary": "Summary", "tradeoffs": "Trade-offs", "losses": "Denoising loss", "classes": "Class by class",
    "pictures": "Samples", "verdicts": "Verdicts", "cost": "Cost", "attacks": "Attacks", "published": "Published",
    "judges": "Judges", "controls": "Controls", "tables": "Tables", "appendix": "Appendix",
}  # fmt: skip


def page(
    boards: Mapping[str, Board], problems: Sequence[str],
    drawn: Callable[[str], Mapping[str, Drawn]] = lambda name: {},
) -> str:  # fmt: skip
    """Return the page of a results folder as HTML; the same records give the same bytes.

    The content security policy in its head admits its script by hash.

    Args:
        boards: {name: board}, at least one.
        problems: a sentence for each record that could not be read or shown.
        drawn: returns the figures of a board by its name; asked once everything else is made.
    """
    environment = Environment(
        loader=PackageLoader("unlearnbench.report.html"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, finalize=_plain,
    )  # fmt: skip
    environment.filters["unbroken"] = _unbroken
    here = Path(__file__).parent
    script, css = ((here / name).read_text(encoding="utf-8") for name in ("report.js", "report.css"))
    styles = next(iter(boards.values())).styles
    rows = {variant.label: variant for board in boards.values() for variant in board.variants}
    colours = {row.label: colour for row, colour in line_colours(list(rows.values()), styles).items()}
    styles = {label: replace(style, colour=colours.get(label, style.colour)) for label, style in styles.items()}
    album = ImageBudget()
    largest_first = sorted(boards.items(), key=lambda item: -len(item[1].records))
    views = [view_of(name, board, album) for name, board in largest_first]
    views = [replace(view, stills=stills(album, drawn(view.name))) for view in views]
    left, top, right, bottom = MARGIN
    environment.globals |= {
        "looks": {label: (key, style) for key, (label, style) in enumerate(styles.items())},
        "shape_of": {label: list(SHAPES).index(style.shape) for label, style in styles.items()},
        "left": left, "top": top, "right": right, "bottom": bottom, "sections": sections,
        "spell_number": spell_number, "distrust": DISTRUST, "swatch_of": _swatch,
        "loss_words": FIGURE_WORDS["timesteps"],
    }  # fmt: skip
    titles = list(dict.fromkeys(view.title for view in views))
    return environment.get_template("report.html").render(
        boards=views, problems=problems, shapes=SHAPES, version=__version__, style=Markup(css),
        pictures=album.pictures, most_samples=max((strip.n for view in views for strip in view.strips), default=0),
        script=Markup(script), script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        title=f"unlearnbench: {', '.join(titles)}",
    )  # fmt: skip


def _swatch(style: Style) -> str:
    """Return the address of a picture of a row's mark; its ring stands out from light and dark paper."""
    path = f'<path d="{SHAPES[style.shape]}" fill="{style.colour}" stroke="#87919a"/>'
    drawing = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-7 -7 14 14">{path}</svg>'
    return f"data:image/svg+xml,{quote(drawing)}"


def _plain(value: object) -> object:
    """Return a value of the records as the page shows it: without control characters and lone surrogates."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _unbroken(header: str) -> Markup:
    """Return a header with its arrow on the line of its last word."""
    return Markup(re.sub(" (?=[↑↓]$)", "&nbsp;", escape(_plain(header))))


def sections(view: BoardView) -> list[tuple[str, str]]:
    """Return the keys and words of the sections that a board has."""
    there = {
        "tradeoffs": view.tradeoffs, "losses": view.losses, "classes": view.heats, "pictures": view.pictures,
        "published": view.published,
        "verdicts": view.verdicts or view.tables.get("verdicts"), "cost": view.bars or view.tables.get("cost"),
        **{key: view.tables.get(key) for key in ("attacks", "judges", "controls", "tables")},
    }  # fmt: skip
    return [(key, words) for key, words in SECTIONS.items() if there.get(key, True)]
