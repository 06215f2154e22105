"""The main job end to end, in processes of its own: where the numbers matter on the real digits, else on tiny ones."""

import json
import os
import re
import signal
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.server import MAIN, SECONDS, Command, fresh_command, run_command
from unlearnbench.run.course import WEAK
from unlearnbench.store.records import ResultStore

pytestmark = pytest.mark.usefixtures("cache")
QUICK = ("--metrics", "ua,judge_entropy", "--device", "cpu")


def start(folder, *arguments, **options):
    """Start `unlearnbench run`."""
    return Command(folder, "run", *arguments, **options)


def run(folder, *arguments, **options):
    """Run to the end and return (exit status, output)."""
    return run_command(folder, "run", *arguments, **options)


def records(folder):
    return {record.cell.id: record for record in ResultStore(folder / "results").read().records}


def lines(folder):
    return [line for path in (folder / "results").rglob("*.jsonl") for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, cache):
    """A run of two methods, one of them swept, on one class of the real digits."""
    folder = tmp_path_factory.mktemp("run")
    arguments = ("--methods", "original,safemax", "--classes", "3", "--set", "safemax.steps=2,3", *QUICK)
    return (folder, arguments, *run(folder, *arguments, tiny=False))


class TestOneRun:
    def test_it_ends_well_and_prints_the_table(self, finished):
        _, _, status, output = finished
        assert status == 0, output
        table = output[output.index("mean over forget classes") :]
        assert "SAFEMax (steps=2)" in table
        assert "Original" in table

    def test_every_cell_is_recorded_with_where_it_comes_from(self, finished):
        found = records(finished[0])
        assert len(found) == 3
        for record in found.values():
            assert record.status == "ok"
            assert record.provenance["device"]["uuid"]
            assert record.provenance["packages"]["torch"]
            assert record.provenance["started_utc"].endswith("Z")
            assert set(record.metrics) == {"ua", "judge_entropy"}
            assert record.metrics["ua"]["n"] == 100
            assert record.judge["test_accuracy"] >= 0.975
            assert record.artifacts["base"]["sha256"]
            assert (record.protocol["solver"], record.protocol["steps"]) == ("dpm++", 12)
            assert record.cost["forget"]["memory_bytes"]
        steps = {r.cell.settings.get("steps"): r.counts["optimizer_steps"] for r in found.values()}
        assert steps == {None: 0, 2: 2, 3: 3}

    def test_the_phases_and_what_is_outside_them_add_up_to_the_wall_time(self, finished):
        for record in records(finished[0]).values():
            spent = sum(cost["seconds"] - cost["reused_seconds"] for cost in record.cost.values())
            assert spent + sum(record.outside.values()) == pytest.approx(record.wall_seconds, rel=0.02)
            assert set(record.outside) == {"start", "load", "rest"}

    def test_metrics_that_look_at_one_side_sample_one_side(self, finished):
        assert all(set(record.images) == {"forget"} for record in records(finished[0]).values())

    def test_the_report_is_there(self, finished):
        assert (finished[0] / "reports" / "digits" / "report.md").is_file()

    def test_the_same_command_again_runs_nothing(self, finished):
        folder, arguments, *_ = finished
        before = lines(folder)
        status, output = run(folder, *arguments, tiny=False)
        assert status == 0
        assert "3 of 3 cells are recorded" in output
        assert lines(folder) == before

    def test_further_metrics_run_the_cells_again_with_those_they_had(self, finished):
        folder, arguments, *_ = finished
        chosen = [*arguments[:1], "original", *arguments[2:4], "--metrics", "retain_accuracy", "--device", "cpu"]
        status, output = run(folder, *chosen, tiny=False)
        assert status == 0, output
        original = next(record for record in records(folder).values() if record.cell.method == "original")
        assert set(original.metrics) == {"ua", "judge_entropy", "retain_accuracy"}  # those it had are not lost
        assert original.metrics["retain_accuracy"]["value"] >= 95
        assert original.metrics["ua"]["value"] <= 5  # the untouched model has not forgotten

    def test_the_same_cell_twice_is_identical_bit_for_bit(self, finished):
        folder, arguments, *_ = finished
        before, length = records(folder), len(lines(folder))
        chosen = ["--methods", "safemax", *arguments[2:4], "--set", "safemax.steps=3", *QUICK, "--rerun", "always"]
        status, output = run(folder, *chosen, tiny=False)
        assert status == 0, output
        assert len(lines(folder)) == length + 1
        after = records(folder)
        (changed,) = [name for name, record in after.items() if record != before[name]]
        assert after[changed].counts["optimizer_steps"] == 3
        assert_identical(before[changed], after[changed])


