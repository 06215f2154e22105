"""Labels at the points of a chart, the enlarged part, and axes of percentages."""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import fake_record
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.values import Measure
from unlearnbench.report.figures.labels import Label, crowded, place_labels
from unlearnbench.report.figures.style import end_percentages
from unlearnbench.report.figures.tradeoff import pareto, tradeoff

SHARE = Measure("ua", "UA", "%", "higher", ".1f", "forgetting")
places = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=12)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@settings(max_examples=25, deadline=None)
@given(places)
def test_labels_overlap_no_other_label_no_point_and_no_edge(points):
    figure, axes = plt.subplots(layout="constrained")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    labels = [Label(f"row {k}", x, y, "black", 3.0) for k, (x, y) in enumerate(points)]
    missing = place_labels(axes, labels)
    texts = [text for text in axes.texts if text.get_text()]
    boxes = [text.get_window_extent() for text in texts]
    assert len(boxes) + missing == len(points)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    for point in axes.transData.transform(points):
        assert not any(box.contains(*point) for box in boxes)
    assert all(axes.bbox.padded(0.5).contains(*corner) for box in boxes for corner in box.corners())
    plt.close(figure)


def test_a_lonely_point_has_its_label_on_the_right():
    _, axes = plt.subplots()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    assert place_labels(axes, [Label("here", 0.5, 0.5, "black")]) == 0
    (text,) = axes.texts
    assert text.get_window_extent().x0 > axes.transData.transform((0.5, 0.5))[0]


def test_the_fullest_tenth_is_enlarged_and_nothing_where_points_are_apart():
    _, axes = plt.subplots()
    axes.set(xlim=(0, 10), ylim=(0, 100))
    apart = [(float(k), 10.0 * k) for k in range(10)]
    assert crowded(axes, apart) is None
    crowd = [(9.0 + k / 10, 95.0 + k) for k in range(5)]
    (x0, x1), (y0, y1) = crowded(axes, [*apart, *crowd])
    assert 8.5 < x0 < 9.0 < 9.4 < x1 <= 10
    assert 85 < y0 < 95 < 99 < y1 < 100.001


def board(numbers):
    return boards([
        fake_record(f"m{k:02}", c, fid=fid + c / 10, ua=ua) for k, (fid, ua) in enumerate(numbers) for c in range(2)
    ])["digits"]  # fmt: skip


def test_crowded_marks_are_labelled_in_the_enlargement_alone():
    shown = board([(50.0, 20.0), (40.0, 50.0), *[(2.0 + k / 5, 99.0) for k in range(5)]])
    main, inset = tradeoff(shown).axes
    names = [{text.get_text() for text in axes.texts if text.get_text()} for axes in (main, inset)]
    assert names == [{"M00", "M01"}, {"M02", "M03", "M04", "M05", "M06"}]
    marks = {c.get_label(): c.get_offsets()[0] for c in inset.collections if not c.get_label().startswith("_")}
    np.testing.assert_allclose(
        [marks[f"m{k + 2:02}".title()] for k in range(5)], [(2.05 + k / 5, 99) for k in range(5)]
    )
    assert len(tradeoff(board([(50.0, 20.0), (2.0, 90.0)])).axes) == 1


@pytest.mark.parametrize("figure", [tradeoff, pareto])
def test_axes_of_percentages_end_at_100_and_clip_no_mark(figure):
    (axes, *_) = figure(board([(5.0, 100.0), (9.0, 95.0), (9.0, 100.0)])).axes
    low, high = axes.get_ylim()
    assert high == 100.0
    assert high - low >= 10
    assert max(axes.get_yticks()[axes.get_yticks() <= high]) <= 100
    drawn = (
        [c for c in axes.collections if c.get_offsets().size]
        if figure is tradeoff
        else [bars.lines[0] for bars in axes.containers]
    )
    assert drawn
    assert not any(mark.get_clip_on() for mark in drawn)


@pytest.mark.parametrize(
    ("numbers", "limits"),
    [((99.5, 100.0), (90, 100)), ((0.0, 0.4), (0, 10)), ((0.0, 100.0), (0, 100)), ((-3.0, 250.0), None)],
)
def test_percentages_span_ten_points_within_their_range(numbers, limits):
    _, axes = plt.subplots()
    axes.plot([0, 1], numbers)
    before = axes.get_ylim()
    end_percentages(axes.yaxis, SHARE)
    assert axes.get_ylim() == pytest.approx(limits or before)
