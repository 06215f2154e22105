"""matplotlib as a command imports it: without what the user set up for figures of their own."""

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
    """Import matplotlib so that no backend, settings or style of the user is read, as a bad one would end the import.

    The cache of fonts stays the user's. Where matplotlib is imported already, as in a notebook, nothing is changed.
    """
    logging.getLogger("matplotlib").setLevel(logging.CRITICAL)  # it speaks of fonts and folders that are not ours
    spec = importlib.util.find_spec("matplotlib")
    if "matplotlib" in sys.modules or spec is None or spec.origin is None:
        return
    defaults = Path(spec.origin).parent / "mpl-data"  # whose settings come first, seen from there
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
    """Set a variable of the environment, or none, within."""
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
    """Work in another folder within; the one to come back to may have been removed."""
    here = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))
    try:
        os.chdir(folder)
        yield
    finally:
        os.chdir(here)
        os.close(here)
