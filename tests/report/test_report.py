import base64
import csv
import io
import json
import os
import re
import signal
import statistics
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import fake_record, reading, stated
from unlearnbench.errors import UsageError
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.cost import _is_slower, ranks
from unlearnbench.report.data.frames import tidy_frame
from unlearnbench.report.data.values import MARK, Value, variant_of
from unlearnbench.report.figures import drawing
from unlearnbench.report.figures.drawing import few_rows
from unlearnbench.report.figures.phases import phases
from unlearnbench.report.render import render
from unlearnbench.report.tables.classes import class_tables, paper_tables, rows_of
from unlearnbench.report.tables.cost import cost_table
from unlearnbench.report.tables.every import all_tables
from unlearnbench.report.tables.settings import settings_tables
from unlearnbench.report.tables.summary import compact_table, summary_table
from unlearnbench.report.tables.table import Table
from unlearnbench.report.write.csv import frame_to_csv, to_csv
from unlearnbench.report.write.latex import escape_latex, to_latex
from unlearnbench.report.write.markdown import escape_markdown, to_markdown
from unlearnbench.report.write.page import page_files
from unlearnbench.run.stale import stale_ids
from unlearnbench.store.cell import Target
from unlearnbench.store.records import SCHEMA, Record, ResultStore

HOSTILE = r"<b>a|b</b> \input{x} 50% $&_#^~ `c` *d* é → שלום"


def strip(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 64), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def images(forget_class):
    return {"forget": {"class": forget_class, "png": strip()}, "retain": {"class": forget_class + 1, "png": strip(1)}}


def full(classes=range(3), methods=("alpha", "beta")):
    return [
        fake_record(m, c, fid=5.0 + c + 10 * k, ua=90.0 + c, images=images(c))
        for c in classes
        for k, m in enumerate(methods)
    ]


def store(folder, records):
    for record in records:
        ResultStore(folder).append(record)
    return folder


def board(records, sources=None):
    return boards(records, stale_ids(records, sources) if sources else frozenset()).popitem()[1]


def test_mean_and_sample_deviation_over_classes():
    b = board(full())
    fid = next(measure for measure in b.metrics if measure.key == "fake_fid")
    value = b.numbers.mean(b.variants[0], fid)
    assert (value.number, value.spread, value.ok, value.expected) == (6.0, 1.0, 3, 3)


def test_seeds_are_averaged_within_a_class():
    b = board([fake_record(seed=s, fid=f) for s, f in ((0, 4.0), (1, 8.0))])
    assert b.numbers.cell(b.variants[0], Target((0,)), next(m for m in b.metrics if m.key == "fake_fid")).number == 6.0


def test_failures_show_their_word_and_the_gap_is_counted():
    records = [*full(methods=("alpha",)), fake_record("beta", 0), fake_record("beta", 1, status="oom")]
    table = summary_table(board(records))
    assert [row[0].word for row in table.values] == ["3/3", "1/3"]
    efficiency = to_markdown(paper_tables(board(records))[0])
    assert "oom" in efficiency
    assert " - |" in efficiency  # beta never ran class 2
    assert "1/3" in efficiency


def test_a_method_that_only_failed_shows_its_word_not_a_number():
    table = summary_table(board([fake_record("alpha"), fake_record("beta", status="timeout")]))
    assert {value.word for value in table.values[1][1:]} == {"timeout"}


def test_stale_records_show_no_number():
    b = board(full(), {"method:alpha": "changed"})
    markdown = to_markdown(summary_table(b))
    assert "stale" in next(line for line in markdown.splitlines() if "Alpha" in line)
    assert "5." not in next(line for line in markdown.splitlines() if line.startswith("| Alpha"))
    assert "stale" in b.notes[0]


def on_device(record, **device):
    known = record.provenance["device"]
    return replace(record, provenance={**record.provenance, "device": {**known, **device}})


@pytest.mark.parametrize("device", [{"name": "Another CPU"}, {"type": "cuda"}], ids=["name", "type"])
def test_devices_of_other_names_or_types_are_not_mixed(device):
    old = on_device(fake_record("alpha", 7, started="2020-01-01T00:00:00Z"), **device)
    b = board([*full(), old])
    assert list(b.targets) == [Target((c,)) for c in range(3)]
    assert "1 record of other devices" in b.notes[0]


def test_processors_of_one_name_are_not_mixed_and_unknown_ones_are_named():
    zen = [on_device(fake_record("alpha", c), processor="family 25") for c in range(2)]
    other = on_device(fake_record("alpha", 2), processor="family 26")
    older = [fake_record("beta", c) for c in range(2)]  # of before processors were noted
    assert {r.cell.id for r in board([other, *zen]).records} == {r.cell.id for r in zen}
    mixed = board([*older, *zen])
    assert len(mixed.records) == 4
    assert any("the processor of 2 of 4 cells is known (family 25)" in note for note in mixed.notes)
    assert not any("processor" in note for note in (*board(zen).notes, *board(older).notes))


def test_several_devices_of_one_name_share_a_table_that_says_so():
    records = [fake_record("alpha", c, device=f"device-{c % 2}") for c in range(4)]
    b = board(records)
    assert b.numbers.completeness(b.variants[0]) == "4/4"
    assert any("2 devices of one name, A CPU" in note for note in b.notes)
    assert "Device: A CPU (2 of them), torch" in stated(b)
    frame = b.every.frame()
    assert (frame["device"] == "A CPU").all() and frame["cell_id"].nunique() == 4
    alone = board(records[:1])
    assert "of them" not in stated(alone) and not alone.notes


def test_records_of_a_cluster_name_their_nodes():
    records = [fake_record("alpha", c, device=f"device-{c}") for c in range(3)]
    records = [replace(r, provenance={**r.provenance, "node": f"n{10 - k}"}) for k, r in enumerate(records)]
    assert any("3 devices of one name, A CPU (nodes n8, n9, n10): compare" in note for note in board(records).notes)


def test_devices_without_a_name_are_told_apart():
    nameless = [on_device(fake_record("alpha", c, device=f"device-{c}"), name=None) for c in range(2)]
    assert "1 record of other devices" in board(nameless).notes[0]


def test_protocols_are_not_mixed():
    other = fake_record("alpha", dataset="pictures")
    assert sorted(boards([*full(), other])) == ["digits", "pictures"]


def test_swept_settings_are_variants_of_their_own():
    records = [fake_record(settings={"x": k}, overrides={"x": k}) for k in (10, 9)]
    assert [v.label for v in board(records).variants] == ["Alpha (x=9)", "Alpha (x=10)"]


