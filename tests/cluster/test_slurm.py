"""Runs on a real Slurm with two nodes: whatever happens to jobs, no finished cell is lost and none counts as failed."""

import json
import re
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from tests import ROOT
from tests.cluster.slurm import Slurm, why_not
from unlearnbench.run.cluster.folder import runs

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"no real Slurm: {why_not()}")
SECONDS = 150  # no command takes longer
CELL = ("--methods", "sleeps", "--metrics", "nothing", "--controls", "none", "--base-steps", "2")
FILE = "workers: 2\nretries: {retries}\nslurm: {{time: {time}, mem: 1500M, signal_delay_s: 20}}\n"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        yield slurm.start()
    finally:
        slurm.stop()


class Place:
    """A folder that a user works in, with a cluster file, the plugin and the results."""

    def __init__(self, folder, slurm, retries=2, time=10):
        self.folder, self.slurm = folder, slurm
        (folder / "slurm.yaml").write_text(FILE.format(retries=retries, time=time))
        (folder / "sleepy.py").write_bytes((ROOT / "tests/cluster/sleepy.py").read_bytes())

    def start(self, *arguments, **more):
        environment = {**self.slurm.environment, "NO_COLOR": "1", "COLUMNS": "200", "PYTHONPATH": str(ROOT), **more}
        return subprocess.Popen(
            [sys.executable, "-m", "unlearnbench.cli", *arguments], cwd=self.folder, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, classes, *more, seconds=1.0, **environment):
        return self.start(
            "run", *CELL, "--plugin", "sleepy.py", "--classes", classes, "--set", f"sleeps.seconds={seconds}",
            "--cluster", "slurm.yaml", "--no-report", *more, **environment,
        )  # fmt: skip

    def cluster(self, verb, *more):
        """Run a command on a run; return what it prints."""
        return output_of(self.start("cluster", verb, *more))

    @property
    def lines(self):
        """How many lines with each status every class has."""
        text = "".join(path.read_text() for path in self.folder.glob("results/*/*.jsonl"))
        found = [json.loads(line) for line in text.splitlines()]
        return Counter((line["cell"]["forget_class"], line["status"]) for line in found)

    @property
    def newest(self):
        return runs(self.folder / "results")[0]

    def await_(self, condition):
        """Return what a function returns, once that is true."""
        end = time.monotonic() + SECONDS
        while not (found := condition()):
            assert time.monotonic() < end, (self.slurm.jobs(), self.cluster("status"))
            time.sleep(0.2)
        return found


def output_of(process, status=0):
    """Wait for a command and return what it printed."""
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == status, output
    assert "Traceback" not in output
    return output


def began(run, part, attempts=1):
    """Return the last attempt of a part, once it has begun a cell."""
    found = run.attempts(part)
    return found[-1] if len(found) >= attempts and found[-1].begun else None


@pytest.fixture
def place(tmp_path, slurm):
    return Place(tmp_path, slurm)


@pytest.fixture(scope="module", autouse=True)
def limited(tmp_path_factory, slurm):
    """A run whose only cell takes longer than its job's minute, begun before the other tests."""
    place = Place(tmp_path_factory.mktemp("limited"), slurm, retries=0, time=1)
    output_of(place.run("0", "--detach", seconds=600.0))
    return place


def test_requeued_and_killed_jobs_lose_nothing_and_two_runs_share_a_folder(place):
    said = output_of(place.run("0-5", "--detach", seconds=3.0))
    first = place.newest
    assert f"unlearnbench cluster attach {first.name}" in said
    other = place.run("4-7", seconds=3.0)  # two of its cells are the first run's
    place.slurm("scontrol", "requeue", place.await_(lambda: began(first, "part-0")).job)
    node = place.await_(lambda: began(first, "part-1")).node
    place.await_(lambda: first.finished("part-1"))
    place.slurm.kill_node(node)
    assert re.search(r"^part-0 +\d/3", place.cluster("status", first.name), re.MULTILINE)
    place.slurm.start_node(node)
    place.slurm("scontrol", "update", f"nodename={node}", "state=resume")
    place.cluster("attach", first.name, "--no-report")
    assert f"2 cells are under way in run {first.name} and left to it" in output_of(other)
    assert place.lines == {(number, "ok"): 1 for number in range(8)}
    assert len(first.attempts("part-0")) >= 2


def test_detached_told_to_stop_cancelled_and_resumed_by_hand(place):
    process = place.run("0-5", seconds=7.0)
    place.await_(lambda: runs(place.folder / "results"))
    run = place.newest
    part = place.await_(lambda: began(run, "part-0"))
    process.send_signal(signal.SIGINT)
    assert "Detached" in output_of(process, 130)
    place.slurm("scancel", "--signal=USR2", part.job)  # as Slurm does before the end of its time
    place.await_(lambda: began(run, "part-0", attempts=2))  # it has requeued itself
    assert "gathered" in place.cluster("cancel")
    assert not {job for jobs in run.jobs().values() for job in jobs} & place.slurm.jobs().keys()
    assert {status for _, status in place.lines} <= {"ok", "interrupted"}
    finished = {number for number, status in place.lines if status == "ok"}
    assert finished < set(range(6))
    said = output_of(place.run("0-5", "--print-jobs", seconds=7.0))
    assert f"{len(finished)} of 6 cells" in said or not finished
    assert sum(map(len, place.newest.parts.values())) == 6 - len(finished)  # only what is missing
    commands = "\n".join(line for line in said.splitlines() if line.startswith(("  first=", "  sbatch ")))
    place.slurm("bash", "-euc", commands, cwd=place.folder)
    place.cluster("attach", "--no-report")
    assert {(number, "ok"): count for (number, status), count in place.lines.items() if status == "ok"} == {
        (number, "ok"): 1 for number in range(6)
    }
    assert not {status for _, status in place.lines} & {"failed", "oom", "timeout"}


def test_nothing_runs_where_nothing_can_be_prepared(place):
    said = output_of(place.run("0-1", SLEEPY_FAILS_IN_JOBS="1"), 2)
    assert re.search(r"the run cannot start: .*not on this cluster", said)
    run = place.newest
    place.await_(lambda: not {job for jobs in run.jobs().values() for job in jobs} & place.slurm.jobs().keys())
    assert run.attempts("part-0") == []  # its dependency was invalid


def test_a_cell_longer_than_its_job_is_given_up(limited):
    place = limited
    assert "not measured" in output_of(place.start("cluster", "attach", "--no-report"), 1)
    assert place.lines.keys() <= {(0, "interrupted")}  # Slurm may signal a minute early, before the cell has begun
