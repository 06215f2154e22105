"""Models that were unlearned elsewhere: rows like others, but for their cost, which nobody measured."""

from dataclasses import replace

import pytest

from tests.conftest import draw_all, fake_record, reading
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.front import places
from unlearnbench.report.data.values import NOT_MEASURED
from unlearnbench.report.html import page
from unlearnbench.report.html.charts import scatter
from unlearnbench.report.html.view import _bars
from unlearnbench.report.render import render
from unlearnbench.report.tables.cost import cost_table
from unlearnbench.report.tables.every import all_tables
from unlearnbench.report.write.csv import to_csv
from unlearnbench.report.write.latex import to_latex
from unlearnbench.store.records import ResultStore, read_line, to_line

COUNTED = {
    "counts": {"optimizer_steps": 10, "forward_images": 100, "backward_images": 50},
    "flops": {"forward": 10**9, "backward": 10**9, "peak": {"float32": 1e12}},
}
ELSEWHERE = ("rte", "range", "prior", "total", "amortised", "warmup", "optimizer_steps", "forward_images",
             "backward_images", "work", "share", "memory", "memory_prior", "memory_forget", "growth")  # fmt: skip


def given(c, name="theirs", **fields):
    """Return the record of a given model: sampled, judged, and nothing else."""
    made = fake_record(name, c, role="given", settings={}, **fields)
    cost = {phase: made.cost[phase] for phase in ("sample", "judge") if phase in made.cost}
    return replace(made, cost=cost, outside={"start": 1.0}, wall_seconds=4.5)


def ours():
    repeats = {"forget": {"repeats": [2.0, 2.1]}}
    return [
        fake_record(m, c, fid=5.0 + c + k, ua=90.0 - 20 * k, phases=repeats, **COUNTED)
        for k, m in enumerate(("alpha", "beta")) for c in range(8)
    ]  # fmt: skip


@pytest.fixture
def mixed():
    return boards([*ours(), *[given(c, fid=1.0, ua=99.0) for c in range(8)]])["digits"]


def row_of(board, label="Theirs"):
    return next(row for row in board.variants if row.label == label)


def test_such_a_record_is_written_and_read():
    record = given(0)
    assert read_line(to_line(record)).to_json() == record.to_json()


def test_what_unlearning_cost_reads_not_measured(mixed):
    row, numbers = row_of(mixed), mixed.numbers
    by_key = {measure.key: measure for measure in mixed.cost.all}
    for key in (*ELSEWHERE, "seconds_forget", "seconds_prior"):
        for value in (numbers.mean(row, by_key[key]), numbers.cell(row, mixed.targets[0], by_key[key])):
            assert (value.number, value.word) == (None, NOT_MEASURED), key
    assert numbers.mean(row, by_key["seconds_sample"]).number == 3.0
    assert numbers.mean(row, by_key["memory_sample"]).number is not None
    table = cost_table(mixed)
    line = dict(zip(table.flat_headers(), table.texts()[table.rows.index("Theirs")], strict=True))
    assert line.pop("Rank") == "-" and line.pop("Memory sample (GB) ↓") == "1.00"
    assert set(line.values()) == {NOT_MEASURED}


def test_it_can_be_best_but_not_at_a_cost(mixed):
    row, forgetting = row_of(mixed), mixed.headline("forgetting")
    assert mixed.numbers.best(forgetting) == {row}
    for measure in mixed.cost.all:
        assert row not in mixed.numbers.best(measure)
    assert row not in mixed.ranks and len(mixed.ranks) == 2
    assert row not in places(mixed)


def test_no_view_of_time_has_it(mixed):
    assert "Theirs" not in mixed.phase_seconds and "Theirs" not in [bar.label for bar in _bars(mixed)]
    total = next(measure for measure in mixed.costs if measure.key == "total")
    forgetting, retention = mixed.headline("forgetting"), mixed.headline("retention")
    assert "Theirs" not in [dot.label for dot in scatter(mixed, total, forgetting, "t").dots]
    assert "Theirs" in [dot.label for dot in scatter(mixed, retention, forgetting, "t").dots]


def test_the_tradeoff_shows_it_hollow(mixed):
    panel = draw_all(mixed)["tradeoff"].axes[0]
    marks = {mark.get_label(): mark for mark in panel.collections}
    assert tuple(marks["Theirs"].get_facecolor()[0]) == (1, 1, 1, 1) != tuple(marks["Alpha"].get_facecolor()[0])
    assert "hollow: cost not measured" in panel.get_title()


def test_a_note_and_the_page_say_that_it_was_given(mixed):
    assert "Theirs was unlearned elsewhere and given as a model: the cost is not measured" in mixed.notes
    assert "2 methods and Theirs (given)" in page({"digits": mixed}, ())
    assert not [note for note in boards(ours())["digits"].notes if "elsewhere" in note]


@pytest.mark.parametrize("count", [1, 4])
def test_given_models_alone_make_a_whole_report(tmp_path, count):
    for c in range(count):
        ResultStore(tmp_path / "results").append(given(c))
    ResultStore(tmp_path / "results").append(given(9, status="failed"))
    render(reading(tmp_path / "results"), tmp_path / "out")
    board = boards(reading(tmp_path / "results").records)["digits"]
    assert "cost" not in [table.name for table in all_tables(board)]
    assert "phases" not in draw_all(board)
    for table in all_tables(board):
        assert table.headers and to_csv(table) and to_latex(table)
