"""Several devices of one machine: what `--devices` names, and runs in which two cores stand for two devices."""

import io
import os
import signal
import sys
import textwrap
import time
import uuid
from dataclasses import replace
from types import SimpleNamespace

import pytest
from rich.console import Console

from tests import sharing
from tests.cells import tiny_dataset
from tests.conftest import fake_record, stated
from tests.run.test_workers import living_in
from tests.server import SECONDS, Command
from unlearnbench.cli import commands as cli
from unlearnbench.cli.dry_run import duration
from unlearnbench.cost import nvml as monitor
from unlearnbench.datasets import Source
from unlearnbench.errors import UsageError
from unlearnbench.plugins.registry import Registry
from unlearnbench.report.data.board import Board
from unlearnbench.run.benchmark import Benchmark
from unlearnbench.run.devices import named_devices, spell_cores
from unlearnbench.run.execution import Execution
from unlearnbench.run.jobs import resolve_devices
from unlearnbench.run.lanes import Lanes
from unlearnbench.run.locks import Beside, device_lock
from unlearnbench.run.plan import make_plan
from unlearnbench.run.workers import Workers
from unlearnbench.store.provenance import allowed_cores
from unlearnbench.store.records import ResultStore

NAP, BURN = 2.5, 1.0  # seconds that a shared prior sleeps, and that unlearning keeps its core busy
CORES = sharing.CORES[:2]
NAMES = [f"cpu:{core}" for core in CORES]
LANES = ",".join(NAMES)
two_cores = pytest.mark.skipif(
    len(CORES) < 2 or not hasattr(os, "sched_setaffinity"), reason="there are no two cores to stand for two devices"
)

PLUGIN = f"""
    import os, time
    from pathlib import Path

    import torch

    from unlearnbench import method

    FOLDER, SESSION = Path(__file__).parent, "{uuid.uuid4()}"  # so its prior is in no cache


    def note(name, *words):
        with (FOLDER / name).open("a") as file:
            print(*words, file=file)


    def nap(ctx):
        note("naps", os.getpid())
        time.sleep({NAP})
        return {{"nothing": torch.zeros(1)}}


    @method(title="Burns")
    def burns(ctx):
        ctx.prior("nap", nap, shared=True)
        note("cells", ctx.forget_class, torch.get_num_threads(), *os.sched_getaffinity(0))
        end = time.monotonic() + {BURN}
        while time.monotonic() < end:
            pass
        with torch.no_grad():  # else the harness would take its samples from the cache
            for parameter in ctx.model.parameters():
                parameter.mul_(1.01)


    @method(title="Waits")
    def waits(ctx):
        note("begun", ctx.forget_class)
        time.sleep({SECONDS})
"""


def write_plugin(folder):
    (folder / "plugin.py").write_text(textwrap.dedent(PLUGIN))
    return folder / "plugin.py"


def numbers(path):
    """Return the numbers of each line of a file; nothing where there is none."""
    return [[int(word) for word in line.split()] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def cores(monkeypatch):
    """This process may use the cores 0 to 11."""
    monkeypatch.setattr("unlearnbench.run.devices.allowed_cores", lambda: list(range(12)))


@pytest.mark.usefixtures("cores")
class TestNames:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("0,1", {"cuda:0": [], "cuda:1": []}),
            ("cuda:2, 0", {"cuda:2": [], "cuda:0": []}),
            ("all", {"cuda:0": [], "cuda:1": [], "cuda:2": []}),
            ("cpu:0", {"cpu:0": [0]}),
            ("cpu:0-3,cpu:4-7", {"cpu:0-3": [0, 1, 2, 3], "cpu:4-7": [4, 5, 6, 7]}),
            ("cpu:8+0-2,cpu:3", {"cpu:0-2+8": [0, 1, 2, 8], "cpu:3": [3]}),
        ],
    )
    def test_gpus_and_sets_of_cores_have_names(self, text, found):
        assert named_devices(text, 3) == found
        assert list(named_devices(text, 3)) == list(found)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "neither a GPU nor a set of cores: write --devices 0,1"),
            ("0,", "names '', which is neither"),
            ("cpu", "names 'cpu', which is neither"),
            ("auto", "names 'auto', which is neither"),
            ("-1", "names '-1', which is neither"),
            ("all,0", "names 'all', which is neither"),
            ("0,1,cuda:0", "names cuda:0 twice"),
            ("cpu:", "is not a set of cores: write"),
            ("cpu:3-1", "is not a set of cores"),
            ("cpu:x", "is not a set of cores"),
            ("cpu:0-12", "may only use the cores 0-11"),
            ("cpu:0-999999", "may only use the cores 0-11"),
            ("cpu:0-3,cpu:3-5", "names core 3 twice"),
        ],
    )
    def test_what_names_none_is_one_sentence(self, text, words):
        with pytest.raises(UsageError) as refused:
            named_devices(text, 3)
        assert words in str(refused.value)

    def test_all_of_no_gpus_says_what_to_do(self):
        with pytest.raises(UsageError, match=r"torch sees no CUDA device here.*name sets of cores"):
            named_devices("all", 0)

    def test_where_a_process_cannot_choose_its_cores_there_are_gpus_alone(self, monkeypatch):
        monkeypatch.delattr(os, "sched_setaffinity", raising=False)
        with pytest.raises(UsageError, match="takes only GPUs here"):
            named_devices("cpu:0", 3)
        assert named_devices("1", 3) == {"cuda:1": []}


