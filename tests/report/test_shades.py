"""The colour scale that heat maps of figures and of the page share."""

import math

import matplotlib.pyplot as plt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.collections import QuadMesh

from tests.conftest import fake_record
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.shades import LEAST_FACTOR, span_of
from unlearnbench.report.data.values import Measure
from unlearnbench.report.figures.heatmaps import heatmaps
from unlearnbench.report.html.heatmaps import shares

FID = Measure("fid", "FID", "", "lower", ".2f", "retention")
UA = Measure("ua", "UA", "%", "higher", ".1f", "forgetting")


def test_percentages_span_all_of_them():
    assert shares([0.0, 99.0, None], UA) == [0.0, 0.99, None]
    assert span_of([-5.0, 50.0], UA).low == -5.0  # not a share


def test_a_small_difference_is_a_small_step_and_a_large_one_is_all():
    close = shares([2.0, 2.3], FID)
    assert 0.4 < close[1] < close[0] < 0.6
    assert shares([1.0, 10.0, 100.0], FID) == [1.0, 0.5, 0.0]


@given(st.lists(st.floats(1e-300, 1e300), min_size=1))
def test_positive_numbers_span_a_factor_and_stand_within(numbers):
    span = span_of(numbers, FID)
    assert span.is_log
    assert math.log(span.high) - math.log(span.low) > 0.999 * math.log(LEAST_FACTOR)
    assert all(-1e-9 <= span.share(number) <= 1 + 1e-9 for number in numbers)


@pytest.mark.parametrize("number", [5e-324, 1e308])
def test_the_ends_of_what_a_number_can_be_have_a_scale(number):
    span = span_of([number], FID)
    assert 0 < span.low < span.high < math.inf
    assert 0 <= span.share(number) <= 1


@pytest.mark.parametrize(
    ("numbers", "ends"), [([0.0], (-0.5, 0.5)), ([-1.0, 3.0], (-1.0, 3.0)), ([-4.0, -3.0], (-5.0, -2.0))]
)
def test_others_span_a_part_of_the_largest(numbers, ends):
    span = span_of(numbers, FID)
    assert (span.low, span.high, span.is_log) == (*ends, False)


def test_without_a_number_there_is_no_scale():
    assert span_of([None, math.nan, math.inf], FID) is None
    assert shares([None], FID) == [None]


def test_figure_and_page_shade_alike():
    board = boards([fake_record(m, c, fid=f + c) for m, f in (("a", 2.0), ("b", 9.0)) for c in range(3)])["digits"]
    measure = next(m for m in board.headlines if m.key == "fake_fid")
    axes = next(a for a in heatmaps(board).axes if a.get_title() == measure.header)
    mesh = next(c for c in axes.collections if isinstance(c, QuadMesh))
    numbers = mesh.get_array().ravel().tolist()
    drawn = [round(1 - float(mesh.norm(number)), 2) for number in numbers]
    plt.close("all")
    assert drawn == shares(numbers, measure)
