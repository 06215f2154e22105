"""What a record says a cell took, proved with real cells in real processes on the digits dataset.

Sleeps, blocks of memory and busy loops of known size stand for the work. No test asserts how fast anything is.
"""

import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import textwrap
import time
import uuid
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import psutil
import pytest
from rich.console import Console

from tests import sharing
from tests.cells import tiny_dataset
from tests.server import SECONDS, Command
from unlearnbench.cli import commands as cli
from unlearnbench.datasets import Source, load_dataset
from unlearnbench.plugins.registry import Registry
from unlearnbench.report.data.cost import CLOCKED
from unlearnbench.run.benchmark import Benchmark, Summary
from unlearnbench.run.execution import Execution
from unlearnbench.run.lanes import Lanes
from unlearnbench.run.plan import make_plan
from unlearnbench.run.workers import Workers
from unlearnbench.store.provenance import available_cores
from unlearnbench.store.records import Record, ResultStore

CORES = sharing.CORES[:2]
LANES = ",".join(f"cpu:{core}" for core in CORES)
NAP = 1.2  # seconds; longer than any phase of these small cells takes by itself
MEGABYTES = 300
SESSION = uuid.uuid4()
OUTSIDE = {"start", "load", "repeat", "stopped", "rest"}

PLUGIN = f"""
    import hashlib, os, signal, subprocess, threading, time
    from pathlib import Path

    import torch

    from unlearnbench import method

    FOLDER, NAP = Path(__file__).parent, {NAP}


    def edit(ctx):  # else the harness would take its samples from the cache
        with torch.no_grad():
            for parameter in ctx.model.parameters():
                parameter.mul_(1.01)


    def note(name, *words):
        with (FOLDER / name).open("a") as file:
            print(*words, file=file)


    def wait_for(name):
        deadline = time.monotonic() + {SECONDS}
        while not (FOLDER / name).exists() and time.monotonic() < deadline:
            time.sleep(0.05)


    def nap(ctx, length=NAP):
        time.sleep(length)
        return {{"nothing": torch.zeros(1)}}


    @method(title="Prepares")
    def prepares(ctx):
        ctx.prior("nap", nap, shared=True)
        ctx.prior("own_nap", nap, length=0.01)
        edit(ctx)


    def fill(ctx, megabytes=0):
        torch.ones(max(1, megabytes * 2**20), dtype=torch.uint8)
        return {{"nothing": torch.zeros(1)}}


    @method(title="Fills")
    def fills(ctx, *, where: str = "nowhere"):
        ctx.prior("fill", fill, megabytes={MEGABYTES} if where == "prior" else 0)
        fill(ctx, {MEGABYTES} if where == "forget" else 0)
        edit(ctx)


    @method(title="Sleeps")
    def sleeps(ctx):
        time.sleep(NAP)
        edit(ctx)


    @method(title="Burns")
    def burns(ctx):
        end, block = time.monotonic() + NAP, bytes(10**6)

        def burn():
            while time.monotonic() < end:
                hashlib.sha256(block)  # lets the other threads go on

        began = time.process_time()
        threads = [threading.Thread(target=burn) for _ in range(os.cpu_count())]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        note("burnt", time.process_time() - began)
        edit(ctx)


    class Slow:
        def __float__(self):
            time.sleep(NAP / 2)
            return 1.0


    @method(title="Logs")
    def logs(ctx):
        ctx.check_finite = lambda: time.sleep(NAP / 2)
        for _ in ctx.steps(1):
            ctx.log(slow=Slow())
        edit(ctx)


    def slow_compiler(graph, inputs):
        time.sleep(NAP / 2)
        return graph.forward


    @method(title="Compiles")
    def compiles(ctx):
        double = torch.compile(lambda x: 2 * x, backend=slow_compiler, dynamic=False)
        double(torch.ones(2)), double(torch.ones(3))  # another shape is compiled anew
        edit(ctx)


    @method(title="Stops")
    def stops(ctx):
        later = subprocess.Popen(["sh", "-c", f"sleep {{NAP}}; kill -CONT {{os.getpid()}}"])
        os.kill(os.getpid(), signal.SIGSTOP)
        later.wait()
        edit(ctx)


    @method(title="Waits")
    def waits(ctx):
        note("begun", ctx.forget_class)
        if ctx.forget_class > 0:
            wait_for("go")
"""


