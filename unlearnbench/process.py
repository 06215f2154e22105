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
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from unlearnbench.errors import NonFiniteError, PluginError, UsageError, one_line, spell_error
from unlearnbench.results import Status

# Not diffusers: its import asks for CUDA devices, after which a forked process can use none.
PRELOAD = [
    "unlearnbench.cli", "unlearnbench.runner", "torch_fidelity.metric_fid", "sklearn.datasets",
    "sklearn.model_selection",
]  # fmt: skip
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "ALLOC_FAILED")  # what torch's RuntimeErrors say of it
PROGRESS_SECONDS = 0.25  # at most one progress message per this time
TRACEBACK_CHARACTERS = 4000  # kept of a traceback, from its end

Progress = Callable[[str, int, int], None]  # what is done, steps done, steps in all (0: nobody knows)


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

    def run(
        self,
        job: str,
        *arguments: Any,
        on_progress: Progress = lambda what, done, total: None,
        on_warning: Callable[[str], None] = lambda text: None,
        on_tick: Callable[[], None] = lambda: None,
        timeout: float | None = None,
    ) -> Outcome:
        """Run `job(*arguments, progress)` in a process of its own and wait for its end.

        Args:
            job: `module:function`, so that this process need not import what only the other one runs.
            *arguments: picklable.
            on_progress: called with what is done, steps done, steps in all.
            on_warning: called with the text of each warning raised in the process.
            on_tick: called at least once a second.
            timeout: seconds after which the process is killed.

        Raises:
            UsageError: the job raised one.
        """
        here, there = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_main, args=(there, job, arguments), daemon=True)  # type: ignore[attr-defined]
        process.start()
        there.close()
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
                        if content[-1] == 0 and timeout is not None:  # it waits for the device: not its own time
                            deadline = time.monotonic() + timeout
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
    send_lock = threading.Lock()

    def send(*message: Any) -> None:
        with send_lock:
            connection.send(message)

    last = 0.0

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= PROGRESS_SECONDS:
            last = time.monotonic()
            send("progress", what, done, total)

    warnings.showwarning = lambda message, *_, **__: send("warning", str(message))
    send(*_outcome(job, arguments, progress))
    connection.close()


def _outcome(job: str, arguments: tuple[Any, ...], progress: Progress) -> tuple[Any, ...]:
    import torch

    try:
        module, _, function = job.partition(":")
        return "end", "ok", getattr(importlib.import_module(module), function)(*arguments, progress)
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
