"""`unlearnbench new`, one file per method, and a third party's package: built, installed, found by its entry point."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests import ROOT
from tests.campaigns import call
from tests.server import MAIN, run_command
from unlearnbench import UsageError
from unlearnbench.kit import trial
from unlearnbench.kit.conformance import check
from unlearnbench.kit.scaffold import TEMPLATES, new_method
from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.sources import source_digest
from unlearnbench.store.hashing import file_digest
from unlearnbench.store.records import ResultStore

THIRD_PARTY = ROOT / "tests" / "thirdparty"
QUICK = ("--classes", "0", "--metrics", "ua", "--controls", "none", "--device", "cpu")


SESSION = """
import contextlib, io, json, runpy, sys

runpy.run_path(sys.argv[1])["shrink"]()
from unlearnbench.cli import commands
from unlearnbench.report.figures import drawing

drawing.FIGURES, answers = {}, []
for line in json.loads(sys.argv[2]):
    sys.argv, said = ["unlearnbench", *line], io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            commands.main()
    except SystemExit as stop:
        if stop.code:
            sys.exit(said.getvalue())
    answers.append(said.getvalue())
print(json.dumps(answers))
"""


def session(folder, *lines, **environment):
    """Run command lines in a folder, in one fresh process, and return the output of each; all must end well."""
    command = [sys.executable, "-c", SESSION, str(ROOT / "tests" / "cells.py"), json.dumps(lines)]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("inference", [False, True])
def test_the_new_file_keeps_every_promise_and_is_short(tmp_path, monkeypatch, inference):
    monkeypatch.setattr(trial, "STEPS", 4)
    (path,) = new_method("mine", tmp_path, inference=inference).files
    assert path == tmp_path / "mine.py"
    assert len(path.read_text().splitlines()) <= 42
    assert [str(promise) for promise in check(str(path))["mine"] if promise.kept is not True] == []
    spec = Registry([path]).method("mine")
    assert (spec.title, spec.inference) == ("Mine", inference)


def test_the_package_names_its_method_everywhere(tmp_path):
    files = new_method("my_idea", tmp_path / "new", package=True).files
    assert sorted(str(path.relative_to(tmp_path / "new" / "my_idea")) for path in files) == [
        "README.md", "pyproject.toml", "src/my_idea.py", "tests/test_my_idea.py",
    ]  # fmt: skip
    project = tomllib.loads(files[0].read_text())
    assert project["project"]["name"] == "unlearnbench-my-idea"
    assert project["project"]["entry-points"]["unlearnbench.methods"] == {"my_idea": "my_idea:my_idea"}
    for path in files:
        assert not re.search("my.method", path.read_text(), re.IGNORECASE), path


def test_every_template_is_used_and_shipped(tmp_path):
    names = {path.name for path in TEMPLATES.iterdir()}
    files = new_method("mine", tmp_path, package=True).files
    assert len(files) == len(names) - 1  # a method edits the model or guides it
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = project["tool"]["setuptools"]["package-data"]["unlearnbench.kit"]
    assert all(any(Path("templates", name).match(pattern) for pattern in shipped) for name in names)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("My-Method", "a Python name in lower case"),
        ("1st", "a Python name in lower case"),
        ("lambda", "a Python name in lower case"),
        ("../up", "a Python name in lower case"),
        ("x" * 51, "a Python name in lower case"),
        ("safemax", "there is a method safemax already, in"),
        ("random", "an installed module's name"),
        ("torch", "an installed module's name"),
    ],
)
@pytest.mark.parametrize("package", [False, True])
def test_a_name_that_cannot_be_is_refused(tmp_path, name, words, package):
    with pytest.raises(UsageError, match=words):
        new_method(name, tmp_path / "new", package=package)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", [False, True])
def test_nothing_is_overwritten(tmp_path, package):
    (first, *_) = new_method("mine", tmp_path, package=package).files
    first.write_text("my work")
    with pytest.raises(UsageError, match="exists already"):
        new_method("mine", tmp_path, package=package)
    assert first.read_text() == "my work"


def test_the_commands_that_are_printed_run(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(trial, "STEPS", 4)
    monkeypatch.chdir(tmp_path)
    printed = call("new", "method", "mine", "--out", str(tmp_path / "a folder"))
    first, second = [shlex.split(line) for line in printed.output.split("Next:\n")[1].splitlines()]
    checked, planned = call(*first[1:]), call(*second[1:], "--dry-run")  # test_docs runs such a command
    assert (checked.status, planned.status) == (0, 0), checked.output + planned.output
    assert "13 of 13 promises kept" in checked.output
    assert "digits-mine-c0-" in planned.output


def test_a_broken_method_ends_with_status_1(tmp_path, monkeypatch):
    monkeypatch.setattr(trial, "STEPS", 4)
    (path,) = new_method("mine", tmp_path).files
    path.write_text(path.read_text().replace('streams=("forget", "retain")', 'streams=("forget",)'))
    done = call("check", str(path))
    assert done.status == 1
    assert "FAIL  declared streams" in done.output
    assert "add 'retain' to @method(streams=...)" in done.output
    assert "12 of 13 promises kept" in done.output


@pytest.fixture
def checkout(tmp_path):
    """A copy of the suite's sources in which the two plugin folders are part of the package, as installed."""
    folder = tmp_path / "checkout"
    skip = shutil.ignore_patterns("__pycache__")
    for part in ("unlearnbench", "methods", "metrics", "results/published"):
        shutil.copytree(ROOT / part, folder / part, ignore=skip)
    for part in ("methods", "metrics", "results/published"):
        (folder / "unlearnbench" / Path(part).name).symlink_to(folder / part)
    return folder


