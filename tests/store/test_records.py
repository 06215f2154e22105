import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tests.conftest import INFINITE, fake_record, signed, unsigned
from tests.readme import ROOT
from unlearnbench.errors import UsageError
from unlearnbench.store.cell import Cell
from unlearnbench.store.hashing import canonical_json, digest
from unlearnbench.store.records import LONGEST_LINE, SCHEMA, Record, ResultStore, read_line, records_digest, to_line


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
from unlearnbench.store.records import ResultStore
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
    for line in (
        json.dumps(value),
        json.dumps({**value, "schema": 1, "checksum": None}),
        json.dumps({**value, "checksum": 1}),
    ):
        path.write_text(line + "\n")
        reading = store.read()
        assert reading.records == []
        assert "line 1 is skipped" in reading.problems[0]


def changed(value, path, new):
    """Return a copy of JSON with another value in one place, such as `metrics.fake_ua.n`."""
    head, _, rest = path.partition(".")
    return {**value, head: changed(value[head], rest, new) if rest else new}


@pytest.mark.parametrize(
    ("path", "new"),
    [
        *[("metrics.fake_ua.value", new) for new in (250.0, -1, "5.0", True, [], INFINITE, 1e300, 10**400)],
        *[("metrics.fake_ua.n", new) for new in (0, -5, 2.5, "100", True, None, 2**63)],
        ("metrics.fake_ua.unit", None), ("metrics.fake_ua.better", "bigger"), ("metrics.fake_ua.shows", "speed"),
        ("metrics.fake_ua.format", ".999999999f"), ("metrics.fake_ua.headline", 1), ("metrics.fake_ua.range", [0, 50]),
        ("metrics.fake_fid", {"value": 1.0}),
        *[("cost.forget.seconds", new) for new in (-5, INFINITE, "2", None, False, 1e10)],
        *[("cost.forget.memory_bytes.rss_peak", new) for new in (-1, 1.5, "7", None, True)],
        *[("cost.forget.memory_growth_bytes", new) for new in ({"rss_peak": -1}, {"rss_peak": 1.5}, 7, None)],
        ("cost.forget.repeats", [1.0, -1.0]), ("cost.forget.repeats", 3), ("cost.forget.reused", "no"),
        ("wall_seconds", -7.0), ("wall_seconds", "7"), ("outside", {"rest": -0.5}), ("outside", {"rest": None}),
        ("priors", {"mask": {"seconds": -1, "key": "k"}}), ("priors", {"mask": {"seconds": 1, "key": 5}}),
        ("counts", {"optimizer_steps": -1}), ("counts", {"drawn": {"forget": 1.5}}), ("counts", {"drawn": [1]}),
        ("flops", {"forward": -1}), ("flops", {"peak": {"float32": 0}}), ("flops", {"peak": {"float32": "fast"}}),
        ("judge.test_accuracy", 1.5), ("judge.test_accuracy", "0.9"), ("judge.n", 0), ("judge", {"test_accuracy": 0.9}),
        ("judge", {"test_accuracy": 0.9, "n": 5, "second": {"test_accuracy": -0.1}}),
        ("curves", {"loss": [[0, "high"]]}), ("curves", {"loss": [[-1, 2.0]]}), ("curves", {"loss": [3.0]}),
        ("timestep_loss", {"edges": [0, 1], "forget": [1.0], "retain": ["x"]}),
        ("timestep_loss", {"edges": [0, 1, 2], "forget": [1.0], "retain": [1.0]}),
        ("dataset.class_names", ["0", 1]), ("dataset.class_names", "0123456789"), ("cell.forget_class", 10),
        ("dataset.title", 5), ("method.title", None), ("method.overrides", {"steps": [1]}), ("method.source_hash", 3),
        ("images", {"forget": {"class": 10, "png": ""}}), ("images", {"forget": {"class": "0", "png": ""}}),
        ("images", {"forget": {"class": 0, "png": "no"}}), ("artifacts", {"base": {"sha256": []}}),
        ("artifacts", {"base": {"steps": 1.5}}),
        ("provenance.started_utc", "yesterday"), ("provenance.started_utc", 5), ("provenance.packages", {"a": 5}),
        ("provenance.device.name", 5), ("probes", {"nvml": None}), ("disturbances", [{"phase": "forget"}]),
        ("protocol.steps", 0), ("protocol.guidance", "much"), ("reason", 5), ("traceback", []), ("status", "failed"),
        ("provenance.deep", json.loads("[" * 900 + "]" * 900)), ("provenance.odd", INFINITE), ("schema", True),
    ],
    ids=lambda value: repr(value)[:40],
)  # fmt: skip
@pytest.mark.parametrize("old", [False, True], ids=["signed", "of schema 1"])
def test_what_cannot_be_is_refused_by_name(path, new, old):
    value = changed({**json.loads(to_line(fake_record())), "schema": 1 if old else SCHEMA}, path, new)
    with pytest.raises(ValueError, match=path.split(".")[0]):
        read_line((unsigned(value) if old else signed(value)).encode())