def test_the_paper_tables_have_one_group_of_columns_per_method():
    efficiency, uncertainty = paper_tables(board(full()))
    assert efficiency.groups == ["Alpha"] * 3 + ["Beta"] * 3
    assert [header.split(" ")[0] for header in efficiency.headers] == ["FID", "RTE", "Memory"] * 2
    assert efficiency.rows == ["0", "1", "2", "mean", "std"]
    assert uncertainty.groups == ["Alpha", "Beta"]


def test_many_methods_have_a_table_per_metric_with_classes_across():
    many = board([fake_record(m, c, title=m) for m in "abcde" for c in range(3)])
    assert paper_tables(many) == []
    (ua,) = [table for table in class_tables(many) if table.name == "classes-fake-ua"]
    assert (ua.rows, ua.headers) == (list("abcde"), ["0", "1", "2", "mean", "95 %", "std"])
    chosen = paper_tables(many, rows_of(many, {"b", "d"}))
    assert chosen[0].groups == ["b"] * 3 + ["d"] * 3
    assert {"efficiency", "uncertainty"} <= {table.name for table in all_tables(many, ["b", "d"])}
    assert not any(table.name == "efficiency" for table in all_tables(many))


def test_the_choice_of_methods_is_checked(tmp_path):
    found = reading(store(tmp_path / "results", [fake_record(m, c) for m in "abcde" for c in range(2)]))
    with pytest.raises(UsageError, match="there is no record of x"):
        render(found, tmp_path / "out", methods=["x"])
    with pytest.raises(UsageError, match="have room for 4 rows, and digits has 5 of these methods: name fewer"):
        render(found, tmp_path / "out", methods=list("abcde"))
    assert not (tmp_path / "out").exists()


def test_the_compact_summary_has_means_alone():
    table = compact_table(board(full()))
    assert table.headers == ["UA (%) ↑", "FID ↓", "RTE+prior (s) ↓", "Memory (GB) ↓"]
    assert not any("[" in text for row in table.texts() for text in row)


def test_every_caption_says_where_its_numbers_come_from_and_the_setup_the_rest():
    b = board(full())
    for table in all_tables(b):
        for words in ("Digits, protocol protocol-1", "Forget classes 0-2, seed 0", f"records {b.digest}"):
            assert words in table.caption
    assert "samples per cell UA n=100, FID n=100" in summary_table(b).caption
    for words in ("A CPU", "rss_peak", "99.0% (n=360)", "torch 2.9", "25 steps"):
        assert words in stated(b) and words in page_files(b, {})["report.md"]


def test_costs_in_seconds_and_gigabytes():
    b = board(full())
    values = {m.key: b.numbers.cell(b.variants[0], Target((0,)), m).number for m in b.costs}
    assert values == pytest.approx({"rte": 2.0, "prior": 1.0, "total": 3.0, "memory": 1.000000001})
    assert b.cost.time_unit == "s"


def test_markdown_is_a_whole_table():
    lines = [line for line in to_markdown(summary_table(board(full()))).splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1


def check_latex(text):
    assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    opened = re.findall(r"\\begin\{(\w+)\}", text)
    assert sorted(opened) == sorted(re.findall(r"\\end\{(\w+)\}", text))
    assert text.isascii()
    body = text.split(r"\midrule", 1)[1].split(r"\bottomrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    columns = {len(re.findall(r"(?<!\\)&", row)) for row in rows}
    assert len(columns) == 1
    without_commands = re.sub(r"\$\\\w+\$|\\\w+\{\}|\\[&%$#_{}]|\$[^$]*\$", "", " ".join(rows))
    assert not re.findall(r"(?<!\\)[%#$_^~]", without_commands)


def test_latex_is_balanced_and_escaped():
    for table in all_tables(board(full())):
        text = to_latex(table)
        check_latex(text)
        assert r"\toprule" in text
    assert r"\multicolumn{3}{c}{Alpha}" in to_latex(paper_tables(board(full()))[0])
    assert r"S[table-format=" in to_latex(paper_tables(board(full()))[0])


def test_hostile_text_breaks_no_table():
    records = [fake_record("evil", c, title=HOSTILE, status=s) for c, s in ((0, "ok"), (1, "failed"))]
    for table in all_tables(board(records)):
        check_latex(to_latex(table))
        assert "<b>" not in to_markdown(table)
        pd.read_csv(io.StringIO(to_csv(table)))


def test_latex_escapes_every_special_character():
    assert escape_latex(r"\&%$#_{}~^") == (r"\textbackslash{}\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}")
    assert escape_latex("é 中 ↓") == r"e ? $\downarrow$"


def test_csv_has_full_numbers():
    frame = pd.read_csv(io.StringIO(to_csv(summary_table(board(full())))))
    assert frame["FID ↓"].tolist() == [6.0, 16.0]
    assert all(frame["FID ↓ low"] < frame["FID ↓"]) and all(frame["FID ↓"] < frame["FID ↓ high"])


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"), ("+cmd", "'+cmd"), ("-x", "'-x"), ("@SUM(A1)", "'@SUM(A1)"), ("\t=1", "'=1"),
        ("\r=1", "'=1"), ("\uff1d1", "'\uff1d1"), ("-1.5", "-1.5"), ("+2e3", "+2e3"), ("a\n=1", "a =1"),
        ("caf\udce9", "caf?"), ("a\x1b[2Jb", "a [2Jb"),
    ],
)  # fmt: skip
def test_no_text_of_a_csv_is_a_formula(text, cell):
    table = Table("t", "T", "c", text, [text], [""], [text], [".1f"], [[Value(None, text)]])
    assert list(csv.reader(io.StringIO(to_csv(table)))) == [[cell, cell], [cell, cell]]
    (line,) = csv.DictReader(io.StringIO(frame_to_csv(pd.DataFrame({text: [text], "n": [-1.5]}))))
    assert line == {cell: cell, "n": "-1.5"}


def test_a_csv_keeps_columns_of_one_name_and_has_nothing_where_no_cell_was_run():
    table = Table("t", "T", "c", "Method", ["a"], ["", ""], ["Method"] * 2, ["", ""], [[Value(-2.0), Value(None, "-")]])
    assert to_csv(table) == "Method,Method,Method\na,-2.0,\n"


@pytest.mark.parametrize(
    "text",
    [
        "[a](http://x.y)", "![a](http://x.y)", "[a]: http://x.y", "[[a](b)", "see www.x.y, HTTPS://x.y or a@x.y",
        "<a href=x>", "&lt;b&gt;", "[!NOTE]", "[^1]", "```", "~~~", "# a", "- a", "1. a", "a\n\n# b", "$x$ _a_ __b__",
    ],
)  # fmt: skip
def test_no_text_is_markup_in_markdown(text):
    shown = escape_markdown(text)
    assert "\n" not in shown
    assert not re.search(r"://|www\.|@\w|[<>]|&(?!amp;|lt;|gt;|#8288;)", shown)
    assert not re.search(r"(?<!\\)(?:\[[^]]*\][(\[:]|[`~$|*]|\[[!^])|(?<!\\)(?:\b_|_\b)|^(?:#|- |\d+\. )", shown)


