import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test, t
from sklearn.metrics import roc_auc_score

from tests.benchmarks.coverage import (
    coverage,
    our_mean,
    share_candidates,
    simulate_shares,
    simulate_values,
    true_share,
    wilson,
)
from tests.benchmarks.marks import measure, ours
from unlearnbench.report.data.statistics import auc, best_rows, mean_interval, proportion_interval

numbers = st.floats(-1e3, 1e3)
grids = st.dictionaries(st.tuples(st.integers(0, 9), st.integers(0, 2)), numbers, min_size=1, max_size=30)
share_grids = st.dictionaries(
    st.tuples(st.integers(0, 9), st.integers(0, 2)), st.tuples(st.floats(0, 1), st.integers(1, 500)), min_size=1
)


def grid(values):
    return {cell: float(value) for cell, value in np.ndenumerate(np.asarray(values))}


def row(*values):
    return dict(enumerate(values))


def noisy(mean, seed, sd=0.3, classes=10):
    """Return a method's values: class effects that all methods share, and noise of its own."""
    shared, own = np.random.default_rng(7), np.random.default_rng(seed)
    return row(*(mean + 5 * shared.normal(size=classes) + sd * own.normal(size=classes)))


def mean_of(cells):
    classes = {c for c, _ in cells}
    return np.mean([np.mean([value for (k, _), value in cells.items() if k == c]) for c in classes])


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (50, 100), (997, 1000), (20, 20)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_is_scipys(k, n, level):
    theirs = binomtest(k, n).proportion_ci(level, method="wilson")
    assert wilson(k, n, level) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_takes_counts_that_are_no_integers_and_none_at_all():
    low, high = wilson(2.5, 10.5)
    assert wilson(2, 10)[0] < low < 2.5 / 10.5 < high < wilson(3, 10)[1]
    assert wilson(0, 0) == (0.0, 1.0)


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0.5, 1e4))
def test_wilson_holds_the_share_and_narrows(share, n):
    low, high = wilson(share * n, n)
    assert 0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1
    more = wilson(share * n * 4, n * 4)
    assert more[1] - more[0] < high - low


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_single_cell_is_plain_wilson(share):
    assert proportion_interval({(3, "seed"): (share, 100)}) == pytest.approx(wilson(100 * share, 100))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_equal_shares_are_wilson_over_all_samples(share):
    cells = {(c, s): (share, 50) for c in range(10) for s in range(3)}
    low, high = proportion_interval(cells)
    assert (low, high) == pytest.approx(wilson(share * 1500, 1500))
    assert high - low > 0.002


def test_no_samples_no_interval():
    assert proportion_interval({}) is None
    assert proportion_interval({(0, 0): (0.5, 0)}) is None
    assert proportion_interval({(0, 0): (0.5, 10), (1, 0): (0.9, 0)}) == pytest.approx(wilson(5, 10))


def test_classes_that_differ_widen_a_proportions_interval():
    shares = [0.5, 0.9, 0.95, 0.7, 1.0, 0.85, 0.99, 0.6, 0.9, 0.8]
    low, high = proportion_interval({(c, 0): (share, 1000) for c, share in enumerate(shares)})
    pooled = wilson(sum(shares) * 1000, 10_000)
    assert high - low > 5 * (pooled[1] - pooled[0])
    assert high - low == pytest.approx(2 * t.ppf(0.975, 9) * np.std(shares, ddof=1) / math.sqrt(10), rel=0.1)
    assert high < 1


def test_one_class_is_clustered_by_its_replicates():
    alike = proportion_interval({(0, s): (0.5, 100) for s in range(3)})
    apart = proportion_interval({(0, s): (share, 100) for s, share in enumerate((0.2, 0.5, 0.8))})
    assert alike == pytest.approx(wilson(150, 300))
    assert apart[1] - apart[0] > 3 * (alike[1] - alike[0])


@settings(deadline=None)
@given(share_grids)
def test_a_proportions_interval_holds_its_mean_and_stays_within_bounds(cells):
    found = proportion_interval(cells)
    assert (found is None) == (len({c for c, _ in cells}) == 2)  # two classes say too little
    if found is None:
        return
    low, high = found
    mean = mean_of({cell: share for cell, (share, _) in cells.items()})
    assert 0 <= low <= mean + 1e-9 and mean - 1e-9 <= high <= 1
    assert proportion_interval(dict(reversed(cells.items()))) == (low, high)


def test_the_mean_of_many_classes_has_about_students_interval():
    values = np.random.default_rng(0).normal(size=30)
    theirs = t.interval(0.95, 29, values.mean(), values.std(ddof=1) / math.sqrt(30))
    assert mean_interval(grid(values[:, None])) == pytest.approx(theirs, abs=0.02)


