import os
import subprocess
import sys

import pytest

from unlearnbench.errors import UsageError
from unlearnbench.process import PRELOAD, Workers, _death


@pytest.fixture(scope="module")
def workers():
    return Workers()


def half_a_message(progress):
    """A job that dies within a message to its parent: the length of a long one, and nothing behind it."""
    for descriptor in range(3, 64):
        try:
            os.write(descriptor, b"\x00\x01\x00\x00abc")
        except OSError:
            continue
    os._exit(9)


def allocate_too_much(progress):
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")


def double(value, progress):
    progress("double", 1, 2)
    return 2 * value


def refuse(progress):
    raise UsageError("do otherwise")


def test_a_job_returns_its_value(workers):
    assert workers.run("tests.test_process:double", 21).value == 42


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


def test_the_preloaded_modules_leave_cuda_usable_after_a_fork():
    code = f"""
import importlib, os, torch
for name in {PRELOAD!r}:
    importlib.import_module(name)
child = os.fork()
if child == 0:
    os._exit(7 if torch.cuda._is_in_bad_fork() else 0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "an import asked for CUDA devices"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