def test_intervals_and_names_with_underscores_stay_as_they_are_in_markdown():
    assert escape_markdown("5.0 [4.0, 6.0] of fake_ua 0+1, -1.5") == "5.0 [4.0, 6.0] of fake_ua 0+1, -1.5"


def test_words_in_a_table_are_never_numbers():
    table = Table("t", "T", "c", "row", ["a"], [""], ["x"], [".1f"], [[Value(None, "failed")]])
    assert table.texts() == [["failed"]]
    assert "a & failed " in to_latex(table)


def test_report_renders_without_torch_and_all_its_files(tmp_path):
    store(tmp_path / "results", full())
    code = f"""
import sys
class Ban:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in ('torch', 'diffusers', 'torchvision', 'torch_fidelity', 'safetensors'):
            raise ImportError(f'{{name}} must not be imported by a report')
sys.meta_path.insert(0, Ban())
sys.argv = ['unlearnbench', 'report', '--results', r'{tmp_path / "results"}', '--out', r'{tmp_path / "out"}']
from unlearnbench.cli import commands as cli
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "out" / "digits"
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")}
    assert (tmp_path / "out" / "report.html").is_file()
    tables = {f"tables/{t}.{e}" for t in ("summary", "cost", "efficiency", "uncertainty") for e in ("md", "tex", "csv")}
    figures = {
        f"figures/{f}.{e}" for f in ("tradeoff", "heatmaps", "phases", "samples", "samples-all") for e in ("png", "pdf")
    }
    assert names >= tables | figures | {"report.md", "tables/cells.csv"}


def test_same_records_same_bytes_in_any_order(tmp_path):
    records = full()
    for name, order in (("a", records), ("b", records[::-1])):
        render(reading(store(tmp_path / name, order)), tmp_path / f"out-{name}")
    files = sorted(p.relative_to(tmp_path / "out-a") for p in (tmp_path / "out-a").rglob("*.*"))
    assert len(files) > 15
    for path in files:
        assert (tmp_path / "out-a" / path).read_bytes() == (tmp_path / "out-b" / path).read_bytes(), path


@pytest.mark.parametrize(
    "records",
    [[fake_record()], [fake_record(status="failed")], [fake_record(forget_class=c, status="oom") for c in range(3)]],
    ids=["one cell", "one failure", "only failures"],
)
def test_small_and_sad_folders_still_render(tmp_path, records):
    rendering = render(reading(store(tmp_path / "results", records)), tmp_path / "out")
    text = rendering.pages[0].read_text()
    assert ("Cells without numbers" in text) == (records[0].status != "ok")


def test_a_folder_with_only_failures_says_what_failed(tmp_path):
    records = [fake_record(m, c, status="failed") for m in ("alpha", "beta") for c in range(2)]
    rendering = render(reading(store(tmp_path / "results", records)), tmp_path / "out")
    text = rendering.pages[0].read_text()
    assert all(f"`{record.cell.id}`: failed, it broke" in text for record in records)
    assert "0/2" in text


def rewritten(folder, change, keep=0):
    """Change every line of a results folder but the first ones of each file."""
    for path in folder.glob("*/*.jsonl"):
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:keep], *map(change, lines[keep:])]) + "\n")
    return folder


def newer(line):
    return json.dumps({**json.loads(line), "schema": SCHEMA + 1, "a field of tomorrow": []})


def test_records_of_a_newer_schema_are_named_counted_and_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "FIGURES", {})
    folder = rewritten(store(tmp_path / "results", full(range(9), ("alpha",))), newer, keep=1)
    rendering = render(reading(folder), tmp_path / "out")
    (note,) = [note for note in rendering.notes if "newer version" in note]
    assert "alpha.jsonl: 8 of its records are skipped" in note and "line 2, 3, 4, 5, 6, ..." in note
    assert "1/1" in rendering.pages[0].read_text()


@pytest.mark.parametrize(("change", "why"), [(newer, "newer version"), (lambda line: line[:50], "torn or not JSON")])
def test_a_folder_in_which_nothing_can_be_read_says_why(tmp_path, change, why):
    folder = rewritten(store(tmp_path / "results", full(range(2), ("alpha",))), change)
    rendering = render(reading(folder), tmp_path / "out")
    text = rendering.pages[0].read_text()
    assert rendering.pages == [tmp_path / "out" / "report.md"]
    assert "No record can be shown" in text and why in text
    assert any(why in note for note in rendering.notes)


def test_an_empty_folder_says_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="run 'unlearnbench run' first"):
        render(reading(tmp_path), tmp_path / "out")


def test_torn_lines_become_notes(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "FIGURES", {})
    path = next(store(tmp_path / "results", full()).glob("*/*.jsonl"))
    path.write_bytes(path.read_bytes()[:-30])
    assert "skipped" in render(reading(tmp_path / "results"), tmp_path / "out").notes[0]


def test_a_number_over_missing_cells_says_so():
    failed = (1, 1)
    records = [
        fake_record(forget_class=c, seed=s, status="oom" if (c, s) == failed else "ok") for c in (0, 1) for s in (0, 1)
    ]
    efficiency = paper_tables(board(records))[0]
    texts = efficiency.texts()
    assert texts[0][0] == "5.00"
    assert texts[1][0] == "5.00 (1/2)"
    assert texts[2][0] == "5.00 (3/4)"
    assert "5.00{ (1/2)}" in to_latex(efficiency)
    null = fake_record(forget_class=2)
    null.metrics["fake_fid"]["value"] = None
    summary = summary_table(board([*full(classes=range(2), methods=("alpha",)), null]))
    assert any("(2/3)" in text for text in summary.texts()[0])


def test_the_same_settings_are_one_row_however_they_were_given():
    records = [fake_record(forget_class=0), fake_record(forget_class=1, overrides={"steps": 10}, started="2026-02-01")]
    assert len(board(records).variants) == 1


def test_stale_rows_give_way_to_fresh_ones_of_the_same_label():
    records = [fake_record(settings={"x": 1}, source_hash="old"), fake_record(settings={"x": 2}, source_hash="new")]
    b = board(records, {"method:alpha": "new"})
    assert [variant.settings for variant in b.variants] == ['{"x":2}']
    assert "left out" in b.notes[0]


def test_figures_show_few_of_many_rows_with_the_best_among_them():
    methods = {f"m{k:03d}": (50.0 + k % 40, 5.0 + k) for k in range(60)} | {"z": (99.0, 1.0)}
    records = [
        fake_record(m, c, ua=ua, fid=fid, rte=1.0 if m == "z" else 2.0)
        for m, (ua, fid) in methods.items()
        for c in (0, 1)
    ]
    whole = board([*records, *[fake_record("original", c, role="reference") for c in (0, 1)]])
    part = few_rows(whole)
    assert len(part) == 40 and {"original", "z"} <= {v.method for v in part}
    assert "Figures show 40 of 62 rows" in page_files(whole, {})["report.md"]
    assert few_rows(board(records[:20])) == board(records[:20]).variants


def test_figures_are_the_same_bytes_with_and_without_processes(monkeypatch):
    monkeypatch.setattr(drawing, "FIGURES", {name: drawing.FIGURES[name] for name in ("tradeoff", "phases", "sweep")})
    b, made = board(full()), []
    for cores in ({0, 1}, {0}):
        monkeypatch.setattr(drawing.os, "sched_getaffinity", lambda pid, cores=cores: cores, raising=False)
        with drawing.Drawing({"digits": b}) as drawn:
            made.append(drawn.drawn("digits"))
    assert made[0] == made[1]
    assert [(name, *files) for name, files in made[0].items()] == [(n, "png", "pdf") for n in ("tradeoff", "phases")]


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
def test_a_figure_whose_process_is_killed_is_drawn_here(monkeypatch):
    parent = os.getpid()
    phases_here = drawing.FIGURES["phases"]
    monkeypatch.setattr(
        drawing, "FIGURES", {"phases": lambda b, p, only: phases_here(b, p) if os.getpid() == parent else die()}
    )
    monkeypatch.setattr(drawing.os, "sched_getaffinity", lambda pid: {0, 1})
    with drawing.Drawing({"digits": board(full())}) as drawn:
        assert len(drawn.drawn("digits")["phases"]["pdf"]) > 1000


LONG = "An unlearning method of a very long name " * 13
VILE = [
    HOSTILE,
    LONG,
    "a\nb\r\nc",
    "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd",
    "<script>alert(1)</script>",
    "'; --",
    '"q", r',
    "=1+1",
]


@pytest.mark.parametrize("text", VILE, ids=range(len(VILE)))
def test_hostile_text_anywhere_leaves_every_file_well_formed(tmp_path, monkeypatch, text):
    monkeypatch.setattr(drawing, "FIGURES", {})
    named = {"fake_ua": {"title": text, "unit": text}, "fake_fid": {"title": text}}
    records = [
        fake_record("evil", c, title=text, settings={"x": k}, overrides={"x": text}, more=named)
        for c in (0, 1)
        for k in (0, 1)
    ]
    records = [
        replace(
            r, dataset={**r.dataset, "title": text, "class_names": [text] * 10, "extractor": text},
            method={**r.method, "changed": {"x": [text, text]}},
        ) for r in records
    ]  # fmt: skip
    records += [replace(fake_record("evil", 2), status="failed", reason=text, metrics={}, dataset=records[0].dataset)]
    rendering = render(reading(store(tmp_path / "results", records)), tmp_path / "out")
    tables = tmp_path / "out" / "digits" / "tables"
    for path in tables.glob("*.tex"):
        check_latex(path.read_text())
    for path in tables.glob("*.csv"):
        rows = list(csv.reader(io.StringIO(path.read_text())))
        assert len({len(row) for row in rows}) == 1, path
    markdown = rendering.pages[0].read_text()
    assert "<b>" not in markdown and "<script" not in markdown and "\u202e" not in markdown
    for block in re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE):
        rows = block.splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1


def test_very_long_names_are_cut_and_still_told_apart():
    records = [fake_record("a", k, title=LONG + end) for k, end in enumerate("xy")]
    records += [fake_record("a", k, title=LONG, settings={"x": k}, overrides={"x": k}) for k in (0, 1)]
    labels = [variant.label for variant in board(records[2:]).variants] + [variant_of(r).label for r in records[:2]]
    assert len(set(labels)) == 4 and all(len(label) <= 100 for label in labels)
    assert all(label.startswith("An unlearning method") and "…" in label for label in labels)
    assert variant_of(fake_record(title="x" * 100)).label == "x" * 100


def test_settings_that_are_not_the_defaults_have_a_table():
    plain = fake_record("beta")
    shortened = fake_record("alpha")
    shortened = replace(shortened, method={**shortened.method, "changed": {"steps": [1000, 10], "lr": [1e-4, 3e-4]}})
    board = boards([plain, shortened])["digits"]
    (table,) = settings_tables(board)
    assert list(zip(table.rows, [[value.word for value in row] for row in table.values], strict=True)) == [
        ("Alpha", ["lr", "0.0001", "0.0003"]), ("Alpha", ["steps", "1000", "10"]),
    ]  # fmt: skip
    assert "table of settings" in stated(board)
    untouched = boards([plain])["digits"]
    assert settings_tables(untouched) == []
    assert "table of settings" not in stated(untouched)


def test_the_caption_says_when_x0_is_clipped():
    record = fake_record()
    clipped = replace(record, protocol={**record.protocol, "clip_x0": True})
    assert "guidance w 0.5, x0 clipped, reference" in stated(boards([clipped])["digits"])
    assert "x0 clipped" not in stated(boards([record])["digits"])


@pytest.mark.parametrize(
    ("protocols", "names"),
    [
        (["smoke"], ["digits"]),
        (["smoke", "smoke-b4"], ["digits", "digits-b4"]),
        (["smoke", "smoke-b4", "paper"], ["digits-paper", "digits-smoke", "digits-smoke-b4"]),
    ],
)
def test_boards_are_named_by_dataset_and_by_protocol_where_there_are_several(protocols, names):
    records = [fake_record() for _ in protocols]
    records = [replace(r, cell=replace(r.cell, protocol=p)) for r, p in zip(records, protocols, strict=True)]
    assert sorted(boards(records)) == names


@pytest.mark.parametrize("dataset", ["report.html", "CON", "nul.x", "dots."])
def test_a_board_takes_no_name_of_other_files(tmp_path, dataset):
    records = [fake_record(dataset=dataset)]
    assert list(boards(records)) == [f"_{dataset}_"]


def test_no_board_takes_the_place_of_another_one():
    pairs = [("a", "p1"), ("a", "p2"), ("a-p1", "p1")]
    records = [replace(fake_record(), cell=replace(fake_record().cell, dataset=d, protocol=p)) for d, p in pairs]
    assert {board.key for board in boards(records).values()} == set(pairs)


@pytest.mark.parametrize(
    "change",
    [
        {"choices": {"judge": "small"}},
        {"choices": {"judge_weights": "abc"}},
        {"choices": {"base_minutes": 5.0}},
        {"choices": {"base": "abc"}},
        {"image_shape": [3, 64, 64]},
        {"class_names": ["a", "b"]},
    ],
)
def test_another_judge_base_or_size_never_shares_a_table(change):
    old = replace(fake_record("alpha"), dataset={**fake_record().dataset, **change})
    new = fake_record("beta", started="2026-02-01T00:00:00Z")
    board = boards([old, new])["digits"]
    assert [variant.method for variant in board.variants] == ["beta"]
    assert any("another judge, extractor, base model, image size or classes" in note for note in board.notes)


def test_other_images_under_one_name_are_said():
    records = [fake_record("alpha"), fake_record("beta")]
    records = [replace(r, artifacts={**r.artifacts, "images": {"sha256": str(k)}}) for k, r in enumerate(records)]
    assert any("2 different sets of images" in note for note in boards(records)["digits"].notes)


FLOPS = {"forward": 2e6, "backward": 4e6, "peak": {"float32": 1e11}}
OUTSIDE = {"start": 1.5, "load": 0.5}
BUSY = {"phase": "forget", "what": "another process used 0.8 of 2 cores"}


def counts(steps=10, forward=1000, backward=500):
    return {
        "optimizer_steps": steps, "forward_images": forward, "backward_images": backward,
        "drawn": {"forget": 7, "retain": 9},
    }  # fmt: skip


def costly(method="alpha", c=0, *, repeats=(1.9, 2.0, 2.3), phases=None, **more):
    """Return a record with every number a run takes of its costs; its prior took a second, alone."""
    alone = {"mask": {"seconds": 1.0, "shared": False, "reused": False, "key": f"{method}{c}"}}
    forget = {"forget": {"repeats": list(repeats)}} if repeats else {}
    if repeats and "rte" not in more:
        forget["forget"]["seconds"] = statistics.median(repeats)
    extra = {"counts": counts(), "flops": FLOPS, "outside": OUTSIDE, "priors": alone, **more}
    return fake_record(method, c, phases={"warmup": {"seconds": 0.4}, **forget, **(phases or {})}, **extra)


def prior(key, seconds=6.0):
    return {"seconds": seconds, "shared": True, "reused": False, "key": key}


def costs(records, row="Alpha"):
    """Return {header: text} of a row of the table of costs."""
    table = cost_table(board(records))
    return dict(zip(table.headers, table.texts()[table.rows.index(row)], strict=True))


class TestCostTable:
    def test_means_over_classes_of_everything_a_cell_cost(self):
        records = [costly(c=c, rte=2.0 + c, counts=counts(10 + 2 * c)) for c in (0, 1)]
        assert costs(records) == {
            "RTE (s) ↓": "2.50", "RTE range (s) ↓": "0.40", "RTE+prior (s) ↓": "3.50", "Amortised (s) ↓": "3.50",
            "Warm-up (s) ↓": "0.40", "Steps ↓": "11", "Forwards (images) ↓": "1000", "Backwards (images) ↓": "500",
            "Work (GFLOP) ↓": "4.00", "Of peak (%) ↑": "1.2", "Memory prior (GB) ↓": "1.00",
            "Memory forget (GB) ↓": "1.00", "Memory sample (GB) ↓": "1.00",
        }  # fmt: skip

    def test_each_phase_has_its_own_peak(self):
        memory = {"prior": 3, "forget": 1, "sample": 2}
        found = costs([costly(phases={p: {"memory_bytes": {"rss_peak": gb * 10**9}} for p, gb in memory.items()})])
        assert [found[f"Memory {phase} (GB) ↓"] for phase in memory] == ["3.00", "1.00", "2.00"]

    def grown(self, **growths):
        """Return what phases have besides: growths in tenths of a GB."""
        return {phase: {"memory_growth_bytes": {"rss_peak": n * 10**8}} for phase, n in growths.items()}

    def test_growth_is_the_larger_of_prior_and_forget(self):
        record = costly(phases=self.grown(prior=3, forget=5, sample=9))
        assert costs([record])["Growth (GB) ↓"] == "0.50"
        assert costs([record, costly(c=1, phases=self.grown(prior=7, forget=5))])["Growth (GB) ↓"] == "0.60"
        assert "Growth" not in " ".join(summary_table(board([record])).headers)
        assert "Growth is the peak of memory less what the process held when the phase began" in (
            cost_table(board([record])).caption
        )
        assert tidy_frame(board([record])).iloc[0]["forget_rss_peak_growth_bytes"] == 5 * 10**8

    def test_growth_that_a_phase_does_not_tell_is_not_guessed(self):
        some = costly(phases=self.grown(forget=5))
        for records in ([some], [costly()]):
            table = cost_table(board(records))
            assert "Growth (GB) ↓" not in table.headers
            assert "Growth" not in table.caption
        assert costs([some, costly(c=1, phases=self.grown(prior=1, forget=2))])["Growth (GB) ↓"] == "0.20 (1/2)"
        del some.cost["prior"]
        assert costs([some])["Growth (GB) ↓"] == "0.50"

    def test_the_caption_explains_the_columns_there_are(self):
        new, old = (cost_table(board([record])).caption for record in (costly(), fake_record()))
        for words in ("median of a cell's repeats (3)", "Amortised is", "RTE excludes the warm-up", "in float32"):
            assert words in new
            assert words not in old

    def test_without_repeats_there_is_no_range(self):
        for repeats in ((), (2.0,)):
            assert "RTE range (s) ↓" not in costs([costly(repeats=repeats)])

    def test_a_range_of_some_cells_says_so(self):
        assert costs([costly(), costly(c=1, repeats=())])["RTE range (s) ↓"] == "0.40 (1/2)"

    def test_old_records_have_the_columns_they_can_fill(self):
        assert list(costs([fake_record(), fake_record("beta", 1)])) == [
            "RTE (s) ↓", "RTE+prior (s) ↓", "Memory prior (GB) ↓", "Memory forget (GB) ↓", "Memory sample (GB) ↓",
        ]  # fmt: skip

    def test_beside_new_records_old_ones_have_no_invented_numbers(self):
        unknown = ("Amortised (s) ↓", "Warm-up (s) ↓", "Steps ↓", "Work (GFLOP) ↓", "Of peak (%) ↑")
        assert {costs([costly(), fake_record("beta")], "Beta")[header] for header in unknown} == {"n/a"}
        mixed = costs([costly(), fake_record(forget_class=1)])
        assert all(mixed[header].endswith(" (1/2)") for header in unknown)

    def test_a_cell_without_a_prior_has_no_memory_of_it(self):
        record = costly()
        del record.cost["prior"]
        assert costs([record, costly("beta")])["Memory prior (GB) ↓"] == "n/a"

    def test_a_board_without_numbers_has_no_table(self):
        assert "cost" not in [table.name for table in all_tables(board([fake_record(status="oom")]))]

    def test_failures_show_their_word(self):
        assert set(costs([costly(), costly("beta", status="oom")], "Beta").values()) == {"oom"}

    def test_minutes_where_unlearning_takes_some(self):
        found = costs([costly(rte=240.0, repeats=(120.0, 240.0, 300.0))])
        assert (found["RTE (min) ↓"], found["RTE range (min) ↓"], found["Amortised (min) ↓"]) == (
            "4.00",
            "3.00",
            "4.02",
        )


class TestAmortised:
    def test_a_shared_prior_is_divided_by_the_cells_that_use_it(self):
        own = [{"mask": prior(f"own{c}", 0.5), "fisher": prior("common")} for c in range(3)]
        records = [costly(c=c, priors=own[c], phases={"prior": {"seconds": 6.5}}) for c in range(3)]
        assert costs(records)["Amortised (s) ↓"] == "4.50"  # 2 + 0.5 + 6 / 3
        assert costs(records)["RTE+prior (s) ↓"] == "8.50"

    def test_classes_and_seeds_count_but_neither_failures_nor_other_rows(self):
        shared = {"fisher": prior("common")}
        records = [costly(c=c, seed=s, priors=shared) for c in (0, 1) for s in (0, 1)]
        others = [costly("beta", priors=shared), costly(settings={"x": 1}, overrides={"x": 1}, priors=shared)]
        failed = costly(c=2, priors=shared, status="failed")
        assert costs([*records, *others, failed])["Amortised (s) ↓"] == "3.50 (4/6)"
        assert costs([*records, *others])["Amortised (s) ↓"] == "3.50"
        assert costs([*records, *others], "Beta")["Amortised (s) ↓"] == "8.00 (1/4)"

    def test_two_names_of_one_artifact_are_one(self):
        record = costly(priors={"a": prior("common"), "b": prior("common")})
        assert costs([record])["Amortised (s) ↓"] == "8.00"

    def test_without_a_prior_it_is_rte(self):
        record = costly(priors={})
        del record.cost["prior"]
        assert costs([record])["Amortised (s) ↓"] == "2.00"

    def test_a_prior_that_is_not_named_is_not_divided(self):
        assert "Amortised (s) ↓" not in costs([costly(priors={})])


class TestWork:
    @pytest.mark.parametrize(
        ("scale", "header", "text"),
        [
            (1e9, "Work (PFLOP) ↓", "4.00"), (2.6e7, "Work (PFLOP) ↓", "0.10"), (2.4e7, "Work (TFLOP) ↓", "96.00"),
            (1e6, "Work (TFLOP) ↓", "4.00"), (1.0, "Work (GFLOP) ↓", "0.00"),
        ],
    )  # fmt: skip
    def test_the_unit_fits_the_largest(self, scale, header, text):
        flops = {"forward": 2e6 * scale / 1e3, "backward": 4e6 * scale / 1e3}
        assert costs([costly(flops=flops)])[header] == text

    @pytest.mark.parametrize(
        ("peak", "text", "words"),
        [
            ({"float32": 1e11}, "1.3", "in float32"), ({"float32": 1e11, "bfloat16": 1e10}, "1.3", "in float32"),
            ({"float32": 1e11, "tf32": 1e10}, "13.3", "in tf32"),
        ],
    )  # fmt: skip
    def test_the_share_is_of_the_peak_that_training_can_reach(self, peak, text, words):
        records = [costly(flops={**FLOPS, "peak": peak})]
        assert costs(records)["Of peak (%) ↑"] == text  # 4 GFLOP in 3 s
        assert words in cost_table(board(records)).caption

    @pytest.mark.parametrize("peak", [{}, {"bfloat16": 1e12}, {"float32": None}, None])
    def test_no_peak_no_share(self, peak):
        found = costs([costly(flops={**FLOPS, "peak": peak}), costly("beta")])
        assert (found["Of peak (%) ↑"], found["Work (GFLOP) ↓"]) == ("n/a", "4.00")

    @pytest.mark.parametrize(
        "changed", [{"flops": {}}, {"flops": {"forward": 1.0}}, {"counts": {}}, {"flops": {**FLOPS, "backward": None}}]
    )
    def test_nothing_is_made_up(self, changed):
        found = costs([costly(**changed), costly("beta")])
        assert (found["Of peak (%) ↑"], found["Work (GFLOP) ↓"]) == ("n/a", "n/a")

    def test_a_cell_that_computed_nothing_has_no_share(self):
        idle = costly("original", role="reference", rte=0.0, counts=counts(0, 0, 0))
        assert costs([idle, costly()], "Original")["Of peak (%) ↑"] == "n/a"


def noisy(generator, seconds=2.0, cells=10, repeats=3, scatter=0.03):
    """Return repeats whose seconds depend on the class, with noise of the cell and of each repeat."""
    found = {}
    for c in range(cells):
        middle = seconds * (1 + 0.1 * c) * generator.normal(1.0, scatter)
        found[c, 0] = [float(t) for t in middle * generator.normal(1.0, scatter, repeats)]
    return found


def spans(repeats):
    """Return the median of each cell's repeats, and their range over it."""
    times = [np.array(found) for found in repeats.values()]
    return np.array([np.median(t) for t in times]), np.array([np.ptp(t) / np.median(t) for t in times])