def test_replicates_that_differ_widen_the_means_interval():
    classes = np.random.default_rng(0).normal(size=(10, 1))
    still, moved = (mean_interval(grid(classes + b * np.array([-1, 0, 1]))) for b in (0, 1))
    assert moved[1] - moved[0] > 1.5 * (still[1] - still[0])
    assert mean_interval({(4, s): float(s - 1) for s in range(3)}) == pytest.approx(
        t.interval(0.95, 2, 0, 1 / math.sqrt(3)), abs=0.05
    )


def test_skewed_values_have_a_skewed_interval():
    values = [0.0, 0.0, 0.1, 0.0, 9.0, 0.2]
    low, high = mean_interval(grid([[value] for value in values]))
    assert high - np.mean(values) > 1.2 * (np.mean(values) - low)


def test_what_is_never_below_zero_has_no_interval_there():
    values = [[0.0], [0.0], [0.0], [0.01], [0.3]]
    assert mean_interval(grid(values))[0] == 0
    assert mean_interval(grid([*values, [-0.01]]))[0] < 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1), (2, 5)])
def test_few_units_say_nothing(shape):
    assert mean_interval(grid(np.arange(math.prod(shape)).reshape(shape))) is None
    assert mean_interval({}) is None


@settings(deadline=None)
@given(grids)
def test_the_means_interval_holds_the_mean_in_any_order(cells):
    found = mean_interval(cells)
    assert found == mean_interval(dict(reversed(cells.items())))
    if found is not None:
        assert found[0] - 1e-9 <= mean_of(cells) <= found[1] + 1e-9


def test_equal_values_have_no_width_and_more_classes_narrow():
    assert mean_interval(grid(np.full((4, 2), 3.0))) == (3.0, 3.0)
    widths = []
    for classes in (4, 16, 64):
        low, high = mean_interval(grid(np.arange(classes * 3).reshape(classes, 3) % 5))
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)


@pytest.mark.parametrize(
    ("size", "missing", "least", "most"),
    [((10, 1, 1, 0), 0, 0.92, 0.98), ((10, 3, 1, 0.2), 0, 0.92, 0.985), ((10, 3, 1, 0.2), 0.2, 0.92, 0.985)],
)
def test_coverage_of_means(size, missing, least, most):
    simulate = partial(simulate_values, classes=size[0], replicates=size[1], a=size[2], b=size[3], missing=missing)
    found = coverage(simulate, our_mean, 0.0, 300)
    assert least <= found["mean_interval"][0] <= most


@pytest.mark.parametrize(("size", "least"), [((10, 1, 2, 1, 0), 0.89), ((10, 3, 2, 0.5, 0.2), 0.92)])
def test_coverage_of_shares(size, least):
    simulate = partial(simulate_shares, **dict(zip(("classes", "replicates", "mu", "a", "b"), size, strict=True)))
    found = coverage(simulate, share_candidates, true_share(*size[2:]), 300)
    assert least <= found["proportion_interval"][0] <= 0.985
    assert found["Wilson, pooled"][0] < 0.7


def p_of(a, b):
    """Return the least level at which a table of two rows has a marked one."""
    levels = (k / 2 ** (len(a) - 1) for k in range(1, 2 ** (len(a) - 1)))
    return next((level for level in levels if best_rows({"a": a, "b": b}, "lower", level)), 1)


def test_p_of_a_tiny_case_by_hand():
    # differences 1, 2, 3: of the 8 sums of +-1 +-2 +-3, two are as far from 0 as 6
    assert p_of(row(2, 4, 6), row(1, 2, 3)) == 2 / 8
    # differences 1, 2, -3: all 8 are at least 0
    assert p_of(row(2, 4, 0), row(1, 2, 3)) == 1
    # differences 1, 1, -1, 3: |sum| >= 4 for 6, 4, 4, 4 and their negatives, of 16
    assert p_of(row(1, 1, 0, 3), row(0, 0, 1, 0)) == 8 / 16


