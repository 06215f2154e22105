"""Commands without the wait for imports: one process per test session has done them, and forks a child for each.

`Command` is used like `subprocess.Popen`. Its child looks like a fresh process: it leads a session and a process group,
has a folder, an environment and an output of its own, and ends as the interpreter ends. The process server that a run
starts (`unlearnbench.run.workers`) is forked from the command, so it belongs to the command's group as usual, but need
not import either. What only a real process shows (an interrupt while it imports, the entry point) is for
`fresh_command`.
"""

import array
import atexit
import functools
import gc
import importlib
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing import util
from pathlib import Path
from types import ModuleType

import torch

from unlearnbench.cli import plotting

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 240  # no command takes longer
MAIN = "from unlearnbench.cli.commands import main\nmain()\n"
TINY = "from tests.cells import shrink\nshrink()\n"
NO_FIGURES = "from unlearnbench.report.figures import drawing\ndrawing.FIGURES = {}\n"  # they take their time
IMPORTS = (  # of a command, of its cells, and of what they import late
    "unlearnbench.cli.commands", "unlearnbench.cli.console", "unlearnbench.run.benchmark", "unlearnbench.run.lanes",
    "unlearnbench.run.unlearning", "unlearnbench.report.render", "unlearnbench.api", "diffusers.models.unets.unet_2d",
    "torch_fidelity.metric_fid",
    "sklearn.datasets", "sklearn.model_selection", "scipy.linalg", "tests.cells", "unlearnbench.report.figures.drawing",
    "unlearnbench.report.html.view", "unlearnbench.report.write.page",
    "typer._adapters", "pydantic.type_adapter", "jinja2.environment", "tabulate",
)  # fmt: skip


def environment(**more):
    """Return the environment of a command: no colours, 200 columns, and `more`."""
    return {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **more}


def fresh_command(folder, *arguments, **more):
    """Start the command line in a real process of its own, on the real digits."""
    return subprocess.Popen(
        [sys.executable, "-m", "unlearnbench.cli", *arguments], cwd=folder, env=environment(**more),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


class Command:
    """A command in a child of the server."""

    def __init__(self, folder, *arguments, tiny=True, figures=False, code=MAIN, output=None, **more):
        """Start it.

        Args:
            folder: it starts in.
            *arguments: of the command line.
            tiny: whether digits is tiny in it, see `cells.shrink`.
            figures: whether its report has figures.
            code: Python to run; the command line, unless told otherwise.
            output: descriptor to write to in place of the pipe `stdout`.
            **more: variables of its environment.
        """
        reading, writing = os.pipe()
        self._line, line = socket.socketpair()
        self.returncode, self.stdout = None, os.fdopen(reading, encoding="utf-8")
        request = {
            "arguments": list(map(str, arguments)), "folder": str(folder), "environment": environment(**more),
            "code": (TINY if tiny else "") + ("" if figures else NO_FIGURES) + code,
            "cores": sorted(os.sched_getaffinity(0)),
        }  # fmt: skip
        with line, Path(os.devnull).open() as nothing:
            shown = writing if output is None else output
            sent = array.array("i", [line.fileno(), nothing.fileno(), shown, shown])
            _server().sendmsg([json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, sent)])
        os.close(writing)
        self.pid = self._hear()

    def _hear(self):
        """Return the next number that the server says of the command."""
        number = self._line.recv(8)
        assert number, "the server of commands has ended"
        return int.from_bytes(number, "little", signed=True)

    def wait(self, timeout=SECONDS):
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            self.returncode = self._hear()
            self._line.close()
        return self.returncode

    def poll(self):
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout=SECONDS):
        """Return the rest of what it prints, and None, as its errors are among that; if it is late, it is killed."""
        late = threading.Timer(timeout, self.send_signal, [signal.SIGKILL])
        late.start()
        try:
            output = self.stdout.read()
        finally:
            late.cancel()
        self.wait(10)
        return output, None

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)


def run_command(folder, *arguments, **options):
    """Run a command to its end and return (exit status, output)."""
    command = Command(folder, *arguments, **options)
    output, _ = command.communicate()
    return command.returncode, output