def is_slower(slow, fast):
    return _is_slower(spans(slow), spans(fast))


def ranked(**rows):
    return ranks({name: spans(repeats) for name, repeats in rows.items()})


class TestRanks:
    @pytest.mark.parametrize("seed", range(20))
    def test_a_method_under_two_names_is_a_tie_and_a_slower_one_is_not(self, seed):
        generator = np.random.default_rng(seed)
        rows = {name: noisy(generator, seconds) for name, seconds in (("a", 2.0), ("b", 2.0), ("slow", 3.0))}
        assert ranked(**rows) == {"a": 1, "b": 1, "slow": 3}

    def test_less_than_the_tolerance_is_a_tie_however_little_the_repeats_scatter(self):
        fast = {(0, 0): [1.0, 1.0]}
        assert not is_slower({(0, 0): [1.05, 1.05]}, fast)
        assert is_slower({(0, 0): [1.051, 1.051]}, fast)

    def test_scatter_of_either_widens_the_tolerance(self):
        calm, wild = {(0, 0): [1.0, 1.0, 1.0]}, {(0, 0): [0.8, 1.0, 1.2]}
        assert is_slower({(0, 0): [1.3, 1.3]}, calm)
        assert not is_slower({(0, 0): [1.3, 1.3]}, wild)
        assert not is_slower({(0, 0): [1.0, 1.3, 1.4]}, calm)

    def test_the_median_cell_decides(self):
        fast = {(c, 0): [1.0, 1.0] for c in range(5)}
        one_slow = {**fast, (4, 0): [50.0, 50.0]}
        assert ranked(a=fast, b=one_slow) == {"a": 1, "b": 1}

    def test_a_single_row_has_none(self):
        assert ranked(a={(0, 0): [1.0, 1.0]}) == ranks({}) == {}

    def test_ranks_have_the_order_of_the_means(self):
        calm, wild = {(c, 0): [1.0, 1.0] for c in range(3)}, {(c, 0): [1.0, 1.3, 1.6] for c in range(3)}
        slower = {(c, 0): [1.1, 1.1] for c in range(3)}
        assert ranked(wild=wild, slower=slower, calm=calm) == {"calm": 1, "slower": 2, "wild": 2}
        # faster in most cells, slower by its mean
        outlier = {**{cell: [0.5, 0.5] for cell in calm}, (2, 0): [9.0, 9.0]}
        assert ranked(outlier=outlier, calm=calm) == {"calm": 1, "outlier": 1}

    def test_a_method_with_a_cell_that_was_not_repeated_has_no_rank(self):
        def records(method, *repeats):
            return [costly(method, c, repeats=times) for c, times in enumerate(repeats)]

        fast, slow, part = records("fast", (1, 1), (1, 1)), records("slow", (2, 2), (2, 2)), records("part", (3, 3), ())
        found = board([*fast, *slow, *part])
        assert {variant.label: rank for variant, rank in found.ranks.items()} == {"Fast": 1, "Slow": 2}
        assert "unless all its cells were repeated" in cost_table(found).caption
        assert "Rank" not in cost_table(board([*fast, *part])).headers

    def test_the_table_shows_them(self):
        records = [
            costly(method, c, repeats=(t, t)) for method, t in (("a", 2.0), ("b", 2.0), ("c", 3.0)) for c in (0, 1)
        ]
        references = [costly("noise", c, role="reference", rte=0.0, repeats=(1e-6, 2e-6)) for c in (0, 1)]
        table = cost_table(board([*records, *references, *[costly("once", c, repeats=()) for c in (0, 1)]]))
        assert table.headers[0] == "Rank"
        shown = dict(zip(table.rows, [row[0] for row in table.texts()], strict=True))
        assert shown == {"Noise": "-", "A": "1", "B": "1", "C": "3", "Once": "-"}
        assert "Rank is 1 + how many methods are separably faster" in table.caption

    def test_no_repeats_no_ranks(self):
        for repeats in ((), (2.0,)):
            assert "Rank" not in costs([costly("alpha", repeats=repeats), costly("beta", repeats=repeats)])