@pytest.mark.parametrize("classes", [3, 6, 10])
def test_p_of_two_rows_is_scipys(classes):
    rng = np.random.default_rng(classes)
    a, b = rng.normal(size=(2, classes))
    theirs = permutation_test((a, b), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples")
    assert p_of(row(*a), row(*b)) == pytest.approx(theirs.pvalue)


def test_float_noise_breaks_no_tie():
    a, b = row(90.3, 90.2, 90.1, 50.2, 0.2, 7.0), row(90.2, 90.1, 90.2, 50.1, 0.1, 7.1)
    assert len({abs(a[c] - b[c]) for c in a}) > 1
    assert p_of(a, b) == p_of(row(3, 2, 1, 2, 2, 0), row(2, 1, 2, 1, 1, 1)) == 44 / 64
    assert p_of(row(0.1 + 0.2, 1.0, 2.0), row(0.3, 1.0, 2.0)) == 1


def test_flips_of_many_classes_are_drawn_and_are_the_same_again():
    values = {"a": noisy(0, 1, classes=100), "b": noisy(0.2, 2, classes=100), "c": noisy(0.2, 3, classes=100)}
    assert best_rows(values, "lower") == best_rows(dict(reversed(values.items())), "lower") == {"a"}


def test_a_clearly_better_row_is_marked_alone():
    values = {"good": noisy(0, 1), "bad": noisy(5, 2), "worse": noisy(9, 3)}
    assert best_rows(values, "lower") == {"good"}
    assert best_rows(values, "higher") == {"worse"}
    assert best_rows(dict(reversed(values.items())), "lower") == {"good"}


def test_methods_that_differ_by_noise_alone_are_tied_and_nobody_is_marked():
    assert best_rows({"a": noisy(0, 1), "b": noisy(0, 2)}, "lower") == set()
    same = noisy(0, 1)
    assert best_rows({"a": same, "b": dict(same)}, "lower") == set()


def test_ties_share_the_mark():
    values = {"a": noisy(0, 1), "b": noisy(0, 2), "c": noisy(0, 3), "worse": noisy(5, 4)}
    assert best_rows(values, "lower") == {"a", "b", "c"}
    values["b"] = dict(values["a"])  # an exact tie for the lead
    assert best_rows(values, "lower") == best_rows(dict(reversed(values.items())), "lower") == {"a", "b", "c"}


def test_fewer_than_two_rows_or_six_classes_mark_nobody():
    assert best_rows({}, "lower") == best_rows({"a": noisy(0, 1)}, "lower") == set()
    assert best_rows({"a": noisy(0, 1), "empty": {}}, "lower") == set()
    for classes, marked in ((5, set()), (6, {"a"})):
        values = {"a": noisy(0, 1, classes=classes), "b": noisy(50, 2, classes=classes)}
        assert best_rows(values, "lower") == marked


def test_many_rows_do_not_hide_one_that_is_far_better():
    rows = {k: noisy(10 * bool(k), k) for k in range(100)}
    assert best_rows(rows, "lower") == {0}


def test_a_noisy_best_row_makes_no_worse_one_bold():
    noisy_best = row(*(9 + np.array([60, -60] * 5)))  # nothing can be told from it
    good, bad = noisy(8, 1), noisy(5, 2)
    assert best_rows({"best": noisy_best, "good": good}, "higher") == set()
    assert best_rows({"best": noisy_best, "good": good, "bad": bad}, "higher") == {"best", "good"}


def test_nothing_below_a_row_that_is_not_bold_is_bold():
    good, worse = row(*[100.0] * 10), row(*[96.0, 95, 97, 96, 94, 96, 97, 95, 96, 95])
    noisy_row = row(*[100.0] * 8, 33.0, 12.0)  # which no test separates from the best one
    assert best_rows({"good": good, "noisy": noisy_row}, "higher") == set()
    assert best_rows({"good": good, "noisy": noisy_row, "worse": worse}, "higher") == {"good"}


def test_equal_rows_share_their_fate():
    bad = noisy(5, 2)
    values = {"good": noisy(0, 1), "bad": bad, "again": dict(bad)}
    assert best_rows(values, "lower") == best_rows(dict(reversed(values.items())), "lower") == {"good"}


@pytest.mark.parametrize(
    ("scenario", "false", "missed", "torn"),  # in percent, the most; as measured, with room for 150 tables
    [
        ("all equal", 12, 0, 20),
        ("all equal, errors of 0.2 to 5", 15, 0, 13),
        ("1 best, others worse by 2", 0, 10, 8),
        ("4 best, others worse by skewed amounts", 12, 6, 3),
        ("6 best, one of them of error 15, others worse by 3", 13, 1, 2),
    ],
)
def test_marks_on_simulated_tables(scenario, false, missed, torn):
    found = measure(scenario, 150, {"best_rows": ours})["best_rows"]
    assert (100 * found[:3] <= [false, missed, torn]).all() and found[3] == 0


def test_rows_that_lack_a_class_take_no_part():
    full = {"a": noisy(0, 1), "b": noisy(5, 2)}
    better = {c: value - 5 for c, value in noisy(0, 3).items() if c > 1}
    assert best_rows(full | {"part": better}, "lower") == {"a"}
    apart = {"a": row(*range(6)), "b": {c + 6: 50.0 for c in range(6)}}
    assert best_rows(apart, "lower") == set()


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abcd"), st.dictionaries(st.integers(0, 7), st.integers(0, 3)), max_size=4))
def test_marks_do_not_depend_on_order_and_never_go_to_all(values):
    found = best_rows(values, "lower")
    assert found == best_rows(dict(reversed(values.items())), "lower")
    assert found == best_rows({k: {c: -v for c, v in row.items()} for k, row in values.items()}, "higher")
    assert found < set(values) or not found


def test_auc_is_sklearns():
    rng = np.random.default_rng(0)
    positives, negatives = rng.integers(0, 9, 50) / 4, rng.integers(0, 7, 70) / 4
    labels = [1] * 50 + [0] * 70
    assert auc(positives, negatives) == pytest.approx(roc_auc_score(labels, [*positives, *negatives]))
    assert auc([1, 2], [0, 0.5]) == 1 and auc([0], [1]) == 0 and auc([1, 1], [1]) == 0.5
