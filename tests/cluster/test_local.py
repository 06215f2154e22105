"""Runs on submitit's own processes, the whole flow without a Slurm."""

import os
import re
from types import SimpleNamespace

import psutil
import pytest

from tests.cluster.place import Place, began, output_of
from unlearnbench.run.cluster.folder import runs
from unlearnbench.store.records import ResultStore

HERE = SimpleNamespace(environment=dict(os.environ))  # in place of a Slurm


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path, HERE)
    (tmp_path / "slurm.yaml").write_text("workers: 2\nlauncher: local\n")
    return place


def test_a_killed_job_is_started_again_and_a_detached_one_is_cancelled(place):
    process = place.run("0-2", seconds=1.0)
    place.await_(lambda: runs(place.folder / "results"))
    part = place.await_(lambda: began(place.newest, "part-0"))
    for victim in (psutil.Process(int(part.job)), *psutil.Process(int(part.job)).children(recursive=True)):
        victim.kill()
    said = output_of(process)
    assert re.search(rf"job {part.job} ended \(the scheduler does not say why\): 2 cells are submitted again", said)
    assert place.lines == {(number, "ok"): 1 for number in range(3)}
    records = ResultStore(place.folder / "results").read().records
    assert {record.provenance["node"] for record in records} == {os.uname().nodename}
    assert not [entry for record in records for entry in record.disturbances if "shared" in entry["what"]]

    said = output_of(place.run("3", "--detach", seconds=60.0))
    run = place.newest
    assert f"unlearnbench cluster attach {run.name}" in said
    place.await_(lambda: began(run, "part-0"))
    assert re.search(r"part-0 +0/1 .* running, digits-sleeps-c3-\S+ for \d+s", place.cluster("status"))
    assert "Cancelled" in place.cluster("cancel")
    assert place.lines[3, "interrupted"] == 1
    assert "is over: there is nothing to cancel" in output_of(place.start("cluster", "cancel"), 2)