class TestProbes:
    def test_the_caption_names_the_probe_and_why_no_better_one_is_there(self):
        missing = {"nvml_process": "no CUDA device", "nvml_device": "no CUDA device", "torch_reserved": "not\nhere"}
        caption = stated(board([costly(probes=missing)]))
        assert "memory: peak resident size of the process (rss_peak)" in caption
        assert "; nvml_process, nvml_device: no CUDA device; torch_reserved: not\nhere" in caption

    def test_a_worse_probe_that_is_missing_is_not_mentioned(self):
        assert "kernel" not in stated(board([costly(probes={"rss_polled": "the kernel tells"})]))

    def test_every_reason_is_given_once(self):
        reasons = ("hidden", "hidden", "too old")
        records = [costly(c=c, probes={"nvml_process": why}) for c, why in enumerate(reasons)]
        assert "; nvml_process: hidden, too old;" in stated(board(records))

    def test_the_best_probe_of_all_cells_is_shown(self):
        both = {"nvml_process": 9 * 10**9, "nvml_device": 5 * 10**9}
        records = [costly(phases={"forget": {"memory_bytes": both}})]
        assert board(records).probe == "nvml_process"
        records += [costly(c=1, phases={"forget": {"memory_bytes": {"nvml_device": 5 * 10**9}}})]
        assert board(records).probe == "nvml_device"
        assert costs(records)["Memory forget (GB) ↓"] == "5.00"

    def test_no_common_probe_is_said(self):
        records = [costly(), costly(c=1, phases={"forget": {"memory_bytes": {"other": 1}}})]
        assert "memory: no probe that every cell has" in stated(board(records))
        assert "Memory forget (GB) ↓" not in costs(records)

    def test_old_records_give_no_reason(self):
        assert "(rss_peak), over prior and forget unless a phase is named; " in stated(board([fake_record()]))


