"""How the processes of a test session (pytest-xdist) share the machine: each has its cores, and some tests have all.

A run takes a lock on each core that it may use, so the runs of two workers on cores apart do not wait for each other.
What needs several cores, or looks at what else the machine does, is done `alone`: with all cores, and while no other
test of the session runs. That takes the time of every worker, so it is for few things, and for no more than they need.
"""

import fcntl
import os
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from unlearnbench.store.provenance import allowed_cores

CORES = allowed_cores()  # of the session
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
OWN = (CORES[int(WORKER.removeprefix("gw")) :: WORKERS] if WORKER else CORES) or CORES  # of this worker

# Files that are there anyway, for their locks. Who waits to be alone keeps the door shut, else that might take forever.
TURNS, DOOR = (os.open(Path(__file__).with_name(name), os.O_RDONLY) for name in ("sharing.py", "conftest.py"))


def pin(cores):
    """Let this process, and those that it has started, use these cores alone."""
    if not hasattr(os, "sched_setaffinity"):
        return
    this = psutil.Process()
    for process in (this, *this.children(recursive=True)):
        with suppress(psutil.Error, ProcessLookupError):
            for thread in process.threads():
                os.sched_setaffinity(thread.id, cores)


def _take(kind):
    fcntl.flock(DOOR, fcntl.LOCK_EX)
    fcntl.flock(TURNS, kind)
    fcntl.flock(DOOR, fcntl.LOCK_UN)


@contextmanager
def turn():
    """Run a test while no other worker is alone."""
    _take(fcntl.LOCK_SH)
    try:
        yield
    finally:
        fcntl.flock(TURNS, fcntl.LOCK_UN)


@contextmanager
def alone():
    """Do something within a test, or a fixture, while no other worker runs a test, and with all cores."""
    fcntl.flock(TURNS, fcntl.LOCK_UN)  # else two that want to be alone would wait for each other
    _take(fcntl.LOCK_EX)
    pin(CORES)
    try:
        yield
    finally:
        pin(OWN)
        fcntl.flock(TURNS, fcntl.LOCK_SH)