def test_cores_are_spelled_as_they_are_named():
    assert spell_cores([3, 0, 1, 2, 8, 10, 11]) == "0-3+8+10-11"


class TestIdentity:
    @pytest.fixture
    def gpus(self, monkeypatch):
        """Return the identities of pretended GPUs, by number."""
        found = {
            number: {"type": "cuda", "name": "H100", "uuid": f"u{number}", "driver": "575", "cuda": "13.0"}
            for number in range(3)
        }

        def resolve_device(name):
            return {"name": name, "device": name, "identity": found[int(name[-1])], "of": 1}

        monkeypatch.setattr("unlearnbench.run.jobs.resolve_device", resolve_device)
        return found

    def test_devices_of_one_model_are_a_run(self, gpus):
        found = resolve_devices("auto", "0,2")
        assert [(each["name"], each["identity"]["uuid"]) for each in found] == [("cuda:0", "u0"), ("cuda:2", "u2")]
        assert {each["of"] for each in found} == {2}

    @pytest.mark.parametrize(
        ("fact", "value", "words"),
        [("name", "A100", "cuda:2 (A100, driver 575)"), ("driver", "580", "cuda:2 (H100, driver 580)")],
    )
    def test_a_mixed_pair_is_refused(self, gpus, fact, value, words):
        gpus[2][fact] = value
        with pytest.raises(UsageError) as refused:
            resolve_devices("auto", "0,1,2")
        assert f"not alike, cuda:0 (H100, driver 575) and {words}: name those of one model" in str(refused.value)

    def test_a_gpu_and_cores_are_no_pair(self, gpus):
        with pytest.raises(UsageError, match=r"not alike, cuda:0 \(H100, driver 575\) and cpu:"):
            resolve_devices("auto", f"0,cpu:{allowed_cores()[0]}")

    def test_a_set_of_cores_is_a_device_of_its_own(self):
        core = allowed_cores()[0]
        (found,) = resolve_devices("auto", f"cpu:{core}")
        assert (found["name"], found["device"], found["of"]) == (f"cpu:{core}", "cpu", 1)
        assert found["identity"]["cores"] == [core]
        assert found["identity"]["name"].endswith(", 1 cores")
        (whole,) = resolve_devices("cpu", "")
        assert "cores" not in whole["identity"]
        assert whole["of"] == 1


def test_the_locks_of_several_devices_are_taken_in_one_order(tmp_path, monkeypatch):
    monkeypatch.setattr("unlearnbench.run.locks._lock_folders", lambda: [tmp_path])
    taken = []

    def first_that_works(name):
        taken.append(name)
        return SimpleNamespace(lock_file=str(tmp_path / name), is_locked=True, release=lambda: None), []

    monkeypatch.setattr("unlearnbench.run.locks._first_that_works", first_that_works)
    gpus = [{"type": "cuda", "uuid": name} for name in ("b", "a")]
    sets = [{"type": "cpu", "cores": cores} for cores in ([10, 2], [1, 12])]
    with device_lock([*gpus, *sets], pytest.fail):
        pass
    assert taken == ["cpu-1", "cpu-2", "cpu-10", "cpu-12", "cuda-a", "cuda-b"]


