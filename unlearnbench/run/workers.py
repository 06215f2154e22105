"""Jobs in separate processes, with separate memory peaks and isolated crashes.

Processes are forked from a server with the heavy imports done, so one starts in a fraction of a second. Each job has a
guard process as parent, which ends the job and all its descendants when the job is over, when its time is up, and
when the run is gone, even by SIGKILL.
"""

import ctypes
import importlib
import math
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil

from unlearnbench.cost.nvml import is_stopped
from unlearnbench.errors import NonFiniteError, PluginError, UsageError, one_line, spell_error
from unlearnbench.protocols import Progress
from unlearnbench.store.records import Status

# Signals of shells, terminals and schedulers, often sent to all processes of a run. The run handles them.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

PRELOAD = ["unlearnbench.run.preload"]
OUT_OF_MEMORY = (  # in texts of torch's RuntimeErrors; the last is cuDNN's, without memory for a workspace
    "can't allocate memory", "out of memory", "ALLOC_FAILED", "unable to find an engine",
)  # fmt: skip
PROGRESS_SECONDS = 0.25  # least time between progress messages
TRACEBACK_CHARACTERS = 4000  # kept of a traceback, from its end
TICK_SECONDS = 1.0  # between checks whether the run was stopped, at most
LONGEST_TICK = 2.5  # seconds; longer means that this process was stopped too
GRACE_SECONDS = 1.0  # the signal that ended a job may arrive this much before the run's own
END_SECONDS = 10.0  # a process that takes longer to die hangs in the kernel
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # of Linux's prctl
_START = threading.Lock()  # held while a process starts, by one thread at a time


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job: its value when ok, else the reason and the end of the traceback."""

    status: Status
    value: Any = None
    reason: str | None = None
    traceback: str | None = None


def expect(outcome: Outcome) -> Any:
    """Return the value of an indispensable job; raise UsageError where it failed."""
    if outcome.status != "ok":
        places = re.findall(r'File "(.+)", line (\d+), in ', outcome.traceback or "")
        place = f" ({Path(places[-1][0]).name}, line {places[-1][1]})" if places else ""
        raise UsageError(f"the run cannot start: {outcome.reason}{place}")
    return outcome.value


class Workers:
    """Starts jobs, one process each."""

    def __init__(self) -> None:
        """Start the process server; it imports in the background."""
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOAD)
        with _quiet_start():
            forkserver.ensure_running()

    def run(
        self,
        job: str,
        *arguments: Any,
        on_progress: Progress = lambda what, done, total: None,
        on_warning: Callable[[str], None] = lambda text: None,
        on_tick: Callable[[], None] = lambda: None,
        on_beside: Callable[[], int] = lambda: 0,
        timeout: float | None = None,
        allowance: "Allowance | None" = None,
    ) -> Outcome:
        """Run `job(*arguments, channel)` in a separate process and wait until it and its descendants are gone.

        Args:
            job: `module:function`, so that this process need not import it.
            *arguments: picklable.
            on_progress: called with the name of the step, steps done, total steps.
            on_warning: called with the text of each warning raised in the process.
            on_tick: called at least once a second; an exception from it ends the job.
            on_beside: returns the largest number of other devices at work since the job's last request.
            timeout: seconds after which the process is killed, not counting stops (Ctrl-Z).
            allowance: instead, those that several jobs have together.

        Raises:
            UsageError: the job raised one.
        """
        child, allowance = _Child(job, arguments), allowance or Allowance(timeout)
        try:
            outcome = None
            while outcome is None:
                message = child.hear(on_tick)
                match message:
                    case ("progress", *content):
                        on_progress(*content)
                    case ("warning", text):
                        on_warning(text)
                    case ("beside",):
                        child.answer(on_beside())
                    case ("usage", text):
                        raise UsageError(text)
                    case ("end", *content):
                        outcome = Outcome(*content)
                if outcome is None and allowance.is_spent(child.pid):
                    outcome = Outcome("timeout", reason=f"it was stopped after {allowance.whole:g} seconds (--timeout)")
        finally:
            child.end()
        if outcome.status in ("failed", "oom"):
            _await_own_stop(on_tick)
        return outcome


class _Child:
    """A job's process and its guard, seen from the process that waits for them."""

    def __init__(self, job: str, arguments: tuple[Any, ...]) -> None:
        """Start both."""
        self.pid: int | None = None  # of the job, once known
        self._channel, channel = multiprocessing.Pipe()
        self._leash, leash = multiprocessing.Pipe()
        ended_by = set(STOPPING) - {signal.SIGINT}  # which a job's programs keep ignoring: the run handles Ctrl-C
        heard = [number for number in ended_by if signal.getsignal(number) is not signal.SIG_IGN]
        self._guard = multiprocessing.get_context("forkserver").Process(
            target=_guard, args=(leash, channel, heard, job, arguments)
        )
        try:
            with _START, _without_main():
                self._guard.start()
        except (EOFError, ConnectionError) as error:
            raise UsageError(
                "no process can be started, as the process server has ended: free memory, or raise the limits on "
                "memory and open files (ulimit)"
            ) from error
        channel.close()
        leash.close()

    def hear(self, on_tick: Callable[[], None]) -> tuple[Any, ...]:
        """Wait briefly for the job's next message; return an empty one if there is none, an end message if it died."""
        ready = wait([self._channel, self._leash], timeout=TICK_SECONDS)
        on_tick()
        message: tuple[Any, ...] = ()
        try:
            if self._channel in ready or (self._leash in ready and self._channel.poll()):
                message = self._channel.recv()
            elif ready:
                raise EOFError
        except (EOFError, OSError):  # it died, perhaps during a message
            return "end", "failed", None, _death(self._exit_code())
        if message[:1] == ("begun",):
            self.pid = message[1]
        return message

    def answer(self, value: int) -> None:
        """Answer the job's question."""
        with suppress(OSError):  # if the job died, the next message tells
            self._channel.send(value)

    def end(self) -> None:
        """Let the guard end the job and its descendants, and wait for it."""
        with suppress(OSError):
            self._leash.send("end")  # closing is not enough: a process forked from this one may keep the pipe open
        self._leash.close()
        self._guard.join(END_SECONDS)
        self._guard.kill()
        self._channel.close()

    def _exit_code(self) -> int | None:
        """Return the job's exit code from its guard; the guard's own if it was killed."""
        with suppress(EOFError, OSError):
            return int(self._leash.recv()) if self._leash.poll(END_SECONDS) else None
        self._guard.join(END_SECONDS)
        return self._guard.exitcode


