"""What a plugin's import may not change for the rest of the run."""

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
    """Put back the working directory, arguments, locale, umask, signal handlers and filters of warnings afterwards.

    What is printed meanwhile goes to the standard error, so that it is not taken for the command's own output.
    """
    with ExitStack() as after:
        after.enter_context(redirect_stdout(sys.stderr))
        after.enter_context(redirect_stderr(sys.stderr))  # changes nothing, and puts it back
        after.enter_context(warnings.catch_warnings())
        after.callback(locale.setlocale, locale.LC_ALL, locale.setlocale(locale.LC_ALL))
        after.callback(_put_back_arguments, sys.argv, list(sys.argv))
        after.callback(_put_back_variables, _own_variables())
        after.callback(_put_back_handlers, {number: signal.getsignal(number) for number in signal.valid_signals()})
        umask = os.umask(0)
        os.umask(umask)
        after.callback(os.umask, umask)
        folder = os.open(".", getattr(os, "O_PATH", os.O_RDONLY))  # a handle: the folder's name may change
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
    """Put back the signal handlers that Python knows; only the main thread may, and only there could one change."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)  # type: ignore[arg-type]
