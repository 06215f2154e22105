import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.conftest import fake_record
from tests.readme import ROOT
from unlearnbench.errors import UsageError
from unlearnbench.grid import Cell
from unlearnbench.results import Record, ResultStore, records_digest


def lines(root):
    return [line for path in sorted(root.glob("*/*.jsonl")) for line in path.read_text().splitlines()]


def test_a_record_survives_the_disk(tmp_path):
    record = fake_record()
    ResultStore(tmp_path).append(record)
    assert ResultStore(tmp_path).read().records == [record]


def test_the_last_line_of_a_cell_counts(tmp_path):
    store = ResultStore(tmp_path)
    for fid in (1.0, 2.0, 3.0):
        store.append(fake_record(fid=fid))
    records = store.read().records
    assert len(lines(tmp_path)) == 3
    assert [record.metrics["fake_fid"]["value"] for record in records] == [3.0]


def test_a_torn_last_line_is_reported_skipped_and_healed(tmp_path):
    store = ResultStore(tmp_path)
    store.append(fake_record(forget_class=0))
    store.append(fake_record(forget_class=1))
    path = next(tmp_path.glob("*/*.jsonl"))
    data = path.read_bytes()
    path.write_bytes(data[:-40])  # a writer died here
    reading = store.read()
    assert [record.cell.forget_class for record in reading.records] == [0]
    assert "line 2 is skipped" in reading.problems[0]
    store.append(fake_record(forget_class=2))
    assert [record.cell.forget_class for record in store.read().records] == [0, 2]