def test_devices_at_work_beside_each_other_are_counted_from_one_question_to_the_next():
    beside = Beside()
    assert beside.most(0) == 0
    with beside.working(0):
        assert beside.most(0) == 0
        with beside.working(1):
            with beside.working(2):
                pass
            assert beside.most(0) == 2  # although one has ended
            assert beside.most(0) == 1
            assert beside.most(1) == 2
        assert beside.most(0) == 1  # that has ended since
        assert beside.most(0) == 0


def test_cells_on_other_devices_hide_no_stranger_on_this_one(monkeypatch):
    monkeypatch.setattr(monitor, "_run_of", lambda pid: ({pid}, [{2}, {3}]))
    assert monitor._others({70, 80}, 1) == (0, 1)  # a container hides ids: one may be of the run's other cells
    assert monitor._others({70, 80}, 1, alone=True) == (1, 0)
    assert monitor._others({1, 70}, 1, alone=True) == (1, 0)


def test_captions_say_how_many_devices_worked_meanwhile():
    def caption(*counts):
        loads = [{"forget": {"load": {"devices_beside": float(count)}}} for count in counts]
        return stated(Board([fake_record(forget_class=c, phases=phases) for c, phases in enumerate(loads)]))

    assert "timed while up to 3 other devices of the run worked; " in caption(3, 1)
    assert "timed while up to 1 other device of the run worked; " in caption(0, 1)
    assert "of the run worked" not in caption(0, 0)
    assert "of the run worked" not in stated(Board([fake_record()]))


def test_time_is_forecast_for_devices_at_once():
    records = [fake_record("alpha", c) for c in range(4)]
    words = duration([([record.cell for record in records], records[:1])], 2)
    assert words.startswith("about 14s for 4 cells, on 2 devices at once, by 1 record ")