def assert_identical(first, second):
    """Assert that two records of a cell, measured apart, have the same numbers and images."""
    assert first.provenance["started_utc"] != second.provenance["started_utc"]
    for name in ("metrics", "images", "curves", "counts", "timestep_loss"):
        assert getattr(first, name) == getattr(second, name), name


def test_every_metric_of_the_same_cell_twice_is_identical_bit_for_bit(tmp_path):
    arguments = ("--methods", "salun", "--classes", "4", "--set", "salun.steps=3", "--device", "cpu")
    results = []
    for rerun in ("missing", "always"):  # the second time the mask comes from the cache
        status, output = run(tmp_path, *arguments, "--controls", "none", "--rerun", rerun)
        assert status == 0, output
        results.append(next(iter(records(tmp_path).values())))
    first, second = results
    assert len(lines(tmp_path)) == 2
    assert set(first.images) == {"forget", "retain"}
    assert len(first.metrics) > 10
    assert first.curves
    assert_identical(first, second)
    assert second.cost["prior"]["reused"]
    assert second.cost["prior"]["seconds"] == first.cost["prior"]["seconds"]


# In place of MAIN's beginning, where many cells die and no signal is on its way to the run.
NO_GRACE = "from unlearnbench.run import workers\nworkers.GRACE_SECONDS = 0.0\n"

FAILING = """
    import os, signal, time
    import torch
    from unlearnbench import method

    @method(title="Killed")
    def killed(ctx):
        os.kill(os.getpid(), signal.SIGKILL)

    @method(title="Left")
    def left(ctx):
        os._exit(3)

    @method(title="Raising")
    def raising(ctx):
        raise RuntimeError("no luck today")

    @method(title="Diverged", streams=("forget",))
    def diverged(ctx):
        for _ in ctx.steps(60):
            with torch.no_grad():
                next(ctx.model.parameters()).mul_(float("inf"))

    @method(title="Greedy")
    def greedy(ctx):
        raise MemoryError("all of it")

    @method(title="Peeking", streams=("retain",))
    def peeking(ctx):
        ctx.forget.draw(1)

    @method(title="Slow")
    def slow(ctx):
        time.sleep(600)

    @method(title="Quitting")
    def quitting(ctx):
        raise KeyboardInterrupt("first line\\nsecond \\ud800 line")

    @method(title="Unrecordable")
    def unrecordable(ctx):
        ctx._harness.curves["x"] = [(0, float("nan"))]

    @method(title="Sound")
    def sound(ctx):
        pass
"""


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """A folder of three classes of small images, one of which no program can read."""
    root, random = tmp_path_factory.mktemp("images") / "pets", np.random.default_rng(0)
    for part, n in (("train", 40), ("test", 10)):
        for k, name in enumerate(("cat", "dog", "emu")):
            (root / part / name).mkdir(parents=True)
            for number in range(n):
                pixels = random.integers(0, 80, (16, 16, 3)) + 80 * k
                Image.fromarray(pixels.astype(np.uint8)).save(root / part / name / f"{number}.png")
    (root / "train" / "cat" / "0.png").write_bytes(b"no image")
    return root


