"""Random kills of a run, its process group or a cell, resumed until it is whole.

Afterwards no record is lost or `failed`, no process is left, and the records equal those of an undisturbed run but for
what a clock or a memory probe says. UNLEARNBENCH_CACHE should name a warm cache: a base model is trained otherwise.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

from tests.campaigns import main
from unlearnbench.store.records import ResultStore

RUN = [
    "run", "--methods", "original,safemax,esd", "--classes", "0-1", "--set", "safemax.steps=3", "--set", "esd.steps=3",
    "--metrics", "ua", "--controls", "none", "--device", "cpu",
]  # fmt: skip
COMMAND = [sys.executable, "-m", "unlearnbench.cli", *RUN]
LATEST = 20.0  # seconds after which a run is disturbed, at most
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
TARGETS = ("run", "group", "cell")
TIMED = {"cost", "wall_seconds", "outside", "priors", "probes", "disturbances", "provenance", "flops", "curves"}
SECONDS = 300  # for a run that nobody disturbs


def start(folder, *more):
    """Start the run in a folder, in a process group of its own."""
    with Path(folder, "log").open("a") as log:
        return subprocess.Popen(
            [*COMMAND, *more], cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def family(folder):
    """Return the processes that stand in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def kill(process, folder, random):
    """Send a signal at random; return in words which, to what."""
    sent, target = random.choice(SIGNALS), random.choice(TARGETS)
    cells = [found.pid for found in family(folder) if found.pid != process.pid]
    with suppress(ProcessLookupError):  # it has ended meanwhile
        if target == "group":
            os.killpg(process.pid, sent)
        else:
            os.kill(random.choice(cells) if target == "cell" and cells else process.pid, sent)
    return f"{sent.name} to the {target}", target


def facts(folder):
    """Return {cell id: what no clock has a say in} of a folder's records."""
    reading = ResultStore(Path(folder, "results")).read()
    found = {}
    for record in reading.records:
        value = {key: part for key, part in record.to_json().items() if key not in TIMED and key != "checksum"}
        found[record.cell.id] = value
    return found


def disturbed(folder, random, counts):
    """Kill a run until it is whole; return what went wrong."""
    problems, words, target = [], "nothing", ""
    for _ in range(20):
        process, folder = start(folder), Path(folder).resolve()
        time.sleep(random.uniform(0.5, LATEST))
        if random.random() < 0.8 and process.poll() is None:
            words, target = kill(process, folder, random)
            counts[words] += 1
        try:
            status = process.wait(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return [*problems, "it did not end"]
        deadline = time.monotonic() + 10
        while (left := family(folder)) and time.monotonic() < deadline:
            time.sleep(0.2)
        if left:
            problems.append(f"left {[found.pid for found in left]} after {words}")
            for found in left:
                found.kill()
        statuses = {record.status for record in ResultStore(folder / "results").read().records}
        if "failed" in statuses and target != "cell":
            problems.append(f"failed, not interrupted, after {words}")
        if "Traceback (most recent" in (folder / "log").read_text():
            problems.append(f"a traceback after {words}")
        if status == 0:
            return problems
        # a cell alone that was killed is that cell's failure
        if "failed" in statuses and start(folder, "--rerun", "failed").wait(timeout=SECONDS) == 0:
            return problems
    return [*problems, "not whole after 20 tries"]


def campaign(count, random):
    """Disturb so many runs; return the signals sent, and what went wrong."""
    counts, defects = Counter(), []
    with tempfile.TemporaryDirectory() as root:
        calm = Path(root, "calm")
        calm.mkdir()
        if start(calm).wait(timeout=4 * SECONDS) != 0:
            return counts, [f"the undisturbed run failed:\n{(calm / 'log').read_text()}"]
        wanted = facts(calm)
        for number in range(count):
            folder = Path(root, str(number))
            folder.mkdir()
            problems = disturbed(folder, random, counts)
            found = facts(folder)
            if found.keys() != wanted.keys():
                problems.append(f"records of {sorted(found.keys() ^ wanted.keys())} lost, or made up")
            other = {c: [k for k in wanted[c] if found[c].get(k) != wanted[c][k]] for c in wanted.keys() & found.keys()}
            problems += [f"{cell}: another {', '.join(keys)}" for cell, keys in other.items() if keys]
            counts["runs made whole"] += 1
            defects += [f"run {number}: {problem}" for problem in problems]
    return counts, defects


if __name__ == "__main__":
    main(campaign, 20)
