"""The exceptions that cross module borders."""


def one_line(text: str, most: int = 500) -> str:
    """Return text without line breaks or lone surrogates, cut to a length fit for a table or a terminal line."""
    flat = " ".join(text.encode("utf-8", "replace").decode().split())
    return flat if len(flat) <= most else f"{flat[: most - 1]}…"


class UsageError(Exception):
    """The user asked for something that cannot be done; its text is one sentence that says what to do instead.

    The command line prints it without a traceback and exits with status 2.
    """


class PluginError(Exception):
    """A method or metric breaks its contract; raised where the plugin is declared or where it breaks it."""


class Unmeasurable(Exception):
    """A metric has no meaning for this cell (too few samples, say); the record keeps null and this reason."""


class NonFiniteError(Exception):
    """Unlearning produced a weight or a logged value that is NaN or infinite: the cell failed."""
