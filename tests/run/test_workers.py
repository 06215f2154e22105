import gc
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch

from tests.server import ROOT, Command
from unlearnbench.errors import UsageError
from unlearnbench.run.workers import PRELOAD, STOPPING, Allowance, Workers, _death


@pytest.fixture(scope="module")
def workers():
    return Workers()


@pytest.fixture
def no_grace(monkeypatch):
    """A job that failed is no victim of a signal that is on its way to the run, which would be waited for."""
    monkeypatch.setattr("unlearnbench.run.workers.GRACE_SECONDS", 0.0)


def half_a_message(progress):
    """A job that dies within a message to its parent: the length of a long one, and nothing behind it."""
    os.write(progress._connection.fileno(), b"\x00\x01\x00\x00abc")
    os._exit(9)


def allocate_too_much(words, progress):
    raise RuntimeError(words)


def double(value, progress):
    progress("double", 1, 2)
    return 2 * value


def collector(progress):
    return gc.isenabled(), gc.get_freeze_count(), len(gc.get_objects())


def refuse(progress):
    raise UsageError("do otherwise")


def hold_the_gil(progress):
    re.match(r"(a+)+$", "a" * 64 + "b")  # takes years


SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
DOUBLE_FORK = "import os, sys; os.fork() or os.fork() or os.execv(sys.argv[1], sys.argv[1:])"
LEAVE = {
    "a child": lambda: subprocess.Popen(SLEEPER),
    "a session": lambda: subprocess.Popen(SLEEPER, start_new_session=True),
    "a daemon": lambda: subprocess.run([sys.executable, "-c", DOUBLE_FORK, *SLEEPER], start_new_session=True, env={}),
    "a fork": lambda: multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,)).start(),
}