@two_cores
def test_a_dry_run_names_the_devices(alone, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["run", "--methods", "original", "--classes", "0", "--devices", LANES, "--dry-run"]
    monkeypatch.setattr(sys, "argv", ["unlearnbench", *command])
    before = os.sched_getaffinity(0)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert not stop.value.code
    assert f"\ndevices: {', '.join(NAMES)} (" in capsys.readouterr().out
    assert os.sched_getaffinity(0) == before
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def measure(cache, tmp_path_factory):
    """Return a function that runs four cells on two devices, and the folder of their notes."""
    folder, workers = tmp_path_factory.mktemp("devices"), Workers()
    files = [write_plugin(folder)]
    plan = make_plan(
        Registry(files), methods="burns", classes="0-3", source=Source(), metrics="ua", sweeps=(), controls="none"
    )
    plan = replace(plan, dataset=tiny_dataset())
    assert workers.run("tests.run.test_workers:double", 1).value == 2  # it has done its imports, before all is quiet
    store = ResultStore(folder / "results")

    def measure():
        said = io.StringIO()
        execution = Execution(cache, devices=LANES, plugin_files=tuple(files), minutes=SECONDS / 60)
        lanes = Lanes(plan, workers, store, execution)
        benchmark = Benchmark(plan, lanes, store, Console(file=said, width=200), execution)
        with sharing.alone():
            summary = benchmark.run()
        assert not summary.interrupted, "it hangs"
        return SimpleNamespace(summary=summary, records=store.read().records, said=said.getvalue(), folder=folder)

    return measure


@pytest.fixture(scope="module")
def ran(measure):
    return measure()


@two_cores
class TestTwoDevices:
    def test_cells_are_spread_over_both_and_none_is_measured_twice(self, ran, measure):
        assert (ran.summary.ran, ran.summary.failed) == (4, []), ran.said
        assert sorted(record.cell.forget_class for record in ran.records) == [0, 1, 2, 3]
        assert sorted(line[0] for line in numbers(ran.folder / "cells")) == [0, 1, 2, 3]
        assert {tuple(record.provenance["device"]["cores"]) for record in ran.records} == {(core,) for core in CORES}
        lines = [line for path in ran.folder.rglob("*.jsonl") for line in path.read_text().splitlines()]
        assert len(lines) == 4
        again = measure()
        assert (again.summary.ran, again.summary.kept) == (0, 4)

    def test_each_process_is_bound_to_its_device(self, ran):
        cores = {record.cell.forget_class: record.provenance["device"]["cores"] for record in ran.records}
        assert {cell: used for cell, _, *used in numbers(ran.folder / "cells")} == cores
        assert {threads for _, threads, *_ in numbers(ran.folder / "cells")} == {1}

    def test_a_shared_prior_is_built_once_and_waiting_for_it_is_nobodys_cost(self, ran):
        assert len(numbers(ran.folder / "naps")) == 1
        assert sorted(record.priors["nap"]["reused"] for record in ran.records) == [False, True, True, True]
        assert len({record.cost["prior"]["seconds"] for record in ran.records}) == 1
        for record in ran.records:
            assert NAP <= record.cost["prior"]["seconds"] < 2 * NAP
            assert BURN <= record.cost["forget"]["seconds"] < BURN + NAP
            spent = sum(cost["seconds"] - cost["reused_seconds"] for cost in record.cost.values())
            assert spent + sum(record.outside.values()) == pytest.approx(record.wall_seconds, rel=0.02)

    def test_the_other_device_is_recorded_and_disturbs_nothing(self, ran):
        for record in ran.records:
            forget = record.cost["forget"]
            # the other one burns all of its core, which would come on top of what strangers take of this one
            assert forget["load"]["foreign_cpu_seconds"] < 0.9 * forget["seconds"]
            assert forget["load"]["devices_beside"] in (0, 1)
        firsts = [record for record in ran.records if record.cell.forget_class < 2]  # which begin together
        assert [record.cost["forget"]["load"]["devices_beside"] for record in firsts] == [1, 1]
        assert "timed while up to 1 other device of the run worked" in stated(Board(ran.records))

    def test_progress_says_which_device_a_cell_is_on(self, ran):
        for record in ran.records:
            (core,) = record.provenance["device"]["cores"]
            assert f"burns forgets {record.cell.forget_class} on cpu:{core}: ok" in ran.said


@pytest.fixture(scope="module")
def stopped(cache, tmp_path_factory):
    """A run that found one of its devices held, began when it was free, and was stopped by Ctrl-C with both at work."""
    folder = tmp_path_factory.mktemp("stopped")
    heard = [""]
    Command(folder, code="", tiny=False).wait()  # the server has done its imports, before all is quiet
    with sharing.alone():
        process = Command(
            folder, "run", "--methods", "waits", "--classes", "0-2", "--plugin", write_plugin(folder), "--metrics",
            "ua", "--controls", "none", "--devices", LANES, PYTHONUNBUFFERED="1",
        )  # fmt: skip
        try:
            with device_lock([{"type": "cpu", "cores": CORES[1:]}], lambda holder: None):
                while "wait for the device" not in heard[-1]:
                    heard.append(process.stdout.readline())
                    assert heard[-1], heard
                time.sleep(1)
                before = numbers(folder / "begun")
            deadline = time.monotonic() + SECONDS
            while len(numbers(folder / "begun")) < 2:
                assert process.poll() is None, process.stdout.read()
                assert time.monotonic() < deadline
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGINT)
            output, _ = process.communicate()
        finally:
            if process.poll() is None:  # else the tests to come would wait for its devices
                os.killpg(process.pid, signal.SIGKILL)
    return SimpleNamespace(
        folder=folder, status=process.returncode, output=output, before=before, waited=heard[-1],
        records=ResultStore(folder / "results").read().records,
    )  # fmt: skip


@two_cores
class TestInterruption:
    def test_a_device_that_another_run_holds_is_waited_for(self, stopped):
        assert f"process {os.getpid()} on " in stopped.waited  # who holds it
        assert stopped.before == []

    def test_ctrl_c_records_the_cells_of_both_devices_and_leaves_no_process(self, stopped):
        assert stopped.status == 130, stopped.output
        assert "Traceback" not in stopped.output
        found = {record.cell.forget_class: record.status for record in stopped.records}
        assert found == {0: "interrupted", 1: "interrupted"}
        deadline = time.monotonic() + 30
        while living_in(stopped.folder) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert living_in(stopped.folder) == []
