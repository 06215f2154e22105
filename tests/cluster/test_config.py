"""The cluster file, and the options that go with it."""

from pathlib import Path

import pytest

from tests import ROOT
from tests.readme import block
from unlearnbench.cli.cluster import check_options
from unlearnbench.datasets import Source
from unlearnbench.errors import UsageError
from unlearnbench.run.cluster.config import for_submitit, read_config
from unlearnbench.run.cluster.engine import write_scripts
from unlearnbench.run.cluster.folder import Request, RunFolder
from unlearnbench.run.execution import Execution


def config(folder, text):
    (folder / "c.yaml").write_text(text)
    return read_config(folder / "c.yaml")


def test_the_file_of_the_readme(tmp_path):
    text = block("file:slurm.yaml")
    assert len(text.splitlines()) <= 10
    found = config(tmp_path, text)
    assert (found.workers, found.minutes, found.retries, found.timed, found.launcher) == (16, 120, 2, "shared", "slurm")
    assert found.options(preparing=True)["time"] == 600
    assert found.options(preparing=False)["time"] == 150
    named = for_submitit(found.options(preparing=False))
    assert named["additional_parameters"] == {}
    assert named["setup"] == ["source .venv/bin/activate"]
    assert named["srun_args"] == ["--cpus-per-task=8"]


def test_options_that_submitit_does_not_name_go_to_sbatch(tmp_path):
    found = config(tmp_path, "workers: 1\nslurm: {time: 5, gpus-per-node: 1, licenses: foo, reservation: bar}")
    named = for_submitit(found.options(preparing=False))
    assert named == {
        "time": 5, "gpus_per_node": 1, "additional_parameters": {"licenses": "foo", "reservation": "bar"},
    }  # fmt: skip


@pytest.mark.parametrize(("timed", "is_exclusive"), [("exclusive", True), ("shared", False)])
def test_timed_cells_may_have_whole_nodes_and_preparing_needs_none(tmp_path, timed, is_exclusive):
    found = config(tmp_path, f"workers: 1\ntimed: {timed}\nslurm: {{time: 5}}")
    assert ("exclusive" in found.options(preparing=False)) == is_exclusive
    assert "exclusive" not in found.options(preparing=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "needs a line 'workers: N', the number of jobs at once"),
        ("- workers", "needs a line 'workers: N'"),
        ("workers: 2\nworkers", "is not a YAML file"),
        ("worker: 2", "needs a line 'workers: N'"),
        ("workers: 2\nminute: 5", "'minute' is not known (did you mean minutes?); known are workers, minutes,"),
        ("workers: two", "workers takes a whole number, not 'two'"),
        ("workers: true", "workers takes a whole number, not True"),
        ("workers: 0", "workers is at least 1, not 0"),
        ("workers: 2\nretries: -1", "retries is at least 0, not -1"),
        ("workers: 2\nminutes: .nan", "minutes is a positive number, not nan"),
        ("workers: 2\ntimed: alone", "timed is exclusive or shared, not 'alone'"),
        ("workers: 2\nlauncher: pbs", "launcher is slurm or local, not 'pbs'"),
        ("workers: 2\nslurm: gpu", "slurm takes options in braces, {name: value, ...}, not 'gpu'"),
        ("workers: 2\nworkers: 3", "workers is given twice"),
        ("workers: 2\nslurm: {time: 1:30}", "time is a whole number of minutes, not '1:30'"),
        ("workers: 2\nslurm: {time: '02:00:00'}", "time is a whole number of minutes, not '02:00:00'"),
        ("workers: 2\nslurm: {partition: gpu}", "slurm needs time, the minutes that a job may take"),
        ("workers: 2\nminutes: 90\nslurm: {time: 60}", "minutes is 90, but time lets a job take only 60"),
        ("workers: 2\nslurm: {time: 5, setup: module load x}", "setup is a list of shell commands"),
        ("workers: 2\nslurm: {time: 5, nodes: 4}", "the launcher sets nodes itself: remove it"),
        ("workers: 2\nslurm: {time: 5, ntasks: 2}", "the launcher sets ntasks itself: remove it"),
        ("workers: 2\nslurm: {time: 5, gres: [gpu, 1]}", "gres takes one value"),
        ("workers: 2\nslurm: {time: 5, 3: 1}", "3 is not the name of an option"),
        ("workers: 2\nprepare: {dependency: x}\nslurm: {time: 5}", "the launcher sets dependency itself"),
    ],
)
def test_files_that_say_something_else(tmp_path, text, message):
    with pytest.raises(UsageError) as found:
        config(tmp_path, text)
    assert message in str(found.value)
    assert str(found.value).startswith(f"--cluster {tmp_path / 'c.yaml'}")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageError, match=r"cannot be read \(No such file or directory\)"):
        read_config(tmp_path / "none.yaml")
    with pytest.raises(UsageError, match=r"cannot be read \(Is a directory\)"):
        read_config(tmp_path)
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe workers")
    with pytest.raises(UsageError, match="is not a YAML file"):
        read_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("cluster", "option", "message"),
    [
        (None, "--detach", "--detach goes with --cluster FILE"),
        (None, "--print-jobs", "--print-jobs goes with --cluster FILE"),
        (Path("c"), "--minutes", "the cluster file has minutes and time of its jobs"),
        (Path("c"), "--dry-run", "--print-jobs writes the jobs of a cluster"),
    ],
)
def test_options_that_do_not_go_together(cluster, option, message):
    with pytest.raises(UsageError, match=message):
        check_options(cluster, {option: 1.0})


def test_nothing_is_submitted_and_detached_from_at_once():
    with pytest.raises(UsageError, match="there is nothing to detach from"):
        check_options(Path("c"), {"--detach": True, "--print-jobs": True})


def test_job_scripts_say_what_the_file_says(tmp_path):
    text = "workers: 3\ntimed: exclusive\nslurm: {time: 30, gres: 'gpu:h100:1', setup: [module load cuda]}"
    chosen = config(tmp_path, f"{text}\nprepare: {{time: 90}}")
    request = Request({}, Source(), Execution(tmp_path), ROOT)
    run = RunFolder.create(tmp_path, request, chosen, [["a"], ["b"]], by_hand=True)
    prepare, parts = (path.read_text().splitlines() for path in write_scripts(run))
    assert {"#SBATCH --time=90", "#SBATCH --gres=gpu:h100:1", "#SBATCH --requeue", "module load cuda"} <= set(prepare)
    assert {"#SBATCH --time=30", "#SBATCH --exclusive", "#SBATCH --array=0-1%3"} <= set(parts)
    assert "#SBATCH --signal=USR2@90" in parts
    assert "#SBATCH --exclusive" not in prepare
    assert prepare[-1].endswith(f"cluster task {run.path} prepare")
    assert parts[-1].endswith(f"cluster task {run.path} part-$SLURM_ARRAY_TASK_ID")


def test_a_request_is_read_as_it_was_written(tmp_path):
    source = Source("photos", data_root=Path("x"), evaluated=(1, 2), base_minutes=1.5, concepts=Path("c.toml"))
    execution = Execution(tmp_path, plugin_files=(tmp_path / "a.py",), models=tmp_path, timeout=5.0, rerun="failed")
    request = Request({"methods": "all", "sweeps": ["a.b=1"]}, source, execution, tmp_path)
    run = RunFolder.create(tmp_path, request, config(tmp_path, "workers: 1\nlauncher: local"), [["a"]], by_hand=False)
    found = RunFolder(run.path)
    assert found.request == request
    assert found.config == run.config
    assert found.parts == {"part-0": ["a"]}