def test_a_full_disk_is_one_sentence_and_harms_no_other_record(tmp_path):
    store = ResultStore(tmp_path)
    store.append(fake_record(forget_class=0))
    code = f"""
import resource
from pathlib import Path
from tests.conftest import fake_record
from unlearnbench.errors import UsageError
from unlearnbench.results import ResultStore
size = next(Path({str(tmp_path)!r}).glob("*/*.jsonl")).stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, size + 50))
try:
    ResultStore(Path({str(tmp_path)!r})).append(fake_record(forget_class=1))
except UsageError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert "alpha.jsonl (File too large): free space or give another folder with --results" in said
    store.append(fake_record(forget_class=2))  # what is torn is not glued to it
    assert [record.cell.forget_class for record in store.read().records] == [0, 2]


@pytest.mark.parametrize(
    "line",
    [
        "not json",
        "[1]",
        "{}",
        '{"schema": 99}',
        '{"schema": 1, "status": "great"}',
        '{"schema": 1, "status": "ok"}',
        "\xff",
    ],
)
def test_strange_lines_are_named_not_fatal(tmp_path, line):
    store = ResultStore(tmp_path)
    store.append(fake_record())
    path = next(tmp_path.glob("*/*.jsonl"))
    path.write_bytes(line.encode("latin-1") + b"\n" + path.read_bytes())
    reading = store.read()
    assert len(reading.records) == 1
    assert len(reading.problems) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"metrics": None}, {"metrics": {"x": None}}, {"metrics": {"x": {"value": 1}}}, {"cost": []},
        {"cost": {"forget": 3}},
        {"cost": {"forget": {"seconds": "long", "memory_bytes": {}}}}, {"images": {"forget": {"png": "%%%"}}},
        {"provenance": "here"}, {"provenance": {"device": 3}}, {"judge": {"n": 3}}, {"cell": {}}, {"cell": None},
        {"method": None}, {"wall_seconds": float("inf")},
        *[{"cell": {**fake_record().cell.to_json(), **edit}} for edit in (
            {"dataset": "../../escape"}, {"dataset": "/abs"}, {"dataset": None}, {"protocol": "a/b"}, {"method": ".."},
            {"forget_class": None}, {"seed": "0"}, {"forget_class": True},
        )],
    ],
    ids=str,
)  # fmt: skip
def test_hand_edited_records_are_named_not_fatal(tmp_path, change):
    store = ResultStore(tmp_path)
    store.append(fake_record())
    path = next(tmp_path.glob("*/*.jsonl"))
    value = {**json.loads(path.read_text()), **change}
    if change.get("cell"):
        value["cell_id"] = Cell.from_json(value["cell"]).id  # a careful forger
    path.write_text(json.dumps(value) + "\n")
    reading = store.read()
    assert reading.records == []
    assert "line 1 is skipped" in reading.problems[0]


def test_odd_files_are_named_not_fatal(tmp_path):
    store = ResultStore(tmp_path)
    store.append(fake_record())
    folder = tmp_path / "digits"
    (folder / "dangling.jsonl").symlink_to(tmp_path / "nowhere")
    (folder / "folder.jsonl").mkdir()
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "deep.jsonl").write_text("[" * 200_000)
    (folder / "junk.jsonl").write_bytes(b"\xff\n" * 1000)
    reading = store.read()
    assert len(reading.records) == 1
    assert len(reading.problems) == 3 + 1 + 5 + 1


def test_a_record_that_could_not_be_read_is_not_written(tmp_path):
    record = fake_record()
    record.metrics["fake_ua"]["format"] = 5
    with pytest.raises((ValueError, TypeError)):
        ResultStore(tmp_path).append(record)
    assert not list(tmp_path.glob("*/*.jsonl")) or lines(tmp_path) == []


def test_text_that_is_not_unicode_is_stored_all_the_same(tmp_path):
    store = ResultStore(tmp_path)
    record = replace(fake_record(status="failed"), reason="lone surrogate \ud800")
    store.append(record)
    assert store.read().records == [record]


def test_an_edited_cell_is_noticed(tmp_path):
    ResultStore(tmp_path).append(fake_record())
    path = next(tmp_path.glob("*/*.jsonl"))
    path.write_text(path.read_text().replace('"forget_class":0', '"forget_class":4'))
    assert "does not match" in ResultStore(tmp_path).read().problems[0]


def test_non_finite_numbers_never_reach_the_file(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        ResultStore(tmp_path).append(fake_record(fid=float("nan")))
    assert lines(tmp_path) == []


def test_lines_are_plain_json(tmp_path):
    ResultStore(tmp_path).append(fake_record())
    value = json.loads(lines(tmp_path)[0])
    assert value["schema"] == 1
    assert value["cell_id"] == fake_record().cell.id
    assert Record.from_json(value) == fake_record()


def test_a_changed_source_makes_a_record_stale():
    record = fake_record(source_hash="m1")
    assert not record.is_stale({"method:alpha": "m1", "metric:fake_fid": "x1"})
    assert record.is_stale({"method:alpha": "m2"})
    assert record.is_stale({"metric:fake_ua": "other"})
    assert record.is_stale({f"dataset:{record.dataset['digest']}": "another judge"})
    assert not record.is_stale({})


def test_an_interrupted_measurement_takes_no_finished_one_away(tmp_path):
    store = ResultStore(tmp_path)
    store.append(fake_record())
    store.append(fake_record(status="interrupted"))
    assert [record.status for record in store.read().records] == ["ok"]
    store.append(fake_record(status="failed"))
    assert [record.status for record in store.read().records] == ["failed"]


def test_the_digest_ignores_order_and_sees_every_number():
    a, b = fake_record(forget_class=0), fake_record(forget_class=1)
    assert records_digest([a, b]) == records_digest([b, a])
    assert records_digest([a, b]) != records_digest([a, fake_record(forget_class=1, fid=5.0001)])


def test_an_unwritable_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="--results"):
        ResultStore(tmp_path / "file").append(fake_record())


def test_natural_order_of_files(tmp_path):
    for name in ("m10", "m9"):
        ResultStore(tmp_path).append(fake_record(name))
    assert [record.cell.method for record in ResultStore(tmp_path).read().records] == ["m9", "m10"]