def leave(what, how, folder, progress):
    """Leave a process behind that knows a folder, in one of many ways to end, or not to end at all."""
    os.chdir(folder)
    LEAVE[what]()
    deadline = time.monotonic() + 60
    while not living_in(folder, besides=os.getpid()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (folder / "ready").touch()
    if how == "dies":
        os._exit(3)
    elif how == "stays":
        hold_the_gil(progress)


def living_in(folder, besides=0):
    """Return the processes whose working folder this is."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != besides and process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def wait_for(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


def load_in_workers(progress):
    data = torch.utils.data.TensorDataset(torch.zeros(8, 3), torch.zeros(8))
    return sum(len(y) for _, y in torch.utils.data.DataLoader(data, batch_size=4, num_workers=2))


def pool(start, progress):
    with multiprocessing.get_context(start).Pool(2) as workers:
        return workers.map(abs, [-1, -2, 3])


def start_of_processes(progress):
    return multiprocessing.get_start_method()


def end_a_program(progress):
    """Start a program that waits, ask it to end, and return how it did."""
    program = subprocess.Popen(SLEEPER)
    program.terminate()
    return program.wait(timeout=60)


def raise_all_signals(progress):
    for number in STOPPING:
        os.kill(os.getpid(), number)
    time.sleep(0.1)
    return "alive"


def end_badly(folder, how, progress):
    """End by a signal, in the middle of a message, or by an error that tells of another process's end."""
    (folder / "pid").write_text(str(os.getpid()))
    if how == "error":
        raise RuntimeError("DataLoader worker is killed by signal: Terminated")
    if how == "message":
        half_a_message(progress)
    if how != signal.SIGKILL:
        signal.signal(how, signal.SIG_DFL)
    os.kill(os.getpid(), how)
    time.sleep(60)


def begin_and_sleep(folder, seconds, progress):
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(seconds)


def test_a_job_returns_its_value(workers):
    assert workers.run("tests.run.test_workers:double", 21).value == 42


@pytest.mark.usefixtures("no_grace")
def test_a_worker_that_dies_within_a_message_is_a_failure(workers):
    assert workers.run("tests.run.test_workers:half_a_message", timeout=60).status == "failed"


@pytest.mark.usefixtures("no_grace")
@pytest.mark.parametrize(
    "words",
    [
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes",
        "CUDA error: out of memory",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "GET was unable to find an engine to execute this computation",
    ],
)
def test_a_lack_of_memory_is_oom_whoever_says_so(workers, words):
    assert workers.run("tests.run.test_workers:allocate_too_much", words).status == "oom"


def test_a_usage_error_crosses_over(workers):
    with pytest.raises(UsageError, match="do otherwise"):
        workers.run("tests.run.test_workers:refuse")


@pytest.mark.parametrize(("code", "words"), [(-9, "SIGKILL"), (-11, "SIGSEGV"), (-40, "signal 40"), (3, "status 3")])
def test_every_death_has_a_word(code, words):
    assert words in _death(code)


@pytest.mark.usefixtures("no_grace")
@pytest.mark.parametrize("what", LEAVE)
@pytest.mark.parametrize("how", ["returns", "dies", "stays"])
def test_what_a_job_started_is_gone_when_it_has_ended(workers, tmp_path, monkeypatch, what, how):
    if how == "stays":  # its time is up when it has begun to hold the GIL
        monkeypatch.setattr(Allowance, "is_spent", lambda self, pid: (tmp_path / "ready").exists())
    outcome = workers.run("tests.run.test_workers:leave", what, how, tmp_path, timeout=5 if how == "stays" else None)
    assert outcome.status == {"returns": "ok", "dies": "failed", "stays": "timeout"}[how], outcome
    assert living_in(tmp_path) == []
    assert how != "dies" or outcome.reason.endswith("exit status 3")


RUN = """
import sys
from pathlib import Path
from unlearnbench.run.workers import Workers
Workers().run(sys.argv[1], *sys.argv[2:-1], Path(sys.argv[-1]))
"""


@pytest.mark.parametrize("whole_group", [False, True])
@pytest.mark.parametrize("what", ["a child", "a daemon"])
def test_a_job_that_holds_the_gil_dies_with_a_run_that_is_killed(tmp_path, what, whole_group):
    run = Command(ROOT, "tests.run.test_workers:leave", what, "stays", tmp_path, code=RUN, tiny=False)
    wait_for((tmp_path / "ready").exists)
    (os.killpg if whole_group else os.kill)(run.pid, signal.SIGKILL)
    run.wait()
    wait_for(lambda: not living_in(tmp_path), seconds=10)


def test_a_job_may_have_processes_of_its_own(workers):
    assert workers.run("tests.run.test_workers:load_in_workers").value == 8


@pytest.mark.parametrize("start", ["fork", "spawn", "forkserver"])
def test_a_job_may_have_a_pool(workers, start):
    assert workers.run("tests.run.test_workers:pool", start).value == [1, 2, 3]


def test_processes_start_within_a_job_as_they_do_outside(workers):
    here = subprocess.run([sys.executable, "-c", "import multiprocessing; print(multiprocessing.get_start_method())"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert workers.run("tests.run.test_workers:start_of_processes").value == here.stdout.strip()


def test_a_job_can_end_the_programs_that_it_started(workers):
    assert workers.run("tests.run.test_workers:end_a_program").value == -signal.SIGTERM


def test_a_signal_that_stops_a_run_does_not_end_its_jobs(workers):
    assert workers.run("tests.run.test_workers:raise_all_signals").value == "alive"


class Stopped(Exception):
    """The run was stopped."""


@pytest.mark.parametrize("how", ["error", "message", *STOPPING, signal.SIGKILL])
def test_a_job_that_ends_a_moment_before_its_run_is_stopped_has_not_failed(workers, tmp_path, how):
    ticks = []

    def stop():  # as the run's own signal, a moment after the job is gone
        if (tmp_path / "pid").exists() and not psutil.pid_exists(int((tmp_path / "pid").read_text() or 0)):
            ticks.append(time.monotonic())
            if ticks[-1] > ticks[0] + 0.2:
                raise Stopped

    with pytest.raises(Stopped):
        workers.run("tests.run.test_workers:end_badly", tmp_path, how, on_tick=stop)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_job_that_a_signal_ended_while_its_run_goes_on_has_failed(workers, tmp_path, number):
    outcome = workers.run("tests.run.test_workers:end_badly", tmp_path, number)
    assert (outcome.status, outcome.reason) == ("failed", f"its process was killed by {number.name}")


def test_the_time_that_a_job_is_stopped_is_not_its_time(workers, tmp_path):
    def stop():
        wait_for((tmp_path / "pid").exists)
        pid = int((tmp_path / "pid").read_text())
        os.kill(pid, signal.SIGSTOP)
        time.sleep(3)
        os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=stop)
    thread.start()
    outcome = workers.run("tests.run.test_workers:begin_and_sleep", tmp_path, 0.5, timeout=2.5)
    thread.join()
    assert outcome.status == "ok", outcome


DRIVER = (  # as if a CUDA driver were there that NVML knows nothing of
    "real = ctypes.CDLL; "
    "ctypes.CDLL = lambda name, *more, **named: None if name == 'libcuda.so.1' else real(name, *more, **named)"
)
NVML = "torch.cuda._device_count_nvml = lambda: 0"  # as if NVML could count the devices


def test_no_collection_of_a_job_walks_through_what_the_server_imported(workers):
    on, frozen, walked = workers.run(f"{__name__}:collector").value
    assert on
    assert walked < frozen / 10


def test_the_preloaded_modules_leave_cuda_usable_after_a_fork():
    code = f"""
import ctypes, importlib, os, sys, torch
for machine in {DRIVER!r}, {NVML!r}:  # the second imports what the first does, and then what asks for GPUs
    exec(machine)
    for name in {PRELOAD!r}:
        importlib.reload(importlib.import_module(name))
    child = os.fork()
    if child == 0:
        os._exit(7 if torch.cuda._is_in_bad_fork() else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "an import asked for CUDA devices: " + machine
assert "diffusers.models.unets.unet_2d" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
