"""Runs on a real Slurm with two nodes: whatever happens to jobs, no finished cell is lost and none counts as failed."""

import re
import signal

import pytest

from tests.cluster.place import Place, began, output_of
from tests.cluster.slurm import Slurm, why_not
from unlearnbench.run.cluster.folder import runs

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"no real Slurm: {why_not()}")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        yield slurm.start()
    finally:
        slurm.stop()


@pytest.fixture
def place(tmp_path, slurm):
    return Place(tmp_path, slurm)


@pytest.fixture(scope="module", autouse=True)
def limited(tmp_path_factory, slurm):
    """A run whose only cell takes longer than its job's minute, begun before the other tests."""
    place = Place(tmp_path_factory.mktemp("limited"), slurm, retries=0, minutes=1)
    output_of(place.run("0", "--detach", seconds=600.0))
    return place


def test_requeued_and_killed_jobs_lose_nothing_and_two_runs_share_a_folder(place):
    said = output_of(place.run("0-3", "--detach", seconds=3.0))
    first = place.newest
    assert f"unlearnbench cluster attach {first.name} --results {place.folder}/results" in said
    other = place.run("2-4", seconds=3.0)  # two of its cells are the first run's
    place.slurm("scontrol", "requeue", place.await_(lambda: began(first, "part-0")).job)
    node = place.await_(lambda: began(first, "part-1")).node
    place.await_(lambda: first.finished("part-1"))
    place.slurm.kill_node(node)
    assert re.search(r"^part-0 +\d/2", place.cluster("status", first.name), re.MULTILINE)
    place.slurm.start_node(node)
    place.slurm("scontrol", "update", f"nodename={node}", "state=resume")
    place.cluster("attach", first.name, "--no-report")
    assert f"2 cells are under way in run {first.name} and left to it" in output_of(other)
    assert place.lines == {(number, "ok"): 1 for number in range(5)}
    assert len(first.attempts("part-0")) >= 2


def test_detached_told_to_stop_cancelled_and_resumed_by_hand(place):
    process = place.run("0-3", seconds=5.0)
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
    assert finished < set(range(4))
    said = output_of(place.run("0-3", "--print-jobs", seconds=5.0))
    assert f"{len(finished)} of 4 cells" in said or not finished
    assert sum(map(len, place.newest.parts.values())) == 4 - len(finished)  # only what is missing
    commands = "\n".join(line for line in said.splitlines() if line.startswith(("  first=", "  sbatch ")))
    place.slurm("bash", "-euc", commands, cwd=place.folder)
    place.cluster("attach", "--no-report")
    assert {(number, "ok"): count for (number, status), count in place.lines.items() if status == "ok"} == {
        (number, "ok"): 1 for number in range(4)
    }
    assert not {status for _, status in place.lines} & {"failed", "oom", "timeout"}


def test_nothing_runs_where_nothing_can_be_prepared(place):
    said = output_of(place.run("0-1", SLEEPY_FAILS_IN_JOBS="1"), 2)
    assert re.search(r"the run cannot start: .*not on this cluster", said)
    run = place.newest
    place.await_(lambda: not {job for jobs in run.jobs().values() for job in jobs} & place.slurm.jobs().keys())
    assert run.attempts("part-0") == []  # its dependency was invalid


def test_a_cell_longer_than_its_job_is_a_timeout(limited):
    place = limited
    said = output_of(place.start("cluster", "attach", "--no-report"), 1)
    if "not measured" in said:  # Slurm signalled its job a minute early, before the cell had begun
        assert place.lines == {}
    else:
        assert "it takes longer than the time of its job" in said
        assert place.lines == {(0, "timeout"): 1}
