"""What the repository promises beyond its code: committed reports come from committed records, packages stay apart."""

import ast
import csv
import functools
import inspect
import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.conftest import fake_record, reading
from tests.readme import ROOT, pages
from unlearnbench import __version__
from unlearnbench.cli.tune import tune
from unlearnbench.plugins.registry import Registry
from unlearnbench.report.compare import compare
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.tuning import tunings
from unlearnbench.report.render import render
from unlearnbench.report.tables.controls import alarms, checks
from unlearnbench.report.verify import verify
from unlearnbench.run.stale import current_dataset, stale_ids

NAMES = {plugin.name for kind in ("method", "metric") for plugin in Registry().plugins(kind)}


MEASURED = (  # a method that is added later needs no record here
    "erasediff", "esd", "finetune", "meta_unlearning", "neggrad", "neggrad_plus", "random_label",
    "restricted_gradient", "sa", "safemax", "salun", "sfron",
)  # fmt: skip
TRIALS = inspect.signature(tune).parameters["number"].default  # of a whole list
AWAITED = {"instead_blank", "instead_noise"}  # metrics that the committed records are older than
PARTS = ("", "/ablation", "/reference-set", "/replicates")
FOLDERS = {f"results{part}": f"reports{part}" for part in PARTS}


@functools.cache
def read(folder):
    """Return what is read of a folder, and the ids of stale cells."""
    found = reading(ROOT / folder)
    assert not found.problems
    return found, stale_ids(found.records, Registry().source_hashes())


@pytest.fixture(scope="module")
def evidence():
    """The records of the run that the README shows."""
    records = read("results")[0].records
    ours = [r for r in records if (r.cell.dataset, r.cell.protocol) == ("digits", "digits-ddim25")]
    return [r for r in ours if len(r.cell.target.gone) == 1]


@pytest.mark.parametrize("folder", FOLDERS)
def test_committed_records_are_of_this_source(folder):
    found, stale = read(folder)
    assert found.records and not stale
    for record in found.records:
        assert record.status == "ok" and record.revisions
        assert current_dataset(record.dataset, record.cell.protocol) is not None


def test_the_main_run_is_whole(evidence):
    done = {(record.cell.method, record.cell.forget_class) for record in evidence}
    assert {record.cell.seeds for record in evidence} == {(0, 0, 0)}
    assert done >= {(name, c) for name in ("original", *MEASURED) for c in range(10)}
    assert done >= {(spec.name, c) for spec in Registry().controls() for c in range(10)}
    chosen = [spec for spec in Registry().select_metrics("all") if not spec.is_of_prompts]
    metrics = {spec.name for spec in chosen if not any(need.startswith("earlier_") for need in spec.needs)}
    assert all(metrics - set(record.metrics) == AWAITED for record in evidence)


def test_replicates_have_three_seeds():
    records = read("results/replicates")[0].records
    done = {(record.cell.method, record.cell.forget_class, record.cell.seeds) for record in records}
    names = {record.cell.method for record in records}
    assert names >= {"original", "safemax"}
    assert done == {(name, c, (s, s, s)) for name in names for c in range(10) for s in range(3)}


def test_several_classes_were_forgotten_at_once_and_in_sequence():
    labels = {(record.cell.method, record.cell.target.label) for record in read("results")[0].records}
    for spec in Registry().select_methods("paper"):
        assert {(spec.name, label) for label in ("0", "1 after 0", "2 after 0, 1", "0+1")} <= labels


def test_every_method_was_attacked(evidence):
    attacks = {spec.name for spec in Registry().select_metrics("attacks") if not spec.is_of_prompts}
    done = {(r.cell.method, r.cell.forget_class) for r in evidence if set(r.metrics) >= attacks}
    assert done >= {(name, c) for name in ("retrain", *MEASURED) for c in (0, 3, 8)}


@pytest.mark.parametrize(("folder", "reports"), FOLDERS.items())
def test_committed_tables_come_from_the_committed_records(tmp_path, monkeypatch, folder, reports):
    monkeypatch.setattr("unlearnbench.report.figures.drawing.FIGURES", {})  # figures are not compared
    found, stale = read(folder)
    render(found, tmp_path, stale)
    fresh, committed = (
        {path.relative_to(root): path for ending in ("md", "tex") for path in root.glob(f"*/tables/*.{ending}")}
        for root in (tmp_path, ROOT / reports)
    )
    assert fresh.keys() == committed.keys()
    for name, path in committed.items():
        assert path.read_text() == fresh[name].read_text(), f"{path} is out of date"
    whole = (ROOT / reports / "report.html").read_text()
    drawn = re.compile(r'<figure class="part still">.*?</figure>\n', re.DOTALL)
    assert drawn.sub("", whole) == (tmp_path / "report.html").read_text(), f"{reports}/report.html is out of date"


@pytest.mark.parametrize("board", ["digits-dit", "digits-text"])
def test_other_kinds_of_models_are_measured_by_eight_methods_on_three_classes(board):
    records = [record for record in read("results")[0].records if record.cell.dataset == board]
    done = {(record.cell.method, record.cell.forget_class) for record in records if record.method["role"] == "method"}
    methods = {name for name, _ in done}
    assert len(methods) >= 8
    assert done >= {(name, c) for name in methods for c in (0, 3, 8)}


