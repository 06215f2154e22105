"""Fronts without a composite score, best values that are separated, and intervals in tables."""

import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.coverage import wilson
from tests.conftest import fake_record, stated
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.confusion import confusion_frame
from unlearnbench.report.data.front import front
from unlearnbench.report.data.statistics import mean_interval
from unlearnbench.report.figures.heatmaps import confusion
from unlearnbench.report.figures.tradeoff import GREY, pareto
from unlearnbench.report.tables.classes import class_tables
from unlearnbench.report.tables.pareto import pareto_tables
from unlearnbench.report.tables.summary import side_tables, summary_table
from unlearnbench.report.write.csv import to_csv
from unlearnbench.report.write.latex import to_latex
from unlearnbench.report.write.markdown import to_markdown
from unlearnbench.store.records import ResultStore

points = st.dictionaries(st.integers(0, 20), st.tuples(*[st.integers(0, 4)] * 3), max_size=8)


def board(records):
    return boards(records)["digits"]


def method(name, ua=90.0, fid=5.0, rte=2.0, classes=range(10), noise=0.5, seeds=(0,), seed=1):
    """Return the records of a method, whose values differ from class to class as they do for every other one."""
    own = np.random.default_rng(seed)
    return [
        fake_record(name, c, ua=min(ua + (c % 3) - 1, 100.0), fid=fid + 0.3 * c + noise * own.normal(), rte=rte, seed=s)
        for c in classes for s in seeds
    ]  # fmt: skip


class TestFront:
    def test_who_is_beaten_everywhere_is_not_on_it(self):
        assert front({"a": (1, 2, 3), "b": (1, 2, 2), "c": (0, 9, 0), "d": (1, 2, 3)}) == {"a", "c", "d"}
        assert front({}) == set()

    @given(points, st.tuples(*[st.integers(0, 4)] * 3))
    def test_a_dominated_row_changes_no_other_one(self, found, point):
        with_it = {**found, "new": point}
        if "new" not in front(with_it):
            assert front(with_it) == front(found)

    @given(points)
    def test_somebody_is_always_on_it(self, found):
        assert bool(front(found)) == bool(found)


class TestTable:
    records = (*method("good", 95, 3, 1), *method("bad", 90, 8, 3), *method("quick", 80, 9, 0.5))

    def rows(self, records):
        (table,) = pareto_tables(board(records))
        return dict(zip(table.rows, table.texts(), strict=True))

    def test_methods_on_the_front_and_dominated_ones(self):
        assert {row: texts[-1] for row, texts in self.rows(self.records).items()} == {
            "Good": "front", "Bad": "dominated", "Quick": "front",
        }  # fmt: skip

    def test_adding_a_dominated_method_changes_no_other_row(self):
        before, after = self.rows(self.records), self.rows([*self.records, *method("worse", 70, 12, 9)])
        assert after.pop("Worse")[-1] == "dominated"
        assert after == before

    def test_references_controls_and_incomplete_rows_take_no_part(self):
        odd = [fake_record("original", c, role="reference", ua=100.0, fid=0.1, rte=0.0) for c in range(10)]
        part = method("part", 100, 0.1, 0.1, classes=range(9))
        assert set(self.rows([*self.records, *odd, *part])) == {"Good", "Bad", "Quick"}
        assert pareto_tables(board(method("good"))) == []

    def test_the_figure_greys_who_is_dominated(self):
        figure = pareto(board(list(self.records)))
        assert len(figure.axes) == 3
        colours = {bars.get_label(): bars.lines[0].get_color() for bars in figure.axes[0].containers}
        assert {name for name, colour in colours.items() if colour == GREY} == {"Bad"}
        assert figure.axes[0].xaxis.get_inverted()  # better is always up and to the right


class TestMarks:
    def test_the_best_is_bold_where_it_is_separated(self):
        table = summary_table(board([*method("good", fid=3), *method("bad", fid=8)]))
        column = table.headers.index("FID ↓")
        assert [row[column].best for row in table.values] == [False, True]  # rows by name
        assert "**" in to_markdown(table)
        assert r"\bfseries " in to_latex(table)
        assert "Bold: the best mean and those that follow it" in table.full_caption()
        frame = pd.read_csv(io.StringIO(to_csv(table)))
        assert frame["FID ↓ best"].tolist() == [False, True]

    def test_one_method_under_two_names_is_a_tie(self):
        table = summary_table(board([*method("one", seed=1), *method("two", seed=2)]))
        assert not any(value.best for row in table.values for value in row)
        assert "**" not in to_markdown(table)
        assert "Bold" not in table.full_caption()

    def test_methods_that_cannot_be_told_apart_share_the_mark(self):
        records = [*method("one", fid=3, seed=1), *method("two", fid=3, seed=2), *method("worse", fid=9, seed=3)]
        table = summary_table(board(records))
        column = table.headers.index("FID ↓")
        assert {row: v[column].best for row, v in zip(table.rows, table.values, strict=True)} == {
            "One": True, "Two": True, "Worse": False,
        }  # fmt: skip

    def test_the_untouched_model_wins_nothing(self):
        original = [fake_record("original", c, role="reference", fid=0.1) for c in range(10)]
        table = summary_table(board([*original, *method("good", fid=3), *method("bad", fid=8)]))
        assert not any(value.best for value in table.values[0])

    def test_a_description_has_neither_arrow_nor_mark(self):
        records = [*method("one"), *method("two", fid=9)]
        for k, record in enumerate(records):
            record.metrics["split"] = {
                **record.metrics["fake_ua"], "title": "Split", "better": "neither", "value": 10.0 * (k < 10),
            }  # fmt: skip
        found = board(records)
        (measure,) = [m for m in found.metrics if m.key == "split"]
        assert measure.header == "Split (%)"
        assert found.numbers.best(measure) == set()