class Allowance:
    """The remaining time of jobs."""

    def __init__(self, seconds: float | None) -> None:
        """Allow that many seconds; None for any number."""
        self.whole = math.inf if seconds is None else seconds
        self._left, self._seen = self.whole, time.monotonic()

    def is_spent(self, pid: int | None) -> bool:
        """Count the time since the last check, unless the job or this process was stopped; say whether it is up."""
        now = time.monotonic()
        took, self._seen = now - self._seen, now
        if took < LONGEST_TICK and not (pid is not None and is_stopped(pid)):
            self._left -= took
        return self._left < 0


def _await_own_stop(on_tick: Callable[[], None]) -> None:
    """Wait for a signal that may have ended a job to reach this process as well."""
    end = time.monotonic() + GRACE_SECONDS
    while time.monotonic() < end:
        time.sleep(GRACE_SECONDS / 10)
        on_tick()


@contextmanager
def _without_main() -> Iterator[None]:
    """Hide the main module (a script, a notebook) while a process starts, which would run it again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def _quiet_start() -> Iterator[None]:
    """Start the process server with stopping signals ignored, and without the current folder on its path."""
    heard = {number: signal.getsignal(number) for number in STOPPING}
    safe = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    for number in heard:
        signal.signal(number, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in heard.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if safe is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = safe


def ignore_stopping() -> None:
    """Ignore further signals: this process has stopped its work and is about to end."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)


def _death(code: int | None) -> str:
    """Return the reason for a process that ended without a result."""
    if code is None:
        return "its process broke off its connection"
    if code < 0:
        known = {int(number): number.name for number in signal.Signals}
        name = known.get(-code, f"signal {-code}")
        hint = ", often the system's answer to a lack of memory" if name == "SIGKILL" else ""
        return f"its process was killed by {name}{hint}"
    return f"its process ended without a result, exit status {code}"


