"""Exceptions shared between modules, and text that is safe to print."""

import difflib
from collections.abc import Iterable

BYTES = {"GB": 1e9, "MB": 1e6, "kB": 1e3}


def printable(text: str) -> str:
    """Return text without control characters, bidirectional overrides and lone surrogates; line breaks stay."""
    if text.isprintable():
        return text
    encoded = text.encode("utf-8", "replace").decode()  # a lone surrogate becomes a question mark
    return "".join(c if c.isprintable() or c == "\n" else " " for c in encoded)


def one_line(text: str, most: int = 500) -> str:
    """Return text without line breaks, control characters or lone surrogates, cut to `most` characters."""
    flat = " ".join(printable(text).split())
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


def plural(number: int, noun: str) -> str:
    """Return a number with its noun: `1 cell`, `2 cells`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def spell_bytes(size: float) -> str:
    """Return a number of bytes in the largest unit that fits: `1.5 GB`."""
    unit = next((unit for unit, factor in BYTES.items() if size >= factor), "kB")
    return f"{size / BYTES[unit]:.1f} {unit}"


def spell_error(error: BaseException) -> str:
    """Return an exception's type and text in one line, even where `str(error)` fails."""
    try:
        return one_line(f"{type(error).__name__}: {error}")
    except Exception:
        return type(error).__name__


class UsageError(Exception):
    """A request that cannot be fulfilled; its text is one sentence that says what to do instead.

    The command line prints it without a traceback and exits with status 2.
    """


class PluginError(Exception):
    """A method or metric breaks its contract; raised where the plugin is declared or where it breaks it."""


class Unmeasurable(Exception):
    """A metric has no meaning for this cell (too few samples, say); the record keeps null and this reason."""


class NonFiniteError(Exception):
    """Unlearning produced a weight or a logged value that is NaN or infinite: the cell failed."""


def suggest(name: str, names: Iterable[str]) -> str:
    """Return " (did you mean X?)" for the name nearest to a wrong one, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""
