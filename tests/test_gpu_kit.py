"""The GPU kit on a CPU: the same script and steps, small; and what it says where something is missing."""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from importlib import metadata

import pytest
import typer.main

from tests.gpu import evidence, prepare
from tests.gpu.evidence import CALLS, PROFILES, Call, Step
from tests.readme import ROOT
from tests.server import run_command
from unlearnbench.cli import commands as cli

# What is taken, and where: calls, and which of their steps.
TAKEN = (("one", "first", "probe,estimate,digits"), ("two", "first", "base,tests"), ("two", "second", None))
MAIN = "from unlearnbench.cli.commands import main; main()"  # of the steps that run the command line
QUICK = Step("quick", 30, [sys.executable, "-c", "print('done')"])


# The kit; its steps are forked, and in them digits is tiny, and reports are without figures.
KIT = """
import sys
from tests.gpu import evidence
from tests.server import ForkedInterpreter

evidence.START = ForkedInterpreter
sys.exit(evidence.main())
"""


@pytest.fixture(scope="module")
def dry_run(cache, tmp_path_factory):
    """All steps of the tiny profile: [(call, exit status, output, folder of the archive)]."""
    folder, ended = tmp_path_factory.mktemp("kit"), []
    for place, call, steps in TAKEN:
        out, only = folder / place / "out", ["--only", steps] if steps else []
        given = [call, "--profile", "tiny", "--work", folder / place / "work", "--out", out, *only]
        ended.append((call, *run_command(ROOT, *given, code=KIT), out))
    return ended


def packed(folder, call):
    """Return the files of an archive by name."""
    with tarfile.open(folder / f"evidence-{call}.tar.gz") as archive:
        return {member.name: archive.extractfile(member).read() for member in archive if member.isfile()}


class TestTheDryRun:
    def test_every_step_is_ok(self, dry_run):
        taken = []
        for call, status, output, out in dry_run:
            assert status == 0, output
            steps = json.loads(packed(out, call)[f"evidence/steps-{call}.json"])["steps"]
            assert {step["said"] for step in steps} == {"ok"}, output
            taken += [step["step"] for step in steps]
        steps = [step for call in CALLS for step in Call(call, PROFILES["tiny"], ROOT, ROOT).steps()]
        every = [step.name for step in steps]
        assert sum(MAIN in step.command for step in steps) == 4
        assert sorted(taken) == sorted(every)

    def test_the_probe_measures_everything_with_unit_and_n(self, dry_run):
        probe = json.loads(packed(dry_run[0][-1], "first")["evidence/probe.json"])
        assert probe["facts"]["device"]["type"] == "cpu"
        assert not [found for found in probe["measurements"] if "error" in found]
        assert all(found["unit"] and found["n"] >= 1 for found in probe["measurements"])
        names = " ".join(found["name"] for found in probe["measurements"])
        for part in ("safemax", "salun", "sa", "joint", "base model", "fp32", "tf32", "bf16", "waits", "peak"):
            assert part in names
        steps = [found for found in probe["measurements"] if found["name"].startswith("step of")]
        assert all(0 < found["min"] <= found["median"] <= found["max"] for found in steps)
        assert all(found["first_step_seconds"] > 0 for found in steps)

    def test_records_reports_and_logs_come_back(self, dry_run):
        found = (("digits", 1), ("images", 1), ("images", 2))
        for (call, *_, out), (part, count) in zip(dry_run, found, strict=True):
            names = packed(out, call)
            files = [n for n in names if n.startswith(f"evidence/{part}/results/") and n.endswith(".jsonl")]
            lines = [json.loads(line) for n in files for line in names[n].splitlines()]
            assert [line["status"] for line in lines] == ["ok"] * count
            assert f"evidence/{part}/reports/report.html" in names
            assert f"evidence/environment-{call}.txt" in names
        assert b"needs a CUDA device" in packed(dry_run[1][-1], "first")["evidence/logs/tests.log"]