def test_a_folder_of_images_from_end_to_end(tmp_path, pets):
    arguments = ["--dataset", "imagefolder", "--data-root", str(pets), "--image-size", "16", "--protocol", "smoke"]
    arguments += ["--base-steps", "2", "--methods", "original,salun", "--classes", "emu"]
    arguments += ["--metrics", "ua,fid,forgotten,retained,ua_second,judge_agreement", "--controls", "none"]
    arguments += ["--set", "salun.steps=1", "--set", "salun.batch=4"]
    status, output = run(tmp_path, *arguments)
    assert status == 1, output  # a base model of two steps draws nothing, so nothing can be forgotten
    assert "Original does not forget, but Forgotten (class emu, seed 0)" in output
    assert "or its base model is too weak to tell" in output
    alarm, method = output.index("- Original does not forget, but Forgotten"), output.index("salun (steps=1, batch=4)")
    assert output.index(WEAK) < alarm < method  # said as soon as it is known
    assert "warning: FID cannot be measured where emu is forgotten: a covariance of 128 features takes" in output
    assert output.index("there are 80 real ones: add training images") < output.index("base model and judges")
    assert "warning: 1 of 150 image files cannot be read and are skipped, such as train/cat/0.png" in output
    assert "salun (steps=1, batch=4) forgets 2 emu" in output
    found = records(tmp_path)
    name = next(iter(found.values())).cell.dataset
    assert re.fullmatch("pets-[0-9a-f]{6}", name)
    assert {(r.cell.dataset, r.cell.protocol, r.cell.forget_class) for r in found.values()} == {(name, "smoke", 2)}
    for record in found.values():
        assert record.dataset["choices"] == {"base_steps": 2}
        assert record.metrics["ua"]["n"] == 40
        assert record.metrics["fid"]["value"] is None  # 79 real images give no covariance of 128 features
        assert "use more than 128" in record.metrics["fid"]["reason"]
        assert str(pets) not in json.dumps(record.to_json())
    changed = next(r.method["changed"] for r in found.values() if r.cell.method == "salun")
    assert changed["steps"] == [1000, 1]
    page = (tmp_path / "reports" / name / "report.md").read_text()
    assert "| SalUn (batch=4, steps=1) | steps" in page.replace("  ", "")
    status, output = run(tmp_path, *arguments)
    assert (status, "2 of 2 cells are recorded" in output) == (1, True), output
    status, output = run(tmp_path, *arguments, "--base-steps", "3", "--dry-run")
    assert status == 0


def test_a_weak_base_model_ends_a_run_where_that_is_asked_for(tmp_path):
    arguments = ["--methods", "safemax", "--classes", "0-1", "--base-steps", "2", "--metrics", "forgotten"]
    arguments += ["--device", "cpu", "--stop-if-weak"]
    for measured in (1, 0):  # the second time by its record
        status, output = run(tmp_path, *arguments)
        assert status == 1, output
        assert "- Original does not forget, but Forgotten (class 0, seed 0)" in output
        assert "train it longer (--base-steps)" in output
        assert output.count("] original forgets 0: ok") == measured
        assert [record.cell.method for record in records(tmp_path).values()] == ["original"]
    status, output = run(tmp_path, *arguments, "--controls", "none")
    assert (status, "add original to --methods" in output) == (2, True), output


def test_a_run_stops_when_its_minutes_are_up_and_goes_on(tmp_path):
    arguments = ("--methods", "safemax", "--classes", "0", "--set", "safemax.steps=5", *QUICK)
    endless = ("--methods", "safemax", "--classes", "2", "--set", "safemax.steps=100000", *QUICK)
    status, output = run(tmp_path, *endless, "--minutes", "0.03")
    assert status == 130, output
    assert "run the same command again to resume" in output
    assert {record.status for record in records(tmp_path).values()} <= {"interrupted"}
    status, output = run(tmp_path, *arguments, "--minutes", "4")
    assert status == 0, output


