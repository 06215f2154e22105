"""What came instead of a class: shares that fill a row, goals side by side, and records that do not say."""

from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import fake_record, reading
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.instead import PARTS
from unlearnbench.report.data.statistics import proportion_interval
from unlearnbench.report.figures import drawing
from unlearnbench.report.figures.instead import instead
from unlearnbench.report.render import render
from unlearnbench.report.tables.every import all_tables
from unlearnbench.report.tables.instead import instead_tables
from unlearnbench.report.verify import verify
from unlearnbench.store.records import ResultStore

COUNTS = st.lists(st.integers(0, 50), min_size=5, max_size=5).filter(any)


def counts(noise=0, other=0, blank=0, unrecognised=0, same=0):
    return {"class": same, "other": other, "noise": noise, "blank": blank, "unrecognised": unrecognised}


def became(method="alpha", c=0, *, detail=None, n=None, **fields):
    """Return a record whose samples became these counts."""
    known = counts(noise=100) if detail is None else detail
    size = n or sum(known.values())
    entry = {"value": 1.0, "n": size, "better": "neither", "title": "Became", "detail": {"instead": known}}
    return fake_record(method, c, more={"became": entry}, **fields)


def board(*records, name="digits"):
    return boards(records)[name]


def shares(values):
    return [value.number for value in values[1:]]


def test_goals_stand_side_by_side_and_neither_is_better():
    noisy = counts(noise=90, unrecognised=8, same=2)
    (table,) = instead_tables(board(became("alpha", detail=noisy), became("beta", detail=counts(other=99, blank=1))))
    assert table.flat_headers() == [
        "Cells", "Goal: noise Noise (%)", "Goal: another image Another class (%)", "Neither goal Blank (%)",
        "Neither goal Unrecognised (%)", "Neither goal Still the class (%)",
    ]  # fmt: skip
    assert table.rows == ["Alpha", "Beta"]
    assert [shares(row) for row in table.values] == [[90, 0, 0, 8, 2], [0, 99, 1, 0, 0]]
    low, high = proportion_interval({(0, 0): (0.9, 100)})
    assert table.values[0][1].interval == pytest.approx((100 * low, 100 * high))
    assert not any(value.best for row in table.values for value in row)
    for words in ("Noise n=100", "two goals: the class becomes noise, or a recognisable image", "reader's choice"):
        assert words in table.caption
    assert not set("↑↓") & set("".join(table.headers))


@settings(max_examples=30, deadline=None)
@given(st.lists(COUNTS, min_size=1, max_size=4))
def test_the_shares_of_a_row_and_of_a_bar_are_all_samples(cells):
    details = [dict(zip(PARTS, found, strict=True)) for found in cells]
    shown = board(*(became("alpha", k // 2, detail=detail, seed=k % 2) for k, detail in enumerate(details)))
    (table,) = instead_tables(shown)
    assert sum(shares(table.values[0])) == pytest.approx(100)
    figure = instead(shown)
    widths = [bars[0].get_width() for bars in figure.axes[0].containers]
    plt.close(figure)
    assert widths == pytest.approx(shares(table.values[0]))


@pytest.mark.parametrize(
    ("name", "fields"), [("digits-at-once", {"further": (1,)}), ("digits-sequence", {"earlier": ((1,),)})]
)
def test_several_classes_have_their_rows(name, fields):
    record = became(detail=counts(noise=150, other=50))
    (table,) = instead_tables(board(replace(record, cell=replace(record.cell, **fields)), name=name))
    assert shares(table.values[0]) == [75, 25, 0, 0, 0] and "Noise n=200" in table.caption


def test_older_records_have_no_table_and_beside_newer_ones_a_word():
    older = board(fake_record("alpha"))
    assert older.instead is None and not instead_tables(older) and instead(older) is None
    assert "instead" not in [table.name for table in all_tables(older)]
    mixed = board(fake_record("alpha"), became("beta"), became("gamma", status="oom"))
    (table,) = instead_tables(mixed)
    assert [row[1].word for row in table.values[::2]] == ["n/a", "oom"] and shares(table.values[1])[0] == 100
    figure = instead(mixed)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["Beta"]
    plt.close(figure)
    assert instead(mixed, None, [mixed.variants[0]]) is None


@pytest.mark.parametrize(
    "detail",
    [{}, {**counts(), "noise": -1, "other": 2}, {**counts(), "noise": 0.5}, {**counts(), "noise": True},
     {**counts(noise=1), "more": 0}, {"noise": 1}, [1]],
)  # fmt: skip
def test_counts_that_are_none_are_not_shown(detail):
    assert board(became(detail=detail, n=1)).instead is None


def test_counts_of_other_samples_than_the_values_are_not_shown():
    assert board(became(detail=counts(noise=5), n=6)).instead is None
    assert board(became(detail=counts(noise=5), n=5)).instead is not None


def test_a_report_shows_it_among_the_verdicts_and_it_verifies(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "FIGURES", {"instead": instead})
    for c in range(2):
        ResultStore(tmp_path / "results").append(became(c=c, detail=counts(noise=70 + c, other=30 - c)))
    found = reading(tmp_path / "results")
    rendering = render(found, tmp_path / "out")
    folder = tmp_path / "out" / "digits"
    for ending in ("md", "tex"):
        verdict = verify(folder / "tables" / f"instead.{ending}", found)
        assert verdict.holds and "holds" in verdict.lines[0]
    assert (folder / "figures" / "instead.png").exists() and (folder / "tables" / "instead.csv").exists()
    document = (folder / "paper" / "main.tex").read_text()
    assert "Table~\\ref{tab:instead}" in document and "Figure~\\ref{fig:instead}" in document
    page = rendering.html.read_text()
    verdicts = page.partition('-verdicts"><h2>Verdicts')[2].partition("</section>")[0]
    assert "What came instead" in verdicts and "70.5" in verdicts and "part still" in page