@pytest.fixture
def call(tmp_path, monkeypatch):
    """A call whose steps may be short."""
    monkeypatch.setattr(evidence, "LEAST_SECONDS", 0.1)
    made = Call("first", PROFILES["tiny"], tmp_path / "work", tmp_path / "out")
    (made.evidence / "logs").mkdir(parents=True)
    made.out.mkdir()
    return made


def said(call):
    """Return what is packed of each step."""
    steps = json.loads(packed(call.out, "first")["evidence/steps-first.json"])["steps"]
    return {step["step"]: step["said"] for step in steps}


class TestTheScript:
    def test_what_fails_or_hangs_is_reported_and_the_next_step_goes_on(self, call, capsys):
        call.take(Step("fails", 30, [sys.executable, "-c", "print('no such option'); raise SystemExit(2)"]))
        call.take(Step("hangs", 1, [sys.executable, "-c", "import time; time.sleep(600)"]))
        call.take(QUICK)
        assert said(call) == {"fails": "exit status 2", "hangs": "ended after 1 s", "quick": "ok"}
        assert "fails: exit status 2" in (output := capsys.readouterr().out)
        assert "no such option" in output
        assert packed(call.out, "first")["evidence/logs/quick.log"].endswith(b"done\n")

    def test_each_step_is_packed_before_the_next_begins(self, call):
        call.take(QUICK)
        assert said(call) == {"quick": "ok"}
        call.take(replace(QUICK, name="second"))
        assert said(call) == {"quick": "ok", "second": "ok"}
        assert [path.name for path in call.out.iterdir()] == ["evidence-first.tar.gz"]

    def test_a_step_without_time_or_images_is_skipped(self, call):
        call.problem = "there is no archive"
        call.take(replace(QUICK, images=True))
        call.began -= call.profile.seconds["first"]
        call.take(replace(QUICK, name="late"))
        assert said(call) == {"quick": "skipped: there is no archive", "late": "skipped: no time was left"}

    def test_a_run_is_told_to_end_before_its_step_does(self, call):
        call.take(Step("minutes", 60, [sys.executable, "-c", "import sys; print(sys.argv[1])", evidence.MINUTES]))
        log = packed(call.out, "first")["evidence/logs/minutes.log"].decode()
        assert float(log.splitlines()[-1]) == pytest.approx((60 - evidence.ENDING_SECONDS) / 60, abs=0.01)

    def test_a_signal_ends_it_with_what_it_has(self, tmp_path):
        code = (
            "import sys; from tests.gpu import evidence\n"
            "hang = evidence.Step('hangs', 250, [sys.executable, '-c', 'import time; time.sleep(600)'])\n"
            "quick = evidence.Step('quick', 250, [sys.executable, '-c', ''])\n"
            "evidence.Call.steps = lambda self: [quick, hang]\n"
            "sys.exit(evidence.main())"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, "first", "--profile", "tiny", "--work", tmp_path, "--out", tmp_path / "out"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert process.stdout.readline().startswith("quick: ok")
        log, deadline = tmp_path / "evidence" / "logs" / "hangs.log", time.monotonic() + 30
        while not log.exists():
            assert time.monotonic() < deadline, "the second step never began"
            time.sleep(0.05)
        time.sleep(0.5)  # until its process is there
        os.kill(process.pid, signal.SIGTERM)
        process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGTERM
        names = packed(tmp_path / "out", "first")
        assert {"evidence/logs/quick.log", "evidence/logs/hangs.log", "evidence/steps-first.json"} <= names.keys()

    def test_the_steps_of_a_call_fit_into_its_time(self):
        for name, most in (("first", 520), ("second", 240)):
            profile = PROFILES["gpu"]
            assert profile.seconds[name] <= most
        limits = [step.seconds for step in Call("first", PROFILES["gpu"], ROOT, ROOT).steps()]
        assert sum(limits) <= PROFILES["gpu"].seconds["first"] - evidence.PACKING_SECONDS

    def test_a_step_that_there_is_not_is_refused(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as ended:
            evidence.main(["second", "--profile", "tiny", "--out", str(tmp_path), "--only", "class-0,digit"])
        assert ended.value.code == 2
        assert "--only: second has no step digit; it has class-0" in capsys.readouterr().err
        assert not list(tmp_path.iterdir())

    def test_every_option_is_one_of_its_command(self):
        commands = typer.main.get_command(cli.app).commands
        for profile in PROFILES.values():
            for name in CALLS:
                for step in Call(name, profile, ROOT, ROOT).steps():
                    if "unlearnbench.cli.commands" not in step.command[3]:
                        continue
                    known = {option for param in commands[step.command[4]].params for option in param.opts}
                    asked = {word for word in step.command[5:] if word.startswith("--")}
                    assert asked <= known, f"{step.name}: {asked - known}"


class TestWhatItNeeds:
    def test_without_wheels_it_says_how_to_get_them(self, call, tmp_path, monkeypatch):
        monkeypatch.setattr(evidence, "CARRIED", tmp_path / ".gpu")
        with pytest.raises(SystemExit, match=r"there are no wheels in .*: run 'python -m tests.gpu.prepare'"):
            evidence.install(call)

    def test_the_wheels_own_tests_are_removed(self, call, tmp_path, monkeypatch):
        monkeypatch.setattr(evidence, "CARRIED", tmp_path / ".gpu")
        (tmp_path / ".gpu" / "wheels").mkdir(parents=True)
        (tmp_path / ".gpu" / "wheels" / "a.whl").touch()

        def pip(command, check):
            assert "--no-index" in command
            for name in ("tests", "torch_fidelity"):
                (call.work / "site" / name).mkdir(parents=True)
            return subprocess.CompletedProcess(command, 0)

        monkeypatch.setattr(evidence.subprocess, "run", pip)
        evidence.install(call)
        assert [path.name for path in (call.work / "site").iterdir()] == ["torch_fidelity"]

    def test_what_is_missing_on_the_machine_is_said(self, call, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(evidence, "COMMIT", tmp_path / "commit.txt")
        evidence.COMMIT.write_text("abc-dirty\n")
        call.profile = replace(call.profile, carried=True)
        evidence.describe(call)
        text = (call.evidence / "environment-first.txt").read_text()
        assert '"commit": "abc-dirty"' in text
        assert f'"torch": "{metadata.version("torch")}"' in text
        assert '"pytest"' not in text, "what only tests need may be missing"
        assert "missing" not in text + capsys.readouterr().out

        folder = call.work / "site" / "unlearnbench-0.dist-info"  # found before the one that is installed
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text("Name: unlearnbench\nVersion: 0\nRequires-Dist: no-such-package>=1\n")
        evidence.describe(call)
        assert "missing here, so that steps may fail: no-such-package" in capsys.readouterr().out

    def test_images_appear_when_they_are_whole(self, call, tmp_path, monkeypatch):
        (tmp_path / "image.jpg").write_bytes(b"an image")
        with tarfile.open(tmp_path / "images.tar.xz", "w:xz") as archive:
            archive.add(tmp_path / "image.jpg", "train/cat/0000.jpg")
        monkeypatch.setattr(evidence, "ARCHIVE", tmp_path / "images.tar.xz")
        call.profile = replace(call.profile, carried=True)
        evidence.unpack(call)
        call.unpacking.join(60)
        assert (call.images / "train" / "cat" / "0000.jpg").read_bytes() == b"an image"
        assert call.images.name == "cifar10-jpeg"

    @pytest.mark.parametrize("content", [None, b"not an archive"])
    def test_images_that_are_missing_or_damaged_are_told(self, call, tmp_path, monkeypatch, content):
        monkeypatch.setattr(evidence, "ARCHIVE", tmp_path / "images.tar.xz")
        if content:
            evidence.ARCHIVE.write_bytes(content)
        evidence.unpack(call)
        call.take(replace(QUICK, images=True))
        assert said(call)["quick"].startswith("skipped: ")
        assert ("cannot be unpacked" if content else "there is no") in said(call)["quick"]

    def test_plugins_are_linked_into_the_checkout_and_removed_again(self, tmp_path, monkeypatch):
        for folder in ("unlearnbench", "methods", "metrics", "results/published"):
            (tmp_path / folder).mkdir(parents=True)
        (tmp_path / "methods" / "sa.py").touch()
        monkeypatch.setattr(evidence, "ROOT", tmp_path)
        with evidence.linked():
            assert (tmp_path / "unlearnbench" / "methods" / "sa.py").is_file()
            assert (tmp_path / "unlearnbench" / "published").is_dir()
        assert not list((tmp_path / "unlearnbench").iterdir())


class TestPrepare:
    @pytest.fixture
    def checkout(self, tmp_path, monkeypatch):
        """A checkout in which nothing is prepared, and images and judges beside it; pip makes one wheel."""
        root, beside = tmp_path / "checkout", tmp_path / "beside"
        for folder in (root / ".git", beside / "judges"):
            folder.mkdir(parents=True)
        (root / "pyproject.toml").touch()
        (beside / "cifar10-jpeg.tar.xz").write_bytes(b"images")
        for name in ("cifar10-resnet56", "of-no-use"):
            (beside / "judges" / f"{name}.safetensors").write_bytes(b"weights")
        carried = root / ".gpu"
        for name, value in {
            "ROOT": root, "BESIDE": beside, "CARRIED": carried, "ARCHIVE": carried / "cifar10-jpeg.tar.xz",
            "JUDGE": carried / "judges" / "cifar10-resnet56.safetensors", "COMMIT": carried / "commit.txt",
            "git": lambda *words: "" if words[0] == "ls-files" else "abc-dirty\n",
            "run": lambda command: (carried / "wheels" / "diffusers.whl").write_bytes(b"wheel"),
        }.items():  # fmt: skip
            monkeypatch.setattr(prepare, name, value)
        return root

    def fill(self, checkout):
        beside = checkout.parent / "beside"
        prepare.main(["--images", str(beside / "cifar10-jpeg.tar.xz"), "--judges", str(beside / "judges")])

    def test_all_that_is_needed_is_there(self, checkout, capsys):
        (checkout / ".gpu").mkdir()
        (checkout / ".gpu" / "old").touch()
        self.fill(checkout)
        files = {str(path.relative_to(checkout / ".gpu")) for path in (checkout / ".gpu").rglob("*") if path.is_file()}
        carried = {"cifar10-jpeg.tar.xz", "judges/cifar10-resnet56.safetensors", "commit.txt"}
        assert files == {"wheels/diffusers.whl", *carried}
        assert "with the tracked files" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("missing", "words"),
        [
            ("beside/cifar10-jpeg.tar.xz", "give the archive .* with --images FILE"),
            ("beside/judges/cifar10-resnet56.safetensors", "give the folder .* with --judges DIR"),
            ("checkout/pyproject.toml", "is no checkout"),
        ],
    )
    def test_what_is_missing_is_said_and_nothing_is_written(self, checkout, capsys, missing, words):
        (checkout.parent / missing).unlink()
        with pytest.raises(SystemExit) as ended:
            self.fill(checkout)
        assert ended.value.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert re.search(words, lines[0])
        assert not (checkout / ".gpu").exists()

    def test_more_than_may_travel_is_refused(self, checkout, capsys, monkeypatch):
        monkeypatch.setattr(prepare, "MOST", 10)
        with pytest.raises(SystemExit):
            self.fill(checkout)
        assert "may travel" in capsys.readouterr().err

    def test_a_failure_of_pip_is_one_sentence(self, capsys):
        with pytest.raises(SystemExit):
            prepare.run([sys.executable, "-c", "raise SystemExit(3)"])
        assert "failed with exit status 3" in capsys.readouterr().err
