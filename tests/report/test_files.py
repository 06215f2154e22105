"""What rendering does to the folder it writes into, and what the user's surroundings do to a report."""

import base64
import hashlib
import io
import os
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.conftest import fake_record, reading
from tests.report.test_report import full, images, store
from tests.server import MAIN, run_command
from unlearnbench.errors import UsageError
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.rendering import Rendering
from unlearnbench.report.figures import drawing
from unlearnbench.report.render import _files, render
from unlearnbench.report.write.files import MANIFEST, publish


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".write.lock"
    }


def test_what_a_report_did_not_write_stays(tmp_path):
    ours = {"digits/tables/old.md": "old", "digits/tables/edited.md": "x", "digits/report.md": "r"}
    publish(ours, tmp_path, ["digits"])
    theirs = {"digits/tables/mine.csv": b"1", "digits/figures/a/b.png": b"2", "digits/tables/edited.md": b"my notes"}
    for name, content in theirs.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    publish({"digits/tables/new.md": "new"}, tmp_path, ["digits"])
    found = contents(tmp_path)
    assert found.keys() - {MANIFEST} == theirs.keys() | {"digits/tables/new.md", "digits/report.md"}
    assert {name: found[name] for name in theirs} == theirs


def test_files_of_other_boards_stay(tmp_path):
    publish({"digits/tables/a.md": "a"}, tmp_path, ["digits"])
    publish({"other/tables/b.md": "b"}, tmp_path, ["other"])
    assert (tmp_path / "digits/tables/a.md").read_text() == "a"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"digits/tables/../../x": 1}', "[" * 100_000])
def test_a_manifest_that_cannot_be_read_removes_nothing(tmp_path, text):
    publish({"digits/tables/a.md": "a"}, tmp_path, ["digits"])
    (tmp_path / MANIFEST).write_text(text)
    publish({"digits/tables/b.md": "b"}, tmp_path, ["digits"])
    assert (tmp_path / "digits/tables/a.md").read_text() == "a"


def test_a_manifest_reaches_into_no_other_folder(tmp_path):
    (tmp_path / "kept").write_text("k")
    known = hashlib.sha256(b"k").hexdigest()
    out = tmp_path / "out"
    publish({"digits/tables/a.md": "a"}, out, ["digits"])
    names = ["../kept", "digits/tables/../../../kept", "digits/../kept", str(tmp_path / "kept"), "digits/tables/.."]
    (out / MANIFEST).write_text("{" + ",".join(f'"{name}": "{known}"' for name in names) + "}")
    publish({"digits/tables/b.md": "b"}, out, ["digits"])
    assert (tmp_path / "kept").read_text() == "k"


@pytest.mark.parametrize(
    "place", ["digits", "digits/tables", "digits/tables/a.md", "report.html", ".write.lock", MANIFEST]
)
def test_nothing_is_written_through_a_link(tmp_path, place):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    (out / place).parent.mkdir(parents=True)
    elsewhere.mkdir()
    (out / place).symlink_to(elsewhere)
    with pytest.raises(UsageError, match="is a link"):
        publish({"digits/tables/a.md": "a", "report.html": "h"}, out, ["digits"])
    assert not list(elsewhere.iterdir()) and (out / place).is_symlink()


@pytest.mark.parametrize(
    ("place", "kind"), [("digits", "folder"), ("report.html", "file"), ("digits/tables", "folder")]
)
def test_something_else_in_the_place_of_a_file_is_said(tmp_path, place, kind):
    (tmp_path / place).parent.mkdir(exist_ok=True)
    if kind == "file":
        (tmp_path / place).mkdir()
    else:
        (tmp_path / place).write_text("mine")
    with pytest.raises(UsageError, match=f"is not a {kind}"):
        publish({"digits/tables/a.md": "a", "report.html": "h"}, tmp_path, ["digits"])


def test_the_folder_itself_may_be_a_link_and_the_results_be_the_same_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "FIGURES", {})
    results = store(tmp_path / "results", full(range(1)))
    before = contents(results)
    (tmp_path / "out").symlink_to(results)
    render(reading(results), tmp_path / "out")
    assert before.items() <= contents(results).items()
    assert (results / "digits" / "report.md").is_file()


def test_nothing_is_written_where_a_figure_fails(tmp_path, monkeypatch):
    def broken(board, parent, only):
        raise RuntimeError("nobody can draw this")

    monkeypatch.setattr(drawing, "FIGURES", {"broken": broken})
    with pytest.raises(RuntimeError, match="nobody can draw this"):
        render(reading(store(tmp_path / "results", full(range(1)))), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def encoded(image, form="PNG"):
    buffer = io.BytesIO()
    image.save(buffer, form)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    "png",
    [
        "", base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n").decode(), encoded(Image.new("1", (20_000, 20_000))),
        encoded(Image.new("L", (9, 8))), encoded(Image.new("L", (64, 8)), "GIF"), encoded(Image.new("L", (64, 8)))[:60],
    ],
    ids=["empty", "postscript", "bomb", "no row of squares", "gif", "torn"],
)  # fmt: skip
def test_a_picture_that_is_none_is_left_out(tmp_path, monkeypatch, png):
    monkeypatch.setattr(drawing, "FIGURES", {"samples": drawing.FIGURES["samples"]})
    odd = {side: {**entry, "png": png} for side, entry in images(0).items()}
    rendering = render(reading(store(tmp_path / "results", [fake_record(images=odd)])), tmp_path / "out")
    assert not rendering.notes
    assert not (tmp_path / "out/digits/figures").exists()
    assert "data:image/png" not in rendering.html.read_text()


