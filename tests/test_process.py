import os
import subprocess
import sys
import time

import pytest

from unlearnbench.errors import UsageError
from unlearnbench.process import PRELOAD, Workers, _death


@pytest.fixture(scope="module")
def workers():
    return Workers()


def half_a_message(progress):
    """A job that dies within a message to its parent: the length of a long one, and nothing behind it."""
    os.write(progress._connection.fileno(), b"\x00\x01\x00\x00abc")
    os._exit(9)


def ask_for_a_turn(progress):
    return progress.turn("alone"), progress.turn("beside")


def allocate_too_much(progress):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")


def double(value, progress):
    progress("double", 1, 2)
    return 2 * value


def refuse(progress):
    raise UsageError("do otherwise")


def test_a_job_returns_its_value(workers):
    assert workers.run("tests.test_process:double", 21).value == 42


def test_a_job_goes_on_when_it_is_its_turn(workers):
    asked = []

    def on_turn(kind):
        asked.append(kind)
        return len(asked)

    assert workers.run("tests.test_process:ask_for_a_turn", on_turn=on_turn).value == (1, 2)
    assert asked == ["alone", "beside"]


def test_waiting_for_a_turn_is_not_the_jobs_time(workers):
    outcome = workers.run("tests.test_process:ask_for_a_turn", on_turn=lambda kind: time.sleep(1.5) or 1, timeout=2)
    assert outcome.status == "ok"


def test_a_worker_that_dies_within_a_message_is_a_failure(workers):
    assert workers.run("tests.test_process:half_a_message", timeout=60).status == "failed"


def test_a_lack_of_cpu_memory_is_oom(workers):
    assert workers.run("tests.test_process:allocate_too_much").status == "oom"


def test_a_usage_error_crosses_over(workers):
    with pytest.raises(UsageError, match="do otherwise"):
        workers.run("tests.test_process:refuse")


@pytest.mark.parametrize(("code", "words"), [(-9, "SIGKILL"), (-11, "SIGSEGV"), (-40, "signal 40"), (3, "status 3")])
def test_every_death_has_a_word(code, words):
    assert words in _death(code).reason


DRIVER = (  # as if a CUDA driver were there that NVML knows nothing of
    "real = ctypes.CDLL; "
    "ctypes.CDLL = lambda name, *more, **named: None if name == 'libcuda.so.1' else real(name, *more, **named)"
)
NVML = "torch.cuda._device_count_nvml = lambda: 0"  # as if NVML could count the devices


@pytest.mark.parametrize("machine", [DRIVER, NVML])
def test_the_preloaded_modules_leave_cuda_usable_after_a_fork(machine):
    code = f"""
import ctypes, importlib, os, torch
{machine}
for name in {PRELOAD!r}:
    importlib.import_module(name)
child = os.fork()
if child == 0:
    os._exit(7 if torch.cuda._is_in_bad_fork() else 0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "an import asked for CUDA devices"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