def test_training_alone_writes_a_base_that_a_run_takes(tmp_path):
    status, output = run_command(tmp_path, "train", "--steps", "2", "--out", "base")
    assert status == 0, output
    assert "2 steps, training loss" in output
    assert (tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    status, output = run(tmp_path, "--methods", "original", "--classes", "0", "--base", "base", *QUICK)
    assert status == 0, output
    (record,) = records(tmp_path).values()
    assert len(record.dataset["choices"]["base"]) == 64
    status, output = run(tmp_path, "--methods", "original", "--classes", "0", "--base", "absent", *QUICK)
    assert (status, "--base absent: there is no such folder" in output) == (2, True), output


def test_a_training_in_a_time_box_ends_with_a_model(tmp_path):
    status, output = run_command(tmp_path, "train", "--minutes", "0.02", "--out", "base", "--device", "cpu")
    assert status == 0, output
    assert (tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors").is_file()
    steps = int(re.search(r"(\d+) steps?, training loss", output)[1])
    assert steps >= 1
    arguments = ("--methods", "original", "--classes", "0", "--base-minutes", "0.02", "--controls", "none", *QUICK)
    run(tmp_path, *arguments)
    (record,) = records(tmp_path).values()
    assert record.dataset["choices"] == {"base_minutes": 0.02}
    assert record.artifacts["base"]["steps"] == steps  # the same model, by the cache
    page = (tmp_path / "reports" / "digits" / "report.md").read_text()
    assert "base model steps" in page


def test_failures_are_records_and_the_others_go_on(tmp_path):
    plugin = tmp_path / "failing.py"
    plugin.write_text(textwrap.dedent(FAILING))
    broken = tmp_path / "broken.py"
    broken.write_text("raise RuntimeError('at import')")
    names = "killed,left,raising,diverged,greedy,peeking,quitting,unrecordable,sound"
    arguments = ("--classes", "0", "--plugin", str(plugin), *QUICK)
    status, output = run(tmp_path, "--methods", names, *arguments, code=NO_GRACE + MAIN)
    assert status == 1
    assert "8 of 9 cells failed" in output
    # failures stay until asked for, and are still failures
    status, output = run(tmp_path, "--methods", f"{names},slow", *arguments, "--timeout", "1", code=NO_GRACE + MAIN)
    assert status == 1
    assert "9 of 10 cells are recorded" in output
    assert "9 of 10 cells failed" in output
    found = {record.cell.method: record for record in records(tmp_path).values()}
    reasons = {name: (record.status, record.reason) for name, record in found.items()}
    assert reasons["sound"] == ("ok", None)
    assert reasons["killed"][0] == "failed"
    assert "SIGKILL" in reasons["killed"][1]
    assert reasons["left"] == ("failed", "its process ended without a result, exit status 3")
    assert reasons["raising"] == ("failed", "RuntimeError: no luck today")
    assert "NaN or infinite" in reasons["diverged"][1]
    assert reasons["greedy"][0] == "oom"
    assert "cannot be recorded" in reasons["unrecordable"][1]
    assert reasons["quitting"] == ("failed", "KeyboardInterrupt: first line second ? line")
    assert "draws from ctx.forget" in reasons["peeking"][1]
    assert reasons["slow"][0] == "timeout"
    assert "no luck today" in found["raising"].traceback
    report = (tmp_path / "reports" / "digits" / "report.md").read_text()
    assert "timeout" in report


@pytest.mark.parametrize("way", ["removed", "a file"])
def test_records_that_are_taken_away_meanwhile_are_named(tmp_path, way):
    take = {
        "removed": "shutil.rmtree('results')",
        "a file": "shutil.rmtree('results', ignore_errors=True); pathlib.Path('results').write_text('')",
    }[way]
    (tmp_path / "taker.py").write_text(
        "import pathlib, shutil\nfrom unlearnbench import method\n\n"
        f"@method(title='Taker')\ndef taker(ctx):\n    {take}\n"
    )
    methods = {"removed": "original,taker", "a file": "taker"}[way]
    arguments = ("--methods", methods, "--classes", "0", "--plugin", "taker.py", *QUICK)
    status, output = run(tmp_path, *arguments, "--controls", "none")
    assert "Traceback" not in output
    if way == "a file":  # its own record cannot be written
        assert status == 2, output
        assert "cannot write results/digits/taker.jsonl (Not a directory)" in output
    else:
        assert status == 1, output
        assert "1 record of this run can no longer be read in results" in output
        assert "(digits-original-c0-s0-" in output
        assert [record.cell.method for record in records(tmp_path).values()] == ["taker"]


def wait_for(folder, condition, process):
    deadline = time.monotonic() + SECONDS
    while not condition(lines(folder)):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.1)


LONG = ("--methods", "original", "--classes", "0-3", *QUICK)


def test_kill_9_keeps_finished_cells_and_the_same_command_goes_on(tmp_path):
    two = ("--methods", "original", "--classes", "0,1", *QUICK)
    process = start(tmp_path, *two)
    wait_for(tmp_path, lambda found: len(found) >= 1, process)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = lines(tmp_path)
    status, output = run(tmp_path, *two)
    assert status == 0, output
    assert lines(tmp_path)[: len(kept)] == kept
    assert len(lines(tmp_path)) == 2  # nothing ran twice
    assert all(record.status == "ok" for record in records(tmp_path).values())


def test_a_sigterm_keeps_finished_cells_and_says_how_to_go_on(tmp_path):  # test_costs has Ctrl-C, and goes on
    process = start(tmp_path, *LONG)
    wait_for(tmp_path, lambda found: len(found) >= 1, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, output
    assert "run the same command again to resume" in output
    assert "Traceback" not in output
    statuses = [json.loads(line)["status"] for line in lines(tmp_path)]
    assert statuses.count("interrupted") <= 1
    assert set(statuses) <= {"ok", "interrupted"}
    assert statuses[0] == "ok"


HELPED = """
    import pathlib, subprocess, sys
    from unlearnbench import method

    @method(title="Helped")
    def helped(ctx):
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        pathlib.Path("began").touch()
        helper.wait()
        raise RuntimeError("the helper died")
"""


WITH_HELP = ("--methods", "helped", "--classes", "0", "--plugin", "helped.py", "--controls", "none", *QUICK)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_to_all_processes_of_a_run_interrupts_its_cell_and_a_second_one_changes_nothing(tmp_path, number):
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"these tests were started deaf to {number.name} (nohup), and so is a run")
    (tmp_path / "helped.py").write_text(textwrap.dedent(HELPED))
    process = start(tmp_path, *WITH_HELP)
    deadline = time.monotonic() + SECONDS
    while not (tmp_path / "began").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for _ in range(12):
        with suppress(ProcessLookupError):  # it has ended
            os.killpg(process.pid, number)
        time.sleep(0.05)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    (record,) = records(tmp_path).values()
    assert (record.status, record.reason) == ("interrupted", f"the run was stopped by {number.name}")


DEAF = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"  # as nohup leaves it to what it starts


def test_a_run_that_was_started_with_nohup_survives_a_hangup(tmp_path):
    (tmp_path / "helped.py").write_text(textwrap.dedent(HELPED).replace("600", "1.5").replace("    raise", "    #"))
    process = start(tmp_path, *WITH_HELP, code=DEAF + MAIN)
    wait_for(tmp_path, lambda _: (tmp_path / "began").exists(), process)
    os.killpg(process.pid, signal.SIGHUP)
    output, _ = process.communicate(timeout=SECONDS)
    found = {record.cell.method: record.status for record in records(tmp_path).values()}
    assert found["helped"] == "ok", output


def test_an_interrupt_before_the_first_cell_writes_nothing(tmp_path):
    process = fresh_command(tmp_path, "run", *LONG)
    process.stdout.readline()
    time.sleep(1)  # the process server is still importing
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode in (130, -signal.SIGINT), output  # the same to a shell; the latter while it imports
    assert "Traceback" not in output
    assert not (tmp_path / "reports").exists()


def test_children_end_with_their_parent(tmp_path):
    plugin = tmp_path / "sleeper.py"
    plugin.write_text(
        textwrap.dedent("""
        import os, pathlib, time
        from unlearnbench import method

        @method(title="Sleeper")
        def sleeper(ctx):
            pathlib.Path("pid").write_text(str(os.getpid()))
            time.sleep(600)
    """)
    )
    process = start(
        tmp_path, "--methods", "sleeper", "--classes", "0", "--plugin", plugin, "--controls", "none", *QUICK
    )
    deadline = time.monotonic() + SECONDS
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    child = int((tmp_path / "pid").read_text())
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "zombie" in Path(f"/proc/{child}/status").read_text():
            return
        time.sleep(0.1)
    pytest.fail("the cell outlived its run")