class Measured(NamedTuple):
    """What a run left."""

    summary: Summary
    records: list[Record]  # of a method in the order of their lines


def write_plugin(folder):
    """Write the plugin file; no other folder's has the same code, so that no prior of another one is reused."""
    folder.mkdir(exist_ok=True)
    (folder / "plugin.py").write_text(f"OF = '{uuid.uuid5(SESSION, str(folder))}'\n{textwrap.dedent(PLUGIN)}")
    return folder / "plugin.py"


@pytest.fixture(scope="module")
def workers():
    return Workers()


@pytest.fixture
def measure(cache, workers, tmp_path):
    """Return a function that runs cells of a tiny dataset, or of another, each in a process of its own."""

    def measure(
        methods, classes="3", *, folder=tmp_path, dataset=None, rerun="missing", repeats=1, devices="", **choices
    ):
        files = [write_plugin(folder)]
        choices = {"seeds": "0", "metrics": "ua", "sweeps": (), **choices}
        plan = make_plan(Registry(files), methods=methods, classes=classes, source=Source(), **choices)
        plan = replace(plan, dataset=dataset or tiny_dataset())
        store = ResultStore(folder / "results")
        execution = Execution(
            cache, "auto" if devices else "cpu", devices, tuple(files), rerun, repeats, minutes=SECONDS / 60
        )
        lanes = Lanes(plan, workers, store, execution)
        benchmark = Benchmark(plan, lanes, store, Console(file=io.StringIO()), execution)
        summary = benchmark.run()
        assert not summary.interrupted, "it hangs"
        return Measured(summary, store.read().records)

    return measure


def seconds(record):
    return {phase: cost["seconds"] for phase, cost in record.cost.items()}


def spent(record):
    """Return the seconds of each phase that the cell itself spent, of several times the first."""
    first = {phase: cost.get("repeats", [cost["seconds"]])[0] for phase, cost in record.cost.items()}
    return {phase: first[phase] - cost["reused_seconds"] for phase, cost in record.cost.items()}


def assert_the_sums_hold(record):
    assert record.status == "ok", record.reason
    assert set(record.outside) <= OUTSIDE
    parts = [*spent(record).values(), *record.outside.values()]
    assert min(parts) >= 0
    assert sum(parts) == pytest.approx(record.wall_seconds, rel=0.02)


def assert_the_nap_is_in(record, phase):
    """Assert that a phase has the nap, and that the clock of the other one has not."""
    found = seconds(record)
    assert found.pop(phase) >= NAP
    assert max(found.get(other, 0) for other in CLOCKED) < NAP, found  # on a busy machine judging may take as long
    assert_the_sums_hold(record)


def test_a_prior_is_measured_once_and_charged_to_every_cell_that_uses_it(measure):
    first, second = measure("prepares", "3,4").records
    assert_the_nap_is_in(first, "prior")
    assert_the_nap_is_in(second, "prior")
    assert not first.priors["nap"]["reused"]
    assert second.priors["nap"] == {**first.priors["nap"], "reused": True}
    assert NAP <= first.priors["nap"]["seconds"] < first.cost["prior"]["seconds"]
    assert (first.cost["prior"]["reused"], first.cost["prior"]["reused_seconds"]) == (False, 0)
    assert second.cost["prior"]["reused_seconds"] == first.priors["nap"]["seconds"]
    assert first.priors["own_nap"]["key"] != second.priors["own_nap"]["key"]  # of another class, so made anew
    assert not second.priors["own_nap"]["reused"]
    assert 0.01 <= spent(second)["prior"] < NAP
    again = measure("prepares", "4", rerun="always").records[-1]
    assert again.cost["prior"]["reused_seconds"] == again.cost["prior"]["seconds"] == second.cost["prior"]["seconds"]
    assert again.cost["prior"]["memory_bytes"] == second.cost["prior"]["memory_bytes"]
    assert_the_sums_hold(again)  # so its wall time does not contain the prior