def test_what_is_rendered_on_demand_is_not_committed():
    listed = subprocess.run(["git", "ls-files", "reports"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {Path(name).suffix for name in listed.split()} == {".md", ".tex", ".png", ".html"}


@pytest.mark.parametrize("part", ["", "/reference-set"])
def test_committed_comparisons_come_from_the_committed_records(tmp_path, part):
    found, stale = read(f"results{part}")
    pages = compare("spartalis2025", found, tmp_path, stale).pages
    assert pages
    for page in pages:
        committed = ROOT / f"reports{part}" / page.relative_to(tmp_path)
        assert committed.read_text() == page.read_text(), f"{committed} is out of date"


@pytest.mark.parametrize(
    "file",
    [
        "reports/digits/report.md", "reports/digits/tables/summary.tex", "reports/digits/tables/cost.md",
        "reports/tuning/digits/tuning.md", "reports/tuning/digits/tables/tuning.tex",
    ],
)  # fmt: skip
def test_committed_tables_verify(file):
    verdict = verify(ROOT / file, *read("results/tuning" if "/tuning/" in file else "results"))
    assert verdict.holds, verdict.lines


def picked(rows):
    """The rule of methods/README.md, on {name: value} rows of one method."""
    whole = [row for row in rows if row["cells"] == "3"]
    most = max(float(row["forgotten"]) for row in whole)
    forgets = [row for row in whole if float(row["forgotten"]) >= (90 if most >= 90 else most - 5)]
    best = min(float(row["fid"]) for row in forgets)
    return max((r for r in forgets if float(r["fid"]) <= best + 0.5), key=lambda row: float(row["retain_accuracy"]))


def test_tuned_values_are_those_that_the_rule_picks():
    with (ROOT / "results" / "tuning" / "digits.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    tried = {row["method"]: [r for r in rows if r["method"] == row["method"]] for row in rows}
    assert len(tried) >= 9
    for name, of_method in tried.items():
        assert len(of_method) == 6
        assert [row for row in of_method if row["chosen"] == "true"] == [picked(of_method)], name
        chosen = [pair.split("=") for pair in picked(of_method)["settings"].split()]
        if name not in MEASURED:  # a variant of one that is: its README says how to run it
            told = set(re.findall(r"--set salun\.(\w+)=", pages()["methods/README.md"]))
            assert told
            assert told <= {setting for setting, _ in chosen}
            continue
        spec = Registry().method(name)
        for setting, text in chosen:
            value = spec.resolve(("digits",), {})[setting]
            assert value == spec.settings[setting].parse(text.lower() if text in ("True", "False") else text, name)


def differing(records, stale=frozenset(), trials=TRIALS):
    """Return "BOARD METHOD" where the value in a method's file is not the one that a whole list of trials leads to."""
    found = []
    for board in boards(records, stale).values():
        for tuned in tunings(board):
            name, chosen = tuned.tuned_as, tuned.chosen
            if tuned.of < trials:  # a list that is still to be made longer decides nothing
                continue
            if Registry().method(tuned.method).tuned.get(name) != (chosen and dict(chosen.settings)):
                found.append(f"{name} {tuned.method}")
    return found


def test_values_in_the_methods_files_come_from_the_trials_on_record():
    found, stale = read("results/tuning")
    assert not differing(found.records, stale)


def test_a_value_that_does_not_come_from_the_trials_is_found():
    names = {"forgetting": "fake_ua", "retention": "retained", "ties": "fake_fid"}
    tuning = {
        "of": 2,
        "images": 100,
        "space": {"lr": {"low": 1e-6, "high": 1e-3, "log": True}},
        "measures": names,
        "tuned_as": "digits",
    }
    kept = {"retained": {"value": 99.0, "shows": "retention"}}
    values = Registry().method("neggrad").tuned["digits"]

    def trial(number, settings, ua):
        facts = {"trial": number, **tuning}
        return fake_record("neggrad", settings=settings, overrides=settings, ua=ua, more=kept, tuning=facts)

    other = {**values, "lr": values["lr"] * 2}
    assert not differing([trial(0, values, 90), trial(1, other, 80)], trials=2)
    assert differing([trial(0, values, 80), trial(1, other, 90)], trials=2) == ["digits neggrad"]
    assert differing([trial(0, values, 90), trial(1, {**values, "steps": 1}, 95)], trials=2) == ["digits neggrad"]
    assert not differing([trial(0, values, 80), trial(1, other, 90)])


def reached(record_of, method):
    return [record for record in record_of if record.cell.method == method]


def mean(records, name):
    return sum(record.metrics[name]["value"] for record in records) / len(records)


class TestWhatTheRecordsMustShow:
    def test_the_base_model_is_good_and_has_not_forgotten(self, evidence):
        original = reached(evidence, "original")
        assert mean(original, "retain_accuracy") >= 95
        assert min(record.metrics["worst_retained"]["value"] for record in original) >= 90
        assert max(record.metrics["ua"]["value"] for record in original) <= 5
        assert max(record.metrics["forgotten"]["value"] for record in original) <= 5
        assert max(record.metrics["no_object"]["value"] for record in original) <= 3
        assert all(record.judge["test_accuracy"] >= 0.975 for record in original)

    def test_every_control_is_where_it_belongs(self, evidence):
        found = boards(evidence)["digits"]
        assert len(list(checks(found))) >= 2 * 5 * 10
        assert alarms(found) == []
        for record in (r for r in evidence if r.cell.method in ("sham_noise", "sham_constant")):
            assert record.metrics["no_object"]["value"] >= 99

    def test_the_raw_number_is_fooled_by_noise_and_the_verdict_is_not(self, evidence):
        noise = {r.cell.forget_class: r.metrics for r in reached(evidence, "sham_noise")}
        assert min(metrics["ua"]["value"] for metrics in noise.values()) < 50
        assert min(metrics["forgotten"]["value"] for metrics in noise.values()) >= 99

    @pytest.mark.parametrize("method", ["safemax", "salun", "sa"])
    def test_retained_classes_are_kept(self, evidence, method):
        kept = mean(reached(evidence, method), "retain_accuracy")
        assert kept >= mean(reached(evidence, "original"), "retain_accuracy") - 3

    def test_salun_forgets(self, evidence):
        assert mean(reached(evidence, "salun"), "ua") >= 95

    @pytest.mark.parametrize("method", ["safemax", "sa"])
    def test_methods_that_aim_at_noise_leave_the_judge_less_certain(self, evidence, method):
        noisy = {r.cell.forget_class: r.metrics["judge_entropy"]["value"] for r in reached(evidence, method)}
        calm = {r.cell.forget_class: r.metrics["judge_entropy"]["value"] for r in reached(evidence, "salun")}
        assert sum(noisy.values()) > 1.5 * sum(calm.values())


class TestFilesForTheNextPerson:
    """Files that other programs read; yaml comes with diffusers' own requirements."""

    @pytest.fixture
    def read(self):
        yaml = pytest.importorskip("yaml")
        return lambda name: yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))

    def test_the_workflow_runs_the_gate_on_every_python(self, read):
        job = read(".github/workflows/ci.yml")["jobs"]["gate"]
        assert job["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
        assert job["container"] == "python:${{ matrix.python }}-bookworm"
        gate = job["steps"][-1]["run"]
        assert os.access(ROOT / gate, os.X_OK)

    def test_hooks_run_what_the_gate_runs(self, read):
        (local,) = read(".pre-commit-config.yaml")["repos"]
        assert [hook["name"] for hook in local["hooks"]] == ["ruff check", "ruff format", "mypy"]
        gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
        for hook in local["hooks"]:
            assert hook["entry"].startswith(hook["name"])
            assert hook["name"] in gate
            assert hook["language"] == "system"

    def test_the_citation_is_of_this_version_and_names_the_papers_authors(self, read):
        cited = read("CITATION.cff")
        assert {"cff-version", "message", "title", "authors"} <= cited.keys()  # what CFF 1.2.0 requires
        assert (cited["cff-version"], cited["title"], cited["version"]) == ("1.2.0", "unlearnbench", __version__)
        (paper,) = cited["references"]
        assert {"authors", "title", "type"} <= paper.keys()
        card = " ".join((ROOT / "methods" / "safemax.py").read_text(encoding="utf-8").split())
        authors = ", ".join(f"{person['given-names']} {person['family-names']}" for person in paper["authors"])
        assert f"{paper['title']}. {authors}. {paper['identifiers'][0]['value']}" in card

    def test_the_changelog_has_what_is_not_released(self):
        text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
        assert re.findall(r"^## (.+)$", text, re.MULTILINE)[0] == "Unreleased"


@functools.cache
def parsed(path):
    """Return a file's syntax tree."""
    return ast.parse(path.read_text())


def test_the_harness_names_no_plugin():
    for path in (ROOT / "unlearnbench").rglob("*.py"):
        words = {
            node.value
            for node in ast.walk(parsed(path))
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        assert not words & (NAMES - {"original", "precision"}), path  # words of the harness too: a row, and of numbers


def test_a_plugin_imports_the_sdk_alone():  # tests/test_architecture.py has the arrows of the package
    for path in [*ROOT.glob("methods/*.py"), *ROOT.glob("metrics/*.py")]:
        found = {name.name for node in ast.walk(parsed(path)) if isinstance(node, ast.Import) for name in node.names}
        found |= {node.module for node in ast.walk(parsed(path)) if isinstance(node, ast.ImportFrom)}
        assert {name for name in found if name.startswith("unlearnbench")} <= {"unlearnbench"}, path


def test_functions_fit_a_screen():
    for folder in ("unlearnbench", "methods", "metrics"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(parsed(path)):
                if isinstance(node, ast.FunctionDef):
                    assert node.end_lineno - node.lineno < 62, f"{path}: {node.name}"