class TestDisturbances:
    records = (costly(), costly(c=1, disturbances=[BUSY]), costly("beta"), costly("beta", 1))

    def test_numbers_that_rest_on_a_disturbed_cell_are_marked(self):
        b = board(self.records)
        summary = dict(zip(summary_table(b).headers, summary_table(b).texts()[0], strict=True))
        assert {header for header, text in summary.items() if MARK in text} == {
            "RTE (s) ↓", "RTE+prior (s) ↓", "Memory (GB) ↓",
        }  # fmt: skip
        assert summary["RTE (s) ↓"] == "2.00†"
        assert {header for header, text in costs(self.records).items() if MARK in text} == {
            "Rank", "RTE (s) ↓", "RTE range (s) ↓", "RTE+prior (s) ↓", "Amortised (s) ↓", "Of peak (%) ↑",
            "Memory forget (GB) ↓",
        }  # fmt: skip
        assert not [text for text in costs(self.records, "Beta").values() if MARK in text]
        efficiency = paper_tables(b)[0]
        assert [row[1] for row in efficiency.texts()] == ["2.00", "2.00†", "2.00†", "0.00†"]

    def test_only_phases_that_were_disturbed_count(self):
        found = costs([costly(disturbances=[{**BUSY, "phase": "sample"}])])
        assert [header for header, text in found.items() if MARK in text] == ["Memory sample (GB) ↓"]
        everything = costs([costly(disturbances=[{**BUSY, "phase": "all of it"}])])
        assert everything["Warm-up (s) ↓"] == "0.40†"

    def test_a_mark_stands_before_a_gap(self):
        records = [costly(disturbances=[BUSY]), costly(c=1, status="oom")]
        assert costs(records)["RTE (s) ↓"] == "2.00† (1/2)"
        assert "2.00{$^{\\dagger}$ (1/2)}" in to_latex(cost_table(board(records)))

    def test_captions_explain_the_mark_where_it_stands(self):
        efficiency, uncertainty = paper_tables(board(self.records))
        for write in (to_markdown, to_latex):
            assert "while something else used the machine" in write(efficiency)
            assert "while something else used the machine" not in write(uncertainty)
        assert "something else" not in to_markdown(paper_tables(board([costly()]))[0])

    def test_latex_braces_marked_numbers_alone(self):
        for table in all_tables(board(self.records)):
            check_latex(to_latex(table))
        text = to_latex(paper_tables(board(self.records))[0])
        assert "2.00{$^{\\dagger}$}" in text
        assert "S[table-format=1.2" in text
        assert "2.00{$^{\\dagger}$}" in to_latex(summary_table(board(self.records)))

    def test_csv_keeps_the_number_and_counts_the_cells(self):
        frame = pd.read_csv(io.StringIO(to_csv(summary_table(board(self.records)))))
        assert frame["RTE (s) ↓"].tolist() == [2.0, 2.0]
        assert frame["RTE (s) ↓ disturbed cells"].tolist() == [1, 0]
        assert "FID ↓ disturbed cells" not in frame
        assert not [name for name in pd.read_csv(io.StringIO(to_csv(cost_table(board([costly()]))))) if "dist" in name]

    def test_the_notes_count_cells_by_what_disturbed_them(self):
        hot = {"phase": "prior", "what": "the device slowed down to 60 %"}
        more = {**BUSY, "what": "another process used 1.25 of 2 cores"}
        records = [costly(c=0, disturbances=[BUSY, hot]), costly(c=1, disturbances=[more, BUSY]), costly(c=2)]
        assert board(records).notes == [
            "2 of 3 cells were disturbed, costs that rest on them carry †: "
            "forget: another process used 0.8 to 1.25 of 2 cores (2); prior: the device slowed down to 60 % (1)"
        ]
        assert board([costly()]).notes == []
        (note,) = board([costly(disturbances=[{**BUSY, "what": "a\nb"}])]).notes
        assert "forget: a b (1)" in note

    def test_many_kinds_are_counted_not_listed(self):
        records = [costly(c=c, disturbances=[{**BUSY, "what": "x" * (c + 1)}]) for c in range(8)]
        assert board(records).notes[0].endswith("; 3 more kinds")

    def test_cells_without_numbers_are_not_counted(self):
        assert board([costly(), costly(c=1, status="oom", disturbances=[BUSY])]).notes == []

    def test_hostile_words_break_nothing(self, tmp_path):
        hostile = {"phase": HOSTILE, "what": HOSTILE + "\n# no heading"}
        record = costly(disturbances=[hostile], probes={"nvml_process": HOSTILE}, outside={HOSTILE: 1.0})
        for table in all_tables(board([record])):
            check_latex(to_latex(table))
        page = render(reading(store(tmp_path / "results", [record])), tmp_path / "out").pages[0]
        assert "<b>" not in page.read_text()
        assert "\n# no heading" not in page.read_text()
        line = pd.read_csv(page.parent / "tables" / "cells.csv").iloc[0]
        assert line["disturbances"] == f"{HOSTILE}: {HOSTILE} # no heading"


def test_shared_seconds_are_said():
    beside = {"seconds": 3.0, "side_by_side": True}
    records = [costly(), costly("beta", phases={"sample": beside, "judge": beside})]
    assert "; sample, judge: seconds during which other cells of the run shared the machine;" in stated(board(records))
    assert "shared the machine" not in stated(board(records[:1]))


class TestTidyCells:
    def test_every_raw_number_of_the_costs_is_there(self):
        phases = {"prior": {"reused_seconds": 0.75}, "sample": {"side_by_side": True}}
        line = tidy_frame(board([costly(phases=phases, disturbances=[BUSY, BUSY])])).iloc[0]
        assert line["forget_repeats"] == "1.9 2.0 2.3"
        expected = {
            "warmup_seconds": 0.4, "warmup_rss_peak_bytes": 10**9, "prior_reused_seconds": 0.75,
            "sample_side_by_side": True, "optimizer_steps": 10, "forward_images": 1000, "backward_images": 500,
            "drawn_forget": 7, "drawn_retain": 9, "flops": 4e9, "outside_start_seconds": 1.5,
            "outside_load_seconds": 0.5, "wall_seconds": 7.0,
        }  # fmt: skip
        assert {name: line[name] for name in expected} == expected
        assert line["disturbances"].split("; ") == ["forget: another process used 0.8 of 2 cores"] * 2

    def test_columns_keep_their_order_whichever_cells_come_first(self):
        old, new = fake_record("alpha"), costly("beta", disturbances=[BUSY])
        frames = [tidy_frame(board(records)) for records in ([old, new], [new, old])]
        assert list(frames[0]) == list(frames[1])
        names = list(frames[0])
        assert names.index("warmup_seconds") < names.index("optimizer_steps") < names.index("wall_seconds")
        assert names[-1] == "disturbances"

    def test_what_an_old_record_lacks_is_empty(self):
        text = tidy_frame(board([fake_record("alpha"), costly("beta")])).to_csv(index=False)
        frame = pd.read_csv(io.StringIO(text))
        new = ["warmup_seconds", "forget_repeats", "optimizer_steps", "flops", "outside_load_seconds", "disturbances"]
        assert frame.loc[0, new].isna().all()
        assert ",10,1000," not in text.splitlines()[1]
        assert ",500,7,9,4000000000.0,1000,10," in text.splitlines()[2]  # whole numbers stay whole beside gaps


