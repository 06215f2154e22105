"""Equal retention in reports: the column, and the figure of the models between base and unlearned one."""

import pytest
from matplotlib import pyplot as plt

from tests.conftest import draw_all, fake_record, reading
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.curves import mean_path, weight_path, weight_paths
from unlearnbench.report.data.values import Measure
from unlearnbench.report.figures import drawing
from unlearnbench.report.figures.paths import mixed
from unlearnbench.report.render import render
from unlearnbench.report.tables.every import all_tables
from unlearnbench.store.records import ResultStore

COLUMN = Measure("equal", "Equal", "%", "higher", ".1f", "forgetting")
PATH = {
    "a": [0.0, 0.5, 0.75, 1.0], "forget": [0.0, 10.0, 40.0, 90.0], "retain": [100.0, 98.0, 96.0, 60.0],
    "at": 0.75, "level": 95.0,
}  # fmt: skip


def moved(method="alpha", c=0, *, detail=None, value=40.0, **fields):
    """Return a record with a metric that has a path."""
    entry = {"value": value, "n": 50, "title": "Equal", "shows": "forgetting", "format": ".1f"}
    return fake_record(method, c, more={"equal": {**entry, "detail": detail or PATH}}, **fields)


def board(records):
    return boards(records)["digits"]


def test_means_by_hand():
    other = {"a": [0.0, 0.5, 1.0], "forget": [2.0, 20.0, 70.0], "retain": [96.0, 95.0, 92.0], "at": 1.0,
             "level": 91.0}  # fmt: skip
    rows = weight_paths(board([moved(c=0), moved(c=1, detail=other)]).numbers, [COLUMN])[COLUMN]
    points, chosen = mean_path(next(iter(rows.values())))
    assert points == [(98.0, 1.0), (96.5, 15.0), (76.0, 80.0)]  # 0.75 is not shared
    assert chosen == (94.0, 55.0)


@pytest.mark.parametrize(
    "change",
    [{"at": 0.3}, {"level": None}, {"retain": [1.0]}, {"a": [0.0, 0.5, 0.5, 1.0]}, {"forget": "many"},
     {"level": float("nan")}],
)  # fmt: skip
def test_a_path_that_cannot_be_read_is_left_out(change):
    assert weight_path(moved(detail={**PATH, **change}), COLUMN) is None
    assert weight_path(moved(), COLUMN) is not None


def test_without_a_number_there_is_no_path():
    assert weight_path(moved(value=None), COLUMN) is None
    assert weight_path(fake_record(), COLUMN) is None


def test_it_is_a_column_of_forgetting_with_an_interval():
    full = next(table for table in all_tables(board([moved()])) if table.name == "forgetting")
    place = full.flat_headers().index("Equal (%) ↑")
    value = full.values[0][place]
    assert value.number == 40.0
    assert 27 < value.interval[0] < 40 < value.interval[1] < 54


def test_the_figure_has_a_curve_and_a_ringed_mark_for_each_row():
    records = [moved(m, c, role=r) for m, r in (("alpha", "method"), ("gold", "gold")) for c in range(2)]
    shown = board([*records, fake_record("beta")])
    axes = mixed(shown).axes[0]
    curves = [line for line in axes.lines if len(line.get_xdata()) == 4]
    assert [list(line.get_xdata()) for line in curves] == [PATH["retain"]] * 2
    assert [list(line.get_ydata()) for line in curves] == [PATH["forget"]] * 2
    assert sorted(line.get_linestyle() for line in curves) == ["-", "--"]
    rings = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in rings] == [(96.0, 40.0)] * 2
    level = next(line for line in axes.lines if line.get_linestyle() == ":")
    assert level.get_xdata()[0] == 95.0
    words = [text.get_text() for text in axes.texts]
    assert words == ["Gold 40.0", "Alpha 40.0"]
    plt.close("all")


def test_a_row_without_paths_in_some_cells_says_so():
    axes = mixed(board([moved(c=0), fake_record("alpha", 1)])).axes[0]
    assert "Alpha 40.0 (1/2)" in [text.get_text() for text in axes.texts]
    plt.close("all")


def test_no_path_no_figure():
    assert mixed(board([fake_record()])) is None
    assert "equal-retention" not in draw_all(board([fake_record()]))
    plt.close("all")


def test_report_and_page_show_it(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "FIGURES", {"equal-retention": mixed})
    ResultStore(tmp_path / "results").append(moved())
    render(reading(tmp_path / "results"), tmp_path / "reports")
    folder = tmp_path / "reports" / "digits"
    assert (folder / "figures" / "equal-retention.pdf").is_file()
    assert "figures/equal-retention.png" in (folder / "report.md").read_text()
    assert r"\label{fig:equal-retention}" in (folder / "paper" / "main.tex").read_text()
    assert "the dotted line is the common level of retention" in (tmp_path / "reports" / "report.html").read_text()
