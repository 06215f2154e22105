"""Attacks without a number on cells with numbers: stale ones, and those that failed."""

import re
from dataclasses import replace

import pytest

from tests.conftest import draw_all, fake_record, reading
from tests.report.test_one_rule import attack
from unlearnbench import api
from unlearnbench.report.data.board import boards
from unlearnbench.report.html import page
from unlearnbench.report.render import render
from unlearnbench.report.tables.every import all_tables
from unlearnbench.report.verify import verify
from unlearnbench.report.write.markdown import to_markdown
from unlearnbench.run.stale import stale_ids
from unlearnbench.store.records import ResultStore, records_digest

COST = {"seconds": 5.0, "memory_bytes": {}}
NOW = {"metric:relearn": "changed"}


def attacked(method, c, value=20.0, **more):
    entry = {**attack(value), "cost": COST, "source_hash": "a1", **more}
    return fake_record(method, c, more={"relearn": entry})


def failed(method, c, status="timeout"):
    made = attacked(method, c, value=None, n=0, reason="it took | too long", failed=status)
    del made.metrics["relearn"]["detail"]
    return made


def full(**fields):
    return [attacked(m, c, **fields) for m in ("alpha", "beta") for c in range(3)]


def old(method, c):
    """Return a record of an attack by an older source."""
    return attacked(method, c, source_hash="a0")


def some_stale():
    records = [*full()[:-2], old("beta", 1), old("beta", 2)]
    return records, stale_ids(records, {"metric:relearn": "a1"})


def texts(board, name):
    table = next(table for table in all_tables(board) if table.name == name)
    return dict(zip(table.rows, table.texts(), strict=True))


def test_a_stale_attack_has_no_number_and_its_cell_keeps_the_others():
    records, stale = some_stale()
    assert stale == {f"{record.cell.id} relearn" for record in records[-2:]}
    board, without = boards(records, stale)["digits"], boards(records)["digits"]
    relearn, ua = board.numbers.metric("relearn"), board.headline("forgetting")
    beta = board.variants[1]
    assert board.numbers.cell(beta, board.targets[1], relearn).word == "stale"
    assert board.numbers.mean(beta, relearn, interval=False).gap == " (1/3)"
    assert board.numbers.completeness(beta) == "3/3" and not board.stale
    assert board.numbers.mean(beta, ua) == without.numbers.mean(beta, ua)
    assert len(board.ok_records) == 6
    (note,) = [note for note in board.notes if "stale" in note]
    assert note.startswith("2 attacks are stale") and "run their cells again" in note
    assert board.digest == without.digest == records_digest(records)
    assert records[-1].metrics["relearn"]["value"] == 20.0  # the record itself stays as it is


def test_where_every_attack_of_a_row_is_stale_its_word_stands():
    records = [*full()[:3], *[old("beta", c) for c in range(3)]]
    board = boards(records, stale_ids(records, {"metric:relearn": "a1"}))["digits"]
    assert texts(board, "robustness")["Beta"][-1] == "stale"
    assert texts(board, "relearning")["Beta"] == ["stale", "stale"]
    assert {name for name, figure in draw_all(board).items()} >= {"robustness", "relearning"}


def test_where_every_attack_is_stale_a_note_says_it():
    board = boards(full(), stale_ids(full(), NOW))["digits"]
    assert not board.robustness and board.attacked is None
    assert "Relearn is not shown: it is stale" in board.notes


def test_a_stale_cell_is_stale_with_its_attacks():
    records = full()
    stale = stale_ids(records, {**NOW, "method:beta": "changed"})
    board = boards(records, stale)["digits"]
    assert board.stale == {record.cell.id for record in records[3:]}
    assert [note.split(" ")[:3] for note in board.notes if "stale (" in note] == [
        ["3", "records", "are"], ["3", "attacks", "are"],
    ]  # fmt: skip


@pytest.mark.parametrize("status", ["failed", "oom", "timeout"])
def test_a_failed_attack_shows_its_status_and_is_listed(tmp_path, status):
    records = [*full()[:3], *[failed("beta", c, status) for c in range(3)]]
    board = boards(records)["digits"]
    assert texts(board, "robustness")["Beta"] == ["3/3", texts(board, "robustness")["Beta"][1], status]
    assert texts(board, "relearning")["Beta"] == [status, status]
    assert not board.failures() and len(board.failed_attacks) == 3
    assert [note for note in board.notes if note.startswith("3 attacks are without a number for having failed")]
    for record in records:
        ResultStore(tmp_path / "results").append(record)
    out = render(reading(tmp_path / "results"), tmp_path / "out")
    report = out.pages[0].read_text()
    assert "Cells without numbers" not in report
    lines = report.split("### Attacks without numbers\n\n")[1].splitlines()[:3]
    assert [line.split(": ")[0] for line in lines] == [f"- `{record.cell.id}`" for record in records[3:]]
    assert all(re.search(rf"{status}, Relearn: it took .*too long", line) for line in lines)
    html = page({"digits": board}, ())
    assert "3 attacks failed</a>" in html and "Relearn: it took | too long" in html


def test_a_failed_attack_that_is_stale_counts_as_stale():
    record = failed("alpha", 0)
    board = boards([record, *full()[1:]], stale_ids([record], NOW))["digits"]
    assert not board.failed_attacks and [note for note in board.notes if note.startswith("1 attack is stale")]


def test_a_frame_marks_both(tmp_path, monkeypatch):
    records, stale = some_stale()
    records[0] = failed("alpha", 0, "oom")
    for record in records:
        ResultStore(tmp_path).append(record)
    monkeypatch.setattr("unlearnbench.run.stale.stale_ids", lambda records, sources: stale)
    frame = api.load(tmp_path)
    assert len(frame[frame.metric == "fake_ua"]) == 6 and not frame[frame.metric == "fake_ua"].value.isna().any()
    own = frame[frame.metric == "relearn"].set_index("cell_id")
    assert list(own.index[own.stale]) == [record.cell.id for record in records[-2:]]
    assert own[own.stale].value.isna().all() and (own[~own.stale & (own.status == "ok")].value == 20.0).all()
    assert (own.status[records[0].cell.id], own.value.isna()[records[0].cell.id]) == ("oom", True)
    assert set(own.status) == {"ok", "oom"} and set(frame[frame.metric == "fake_ua"].status) == {"ok"}


def test_tables_with_and_without_stale_attacks_verify_as_such(tmp_path):
    records, stale = some_stale()
    for record in records:
        ResultStore(tmp_path / "results").append(record)
    found, path = reading(tmp_path / "results"), tmp_path / "table.md"
    for given, holds in ((frozenset(), False), (stale, True)):
        tables = {table.name: to_markdown(table) for table in all_tables(boards(records, given)["digits"])}
        path.write_text(tables["robustness"])
        verdict = verify(path, found, stale)
        assert verdict.holds is holds, verdict.lines
        path.write_text(tables["summary"])
        assert verify(path, found, stale).holds
    path.write_text(to_markdown(next(t for t in all_tables(boards(records)["digits"]) if t.name == "robustness")))
    assert "but 2 of them are stale" in verify(path, found, stale).lines[0]


def test_an_attacks_cost_stays_in_the_cost_of_its_cell():
    records, stale = some_stale()
    records = [replace(r, cost={**r.cost, "attack": {**COST, "memory_bytes": {"rss_peak": 1}}}) for r in records]
    board = boards(records, stale)["digits"]
    assert board.numbers.mean(board.variants[1], board.cost.phases["attack"]).number == 5.0