def test_a_method_is_one_file_and_nothing_else(checkout, cache):
    def digests():
        return {path: file_digest(path) for path in checkout.rglob("*") if path.is_file() and path.suffix != ".pyc"}

    before = digests()
    folders = ("--results", "../r", "--out", "../o")
    made, listed, _, reported = session(  # the cells' processes, too, import this copy
        checkout,
        ("new", "method", "mine", "--out", "methods"),
        ("list", "methods"),
        ("run", "--methods", "mine", "--set", "mine.steps=2", *QUICK, *folders),
        ("report", *folders),
        PYTHONPATH=str(checkout),
    )
    assert "mine.py" in made
    assert digests().keys() - before.keys() == {checkout / "methods" / "mine.py"}
    assert re.search(r"^  mine +Mine", listed, re.MULTILINE)
    (record,) = ResultStore(checkout.parent / "r").read().records
    assert record.method["source_hash"] == source_digest(checkout / "methods" / "mine.py")
    assert "Mine" in reported
    assert "Mine" in (checkout.parent / "o" / "digits" / "tables" / "summary.tex").read_text()
    assert before.items() <= digests().items()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A function that runs a command, or Python, where two packages of methods are installed, and their folder."""
    folder = tmp_path_factory.mktemp("elsewhere")
    new_method("my_idea", folder, package=True)
    source = shutil.copytree(THIRD_PARTY, folder / "thirdparty")  # a build leaves its traces beside the sources
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "install", "--no-deps"]
    more = ["--no-build-isolation", "--no-index", "--target", folder / "site", source, folder / "my_idea"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr

    def run(place, *words, code=MAIN):
        place.mkdir(exist_ok=True)
        there = f"import site; site.addsitedir({str(folder / 'site')!r})\n"
        status, output = run_command(place, *words, code=there + code)
        assert status == 0, output
        return output

    return run, folder


@pytest.fixture(scope="module")
def there(installed, cache):
    """The folder, and {words of a command line: its output}."""
    lines = {
        "list methods": (),
        "list metrics": (),
        "list metrics --cards": (),
        "run --methods null_row": ("--set", "null_row.steps=2", *QUICK, "--metrics", "ua,doubt_retained"),
        "check null_row": (),
    }
    run, folder = installed
    return folder / "there", {words: run(folder / "there", *words.split(), *more) for words, more in lines.items()}


class TestAThirdPartysPackage:
    def test_it_imports_the_sdk_alone(self):
        trees = [ast.parse(path.read_text()) for path in (THIRD_PARTY / "src").glob("*.py")]
        imports = [node.module for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert set(imports) == {"unlearnbench"}

    def test_it_is_no_built_in(self):
        assert "null_row" not in [plugin.name for plugin in Registry().plugins("method")]

    def test_it_is_found_by_its_entry_point(self, there):
        listed = there[1]["list methods"]
        assert re.search(r"^  null_row +Null row$", listed, re.MULTILINE), listed
        assert re.search(r"^  my_idea +My idea$", listed, re.MULTILINE), listed
        assert re.search(r"^  safemax ", listed, re.MULTILINE), listed

    def test_its_file_of_two_columns_is_found_too(self, there):
        listed = there[1]["list metrics"]
        assert re.search(r"^  doubt +Doubt +\[%\] +description$", listed, re.MULTILINE), listed
        assert re.search(r"^  doubt_retained +Doubt retained ", listed, re.MULTILINE), listed
        assert there[1]["list metrics --cards"].count("how often the judge is unsure of what it sees") == 1

    def test_it_runs_and_its_record_knows_its_source(self, there):
        folder, said = there
        assert "Null row" in said["run --methods null_row"]
        (record,) = ResultStore(folder / "results").read().records
        assert (record.status, record.counts["optimizer_steps"]) == ("ok", 2)
        assert record.counts["drawn"] == {"retain": 96}
        assert record.method["source_hash"] == source_digest(THIRD_PARTY / "src" / "null_row.py")
        assert set(record.metrics) == {"ua", "doubt_retained"}
        assert record.metrics["doubt_retained"]["source_hash"] == source_digest(THIRD_PARTY / "src" / "doubt.py")

    def test_it_keeps_its_promises(self, there):
        assert "13 of 13 promises kept" in there[1]["check null_row"]

    def test_the_new_packages_own_test_passes(self, installed):
        run, folder = installed
        assert "1 passed" in run(folder / "my_idea", code="import pytest; raise SystemExit(pytest.main(['-q']))")
