"""Tables, figures, charts, terminal and frames say the same of one row, whatever its cells lack."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import PathCollection, QuadMesh

from tests.conftest import fake_record
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.front import axes_of, places
from unlearnbench.report.figures import sweep as ablation
from unlearnbench.report.figures.heatmaps import heatmaps
from unlearnbench.report.figures.phases import phases
from unlearnbench.report.figures.robustness import relearning, robustness
from unlearnbench.report.figures.tradeoff import LEAST_AREA, MORE_AREA, PAIRS, pareto, tradeoff
from unlearnbench.report.html.charts import scatter
from unlearnbench.report.html.heatmaps import class_heatmap
from unlearnbench.report.html.view import _bars
from unlearnbench.report.tables.classes import class_tables
from unlearnbench.report.tables.controls import check_tables
from unlearnbench.report.tables.pareto import pareto_tables
from unlearnbench.report.tables.summary import summary_table
from unlearnbench.report.write.terminal import to_terminal

CURVE = {"steps": [0, 10], "steps_until_back": 10}


def attack(value, area=50.0):
    detail = {**CURVE, "after": [100.0, value], "area": area}
    return {"shows": "robustness", "value": value, "title": "Relearn", "detail": detail}


def lacking(record, *metrics, phase=None):
    """Return a record without a value of some metrics, and without a phase."""
    for name in metrics:
        record.metrics[name] |= {"value": None, "reason": "too few samples"}
    if phase:
        del record.cost[phase]
    return record


@pytest.fixture
def records():
    """Two seeds, three classes; each row lacks another thing in one of its cells."""
    made = {
        (method, c, seed): fake_record(
            method, c, seed=seed, fid=5.0 + c + 10 * seed + k, ua=90.0 + c - 7 * seed - 3 * k, rte=2.0 + c + k,
            more={"relearn": attack(10.0 * c + seed + k)}, settings={"steps": 10 + k},
            overrides={"steps": 10 + k} if method == "swept" else {}, phases={"warmup": {"seconds": 0.1 + c}},
        )
        for k, method in enumerate(("alpha", "beta", "swept"))
        for c in range(3) for seed in range(2)
    }  # fmt: skip
    for c in range(3):
        made["swept", c, 2] = fake_record("swept", c, fid=9.0 + c, settings={"steps": 99}, overrides={"steps": 99})
        made["noise", c, 0] = fake_record("noise", c, role="reference", ua=3.0 * c, truth={"forgetting": False})
        made["noise", c, 0].metrics["fake_ua"]["boundary"] = 50.0
    made["noise", 0, 1] = fake_record("noise", 0, role="reference", ua=9.0, seed=1, truth={"forgetting": False})
    made["noise", 0, 1].metrics["fake_ua"]["boundary"] = 50.0
    lacking(made["alpha", 0, 0], "fake_fid")
    lacking(made["alpha", 0, 1], "fake_fid")
    lacking(made["beta", 1, 0], "fake_ua", phase="prior")
    lacking(made["beta", 2, 1], "relearn", phase="warmup")
    lacking(made["swept", 2, 0], "fake_fid")
    return list(made.values())


@pytest.fixture
def board(records):
    return boards(records)["digits"]


@pytest.fixture
def table(board):
    """{row: {key of a measure: number}} of the main table and the table of costs, as the array has it."""
    measures = [*board.metrics, *board.costs]
    assert [m.header for m in [*board.headlines, *board.costs]] == summary_table(board).headers[1:]
    return {v.label: {m.key: board.numbers.mean(v, m).number for m in measures} for v in board.variants}


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def test_the_table_is_the_mean_over_classes_that_have_a_number(table):
    assert table["Alpha"]["fake_fid"] == np.mean([6 + 5, 7 + 5])  # class 0 has none; others the mean of both seeds
    assert table["Alpha"]["fake_ua"] == np.mean([90, 91, 92]) - 3.5
    assert table["Beta"]["fake_ua"] == np.mean([90 - 3.5, 91 - 7, 92 - 3.5]) - 3
    assert table["Beta"]["prior"] == np.mean([1, 0.5, 1])


def test_the_tradeoff(board, table):
    axes = tradeoff(board).axes[0]
    means = {c.get_label(): c.get_offsets()[0] for c in axes.collections if not c.get_label().startswith("_")}
    assert means.keys() == table.keys()
    for label, (x, y) in means.items():
        assert (x, y) == pytest.approx((table[label]["fake_fid"], table[label]["fake_ua"]))
    dots = next(c for c in axes.collections if isinstance(c, PathCollection) and len(c.get_offsets()) > 1)
    assert len(dots.get_offsets()) == 5 * 3 - 1  # Alpha's class 0 has nowhere to stand
    assert "Alpha (4/6)" in [text.get_text() for one in axes.figure.axes for text in one.texts]
    areas = {c.get_label(): c.get_sizes()[0] for c in axes.collections}
    costs = [table[label]["total"] for label in means]
    assert [areas[label] for label in means] == pytest.approx(
        [LEAST_AREA + MORE_AREA * cost / max(costs) for cost in costs]
    )
    assert f"size: RTE+prior, {min(costs):.1f} to {max(costs):.1f} s" in axes.get_title()


def test_the_fronts(records):
    whole = boards([r for r in records if r.cell.seed == 1 and r.cell.method != "noise"])["digits"]
    rows = {variant.label: values for variant, values in places(whole).items()}
    assert "Alpha" not in rows and len(rows) > 1  # it has a gap
    figure = pareto(whole)
    for axes, (x, y) in zip(figure.axes, PAIRS, strict=True):
        for bars in axes.containers:
            place = [float(data[0]) for data in bars.lines[0].get_data()]
            assert place == pytest.approx([rows[bars.get_label()][k].number for k in (x, y)])
    table = pareto_tables(whole)[0]
    for row, values in zip(table.rows, table.values, strict=True):
        means = [whole.numbers.mean(v, m).number for v in whole.variants if v.label == row for m in axes_of(whole)]
        assert [value.number for value in values[:3]] == means


def test_heat_maps_here_and_on_the_page(board, table):
    by_class = {t.name: t for t in class_tables(board)}["classes-fake-fid"]
    fid = next(m for m in board.metrics if m.key == "fake_fid")
    axes = next(a for a in heatmaps(board).axes if a.get_title() == fid.header)
    mesh = next(c for c in axes.collections if isinstance(c, QuadMesh))
    drawn = np.ma.filled(mesh.get_array(), np.nan).reshape(len(board.variants), len(board.targets))
    shown = [[value.number for value in row[: len(board.targets)]] for row in by_class.values]
    np.testing.assert_array_equal(drawn, np.array(shown, dtype=float))
    for label, shades in class_heatmap(board, fid).rows:
        assert shades[-1].text.split(" ")[0] == f"{table[label]['fake_fid']:.2f}"


def test_phases_here_and_on_the_page(board, table):
    axes = phases(board).axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    drawn = {
        bars.get_label(): dict(zip(labels, [b.get_width() for b in bars], strict=True)) for bars in axes.containers
    }
    shown = {bar.label: {phase: seconds for phase, seconds, _ in bar.parts} for bar in _bars(board)}
    for label, row in table.items():
        assert drawn["prior"][label] == shown[label]["prior"] == row["prior"]
        assert drawn["forget"][label] == shown[label]["forget"] == row["rte"]
    warmup = next(m for m in board.cost.detailed if m.key == "warmup")
    for variant in board.variants:
        known = board.numbers.mean(variant, warmup).number
        assert drawn["warmup"][variant.label] == pytest.approx(known or 0.0)


def test_the_sweep(board, table):
    figure = ablation.sweep(board)
    both = next(axes for axes in figure.axes if axes.get_xlabel().endswith("retention"))
    line = next(line for line in both.lines if len(line.get_xdata()) == 2)
    rows = [table[label] for label in ("Swept (steps=12)", "Swept (steps=99)")]
    assert line.get_xdata() == pytest.approx([row["fake_fid"] for row in rows])
    assert line.get_ydata() == pytest.approx([row["fake_ua"] for row in rows])
    level = next(axes for axes in figure.axes if axes.get_label() == "forgetting")
    assert any(text.get_text().startswith(f"Noise {table['Noise']['fake_ua']:.1f}") for text in level.texts)


def test_attacks(board):
    part = board.attacked
    measure = board.robustness[0]
    means = {v.label: part.mean(v, measure).number for v in part.rows}
    axes = robustness(board).axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    after = [line for line in axes.lines if line.get_marker() != "None" and line.get_markerfacecolor() != "white"]
    assert [float(line.get_xdata()[0]) for line in after] == pytest.approx([means[label] for label in labels])
    ends = {line.get_label(): line.get_ydata()[-1] for line in relearning(board).axes[0].lines}
    assert {label: ends[label] for label in means} == pytest.approx(means)


def test_charts_terminal_and_frame(board, records, table):
    x, y = (next(m for m in board.metrics if m.key == key) for key in ("fake_fid", "fake_ua"))
    words = [dot.words for dot in scatter(board, x, y, "").dots]
    text = to_terminal(board, 200)
    frame = board.every.frame()
    for label, row in table.items():
        fid, ua = f"{row['fake_fid']:.2f}", f"{row['fake_ua']:.1f}"
        assert next(found for found in words if found.startswith(f"{label}: ")).startswith(f"{label}: FID {fid}")
        line = next(line for line in text.splitlines() if line.startswith(label))
        assert re.search(rf"\s{re.escape(fid)}\W", line) and re.search(rf"\s{re.escape(ua)}\W", line)
        own = frame[(frame["title"] == label) & frame["metric"].isin(row)]
        by_class = own.groupby(["metric", "forget_class"])["value"].mean()
        assert by_class.groupby("metric").mean().to_dict() == pytest.approx(row)


def test_controls(board, table):
    controls = check_tables(board)[0]
    row = controls.values[controls.rows.index("Noise")]
    assert row[controls.headers.index("UA (%) ↑")].number == pytest.approx(table["Noise"]["fake_ua"])
