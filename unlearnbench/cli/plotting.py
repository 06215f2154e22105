"""Imports matplotlib for commands, without the user's settings."""

import contextlib
import importlib.util
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path


def import_matplotlib() -> None:
    """Import matplotlib without the user's backend, settings and styles, as an invalid one would fail the import.

    The font cache stays the user's. Where matplotlib is imported already, as in a notebook, nothing changes.
    """
    logging.getLogger("matplotlib").setLevel(logging.CRITICAL)  # of fonts and folders, irrelevant to users
    spec = importlib.util.find_spec("matplotlib")
    if "matplotlib" in sys.modules or spec is None or spec.origin is None:
        return
    defaults = Path(spec.origin).parent / "mpl-data"  # its settings take precedence when imported from there
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as empty:
        warnings.simplefilter("ignore")
        with _environment("MPLBACKEND", None):
            with _working_in(defaults):
                import matplotlib as mpl

                mpl.get_cachedir()  # remembered
            with _environment("MPLCONFIGDIR", empty):
                mpl.get_configdir()  # remembered: no styles are found there
                import matplotlib.pyplot  # noqa: F401


@contextlib.contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """Set an environment variable, or unset it for None, inside the context."""
    before = os.environ.pop(name, None)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if before is not None:
            os.environ[name] = before


@contextlib.contextmanager
def _working_in(folder: Path) -> Iterator[None]:
    """Change to another folder inside the context; the old one may have been removed meanwhile."""
    here = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))
    try:
        os.chdir(folder)
        yield
    finally:
        os.chdir(here)
        os.close(here)