def test_memory_raises_the_peak_of_the_phase_that_took_it_and_of_no_other(measure):
    found = measure("fills", sweeps=["fills.where=nowhere,forget,prior"]).records
    if "rss_peak" not in found[0].cost["forget"]["memory_bytes"]:
        pytest.skip(found[0].probes["rss_peak"])
    peaks = {
        record.cell.settings["where"]: {
            phase: cost["memory_bytes"]["rss_peak"] / 2**20 for phase, cost in record.cost.items()
        }
        for record in found
    }
    for where in ("forget", "prior"):
        for phase, peak in peaks[where].items():
            expected = MEGABYTES if phase == where else 0
            assert peak - peaks["nowhere"][phase] == pytest.approx(expected, abs=0.05 * MEGABYTES), (where, phase)
    for record in found:  # beside libraries and the base model, which both phases find there
        for phase in ("forget", "prior"):
            growth = record.cost[phase]["memory_growth_bytes"]["rss_peak"] / 2**20
            expected = MEGABYTES if record.cell.settings["where"] == phase else 0
            assert growth == pytest.approx(expected, abs=0.1 * MEGABYTES), (record.cell.settings, phase)


def test_phases_and_what_is_outside_them_explain_the_whole_of_a_real_cell(measure):
    began = time.monotonic()
    asked = {"sweeps": ["safemax.steps=3"], "dataset": load_dataset("digits"), "rerun": "always"}
    (record,) = measure("safemax", **asked).records
    assert_the_sums_hold(record)
    assert set(record.cost) == {"warmup", "forget", "sample", "judge"}
    assert min(spent(record).values()) > 0
    assert record.outside["rest"] < 0.1 * record.wall_seconds  # what has no name is little
    assert record.wall_seconds < time.monotonic() - began


def test_repeats_time_unlearning_again_and_change_nothing_else(measure, tmp_path):
    command = {"methods": "salun", "sweeps": ["salun.steps=2"]}
    (once,) = measure(**command, folder=tmp_path / "once", rerun="always").records
    (thrice,) = measure(**command, folder=tmp_path / "thrice", repeats=3).records
    forget = thrice.cost["forget"]
    assert len(forget["repeats"]) == 3
    assert min(forget["repeats"]) > 0
    assert forget["seconds"] == statistics.median(forget["repeats"])
    assert "repeats" not in once.cost["forget"]
    assert sum(forget["repeats"][1:]) <= thrice.outside["repeat"]
    assert "repeat" not in once.outside
    assert thrice.counts["optimizer_steps"] == 2
    for name in ("metrics", "images", "counts", "curves", "timestep_loss"):
        assert getattr(thrice, name) == getattr(once, name), name
    mask = thrice.priors["mask"]
    assert mask["reused"]
    assert mask["seconds"] == thrice.cost["prior"]["seconds"] == once.cost["prior"]["seconds"]
    assert_the_sums_hold(once)
    assert_the_sums_hold(thrice)


def test_more_repeats_than_recorded_measure_again(measure):
    ran = [measure("prepares", repeats=repeats) for repeats in (3, 3, 2, 4)]
    assert [run.summary.ran for run in ran] == [1, 0, 0, 1]
    first, last = ran[0].records[0], ran[-1].records[0]
    assert [len(record.cost["forget"]["repeats"]) for record in (first, last)] == [3, 4]
    assert_the_nap_is_in(first, "prior")  # once, not thrice
    assert first.outside["repeat"] < NAP  # nor out of sight
    assert sum(prior["seconds"] for prior in first.priors.values()) == first.cost["prior"]["seconds"]


def test_no_repeats_at_all_are_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["unlearnbench", "run", "--methods", "original", "--classes", "0", "--repeats", "0"]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    assert "--repeats" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_compiling_is_warmup(measure):
    (record,) = measure("compiles").records
    assert_the_nap_is_in(record, "warmup")


def test_logging_and_checking_are_outside_the_clock(measure):
    (record,) = measure("logs").records
    assert record.curves == {"slow": [[0, 1.0]]}
    assert seconds(record)["forget"] < NAP / 2
    assert record.outside["rest"] >= 3 * NAP / 2  # a value, the check of the last step, and that of the result
    assert_the_sums_hold(record)


def test_a_process_that_was_suspended_has_no_negative_time(measure):
    (record,) = measure("stops").records
    assert seconds(record)["forget"] < NAP  # the time it was stopped is not the method's
    assert record.outside["stopped"] == pytest.approx(NAP, abs=NAP / 2)
    assert_the_sums_hold(record)


@contextmanager
def busy_cores():
    """Let processes of others use every core, where nothing more urgent does."""
    code = "import os; os.nice(10)\nwhile True: pass"
    burners = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(available_cores())]
    try:
        yield
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()


def cpu_seconds():
    """Return what the system says its cores have worked so far, a virtual machine's for others included."""
    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))