class TestIntervals:
    def test_a_single_share_has_wilsons_interval(self):
        found = board([fake_record("alpha", 0, ua=90.0)])
        (ua,) = [m for m in found.metrics if m.key == "fake_ua"]
        low, high = wilson(90, 100)
        assert found.numbers.cell(found.variants[0], found.targets[0], ua).interval == pytest.approx(
            (100 * low, 100 * high)
        )

    def test_means_over_classes_and_seeds_have_the_bootstraps(self):
        records = method("alpha", seeds=(0, 1, 2))
        found = board(records)
        (fid,) = [m for m in found.metrics if m.key == "fake_fid"]
        cells = {(r.cell.forget_class, r.cell.seeds): r.metrics["fake_fid"]["value"] for r in records}
        value = found.numbers.mean(found.variants[0], fid)
        assert value.interval == pytest.approx(mean_interval(cells))
        assert value.interval[0] < value.number < value.interval[1]
        text = summary_table(found).texts()[0][summary_table(found).headers.index("FID ↓")]
        assert text == f"{value.number:.2f} [{value.interval[0]:.2f}, {value.interval[1]:.2f}]"

    def test_two_classes_say_too_little(self):
        table = summary_table(board(method("alpha", classes=range(2))))
        assert not any(value.interval for row in table.values for value in row)

    def test_the_tables_per_class_have_a_column_of_intervals(self):
        ua = next(table for table in class_tables(board(method("alpha"))) if table.name == "classes-fake-ua")
        assert ua.headers[-3:] == ["mean", "95 %", "std"]
        assert ua.values[0][-2].word.startswith("[")
        assert "[" not in ua.texts()[0][0]
        assert {"0 low", "0 high"} <= set(pd.read_csv(io.StringIO(to_csv(ua))))  # of every class

    def test_captions_name_the_seeds(self):
        assert "seeds 0-2" in stated(board(method("alpha", seeds=(0, 1, 2))))


def matrix(asked=0, verdict=10, classes=10):
    """Return a confusion in which one class's samples all get another verdict; the others are what they should be."""
    counts = np.zeros((classes, classes + 1), dtype=int)
    np.fill_diagonal(counts, 50)
    counts[asked] = 0
    counts[asked, verdict] = 100
    return counts.tolist()


class TestConfusion:
    def records(self):
        return [
            fake_record("alpha", c, more={"kept": {"shows": "retention", "detail": {"confusion": matrix(c, v)}}})
            for c, v in ((0, 10), (1, 7))
        ]  # fmt: skip

    def test_every_count_is_in_the_frame(self):
        frame = confusion_frame(self.records())
        assert frame["images"].sum() == 2 * (9 * 50 + 100)
        forgotten = frame[frame["asked"] == frame["forget_class"]]
        assert forgotten["verdict"].tolist() == ["no object", 7]

    def test_the_figure_shows_forgotten_rows_above_and_retained_ones_below(self):
        figure = confusion(board(self.records()))
        above, below = (axes.collections[0].get_array().reshape(10, 11) for axes in figure.axes)
        assert (above[0, 10], above[1, 7]) == (100, 100)
        assert np.ma.getmaskarray(above)[2:].all()  # no cell has forgotten them
        assert (below[0, 0], below[1, 1], below[5, 5]) == (100, 100, 100)

    @pytest.mark.parametrize("odd", [[[1], [2, 3]], "text", 7, [[1, "x"]]])
    def test_an_odd_one_is_no_record(self, tmp_path, odd):
        bad = fake_record("beta", more={"kept": {"detail": {"confusion": odd}}})
        with pytest.raises(ValueError, match=r"metrics.kept.detail.confusion is no confusion matrix"):
            ResultStore(tmp_path).append(bad)

    def test_records_without_one_have_no_figure(self):
        assert confusion(board([fake_record()])) is None
        assert confusion_frame([fake_record()]).empty


def test_every_side_has_its_table_where_the_main_one_lacks_something():
    records = [fake_record("alpha", more={"more": {"shows": "forgetting"}, "trust": {"shows": "judging"}})]
    assert [table.name for table in side_tables(board(records))] == ["forgetting", "judging"]
    assert side_tables(board([fake_record()])) == []
