"""A command that the tests' server forks is like a process that was just started."""

import os
import signal
import subprocess
import sys

import pytest

from tests.server import Command, environment, run_command

SAYS = """
import os, signal, sys
print(os.getcwd(), sys.argv[1:], os.environ["WORD"], sys.stdin.read(), os.isatty(1), sys.flags.interactive)
print(os.getpgrp() == os.getsid(0) == os.getpid(), signal.getsignal(signal.SIGINT).__name__, __name__)
print(sorted(os.sched_getaffinity(0)), [os.path.exists(f"/proc/self/fd/{k}") for k in range(3)])
print("an error", file=sys.stderr, flush=True)
"""


def real(folder, code, *arguments, **more):
    """Run code in a real process and return (exit status, output)."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, env=environment(**more), stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_it_finds_what_a_process_finds(tmp_path):
    given = (tmp_path, "one", "two words")
    expected = real(given[0], SAYS, *given[1:], WORD="x")
    assert run_command(*given, code=SAYS, tiny=False, figures=True, WORD="x") == expected
    assert expected[0] == 0


@pytest.mark.parametrize(
    "code",
    ["", "raise SystemExit", "raise SystemExit(3)", "raise SystemExit('words')", "1 / 0", "raise KeyboardInterrupt",
     "import os; os._exit(5)", "import os; os.kill(os.getpid(), 9)", "import atexit; atexit.register(print, 'late')"],
)  # fmt: skip
def test_it_ends_as_a_process_ends(tmp_path, code):
    (status, said), (expected, words) = run_command(tmp_path, code=code), real(tmp_path, code)
    assert status == expected
    assert said.splitlines()[-1:] == words.splitlines()[-1:]


def test_what_it_prints_at_once_is_heard_at_once_and_a_signal_ends_it(tmp_path):
    command = Command(tmp_path, code="import time\nprint('begun')\ntime.sleep(600)", PYTHONUNBUFFERED="1")
    assert command.stdout.readline() == "begun\n"
    assert command.poll() is None
    os.killpg(command.pid, signal.SIGTERM)
    assert command.communicate() == ("", None)
    assert command.returncode == -signal.SIGTERM
