"""Printing of a rendering, to a terminal or a log, and opening it in a browser."""

import os
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.style import Style
from rich.text import Text

from unlearnbench.errors import one_line, printable
from unlearnbench.report.data.rendering import Rendering
from unlearnbench.report.tables.controls import DISTRUST
from unlearnbench.report.write.terminal import styled

PATIENCE = 6.0  # seconds for a browser to start
LONGEST = 2000  # characters of a note
OPEN = "import sys, webbrowser; sys.exit(not webbrowser.open(sys.argv[1]))"


def make_console() -> Console:
    """Return a console for the standard output; NO_COLOR turns off bold type and links as well."""
    return Console(color_system=None if os.environ.get("NO_COLOR") else "auto", highlight=False)


def show(rendering: Rendering, console: Console, *, notes: bool = True) -> None:
    """Print notes, if asked for, tables and alarms, each once: two boards may share records."""
    for line in dict.fromkeys(rendering.notes if notes else []):
        _say(console, Text(one_line(f"note: {line}", LONGEST)))
    for text in rendering.terminal:
        _print(console, Text("\n").append_text(styled(printable(text))))
    if rendering.alarms:
        _say(console, Text(f"\n{DISTRUST}", style="red"))
    for alarm in dict.fromkeys(sentence for found in rendering.alarms.values() for sentence in found):
        _say(console, Text(one_line(f"- {alarm}", LONGEST), style="red"))


def say_where(rendering: Rendering, what: str, console: Console) -> None:
    """Print the location of a rendering in one line: its page of all boards and their folders, or its pages."""
    folders = [page.parent for page in rendering.pages]
    common = Path(os.path.commonpath(folders))
    one = len(folders) == 1
    if rendering.html:
        place = Text.assemble(_link(rendering.html), "; tables and figures: ", _link(common))
    else:
        place = _link(rendering.pages[0]) if one else _link(common, f"{common / '*' / rendering.pages[0].name}")
    _print(console, Text.assemble(f"\n{what}: ", place))


def open_page(page: Path, console: Console) -> None:
    """Open a page in the user's browser, or say that there is none; does not wait for it to be closed."""
    if not (_has_screen() and _opened(page.resolve().as_uri())):
        _print(console, Text(printable(f"No browser is available here: open {page} elsewhere.")))


def _has_screen() -> bool:
    """Say whether there is a local screen: a text browser in this terminal, or a remote one, does not help."""
    if os.environ.get("BROWSER"):
        return True
    if os.environ.get("CI"):
        return False
    if sys.platform in ("darwin", "win32"):
        return not os.environ.get("SSH_CONNECTION")
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _opened(address: str) -> bool:
    """Open an address in a separate process, since some browsers return only when they are closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", OPEN, address], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        return process.wait(PATIENCE) == 0
    except subprocess.TimeoutExpired:
        return True


def _link(path: Path, text: str | None = None) -> Text:
    """Return a path as a terminal hyperlink, percent-encoded."""
    return Text(printable(text or str(path)), style=Style(link=path.resolve().as_uri()))


def _say(console: Console, sentence: Text) -> None:
    """Print a sentence, wrapped in a terminal, on one line in a log."""
    console.print(sentence, soft_wrap=not console.is_terminal)


def _print(console: Console, text: Text) -> None:
    """Print lines without wrapping: tables fit already, and paths must stay copyable."""
    console.print(text, soft_wrap=True)
