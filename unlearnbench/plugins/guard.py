"""Isolation of a plugin's import from the state of the process."""

import locale
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

OWN_VARIABLES = "UNLEARNBENCH_"


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Restore working directory, arguments, locale, umask, signal handlers and warning filters afterwards.

    Output printed meanwhile goes to standard error, to keep it apart from the command's output.
    """
    with ExitStack() as after:
        after.enter_context(redirect_stdout(sys.stderr))
        after.enter_context(redirect_stderr(sys.stderr))  # restores sys.stderr
        after.enter_context(warnings.catch_warnings())
        after.callback(locale.setlocale, locale.LC_ALL, locale.setlocale(locale.LC_ALL))
        after.callback(_put_back_arguments, sys.argv, list(sys.argv))
        after.callback(_put_back_variables, _own_variables())
        after.callback(_put_back_handlers, {number: signal.getsignal(number) for number in signal.valid_signals()})
        umask = os.umask(0)
        os.umask(umask)
        after.callback(os.umask, umask)
        folder = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))  # a handle, as the folder may be renamed
        after.callback(os.close, folder)
        after.callback(os.fchdir, folder)
        yield


def _put_back_arguments(arguments: list[str], values: list[str]) -> None:
    sys.argv, arguments[:] = arguments, values


def _own_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(OWN_VARIABLES)}


def _put_back_variables(values: dict[str, str]) -> None:
    for name in _own_variables().keys() - values.keys():
        del os.environ[name]
    os.environ.update(values)


def _put_back_handlers(handlers: dict[int, object]) -> None:
    """Restore Python's signal handlers; only the main thread can change them."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)  # type: ignore[arg-type]
