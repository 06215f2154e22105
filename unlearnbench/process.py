"""Jobs in processes of their own: memory peaks are a job's own, and its crash harms nobody else.

Processes are forked from a server that has the heavy imports done, so one starts in a fraction of a second.
"""

import importlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import ModuleType
from typing import Any, Literal, Protocol

from unlearnbench.errors import NonFiniteError, PluginError, UsageError, one_line, spell_error
from unlearnbench.results import Status

PRELOAD = ["unlearnbench.preload"]
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")  # what torch's RuntimeErrors say of it
PROGRESS_SECONDS = 0.25  # at most one progress message per this time
TRACEBACK_CHARACTERS = 4000  # kept of a traceback, from its end
_START = threading.Lock()  # held while a process starts, by one thread at a time

Progress = Callable[[str, int, int], None]  # what is done, steps done, steps in all (0: nobody knows)
Turn = Literal["load", "alone", "beside"]  # what a job wants to do next: get ready, be timed, or neither


class Line(Protocol):
    """What a job can say to the process that waits for it."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show progress."""

    def turn(self, kind: Turn) -> int:
        """Wait until the job may go on with this kind of work; return how many jobs share the cores meanwhile."""


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its value when ok, else the reason and the end of the traceback."""

    status: Status
    value: Any = None
    reason: str | None = None
    traceback: str | None = None


class Workers:
    """Starts jobs, one process each."""

    def __init__(self) -> None:
        """Start the process server; it imports in the background."""
        kinds = multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context("forkserver" if "forkserver" in kinds else "spawn")
        if "forkserver" in kinds:
            from multiprocessing import forkserver

            self._context.set_forkserver_preload(PRELOAD)
            with _quiet_start():
                forkserver.ensure_running()

    def _start(self, there: Connection, job: str, arguments: tuple[Any, ...]) -> Any:
        process = self._context.Process(target=_main, args=(there, job, arguments), daemon=True)  # type: ignore[attr-defined]
        try:
            with _START, _without_main():
                process.start()
        except (EOFError, ConnectionError) as error:
            raise UsageError(
                "no process can be started, for the process server has ended: free memory, or raise the limits on "
                "memory and open files (ulimit)"
            ) from error
        there.close()
        return process

    def run(
        self,
        job: str,
        *arguments: Any,
        on_progress: Progress = lambda what, done, total: None,
        on_warning: Callable[[str], None] = lambda text: None,
        on_tick: Callable[[], None] = lambda: None,
        on_turn: Callable[[Turn], int] = lambda kind: 1,
        timeout: float | None = None,
    ) -> Outcome:
        """Run `job(*arguments, line)` in a process of its own and wait for its end.

        Args:
            job: `module:function`, so that this process need not import what only the other one runs.
            *arguments: picklable.
            on_progress: called with what is done, steps done, steps in all.
            on_warning: called with the text of each warning raised in the process.
            on_tick: called at least once a second.
            on_turn: called when the job asks for its turn; it goes on when this returns how many share the cores.
            timeout: seconds after which the process is killed; waiting for a turn does not count.

        Raises:
            UsageError: the job raised one.
        """
        here, there = self._context.Pipe()
        process = self._start(there, job, arguments)
        deadline = time.monotonic() + timeout if timeout is not None else None
        try:
            while True:
                ready = wait([here, process.sentinel], timeout=1)
                on_tick()
                if here in ready:
                    try:
                        kind, *content = here.recv()
                    except (EOFError, OSError):  # it died, perhaps within a message
                        process.join()
                        return _death(process.exitcode)
                    if kind == "progress":
                        on_progress(*content)
                    elif kind == "turn":
                        asked = time.monotonic()
                        sharing = on_turn(*content)
                        if deadline is not None:
                            deadline += time.monotonic() - asked
                        with suppress(OSError):  # if the job died meanwhile, the next message says so
                            here.send(sharing)
                    elif kind == "warning":
                        on_warning(*content)
                    elif kind == "usage":
                        raise UsageError(*content)
                    else:
                        return Outcome(*content)
                elif process.sentinel in ready and not here.poll():
                    return _death(process.exitcode)
                if deadline is not None and time.monotonic() > deadline:
                    return Outcome("timeout", reason=f"it was stopped after {timeout:g} seconds (--timeout)")
        finally:
            process.kill()
            process.join()
            here.close()


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main module while a process starts, which would run it again there: a user's script, a notebook."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Start the process server deaf to Ctrl-C, and blind to a folder `unlearnbench` where the user stands."""
    heard, safe = signal.signal(signal.SIGINT, signal.SIG_IGN), os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, heard)
        if safe is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = safe


def _death(exitcode: int | None) -> Outcome:
    """Return the outcome of a process that ended without a word."""
    if exitcode is not None and exitcode < 0:
        known = {int(number): number.name for number in signal.Signals}
        name = known.get(-exitcode, f"signal {-exitcode}")
        hint = ", often the system's answer to a lack of memory" if name == "SIGKILL" else ""
        return Outcome("failed", reason=f"its process was killed by {name}{hint}")
    return Outcome("failed", reason=f"its process ended without a result, exit status {exitcode}")


def _main(connection: Connection, job: str, arguments: tuple[Any, ...]) -> None:
    """Run a job inside its process and send how it ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()
    line = PipeLine(connection)
    warnings.showwarning = lambda message, *_, **__: line.send("warning", str(message))
    line.send(*_outcome(job, arguments, line))
    connection.close()


class PipeLine:
    """The job's end of the pipe."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock, self._last, self._what = connection, threading.Lock(), 0.0, ""

    def send(self, *message: Any) -> None:
        """Send a message; any thread may."""
        with self._lock:
            self._connection.send(message)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show progress, not too often, but each new step."""
        if what != self._what or time.monotonic() - self._last >= PROGRESS_SECONDS:
            self._last, self._what = time.monotonic(), what
            self.send("progress", what, done, total)

    def turn(self, kind: Turn) -> int:
        """Wait until the job may go on with this kind of work; return how many jobs share the cores meanwhile."""
        self.send("turn", kind)
        return int(self._connection.recv())


def _outcome(job: str, arguments: tuple[Any, ...], line: PipeLine) -> tuple[Any, ...]:
    import torch

    try:
        module, _, function = job.partition(":")
        return "end", "ok", getattr(importlib.import_module(module), function)(*arguments, line)
    except UsageError as error:
        return "usage", str(error)
    except (MemoryError, torch.OutOfMemoryError) as error:
        return "end", "oom", None, f"out of memory: {spell_error(error)}", _traceback_end()
    except RuntimeError as error:
        status = "oom" if any(text in str(error) for text in OUT_OF_MEMORY) else "failed"
        return "end", status, None, spell_error(error), _traceback_end()
    except (PluginError, NonFiniteError) as error:
        return "end", "failed", None, one_line(str(error)), _traceback_end()
    except BaseException as error:  # whatever a plugin raises is a failure of its cell, and recorded
        return "end", "failed", None, spell_error(error), _traceback_end()


def _traceback_end() -> str:
    return traceback.format_exc().encode("utf-8", "replace").decode()[-TRACEBACK_CHARACTERS:]


def _die_with_parent() -> None:
    """End this process as soon as the one that asked for it is gone, even by SIGKILL."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        sys.stderr.flush()
        os._exit(1)