def test_the_cpu_that_others_use_is_a_disturbance_and_ones_own_is_none(alone, measure, tmp_path):
    cores = available_cores()
    with busy_cores():
        began, before = time.monotonic(), cpu_seconds()
        records = {record.cell.method: record for record in measure("sleeps,burns").records}
        busy = (cpu_seconds() - before) / (time.monotonic() - began)
    if busy < 0.8 * cores:
        pytest.skip(f"the system says that {busy:.1f} of {cores} cores were used, when busy loops wanted all")
    (what,) = [found["what"] for found in records["sleeps"].disturbances if found["phase"] == "forget"]
    used, of = re.fullmatch(r"other processes used (\d+\.\d) of (\d+) cores", what).groups()
    assert int(of) == cores
    assert 0.7 * cores < float(used) <= 1.1 * cores
    forget, own = records["burns"].cost["forget"], float((tmp_path / "burnt").read_text())
    assert forget["load"]["foreign_cpu_seconds"] <= 1.1 * cores * forget["seconds"] - own


@pytest.mark.skipif(len(CORES) < 2, reason="two devices take two cores")
def test_waiting_for_samples_that_another_cell_draws_has_a_name(alone, measure):
    fresh = str(SESSION.int % 10**9)  # of this noise the cache has no samples; both cells want eight classes
    digits = load_dataset("digits")
    few = replace(digits, protocol=replace(digits.protocol, steps=5))
    asked = {"sampling_seeds": fresh, "metrics": "retain_accuracy", "devices": LANES}
    found = measure("original", "0,1", dataset=few, **asked).records
    assert any(record.cost["sample"]["reused"] for record in found)
    drawing = max(record.cost["sample"]["seconds"] for record in found)  # what the other cell waits for
    for record in found:
        assert_the_sums_hold(record)
        assert record.outside["rest"] < 0.5 * drawing


@pytest.fixture(scope="module")
def start(cache):
    """Return a function that starts `unlearnbench run` in a folder with the plugin."""
    started = []

    def start(folder, *arguments):
        process = Command(
            folder, "run", "--plugin", write_plugin(folder), *arguments, "--metrics", "ua", "--device", "cpu",
            PYTHONUNBUFFERED="1",
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:  # a test failed; the next one needs the device
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def statuses(folder):
    """Return {class: statuses of its lines, in their order}."""
    found = defaultdict(list)
    for path in (folder / "results").rglob("*.jsonl"):
        for line in path.read_text().split("\n")[:-1]:  # whole ones
            record = json.loads(line)
            found[record["cell"]["forget_class"]].append(record["status"])
    return dict(found)


def wait_until(condition, process):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def begun(folder):
    return [int(word) for word in (folder / "begun").read_text().split()] if (folder / "begun").exists() else []


WAITING = ("--methods", "waits", "--classes", "0-2")


@pytest.fixture(scope="module")
def interrupted(start, tmp_path_factory):
    """A run stopped by Ctrl-C with one cell done, one at work and one to come: (folder, exit status, output)."""
    folder = tmp_path_factory.mktemp("interrupted")
    process = start(folder, *WAITING)
    wait_until(lambda: len(statuses(folder)) == 1 and len(begun(folder)) == 2, process)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=SECONDS)
    return folder, process.returncode, output


def test_ctrl_c_keeps_finished_cells_and_records_the_one_at_work(interrupted):
    folder, status, output = interrupted
    assert status == 130, output
    assert "run the same command again to resume" in output
    assert "Traceback" not in output
    found = {forget_class: ends[0] for forget_class, ends in statuses(folder).items()}
    assert found == {0: "ok", 1: "interrupted"}


def test_the_same_command_goes_on_and_twice_at_once_it_measures_nothing_twice(interrupted, start):
    folder = interrupted[0]
    first = start(folder, *WAITING)
    wait_until(lambda: len(begun(folder)) == 3, first)
    second = start(folder, *WAITING)
    heard = []
    while not heard or "wait for the device" not in heard[-1]:
        heard.append(second.stdout.readline())
        assert heard[-1], heard
    (folder / "go").touch()
    for process in (first, second):
        output, _ = process.communicate(timeout=SECONDS)
        assert process.returncode == 0, output
    assert "3 of 3 cells are recorded" in output
    assert sorted(begun(folder)[2:]) == [1, 2]
    assert statuses(folder) == {0: ["ok"], 1: ["interrupted", "ok"], 2: ["ok"]}
