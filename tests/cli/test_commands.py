"""Bad input: exit status 2, one clear sentence, no traceback, nothing written."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tests.conftest import fake_record
from tests.models.reference_unet import ConditionalModel
from unlearnbench import __version__
from unlearnbench.datasets import Source
from unlearnbench.measure.prepared import prepare
from unlearnbench.plugins.registry import Registry
from unlearnbench.run.at_hand import Look, at_hand
from unlearnbench.run.jobs import resolve_device
from unlearnbench.run.plan import make_plan
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.store.records import ResultStore

RUN = ("run", "--methods", "original", "--classes", "0")


def run_with(**options):
    given = {"methods": "original", "classes": "0", **options}
    return ["run", *[part for key, value in given.items() for part in (f"--{key}", value)]]


BAD = {
    "unknown command": (["rnu"], "No such command"),
    "unknown option": ([*RUN, "--clases", "0"], "No such option"),
    "missing methods": (["run", "--classes", "0"], "say what to run: --methods all"),
    "missing methods of no dataset": (["run", "--dataset", "digit"], "did you mean digits"),
    "an option without its value": (["run", "--methods", "--classes", "0"], "'--methods' has no value"),
    "an action on the cache that there is not": (["cache", "clear"], "did you mean clean"),
    "days of the cache below zero": (["cache", "clean", "--unused-for", "-1"], "'--unused-for'"),
    "days of the cache that are not finite": (["cache", "--unused-for", "inf"], "not a finite number"),
    "a dry run of showing the cache": (["cache", "--dry-run"], "goes with 'unlearnbench cache clean'"),
    "a last option without its value": (["run", "--methods"], "'--methods' requires an argument"),
    "a misspelt option": (["report", "--result", "empty"], "--results"),
    "table that is not there": (["verify", "nothing.tex"], "there is no file nothing.tex"),
    "method to check that is not there": (["check", "safemaxx"], "a file 'safemaxx' (did you mean safemax?)"),
    "model that is not there": (["sample", "nosuch", "--class", "0", "--out", "x.png"], "there is no model folder"),
    "checkpoint to convert that is not there": (["convert", "nosuch.pth", "--out", "x"], "there is no file nosuch.pth"),
    "converting a folder": (["convert", "empty", "--out", "x"], "give the checkpoint in it, such as empty/ckpt.pth"),
    "converting an empty file": (["convert", "file.txt", "--out", "x"], "is not a checkpoint of torch.save"),
    "converting to a file": (["convert", "file.txt", "--out", "file.txt"], "--out file.txt"),
    "converting without out": (["convert", "file.txt"], "Missing option"),
    "unknown kind of file": (["new", "metric", "mine"], "did you mean method"),
    "published source before results": (["compare", "foo"], "there is no published source 'foo'"),
    "results to report is a file": (["report", "--results", "file.txt"], "is a file"),
    "results to validate is a file": (["validate", "--results", "file.txt"], "is a file"),
    "missing classes": (["run", "--methods", "all"], "say what to forget: --classes 0-9"),
    "classes and a sequence": (run_with(sequence="1,2"), "say what to forget: --classes 0-9"),
    "a class twice at once": (run_with(classes="0+0"), "each once"),
    "no class left": (run_with(classes="+".join("0123456789")), "leaves none of 10 classes"),
    "a sequence that repeats": (run_with(classes="", sequence="0,1,0"), "forgets a class twice"),
    "a sequence of no class": (run_with(classes="", sequence="0,x"), "there is no class 'x'"),
    "unknown method": (run_with(methods="safemaxx"), "did you mean safemax"),
    "method in capitals": (run_with(methods="SAFEMAX"), "there is no method"),
    "empty method": (run_with(methods=""), "say what to run"),
    "trailing comma": (run_with(methods="safemax,"), "empty name"),
    "class out of range": (run_with(classes="10"), "give a class from 0 to 9"),
    "range out of range": (run_with(classes="8-12"), "class 12 does not exist"),
    "reversed range": (run_with(classes="9-0"), "write 0-9"),
    "negative class": (run_with(classes="-1"), "such as 0,3,5-7"),
    "unknown class name": (run_with(classes="x"), "there is no class 'x': classes are 0, 1, 2"),
    "misspelt class name": (run_with(dataset="cifar10", classes="airplan"), "did you mean airplane"),
    "unknown protocol": (run_with(dataset="cifar10", protocol="papr"), "did you mean paper"),
    "unknown judge": (run_with(dataset="cifar10", judge="vgg"), "choose from resnet34, resnet34-scratch, small"),
    "unknown extractor": (run_with(extractor="vgg"), "choose from own, inception"),
    "folder without data root": (run_with(dataset="imagefolder"), "needs --data-root DIR"),
    "absent data root": (run_with(dataset="imagefolder", **{"data-root": "absent"}), "there is no such folder"),
    "data root without classes": (run_with(dataset="imagefolder", **{"data-root": "empty"}), "lay it out as"),
    "data root of digits": (run_with(**{"data-root": "empty"}), "does not apply to digits"),
    "image size of cifar10": (run_with(dataset="cifar10", **{"image-size": "64"}), "is for --dataset imagefolder"),
    "absent base": (run_with(base="absent"), "there is no such folder"),
    "base and base steps": (run_with(base="empty", **{"base-steps": "3"}), "give one of them"),
    "base and base minutes": (run_with(base="empty", **{"base-minutes": "3"}), "give one of them"),
    "no base steps": (run_with(**{"base-steps": "0"}), "--base-steps"),
    "no base minutes": (run_with(**{"base-minutes": "0"}), "--base-minutes"),
    "endless base minutes": (run_with(**{"base-minutes": "inf"}), "not a finite number"),
    "absent weights": (run_with(dataset="cifar10", protocol="brief", **{"judge-weights": "absent"}), "no such file"),
    "weights of another kind": (
        run_with(dataset="cifar10", protocol="brief", **{"judge-weights": "file.txt"}),
        "cannot be read as safetensors",
    ),
    "weights for a judge that takes none": (run_with(**{"judge-weights": "file.txt"}), "is for cifar-resnet20"),
    "weights for no judge": (run_with(**{"second-judge-weights": "file.txt"}), "name it with --second-judge"),
    "absent inception weights": (run_with(**{"inception-weights": "absent.pth"}), "there is no such file"),
    "no minutes": (run_with(minutes="0"), "--minutes"),
    "training without out": (["train"], "Missing option"),
    "training of an unknown dataset": (["train", "--dataset", "digit", "--out", "model"], "did you mean digits"),
    "training to a file": (["train", "--out", "file.txt"], "is a file"),
    "training by steps and time": (["train", "--steps", "3", "--minutes", "3", "--out", "model"], "give one of them"),
    "unknown published source": (["compare", "spartalis", "--results", "empty"], "did you mean spartalis2025"),
    "compare without results": (["compare", "spartalis2025", "--results", "absent"], "there is no results folder"),
    "compare an empty folder": (["compare", "spartalis2025", "--results", "empty"], "there is no record of sa"),
    "empty classes": (run_with(classes=""), "say what to forget"),
    "blank classes": (run_with(classes=" "), "such as 0,3,5-7"),
    "fractional class": (run_with(classes="1.5"), "such as 0,3,5-7"),
    "negative seed": (run_with(seeds="-3"), "such as 0,3,5-7"),
    "too many seeds": (run_with(seeds="0-99999999"), "fewer than"),
    "unknown dataset": (run_with(dataset="digit"), "did you mean digits"),
    "unknown metric": (run_with(metrics="fidd"), "did you mean fid"),
    "empty metric": (run_with(metrics=""), "there is no metric"),
    "set without value": (run_with(methods="safemax", set="safemax.decay"), "METHOD.NAME=VALUE"),
    "set without method": (run_with(methods="safemax", set="decay=1"), "METHOD.NAME=VALUE"),
    "set of unknown setting": (run_with(methods="safemax", set="safemax.dcay=1"), "did you mean decay"),
    "set of unknown method": (run_with(methods="safemax", set="safemaxx.decay=1"), "did you mean safemax"),
    "set of unselected method": (run_with(methods="safemax", set="sa.ema=0"), "does not select"),
    "set with wrong type": (run_with(methods="safemax", set="safemax.steps=many"), "takes a value of type int"),
    "set with nan": (run_with(methods="safemax", set="safemax.lr=nan"), "finite"),
    "set with wrong choice": (run_with(methods="safemax", set="safemax.target=x"), "one of independent, trajectory"),
    "set with wrong truth": (run_with(methods="salun", set="salun.clip_then_mask=maybe"), "takes true or false"),
    "set with equal values": (run_with(methods="safemax", set="safemax.decay=1,1.0"), "gives a value twice"),
    "set on a method without settings": (run_with(set="original.steps=1"), "it has no settings"),
    "unknown rerun": (run_with(rerun="sometimes"), "choose from missing, failed, always"),
    "timeout that is not a number": (run_with(timeout="nan"), "--timeout"),
    "endless minutes": (run_with(minutes="inf"), "not a finite number"),
    "zero timeout": (run_with(timeout="0"), "--timeout"),
    "absent plugin": (run_with(plugin="absent.py"), "no such file"),
    "results is a file": (run_with(results="file.txt"), "is a file"),
    "out is a file": (run_with(out="file.txt/x"), "is a file"),
    "too many cells": (run_with(methods="all", classes="0-9", seeds="0-9999"), "split the run"),
    "name too long": (run_with(results="a" * 300), "name too long"),
    "plugin name too long": (run_with(plugin="a" * 300), "no such file"),
    "plugin is a folder": (run_with(plugin="empty"), "it is a folder"),
    "unknown device": (run_with(device="warp"), "try --device cpu"),
    "unknown devices": (run_with(devices="0,warp"), "'warp', which is neither a GPU nor a set of cores"),
    "a device twice": (run_with(devices="0,0"), "names cuda:0 twice"),
    "one device and several": (run_with(device="cpu", devices="0,1"), "give one of them"),
    "estimate of no method": (["estimate", "--classes", "0"], "say what to run: --methods all"),
    "estimate of classes and a sequence": (
        ["estimate", "--methods", "original", "--classes", "0", "--sequence", "1,2"],
        "say what to forget",
    ),
    "estimate on an unknown device": (["estimate", "--methods", "original", "--device", "warp"], "try --device cpu"),
    "estimate beside a file": (["estimate", "--methods", "original", "--results", "file.txt"], "is a file"),
    "unknown listing": (["list", "cats"], "choose from methods, metrics, datasets"),
    "report without results": (["report", "--results", "absent"], "there is no results folder"),
    "report of an empty folder": (["report", "--results", "empty"], "there is no record"),
}


@pytest.mark.parametrize("case", BAD, ids=[name.replace(" ", "-") for name in BAD])
def test_bad_input(command, tmp_path, case):
    arguments, message = BAD[case]
    (tmp_path / "file.txt").write_text("")
    (tmp_path / "empty").mkdir()
    status, out, err = command(*arguments)
    assert status == 2
    assert message in err.replace("\n", " ")
    assert "Traceback" not in out + err
    assert len([line for line in err.splitlines() if line.startswith("unlearnbench:")]) <= 1
    left = {path.name for path in tmp_path.iterdir()} - {"file.txt", "empty"}
    assert not left, f"something was written: {left}"


def test_an_unwritable_cache_is_one_sentence(command, monkeypatch, tmp_path):
    (tmp_path / "file.txt").write_text("")
    monkeypatch.setenv("UNLEARNBENCH_CACHE", str(tmp_path / "file.txt"))
    status, _, err = command(*RUN)
    assert (status, "UNLEARNBENCH_CACHE" in err, "Traceback" in err) == (2, True, False)


def test_a_converted_checkpoint_is_a_model_to_sample(command, tmp_path):
    torch.manual_seed(0)
    model = ConditionalModel(mult=(1, 1), classes=3)
    average = {name: tensor.clone() for name, tensor in model.named_parameters()}
    torch.save([model.state_dict(), {}, 5, average], tmp_path / "ckpt.pth")
    for option, taken in ((), "averaged"), (("--no-ema",), "last"), (("--ema", "--image-size", "8"), "averaged"):
        status, out, err = command("convert", "ckpt.pth", "--out", "model", *option)
        assert (status, err) == (0, "")
        assert f"\n{taken} weights, 0.4 M; 3 labels and the null class; {8 if option[1:] else 32} px\n" in out
        assert "Model: model (use it with --base model)" in out
    status, out, _ = command("sample", "model", "--class", "0-2", "--n", "1", "--steps", "1", "--out", "grid.png")
    assert (status, (tmp_path / "grid.png").is_file()) == (0, True), out


SWEEP = (*run_with(methods="original,paper", classes="0-2"), "--dry-run", "--set", "safemax.decay=0,1")


def test_dry_run_prints_the_cells_and_writes_nothing(command, tmp_path):
    status, out, _ = command(*SWEEP)
    assert (status, "20 cells, 5 of them controls" in out) == (0, True)
    assert len([line for line in out.splitlines() if line.startswith("digits-")]) == 20
    assert len([line for line in out.splitlines() if "-sham_" in line and "-c0-s0-" in line]) == 5
    for controls, cells in (("none", 15), ("every", 30)):
        _, out, _ = command(*SWEEP, "--controls", controls)
        assert len([line for line in out.splitlines() if line.startswith("digits-")]) == cells
    assert not list(tmp_path.iterdir())


def test_dry_run_says_what_is_recorded_what_is_to_be_made_and_for_how_long(command, tmp_path):
    arguments = (*run_with(methods="original,esd"), "--controls", "none", "--device", "cpu", "--dry-run")
    plan = make_plan(
        Registry(), methods="original,esd", classes="0", source=Source("digits"), metrics="all", sweeps=[],
        controls="none",
    )  # fmt: skip
    identity = resolve_device("cpu")["identity"]
    store = ResultStore(tmp_path / "results")
    for c, seconds in ((1, 100), (2, 140)):
        record = fake_record("esd", c)
        cell = replace(record.cell, protocol=plan.dataset.protocol.name, settings=plan.cells[1].settings)
        measured = {
            "wall_seconds": float(seconds),
            "counts": {"optimizer_steps": 10},
            "provenance": {**record.provenance, "device": identity},
        }
        store.append(replace(record, cell=cell, **measured))
    before = sorted(tmp_path.rglob("*"))
    status, out, _ = command(*arguments)
    assert status == 0, out
    assert "\n2 cells\nto measure: 2; recorded in results already: 0 (--rerun missing)\n" in out
    assert "\nto be made first: judge, second judge" not in out  # that of digits is fitted anew each time
    assert "\nto be made first: judge, rejecting judge, feature extractor, features" in out
    lines = out.splitlines()
    head = next(k for k, line in enumerate(lines) if line.startswith("method "))
    assert lines[head].split() == ["method", "cells", "s/step", "prior", "RTE", "RTE+prior", "sampling", "GB", "cell"]
    assert lines[head + 1].split() == ["Original", "1", *"???????"]
    assert lines[head + 2].split() == ["ESD", "1", "0.2", "1s", "2s", "3s", "3s", "1.00", "2m00s"]
    assert "\nabout 2m00s for 1 of 2 cells, one after another, by 2 records of the same device, dataset and" in out
    assert "; unknown for original ('unlearnbench estimate' with the same options measures it)" in out
    assert sorted(tmp_path.rglob("*")) == before
    own = replace(record.cell, forget_class=0, protocol=plan.dataset.protocol.name, settings=plan.cells[1].settings)
    made = {"digest": plan.dataset.digest, "panel": plan.dataset.judges_digest}
    method = {**record.method, "source_hash": plan.source_hashes["method:esd"]}
    entries = {
        spec.name: {**record.metrics["fake_ua"], "source_hash": plan.source_hashes[f"metric:{spec.name}"]}
        for spec in plan.metrics
    }
    store.append(
        replace(
            record, cell=own, method=method, metrics=entries, dataset={**record.dataset, **made},
            provenance={**record.provenance, "device": identity},
        )
    )  # fmt: skip
    _, out, _ = command(*arguments)
    assert f"\n{own.id} (recorded)\n2 cells\nto measure: 1; recorded in results already: 1" in out
    _, out, _ = command(*arguments, "--rerun", "always")
    assert "\nto measure: 2; recorded in results already: 0 (--rerun always)" in out


DRY = {
    "device": (run_with(device="warp"), "try --device cpu"),
    "results": (run_with(results="file.txt"), "is a file"),
    "models": (run_with(**{"save-models": "file.txt"}), "is a file"),
    "base": (run_with(base="empty"), "it lacks config.json"),
    "plugin": (run_with(methods="broken", plugin="broken.py"), "No module named 'nowhere'"),
    "downloads": (run_with(dataset="cifar10", classes="cat"), "CIFAR-10 (to download), judge"),
}


@pytest.mark.parametrize("case", DRY)
def test_dry_run_checks_what_a_run_checks(command, tmp_path, case, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    arguments, message = DRY[case]
    (tmp_path / "file.txt").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.py").write_text(
        "from unlearnbench import method\nimport nowhere\n@method(title='B')\ndef broken(ctx): ..."
    )
    before = sorted(tmp_path.iterdir())
    status, out, err = command(*arguments, "--dry-run")
    assert (status, message in out + err) == (0 if case == "downloads" else 2, True), out + err
    assert sorted(tmp_path.iterdir()) == before


def test_a_look_into_a_cache_finds_what_is_there_and_changes_nothing(tiny, tmp_path, registry):
    store, look, device = ArtifactStore(tmp_path), Look(tmp_path), torch.device("cpu")
    needs = registry.metric("fid").needs
    names = ["judge", "feature extractor", "features of the training images", "base model (seed 0)"]
    assert at_hand(tiny, look, device, needs, [0]) == (["images"], names)
    prepare(tiny, store, device, lambda what, done, total: None, needs)
    assert at_hand(tiny, look, device, needs, [0, 1]) == (["images", *names], ["base model (seed 1)"])
    timed = replace(tiny, base=replace(tiny.base, minutes=2.5))
    assert at_hand(timed, look, device, needs, [0])[1] == ["base model (seed 0, 2.5 minutes)"]
    payload = next(tmp_path.glob("base/*/payload.safetensors"))
    payload.write_bytes(payload.read_bytes()[:-1])
    before = sorted(tmp_path.rglob("*"))
    assert at_hand(tiny, look, device, needs, [0])[1] == ["base model (seed 0)"]
    assert sorted(tmp_path.rglob("*")) == before


def test_list_shows_everything_and_a_broken_plugin_with_its_reason(command, tmp_path):
    (tmp_path / "broken.py").write_text("raise RuntimeError('not today')")
    (tmp_path / "broken.py").write_text(
        "from unlearnbench import method\nimport nowhere\n@method(title='B')\ndef broken(ctx): ..."
    )
    status, out, _ = command("list", "--plugin", "broken.py")
    assert status == 0
    assert "BROKEN" in next(line for line in out.splitlines() if "broken" in line)
    assert "No module named 'nowhere'" in out
    for words in ("safemax", "arXiv:2508.20773", "judge_entropy", "digits", "runs only when named"):
        assert words in out


def test_seeds_are_axes_and_every_base_model_has_its_own(command):
    arguments = (*run_with(methods="safemax", classes="0"), "--dry-run", "--controls", "none")
    for seeds, cells in (("0-2", "3 cells"), ("0", "1 cell")):
        _, out, _ = command(*arguments, "--seeds", seeds)
        assert cells in out.splitlines()
    _, out, _ = command(*arguments, "--seeds", "0-1", "--base-seeds", "0-2", "--sampling-seeds", "7")
    assert "6 cells" in out
    assert len({line for line in out.splitlines() if line.startswith("digits-")}) == 6


@pytest.mark.parametrize("what", ["method", "metric", "dataset"])
def test_a_list_has_its_name_in_singular_and_plural(command, what):
    _, singular, _ = command("list", what)
    status, plural, _ = command("list", f"{what}s")
    assert (status, singular) == (0, plural)
    assert plural.startswith(f"{what}s:")


def test_the_version_and_what_there_is(command):
    status, out, _ = command("--version")
    assert (status, out) == (0, f"unlearnbench {__version__}\n")
    status, out, _ = command()
    assert (status, out) == command("--help")[:2]
    for name in COMMANDS:
        assert command(name, "-h") == command(name, "--help")


def test_cards_are_what_the_files_say(command):
    status, out, _ = command("list", "metrics", "--cards")
    assert (status, out.startswith("# Metrics")) == (0, True)
    assert "## `forgotten`: Forgotten" in out
    for card in out.split("\n## `")[1:]:
        assert "Blind to: " in card, card


def test_verify_and_validate_say_what_they_found(command, tmp_path):
    results = ResultStore(tmp_path / "results")
    truth = {"forgetting": True}
    entry = {"sure": {"value": 100.0, "boundary": 50.0, "title": "Sure"}}
    for c in range(3):
        results.append(fake_record(forget_class=c))
        results.append(fake_record("noise", c, role="control", truth=truth, more=entry))
    assert command("report")[0] == 0
    page = tmp_path / "reports" / "digits" / "report.md"
    status, out, _ = command("verify", str(page))
    assert status == 0, out
    assert "Summary: holds" in out
    page.write_text(page.read_text().replace("90.0", "91.0", 1))
    status, out, _ = command("verify", str(page))
    assert (status, "the table says 91.0" in out) == (1, True), out
    status, out, _ = command("validate")
    assert (status, "as known" in out) == (0, True)
    entry["sure"]["value"] = 0.0
    results.append(fake_record("noise", 1, role="control", truth=truth, more=entry))
    status, out, _ = command("validate")
    assert (status, "Noise forgets, but Sure (class 1, seed 0) is 0.0%" in out) == (1, True)


def test_report_prints_the_table_and_says_at_last_where_the_report_is(command, tmp_path):
    for forget_class in range(3):
        ResultStore(tmp_path / "results").append(fake_record(forget_class=forget_class))
    status, out, _ = command("report")
    assert (status, "Alpha" in out) == (0, True)
    last = out.splitlines()[-1]
    assert re.fullmatch(r"Report: reports/(report\.html; tables and figures: reports/digits|digits/report\.md)", last)
    assert (tmp_path / re.split("[ ;]", last)[1]).is_file()


def test_report_opens_the_page(command, tmp_path, monkeypatch):
    ResultStore(tmp_path / "results").append(fake_record())
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(browser))
    status, out, _ = command("report", "--open")
    page = tmp_path / re.split("[ ;]", out.splitlines()[-1])[1]
    assert (status, (tmp_path / "opened").read_text().strip()) == (0, page.as_uri())
    monkeypatch.delenv("BROWSER")
    monkeypatch.setenv("CI", "true")
    status, out, _ = command("report", "--open")
    assert (status, out.splitlines()[-2].startswith("Report: ")) == (0, True)
    assert out.splitlines()[-1].startswith("No browser is available here: open ")


def test_an_alarm_of_two_boards_is_said_once(command, tmp_path):
    results = ResultStore(tmp_path / "results")
    entry = {"sure": {"value": 0.0, "boundary": 50.0, "title": "Sure"}}
    first = fake_record("alpha", 0, truth={"forgetting": True}, more=entry)
    step = fake_record("alpha", 1)
    results.append(first)
    results.append(replace(step, cell=replace(step.cell, earlier=((0,),))))
    status, out, _ = command("report")
    assert {path.name for path in (tmp_path / "reports").iterdir() if path.is_dir()} >= {"digits", "digits-sequence"}
    assert (status, out.count("Alpha forgets, but Sure (class 0, seed 0)")) == (0, 1)


COMMANDS = (
    "run", "estimate", "evaluate", "unlearn", "train", "convert", "sample", "list", "new", "check", "report", "compare",
    "validate", "verify", "cache",
)  # fmt: skip


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_80_columns_and_cuts_no_sentence(command, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    status, out, _ = command(*([name] if name else []), "--help")
    assert status == 0
    assert max(len(line) for line in out.splitlines()) <= 80
    assert not [line for line in out.splitlines() if line.endswith("...") and not re.match("Usage:|.*\\[ARGS\\]", line)]
    assert not re.search(r"--[\w-]+ +<(str|int|float|path)", out)  # it says what to give, not of which type
    if not name:
        assert all(f"\n  {other} " in out for other in COMMANDS)


def test_help_of_run_has_every_option_in_its_section(command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = command("run", "--help")
    sections = dict(re.findall(r"^(\w[\w ]+):\n((?:  .*\n)+)", out, re.MULTILINE))
    found = {name: re.findall(r"^  (?:-h, )?(--[\w-]+)", text, re.MULTILINE) for name, text in sections.items()}
    assert [len(options) for options in found.values()] == [12, 16, 15, 3, 1]
    assert found["Where"] == ["--results", "--out", "--save-models"]
    assert found["Other"] == ["--help"]


def test_help_needs_no_heavy_import():
    code = """
import sys
sys.argv = ["unlearnbench", "--help"]
from unlearnbench.cli import commands as cli
try:
    cli.main()
except SystemExit:
    pass
heavy = {"torch", "pandas", "matplotlib", "diffusers", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout
