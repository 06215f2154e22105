import base64
import io
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.conftest import fake_record
from unlearnbench.errors import UsageError
from unlearnbench.report import render
from unlearnbench.report.board import Value, boards
from unlearnbench.report.tables import (
    Table,
    escape_latex,
    paper_tables,
    settings_tables,
    summary_table,
    to_csv,
    to_latex,
    to_markdown,
    to_terminal,
)
from unlearnbench.results import ResultStore

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


def board(records, hashes=None):
    return boards(records, hashes or {}).popitem()[1]


def test_mean_and_sample_deviation_over_classes():
    b = board(full())
    fid = next(measure for measure in b.metrics if measure.key == "fake_fid")
    value = b.over_classes(b.variants[0], fid)
    assert (value.number, value.spread, value.ok, value.expected) == (6.0, 1.0, 3, 3)


def test_seeds_are_averaged_within_a_class():
    b = board([fake_record(seed=s, fid=f) for s, f in ((0, 4.0), (1, 8.0))])
    assert b.value(b.variants[0], 0, next(m for m in b.metrics if m.key == "fake_fid")).number == 6.0


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


def test_devices_are_not_mixed():
    b = board([*full(), fake_record("alpha", 7, device="device-2", started="2020-01-01T00:00:00Z")])
    assert b.classes == [0, 1, 2]
    assert "other devices" in b.notes[0]


def test_protocols_are_not_mixed():
    other = fake_record("alpha", dataset="pictures")
    assert sorted(boards([*full(), other], {})) == ["digits", "pictures"]


def test_swept_settings_are_variants_of_their_own():
    records = [fake_record(settings={"x": k}, overrides={"x": k}) for k in (10, 9)]
    assert [v.label for v in board(records).variants] == ["Alpha (x=9)", "Alpha (x=10)"]


def test_the_paper_tables_have_one_group_of_columns_per_method():
    efficiency, uncertainty = paper_tables(board(full()))
    assert efficiency.groups == ["Alpha"] * 3 + ["Beta"] * 3
    assert [header.split(" ")[0] for header in efficiency.headers] == ["FID", "RTE", "Memory"] * 2
    assert efficiency.rows == ["0", "1", "2", "mean", "std", "cells"]
    assert uncertainty.groups == ["Alpha", "Beta"]


def test_every_caption_says_where_its_numbers_come_from():
    for table in (summary_table(board(full())), *paper_tables(board(full()))):
        for words in ("Digits", "protocol-1", "n=100", "A CPU", "rss_peak", "99.0% (n=360)", "records ", "torch 2.9"):
            assert words in table.caption


def test_costs_in_seconds_and_gigabytes():
    b = board(full())
    values = {m.key: b.value(b.variants[0], 0, m).number for m in b.costs}
    assert values == pytest.approx({"rte": 2.0, "prior": 1.0, "total": 3.0, "memory": 1.000000001})
    assert b.time_unit == "s"


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
    for table in (summary_table(board(full())), *paper_tables(board(full()))):
        text = to_latex(table)
        check_latex(text)
        assert r"\toprule" in text
    assert r"\multicolumn{3}{c}{Alpha}" in to_latex(paper_tables(board(full()))[0])
    assert r"S[table-format=" in to_latex(paper_tables(board(full()))[0])


def test_hostile_text_breaks_no_table():
    records = [fake_record("evil", c, title=HOSTILE, status=s) for c, s in ((0, "ok"), (1, "failed"))]
    for table in (summary_table(board(records)), *paper_tables(board(records))):
        check_latex(to_latex(table))
        assert "<b>" not in to_markdown(table)
        pd.read_csv(io.StringIO(to_csv(table)))
    to_terminal(board(records))


def test_latex_escapes_every_special_character():
    assert escape_latex(r"\&%$#_{}~^") == (r"\textbackslash{}\&\%\$\#\_\{\}\textasciitilde{}\textasciicircum{}")
    assert escape_latex("é 中 ↓") == r"e ? $\downarrow$"


def test_csv_has_full_numbers():
    frame = pd.read_csv(io.StringIO(to_csv(summary_table(board(full())))))
    assert frame["FID ↓"].tolist() == [6.0, 16.0]
    assert frame["FID ↓ std"].tolist() == [1.0, 1.0]


def test_words_in_a_table_are_never_numbers():
    table = Table("t", "T", "c", "row", ["a"], [""], ["x"], [".1f"], [[Value(None, "failed")]])
    assert table.texts() == [["failed"]]
    assert "{failed}" in to_latex(table)


def test_the_terminal_table_fits_80_columns():
    records = [
        fake_record(m, c, title="A method with a very long name", settings={"x": m}) for m in "abc" for c in range(10)
    ]
    for record in records:  # as many columns as a real run has
        for k, title in enumerate(("Judge entropy", "Retained acc.", "Worst class acc.")):
            entry = {**record.metrics["fake_ua"], "title": title, "value": 100.0}
            record.metrics[f"extra{k}"] = entry
    assert max(len(line) for line in to_terminal(board(records)).splitlines()) <= 80


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
from unlearnbench import cli
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names = {path.relative_to(tmp_path / "out" / "digits").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    tables = {f"tables/{t}.{e}" for t in ("summary", "efficiency", "uncertainty") for e in ("md", "tex", "csv")}
    figures = {
        f"figures/{f}.{e}" for f in ("tradeoff", "heatmaps", "phases", "samples", "samples-all") for e in ("png", "pdf")
    }
    assert names >= tables | figures | {"report.md", "tables/cells.csv"}


def test_same_records_same_bytes_in_any_order(tmp_path):
    records = full()
    for name, order in (("a", records), ("b", records[::-1])):
        render(store(tmp_path / name, order), tmp_path / f"out-{name}", {})
    files = sorted(p.relative_to(tmp_path / "out-a") for p in (tmp_path / "out-a").rglob("*.*"))
    assert len(files) > 15
    for path in files:
        assert (tmp_path / "out-a" / path).read_bytes() == (tmp_path / "out-b" / path).read_bytes(), path


def test_old_files_do_not_linger(tmp_path):
    folder = store(tmp_path / "results", full())
    render(folder, tmp_path / "out", {})
    (tmp_path / "out" / "digits" / "tables" / "old.md").write_text("old")
    render(folder, tmp_path / "out", {})
    assert not (tmp_path / "out" / "digits" / "tables" / "old.md").exists()


@pytest.mark.parametrize(
    "records",
    [[fake_record()], [fake_record(status="failed")], [fake_record(forget_class=c, status="oom") for c in range(3)]],
    ids=["one cell", "one failure", "only failures"],
)
def test_small_and_sad_folders_still_render(tmp_path, records):
    rendering = render(store(tmp_path / "results", records), tmp_path / "out", {})
    text = rendering.pages[0].read_text()
    assert ("Cells without numbers" in text) == (records[0].status != "ok")


def test_an_empty_folder_says_what_to_do(tmp_path):
    with pytest.raises(UsageError, match="run 'unlearnbench run' first"):
        render(tmp_path, tmp_path / "out", {})


def test_torn_lines_become_notes(tmp_path):
    path = next(store(tmp_path / "results", full()).glob("*/*.jsonl"))
    path.write_bytes(path.read_bytes()[:-30])
    assert "skipped" in render(tmp_path / "results", tmp_path / "out", {}).notes[0]


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
    assert "{5.00 (1/2)}" in to_latex(efficiency)
    assert "(3/4)" in to_terminal(board(records))
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


def test_a_record_that_cannot_be_shown_is_left_out_with_a_note(tmp_path):
    odd = replace(fake_record("odd"), provenance={**fake_record().provenance, "packages": {"torch": None}})
    worse = replace(fake_record("worse"), artifacts={"base": None})
    rendering = render(store(tmp_path / "results", [*full(), odd, worse]), tmp_path / "out", {})
    assert "Alpha" in rendering.terminal[0]
    assert sum("left out, it cannot be shown" in note for note in rendering.notes) >= 1


def test_markup_in_a_title_is_text():
    record = fake_record()
    record.metrics["fake_ua"]["title"] = "[red]x[/nope] [b]"
    assert "[red]x[/nope]" in to_terminal(board([record]))


def test_settings_that_are_not_the_defaults_have_a_table():
    plain = fake_record("beta")
    shortened = fake_record("alpha")
    shortened = replace(shortened, method={**shortened.method, "changed": {"steps": [1000, 10], "lr": [1e-4, 3e-4]}})
    board = boards([plain, shortened], {})["digits"]
    (table,) = settings_tables(board)
    assert list(zip(table.rows, [[value.word for value in row] for row in table.values], strict=True)) == [
        ("Alpha", ["lr", "0.0001", "0.0003"]), ("Alpha", ["steps", "1000", "10"]),
    ]  # fmt: skip
    assert "table of settings" in board.caption()
    untouched = boards([plain], {})["digits"]
    assert settings_tables(untouched) == []
    assert "table of settings" not in untouched.caption()


def test_the_caption_says_when_x0_is_clipped():
    record = fake_record()
    clipped = replace(record, protocol={**record.protocol, "clip_x0": True})
    assert "guidance w 0.5, x0 clipped, reference" in boards([clipped], {})["digits"].caption()
    assert "x0 clipped" not in boards([record], {})["digits"].caption()


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
    assert sorted(boards(records, {})) == names


@pytest.mark.parametrize(
    "change", [{"choices": {"judge": "small"}}, {"choices": {"base": "abc"}}, {"image_shape": [3, 64, 64]}]
)
def test_another_judge_base_or_size_never_shares_a_table(change):
    old = replace(fake_record("alpha"), dataset={**fake_record().dataset, **change})
    new = fake_record("beta", started="2026-02-01T00:00:00Z")
    board = boards([old, new], {})["digits"]
    assert [variant.method for variant in board.variants] == ["beta"]
    assert any("another judge, extractor, base model or image size" in note for note in board.notes)


def test_other_images_under_one_name_are_said():
    records = [fake_record("alpha"), fake_record("beta")]
    records = [replace(r, artifacts={**r.artifacts, "images": {"sha256": str(k)}}) for k, r in enumerate(records)]
    assert any("2 different sets of images" in note for note in boards(records, {})["digits"].notes)