def _guard(leash: Connection, channel: Connection, heard: Sequence[int], job: str, arguments: tuple[Any, ...]) -> None:
    """Run a job in a child, and end its descendants when it ends, or when the run requests it or is gone.

    Args:
        leash: to the run, for the job's exit code; a message from the run, or its end, ends the job.
        channel: to the run, for the job.
        heard: signals that end the job's descendants, although the server ignores them.
        job: as in `Workers.run`.
        arguments: of the job.
    """
    guard = os.getpid()
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)  # adopts orphans of any session or group
    pid = os.fork()
    if pid == 0:
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == guard:  # else the guard has died already
            leash.close()
            _main(channel, heard, job, arguments)
        return
    channel.close()
    os.setpgid(0, 0)  # a signal to the run's group, even SIGKILL, spares the guard
    threading.Thread(target=_end_when_told, args=(leash,), daemon=True).start()
    ended, status = os.waitpid(-1, 0)
    while ended != pid:
        ended, status = os.waitpid(-1, 0)
    with suppress(ChildProcessError):  # no child left
        while True:
            _kill_descendants()
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.01)
    with suppress(OSError):
        leash.send(os.waitstatus_to_exitcode(status))


def _end_when_told(leash: Connection) -> None:
    with suppress(EOFError, OSError):
        leash.recv()
    _kill_descendants()


def _kill_descendants() -> None:
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _prctl(option: int, value: int) -> None:
    """Set a property of this process; on other systems than Linux, orphans cannot be found and ended."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _main(connection: Connection, heard: Sequence[int], job: str, arguments: tuple[Any, ...]) -> None:
    """Run a job inside its process and send its outcome."""
    for number in heard:  # a handler, which programs started by the job do not inherit
        signal.signal(number, _leave_to_the_run)
    os.register_at_fork(after_in_child=_hear_again)
    multiprocessing.set_start_method(None, force=True)  # the default again: only jobs are forked from the server
    channel = PipeChannel(connection)
    warnings.showwarning = lambda message, *_, **__: channel.send("warning", str(message))
    with suppress(BrokenPipeError, ConnectionResetError):  # the run has given up the job, and its guard will end it
        channel.send("begun", os.getpid())
        channel.send(*_outcome(job, arguments, channel))
    connection.close()


def _leave_to_the_run(*_: Any) -> None:
    """Ignore a signal that the run handles, which ends this process if it stops."""


def _hear_again() -> None:
    """Restore signals in a process forked by a job, so that pools can end their workers."""
    for number in STOPPING:
        if signal.getsignal(number) is _leave_to_the_run:
            signal.signal(number, signal.SIG_DFL)


class PipeChannel:
    """The job's end of the pipe."""

    def __init__(self, connection: Connection) -> None:
        self._connection, self._lock, self._last, self._what = connection, threading.Lock(), 0.0, ""

    def send(self, *message: Any) -> None:
        """Send a message; thread-safe."""
        with self._lock:
            self._connection.send(message)

    def __call__(self, what: str, done: int, total: int) -> None:
        """Send progress at a limited rate, but each new step."""
        if what != self._what or time.monotonic() - self._last >= PROGRESS_SECONDS:
            self._last, self._what = time.monotonic(), what
            self.send("progress", what, done, total)

    def beside(self) -> int:
        """Return the largest number of other devices at work at once since the last call."""
        self.send("beside")
        return int(self._connection.recv())


def _outcome(job: str, arguments: tuple[Any, ...], channel: PipeChannel) -> tuple[Any, ...]:
    import torch

    try:
        module, _, function = job.partition(":")
        return "end", "ok", getattr(importlib.import_module(module), function)(*arguments, channel)
    except UsageError as error:
        return "usage", str(error)
    except (MemoryError, torch.OutOfMemoryError) as error:
        return "end", "oom", None, f"out of memory: {spell_error(error)}", _traceback_end()
    except RuntimeError as error:
        status = "oom" if any(text in str(error) for text in OUT_OF_MEMORY) else "failed"
        return "end", status, None, spell_error(error), _traceback_end()
    except (PluginError, NonFiniteError) as error:
        return "end", "failed", None, one_line(str(error)), _traceback_end()
    except BaseException as error:  # any error of a plugin is recorded as a failure of its cell
        return "end", "failed", None, spell_error(error), _traceback_end()


def _traceback_end() -> str:
    return traceback.format_exc().encode("utf-8", "replace").decode()[-TRACEBACK_CHARACTERS:]