@functools.cache
def _server():
    """Start the server, which ends with this process; return the line to it."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "tests.server", str(theirs.fileno())]
        subprocess.Popen(
            command, cwd=ROOT, pass_fds=[theirs.fileno()], start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    return ours


def serve(line):
    """Fork a child for each request; return in the child with the code that it is to run, and None in the end."""
    while True:
        message, sent, *_ = line.recvmsg(1 << 20, socket.CMSG_SPACE(4 * array.array("i").itemsize))
        while _reap():
            pass
        if not message:
            return None
        descriptors = array.array("i")
        descriptors.frombytes(sent[0][2])
        if os.fork() == 0:
            line.close()
            return attend(json.loads(message), *descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _reap():
    """Take leave of a child that has ended; say whether there was one."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] > 0
    except ChildProcessError:
        return False


def attend(request, line, *standard):
    """Fork the command, tell its process id and how it ends; in the command itself, return the code to run."""
    pid = os.fork()
    if pid == 0:
        os.close(line)
        return become(request, standard)
    for descriptor in standard:
        os.close(descriptor)
    os.write(line, pid.to_bytes(8, "little", signed=True))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.write(line, status.to_bytes(8, "little", signed=True))
    os._exit(0)


def become(request, standard):
    """Make this process look like one that was just started; return the code it is to run."""
    os.setsid()
    torch.set_num_threads(1)  # replaces torch's pool, lost in the fork, before two threads at once find that out
    for number, descriptor in enumerate(standard):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.sched_setaffinity(0, request["cores"])
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        buffered = name == "stdin" or not os.environ.get("PYTHONUNBUFFERED")
        stream = os.fdopen(number, "wb" if number else "rb", -1 if buffered else 0, closefd=False)
        stream = io.TextIOWrapper(stream, "utf-8", line_buffering=name == "stderr", write_through=not buffered)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    sys.argv = ["unlearnbench", *request["arguments"]]
    sys.path[0] = request["folder"]
    sys.path.append(str(ROOT))
    sys.modules["__main__"] = ModuleType("__main__")
    util.spawnv_passfds = fork_interpreter
    return request["code"]


def fork_interpreter(path, words, passed):
    """Start `python -c CODE` as multiprocessing does, by a fork: its imports are done already."""
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    kept = [0, 1, 2, *sorted(passed)]
    for before, after in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(before + 1, after)
    try:
        exec(words[words.index("-c") + 1], {"__name__": "__main__"})
    except SystemExit:
        pass
    except BaseException:  # as an interpreter would, which ends with it
        sys.excepthook(*sys.exc_info())
    os._exit(0)


class ForkedInterpreter:
    """`python -c CODE` or `python -m MODULE` within a command, like `subprocess.Popen`, by a fork as well."""

    def __init__(self, command, *, cwd, env, stdin, stdout, stderr, start_new_session):
        assert (stdin, stderr, start_new_session) == (subprocess.DEVNULL, subprocess.STDOUT, True)
        kind, code, *arguments = command[2 if command[1] == "-P" else 1 :]
        if kind == "-m":
            code = f"import runpy; runpy.run_module({code!r}, run_name='__main__', alter_sys=True)"
        self.args, self.returncode = command, None
        sys.stdout.flush(), sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            for number in signal.valid_signals():
                if callable(signal.getsignal(number)):
                    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            request = {
                "code": code, "arguments": arguments, "environment": env, "folder": str(cwd),
                "cores": os.sched_getaffinity(0),
            }  # fmt: skip
            standard = os.open(os.devnull, os.O_RDONLY), os.dup(stdout.fileno()), os.dup(stdout.fileno())
            end_as_an_interpreter(become(request, standard))

    def poll(self):
        if self.returncode is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.returncode

    def wait(self, timeout):
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(self.args, timeout)
            time.sleep(0.02)
        return self.returncode


def end_as_an_interpreter(code):
    """Run code, and end this process as an interpreter would, but for tearing the modules down, which takes seconds."""
    status = 0
    try:
        exec(code, sys.modules["__main__"].__dict__)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if status != stop.code is not None:
            print(stop.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush(), sys.stderr.flush()
    if status < 0:
        signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    torch.set_num_threads(1)  # so that no thread is lost in a fork
    plotting.import_matplotlib()
    for name in IMPORTS:
        importlib.import_module(name)
    gc.freeze()  # so that a child does not copy what it shares with this process in order to collect it
    if (code := serve(socket.socket(fileno=int(sys.argv[1])))) is not None:
        end_as_an_interpreter(code)