@pytest.mark.parametrize(
    ("path", "new"),
    [
        ("metrics.fake_ua.value", 100), ("metrics.fake_ua.value", 100.00000000000001), ("metrics.fake_ua.value", 0),
        ("metrics.fake_fid.value", -0.25), ("metrics.fake_fid.value", 1e9), ("metrics.fake_ua.unit", "per mille"),
        ("provenance.started_utc", "2026-11-27T23:59:59+01:00"), ("provenance.more", [[{"a": None}]]),
        ("cost.forget.memory_growth_bytes", {"rss_peak": 5}), ("cost.forget.memory_growth_bytes", {}),
        ("curves", {}), ("method.overrides", {"a": 1, "b": 1.5, "c": "x", "d": True}), ("counts", {}), ("outside", {}),
    ],
    ids=str,
)  # fmt: skip
def test_what_can_be_is_read(path, new):
    value = changed(json.loads(to_line(fake_record())), path, new)
    assert read_line(signed(value).encode()).cell == fake_record().cell


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"value": np.float32(3)}, "metrics.fake_ua.value is np.float32"), ({"value": 101.0}, "must be from 0 to 100"),
        ({"n": np.int64(3)}, "metrics.fake_ua.n is np.int64"), ({"n": 10**400}, "metrics.fake_ua.n is 1000"),
        ({"detail": {"by_class": {3: np.int64(1)}}}, "metrics.fake_ua.detail.by_class.3 is np.int64"),
        ({"detail": {"set": {1}}}, "metrics.fake_ua.detail.set is {1}"), ({"value": None}, "reason does not say why"),
        ({"value": float("inf")}, "metrics.fake_ua.value is inf"),
        ({"value": -0.1, "unit": "", "range": (0.0, None)}, "value is -0.1: it must be at least 0"),
        ({"value": 1.1, "unit": "", "range": (0.0, 1.0)}, "value is 1.1: it must be from 0 to 1"),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_plugin_returned_is_checked_before_it_is_written(tmp_path, change, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        ResultStore(tmp_path).append(fake_record(more={"fake_ua": change}))
    assert not list(tmp_path.iterdir())


def test_names_that_are_numbers_are_text_once_written():
    record = fake_record(more={"fake_ua": {"detail": {9: 1.0, 10: 2.0}}})
    line = to_line(record)
    value = json.loads(line)
    assert value["metrics"]["fake_ua"]["detail"] == {"9": 1.0, "10": 2.0}
    assert read_line(line).digest == record.digest == value["checksum"]
    assert read_line(json.dumps(value).encode()).digest == record.digest


class TestChecksum:
    def test_it_is_of_all_other_fields(self):
        value = json.loads(to_line(fake_record()))
        checksum = value.pop("checksum")
        assert checksum == digest(value) == fake_record().digest

    @pytest.mark.parametrize(
        "write",
        [
            json.dumps, canonical_json, lambda value: json.dumps(value, indent=1).replace("\n", "\t"),
            lambda value: json.dumps(dict(reversed(value.items())), ensure_ascii=False),
        ],
    )  # fmt: skip
    def test_order_and_spaces_are_no_change(self, write):
        record = fake_record(title="Ä\u2028 method")
        line = write(json.loads(to_line(record))).encode()
        assert (read_line(line), read_line(line).digest) == (record, record.digest)

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ('"value":90.0', '"value":91.0'), ('"value":90.0', '"value":1e999'), ('"checksum":"', '"checksum":"0'),
            ('"checksum"', '"checksums"'), ('"traceback"', '"traceback"'), ('"title":"Alpha"', '"title":"Beta"'),
            ('"cell":', '"added":1,"cell":'), ('"judge":{"n":360,', '"judge":{'), ('"seconds":2.0', '"seconds":2.1'),
        ],
    )  # fmt: skip
    def test_an_altered_line_is_named_and_left_out(self, tmp_path, old, new):
        store = ResultStore(tmp_path)
        store.append(replace(fake_record(), traceback="none"))
        path = next(tmp_path.glob("*/*.jsonl"))
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        reading = store.read()
        if old == new:
            assert (len(reading.records), reading.problems) == (1, [])
            return
        assert reading.records == []
        (problem,) = reading.problems
        assert "line 1 is skipped: it was altered after it was written" in problem

    def test_an_altered_line_takes_earlier_ones_of_its_cell_with_it(self, tmp_path):
        store = ResultStore(tmp_path)
        for fid in (1.0, 2.0):
            store.append(fake_record(fid=fid))
        store.append(fake_record(forget_class=1))
        path = next(tmp_path.glob("*/*.jsonl"))
        path.write_text(path.read_text().replace('"value":2.0', '"value":1.5'))
        assert [record.cell.forget_class for record in store.read().records] == [1]

    def test_records_of_the_first_schema_had_none(self, tmp_path):
        store = ResultStore(tmp_path)
        store.append(fake_record())
        assert not store.read().problems
        path = next(tmp_path.glob("*/*.jsonl"))
        value = json.loads(path.read_text())
        del value["checksum"]
        path.write_text(json.dumps({**value, "schema": 1}) + "\n" + to_line(fake_record(forget_class=1)).decode())
        reading = store.read()
        assert [(r.cell.forget_class, r.digest) for r in reading.records] == [
            (c, fake_record(forget_class=c).digest) for c in (0, 1)
        ]
        assert reading.problems == ["records of an older version, without a checksum to detect edits: 1"]


def test_a_line_that_is_too_long_is_refused():
    with pytest.raises(ValueError, match=f"more than {LONGEST_LINE}"):
        read_line(b" " * (LONGEST_LINE + 1))


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


def test_an_edited_cell_is_noticed():
    line = signed(json.loads(to_line(fake_record()).replace(b'"forget_class":0', b'"forget_class":4')))
    with pytest.raises(ValueError, match="cell id does not match"):
        read_line(line.encode())


def test_non_finite_numbers_never_reach_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"metrics\.fake_fid\.value is nan"):
        ResultStore(tmp_path).append(fake_record(fid=float("nan")))
    assert lines(tmp_path) == []


def test_lines_are_plain_json(tmp_path):
    ResultStore(tmp_path).append(fake_record())
    value = json.loads(lines(tmp_path)[0])
    assert value["schema"] == SCHEMA == 2
    assert value["cell_id"] == fake_record().cell.id
    assert Record.from_json(value) == fake_record()


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