def test_deep_long_and_many_facts_are_shown_in_part(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "FIGURES", {})
    deep = {}
    for _ in range(14):  # two levels each
        deep = {"x": [deep]}
    record = fake_record()
    facts = {**record.provenance, "deep": deep, "long": "y" * 10**6, **{f"k{k}": k for k in range(10_000)}}
    rendering = render(reading(store(tmp_path / "results", [replace(record, provenance=facts)])), tmp_path / "out")
    text = rendering.html.read_text()
    assert not rendering.notes and len(text) < 300_000 and "more facts in the records" in text


ODD = "a\udce9\x1b[2J\u202e\x00=1 [x](http://y) <b> $\\input{z}"


@pytest.mark.parametrize("name", list(drawing.FIGURES))
def test_odd_letters_break_no_figure(name):
    records = [
        fake_record(m, c, title=f"{ODD} {m}", images=images(c), settings={ODD: k}, overrides={ODD: k})
        for m in ("a", "b") for c in (0, 1) for k in (1, 2)
    ]  # fmt: skip
    drawing.draw(boards(records)["digits"], name)


def test_odd_letters_reach_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "FIGURES", {})
    record = fake_record("a", 0, title=ODD, settings={"x": 1}, overrides={"x": ODD}, more={"fake_ua": {"title": ODD}})
    record = replace(record, dataset={**record.dataset, "title": ODD, "class_names": [ODD] * 10, "extractor": ODD})
    failed = replace(fake_record("b", 0, status="failed"), reason=ODD, traceback=f"{ODD}\n{ODD}")
    failed = replace(failed, dataset=record.dataset)
    rendering = render(reading(store(tmp_path / "results", [record, failed])), tmp_path / "out")
    assert not [note for note in rendering.notes if "left out" in note]
    for name, content in contents(tmp_path / "out").items():
        text = content.decode()
        assert not set(text) & set("\x1b\x00\u202e"), name
        assert "](http" not in text.replace("\\[x](http:&#8288;", "") or name.endswith((".csv", ".html", ".tex")), name


NUMBERS = st.sampled_from([0.0, 1.0, -1.0, 1e300, -1e300, 1e-300, 5e-324, 100.0, 99.9]) | st.floats(-1e300, 1e300)


@settings(max_examples=8, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    cells=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=3),
    unit=st.sampled_from(["%", "", "nats"]),
    name=st.sampled_from(["tradeoff", "pareto", "heatmaps", "phases"]),
)
def test_numbers_of_any_size_are_shown(cells, unit, name):
    records = [
        fake_record(m, c, fid=fid, ua=ua, rte=abs(rte), more={"fake_ua": {"unit": unit}})
        for m in ("a", "b")
        for c, (fid, ua, rte) in enumerate(cells)
    ]
    found = boards(records)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        files = _files(found, lambda board: {name: drawing.draw(found[board], name)}, Rendering())
    longest = max(len(line) for line in files["digits/tables/summary.md"].splitlines() if line.startswith("|"))
    assert longest < 400


SURROUNDINGS = {
    "MATPLOTLIBRC": "{folder}", "MPLCONFIGDIR": "{folder}", "MPLBACKEND": "qtagg", "TZ": "Asia/Kathmandu",
    "PYTHONHASHSEED": "7", "LC_ALL": "de_DE.UTF-8", "SOURCE_DATE_EPOCH": "1",
    "PYTHONWARNINGS": "error", "COLUMNS": "20",
}  # fmt: skip
OPTIMIZED = """
from importlib.machinery import SourceFileLoader

def get_code(loader, name, given=SourceFileLoader.get_code):
    if not name.startswith("unlearnbench"):
        return given(loader, name)
    return compile(loader.get_data(loader.path), loader.path, "exec", dont_inherit=True, optimize=2)

SourceFileLoader.get_code = get_code
"""  # as PYTHONOPTIMIZE=2 would, which has all of torch compiled
NOTEBOOK = {  # without a folder for settings
    "MPLBACKEND": "module://matplotlib_inline.backend_inline", "MPLCONFIGDIR": "/dev/null", "LC_ALL": "C",
    "PYTHONWARNINGS": "error",
}  # fmt: skip


def test_the_users_surroundings_change_no_byte_and_say_no_word(tmp_path):
    results = store(tmp_path / "results", [fake_record(m, 0, title=f"{m} 中", images=images(0)) for m in ("a", "b")])
    status, output = run_command(tmp_path, "report", "--results", results, "--out", "plain", figures=True)
    assert status == 0, output
    (tmp_path / "stylelib").mkdir()
    (tmp_path / "matplotlibrc").write_bytes(b"text.usetex: True\nfont.size: 30\nodd: 1\n\xff\xfe")
    (tmp_path / "stylelib" / "x.mplstyle").write_bytes(b"\xff\xfe")
    done = subprocess.run(
        [sys.executable, "-c", OPTIMIZED + MAIN, "report", "--results", results, "--out", "odd"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env=os.environ | {key: value.format(folder=tmp_path) for key, value in SURROUNDINGS.items()},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert len(contents(tmp_path / "plain")) > 20
    assert contents(tmp_path / "odd") == contents(tmp_path / "plain")


def test_importing_matplotlib_says_no_word_and_gives_the_working_folder_back(tmp_path):
    code = (
        "import os; from unlearnbench.cli.plotting import import_matplotlib as f; f(); print(os.getcwd())\n"
        "from matplotlib import pyplot; pyplot.switch_backend('Agg'); pyplot.figure().savefig('x.png')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | NOTEBOOK, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert Path(done.stdout.strip()) == tmp_path
    assert (tmp_path / "x.png").stat().st_size