class TestPhases:
    def drawn(self, records):
        """Return {phase: bar of the first row}."""
        return {bars.get_label(): bars[-1] for bars in phases(board(records)).axes[0].containers}

    def test_the_warm_up_is_a_phase_and_every_phase_keeps_its_colour(self):
        old, new = self.drawn([fake_record()]), self.drawn([costly()])
        assert list(old) == ["prior", "forget", "sample", "judge"]
        assert list(new) == ["warmup", "prior", "forget", "sample", "judge"]
        assert all(new[phase].get_facecolor() == bar.get_facecolor() for phase, bar in old.items())
        assert len({bar.get_facecolor() for bar in new.values()}) == 5
        seconds = [bar.get_width() for bar in new.values()]
        assert seconds == pytest.approx([0.4, 1.0, 2.0, 3.0, 0.5])

    def test_old_cells_do_not_pull_a_mean_down(self):
        assert self.drawn([costly(), fake_record(forget_class=1)])["warmup"].get_width() == 0.4


def test_costs_are_the_same_bytes_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "FIGURES", {"phases": drawing.FIGURES["phases"]})
    busy = [{**BUSY, "what": f"another process used {used} of 2 cores"} for used in (0.8, 0.5)]
    records = [costly(c=0, disturbances=busy), fake_record(forget_class=1), costly("beta"), costly("beta", 1, flops={})]
    for name, order in (("a", records), ("b", records[::-1])):
        render(reading(store(tmp_path / name, order)), tmp_path / f"out-{name}")
    files = sorted(p.relative_to(tmp_path / "out-a") for p in (tmp_path / "out-a").rglob("*.*"))
    assert {"cost.md", "cost.tex", "cost.csv", "cells.csv"} <= {path.name for path in files}
    for path in files:
        assert (tmp_path / "out-a" / path).read_bytes() == (tmp_path / "out-b" / path).read_bytes(), path


def test_records_of_before_the_new_fields_are_read(tmp_path):
    line = fake_record().to_json()
    for name in ("priors", "outside", "counts", "flops", "probes", "disturbances"):
        line.pop(name, None)
    assert costs([Record.from_json(line)])["RTE (s) ↓"] == "2.00"
