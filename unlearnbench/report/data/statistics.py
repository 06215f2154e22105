"""Statistics of arrays (forget class x replicate): intervals, permutation tests, and the best rows.

A replicate is a seed that all classes share. The estimand is always the mean over the population of classes and
replicates, with equal weights for classes, and within a class for its replicates, as tables average. All generators
have fixed seeds, and no result depends on the order of values.
"""

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

LEAST_CLUSTERS = 3  # classes, or replicates of a single class: fewer do not show their spread
DRAWS = 2000  # of a bootstrap
TOGETHER = 32  # arrays bootstrapped at once
MOST_EXACT = 12  # classes up to which all 2^C sign flips are counted
FLIPS = 2**11 - 1  # sign flips drawn where there are more classes
SAME = 1e-9  # relative to the greatest value: smaller differences count as ties

Group: TypeAlias = Any  # a class or another target: sortable and hashable
Replicate = TypeVar("Replicate", bound=Hashable)
Row = TypeVar("Row", bound=Hashable)
Interval: TypeAlias = tuple[float, float] | None
Numbers: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class _Means:
    """The means of arrays with the same cells, with their variances over classes and replicates."""

    numbers: Numbers
    variances: Numbers  # of the means
    freedoms: Numbers  # degrees of freedom of the variances; infinite where nothing scatters or there is one cell
    weights: Numbers  # of each class's cells, in all grids alike


def class_mean(cells: Mapping[tuple[Group, Replicate], float]) -> float:
    """Return the mean over classes of the mean over replicates from {(class, replicate): value}, at least one."""
    by_class: dict[Group, list[float]] = {}
    for (group, _), value in cells.items():
        by_class.setdefault(group, []).append(value)
    return fmean(fmean(values) for values in by_class.values())


def proportion_interval(cells: Mapping[tuple[Group, Replicate], tuple[float, int]], level: float = 0.95) -> Interval:
    """Return an interval for a mean share from {(class, replicate): (share 0..1, samples)}.

    None without samples, and for two classes, which are too few to estimate the variance between classes.
    Wilson's interval with the effective sample size of clustered data: samples / design effect, where the design effect
    is the mean's variance over crossed classes and replicates (its degrees of freedom by Satterthwaite) over the
    binomial one, 1 at the least.
    Above 1 the quantile is Student's with the clusters' degrees of freedom. A single cell, or shares that are all 0 or
    all 1, give Wilson's interval over all samples.

    Sources: Kish 1965; Korn & Graubard 1998 (Survey Methodology 24:193); Dean & Pagano 2015,
    https://doi.org/10.1093/jssam/smv024.

    Measured coverage of 95 % intervals by `tests/benchmarks/coverage.py` (100 samples per cell, logit-normal classes,
    10 classes): 93 to 96 % with three replicates, whether they scatter or not; 95 % with one that does not scatter and
    a mean of 50 %. Too narrow: 92 to 93 % where classes differ much and the mean is near 0 or 1; 84 % with a single
    replicate that scatters 0.4 times as much as classes, which is not observable. Too wide: 99 % for three replicates
    where neither classes nor replicates differ.
    """
    shares, samples = (_grid({cell: pair[k] for cell, pair in cells.items()}) for k in (0, 1))
    return proportion_intervals(shares[None], samples[None], level)[0]


def proportion_intervals(shares: Numbers, samples: Numbers, level: float = 0.95) -> list[Interval]:
    """Return the `proportion_interval` of each of many arrays, (grids, classes, replicates); a cell's share may be NaN.

    Args:
        shares: 0 to 1.
        samples: that each share rests on.
        level: of confidence.
    """
    found: list[Interval] = [None] * len(shares)
    known = np.where(samples > 0, shares, np.nan)
    for some, place, there in _alike(known):
        if len(there) == 2:
            continue
        means = _means(np.where(there, known[place], 0.0), there)
        counts = np.where(there, samples[place], np.inf)
        n = 1 / (means.weights[:, None] ** 2 / counts).sum(axis=(1, 2))
        binomial = means.numbers * (1 - means.numbers) / n
        effect = np.ones(len(some))
        np.divide(means.variances, binomial, out=effect, where=means.variances > binomial)
        effect = np.where(binomial > 0, effect, 1.0)
        quantiles = stdtrit(np.where(effect > 1, means.freedoms, np.inf), (1 + level) / 2)
        ends = _score_intervals(means.numbers, n / effect, quantiles)
        for index, low, high in zip(some, *(end.tolist() for end in ends), strict=True):
            found[index] = (low, high)
    return found


def mean_interval(cells: Mapping[tuple[Group, Replicate], float], level: float = 0.95) -> Interval:
    """Return an interval for the mean from {(class, replicate): value}; cells may be missing.

    A hierarchical bootstrap gives its shape: classes and replicates are resampled independently and crossed (Owen 2007,
    https://doi.org/10.1214/07-AOAS122). Few classes and fewer replicates make percentiles too narrow (Hesterberg 2015,
    arXiv:1411.5279), so their distances from the mean are scaled to the width of Student's interval
    with the variance between class means plus that between replicate means, degrees of freedom by Satterthwaite. It
    does not fall below zero where no value does. None with fewer than three classes, or one class with fewer than three
    replicates: they do not show how others differ.

    Measured coverage of 95 % intervals by `tests/benchmarks/coverage.py`: 94 to 96 % for 3 to 10 classes with three
    replicates, and with one that does not scatter. Too narrow: 92 % with a single replicate that scatters 0.2 times as
    much as classes, which is not observable; 92 % where three replicates scatter as much as classes or more; 91 to 93 %
    for skewed classes (skewness 2.9). Too wide: 99 % for three replicates where neither classes nor replicates differ.
    Percentiles alone cover 61 to 92 %, expanded for few classes 85 % where replicates scatter more than classes do.
    """
    return mean_intervals(_grid(cells)[None], level)[0]


def mean_intervals(values: Numbers, level: float = 0.95) -> list[Interval]:
    """Return the `mean_interval` of each of many arrays, (grids, classes, replicates); NaN where a cell is missing."""
    found: list[Interval] = [None] * len(values)
    for some, place, there in _alike(values):
        if (len(there) if len(there) > 1 else there.shape[1]) < LEAST_CLUSTERS:
            continue
        grids = np.where(there, values[place], 0.0)
        for start in range(0, len(some), TOGETHER):
            part = grids[start : start + TOGETHER]
            low, high = np.quantile(_bootstrap(part, there), [(1 - level) / 2, (1 + level) / 2], axis=1)
            ends = _scaled(part, there, low, high, level)
            for index, *interval in zip(some[start : start + TOGETHER], *(end.tolist() for end in ends), strict=True):
                found[index] = (interval[0], interval[1])
    return found


def _alike(values: Numbers) -> Iterator[tuple[list[int], tuple[NDArray[Any], ...], NDArray[np.bool_]]]:
    """Yield groups of arrays with the same cells: their indices, `np.ix_` of used rows and columns, the mask of cells.

    Classes and replicates without any cell are left out, and so are arrays without any.
    """
    groups: dict[bytes, list[int]] = {}
    known = ~np.isnan(values)
    for index, there in enumerate(known):
        groups.setdefault(there.tobytes(), []).append(index)
    for some in groups.values():
        there = known[some[0]]
        rows, columns = there.any(axis=1), there.any(axis=0)
        if there.any():
            yield some, np.ix_(some, rows, columns), there[rows][:, columns]


def _grid(cells: Mapping[tuple[Group, Replicate], float]) -> Numbers:
    """Return the values as (classes, replicates), NaN where a cell is missing."""
    rows = {c: k for k, c in enumerate(sorted({c for c, _ in cells}))}
    columns = {r: k for k, r in enumerate(sorted({r for _, r in cells}, key=repr))}
    values = np.full((len(rows), len(columns)), np.nan)
    for (c, r), value in cells.items():
        values[rows[c], columns[r]] = value
    return values


def _scaled(
    values: Numbers, there: NDArray[np.bool_], low: Numbers, high: Numbers, level: float
) -> tuple[Numbers, Numbers]:
    """Return the percentiles with their distances from the mean scaled to the width of Student's interval."""
    means = _means(values, there)
    below, above = np.maximum(means.numbers - low, 0.0), np.maximum(high - means.numbers, 0.0)
    width = 2 * stdtrit(means.freedoms, (1 + level) / 2) * np.sqrt(means.variances)
    scale = np.divide(width, below + above, out=np.zeros_like(width), where=below + above > 0)
    low, high = means.numbers - scale * below, means.numbers + scale * above
    return np.where(values.min(axis=(1, 2)) >= 0, np.maximum(low, 0.0), low), high


def _bootstrap(values: Numbers, there: NDArray[np.bool_]) -> Numbers:
    """Return (grids, draws) means over classes and replicates resampled with replacement.

    Args:
        values: (grids, classes, replicates), 0 where a cell is missing.
        there: mask of the cells of all arrays; draws without any cell are dropped.
    """
    of_class, of_replicate = _resamples(*there.shape)
    found = of_replicate @ there.T.astype(np.float64)  # (draws, classes): number of a class's cells in a draw
    means = np.matmul(of_replicate, values.transpose(0, 2, 1)) / np.maximum(found, 1)
    weights = of_class * (found > 0)
    total = weights.sum(axis=1)
    result: Numbers = (weights * means).sum(axis=2)[:, total > 0] / total[total > 0]
    return result


@lru_cache(maxsize=16)
def _resamples(classes: int, replicates: int) -> tuple[Numbers, Numbers]:
    """Return how often each draw has each class, and each replicate: (draws, classes) and (draws, replicates)."""
    rng = np.random.default_rng(0)
    both = [rng.multinomial(n, np.full(n, 1 / n), DRAWS).astype(np.float64) for n in (classes, replicates)]
    return both[0], both[1]


def best_rows(values: Mapping[Row, Mapping[Group, float]], better: str, level: float = 0.05) -> set[Row]:
    """Return the rows to mark as best, from {row: {class: value}}; better is "lower" or "higher".

    They are the row with the best mean and those that follow it, up to the first row that is separably worse than one
    of them. So no marked row is separably worse than another marked row, however noisy the best one is, and no unmarked
    row has a better mean than a marked one.

    Separably: by a paired permutation test of all pairs of rows so far. Each pair has the p of its mean difference over
    sign flips of classes; where two are equal, the difference that varies less over classes counts as the rarer one.
    The rarity of the rarest of them, over joint flips of all pairs, controls the family-wise error (min-p of
    Westfall & Young 1993). The least p is 2 / 2^C with C classes, above 0.05 with fewer than six.

    Rows that lack a class of another row are left out. Empty where no row is separably worse, so that a mark always
    separates. `tests/benchmarks/marks.py` measures its error rate and power.
    """
    classes = sorted(set().union(*values.values()))
    rows = {row: [found[c] for c in classes] for row, found in values.items() if len(found) == len(classes)}
    kept: list[Row] = []
    flips = _sign_flips(len(classes))
    rarest = np.zeros(len(flips))  # of all pairs of kept rows, by flip; the first one flips nothing
    for tied in _by_mean(rows, better):
        for row in tied:
            others = np.array([rows[other] for other in kept]).reshape(-1, len(classes))
            rarest = np.maximum(rarest, _rarity(others, np.array(rows[row]), flips).max(axis=0, initial=0.0))
            kept.append(row)
        if (rarest >= rarest[0] - SAME).mean() <= level:
            return set(kept) - set(tied)
    return set()


def _by_mean(rows: Mapping[Row, Sequence[float]], better: str) -> list[list[Row]]:
    """Return the rows from the best mean to the worst, ties together."""
    sign = -1 if better == "higher" else 1
    means = {row: sign * fmean(found) for row, found in rows.items() if found}
    tied: list[list[Row]] = []
    for row in sorted(means, key=lambda row: means[row]):
        if tied and math.isclose(means[tied[-1][0]], means[row], rel_tol=SAME):
            tied[-1].append(row)
        else:
            tied.append([row])
    return tied


def _rarity(others: Numbers, row: Numbers, flips: Numbers) -> Numbers:
    """Return the rarity of the mean differences between a row and each other row, (others, flips): larger is rarer.

    The whole part counts the flips with a smaller difference; the fraction, the sum of the differences over the root of
    the sum of their squares, breaks ties.

    Args:
        others: (rows, classes).
        row: (classes,).
        flips: (flips, classes), 1 or -1.
    """
    greatest = np.maximum(np.abs(others), np.abs(row)).max(axis=1, initial=0.0, keepdims=True)
    scale = np.where(greatest > 0, greatest, 1.0)
    differences = others / scale - row / scale
    differences = np.where(np.abs(differences) < SAME, 0.0, differences)
    lengths = np.sqrt((differences**2).sum(axis=1, keepdims=True))
    shares = np.divide(differences, lengths, out=np.zeros_like(differences), where=lengths > 0)
    sums = np.abs(shares @ flips.T).round(9)  # sqrt(C) at the most
    smaller = np.array([np.searchsorted(np.sort(found), found) for found in sums]).reshape(sums.shape)
    rarity: Numbers = smaller + sums / (1 + math.sqrt(len(row)))
    return rarity


@lru_cache(maxsize=16)
def _sign_flips(classes: int) -> Numbers:
    """Return (flips, classes) of 1 and -1, the first row all 1: all flips up to a common sign, or FLIPS random ones."""
    if classes > MOST_EXACT:
        drawn = 2.0 * np.random.default_rng(0).integers(0, 2, (FLIPS, classes)) - 1
        return np.concatenate([np.ones((1, classes)), drawn])
    flips = np.ones((1, min(classes, 1)))
    for _ in range(classes - 1):  # flipping all signs changes no |sum|, so the first class keeps its own
        flips = np.concatenate([np.c_[flips, np.full(len(flips), sign)] for sign in (1.0, -1.0)])
    return flips


def auc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Return the probability that a positive exceeds a negative, ties half: the area under the ROC curve."""
    ordered = np.sort(np.asarray(negatives, dtype=np.float64))
    below, up_to = (np.searchsorted(ordered, np.asarray(positives), side).sum() for side in ("left", "right"))
    return float(below + up_to) / (2 * len(positives) * len(negatives))


def score_interval(share: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a binomial share, 0 to 1, of n samples."""
    low, high = _score_intervals(np.array(share), np.array(float(n)), stdtrit(np.inf, (1 + level) / 2))
    return float(low), float(high)


def _score_intervals(shares: Numbers, n: Numbers, quantile: Numbers) -> tuple[Numbers, Numbers]:
    """Return Wilson's intervals with any quantile; each holds the share itself and stays within 0..1."""
    shrink = 1 + quantile**2 / n
    centre = (shares + quantile**2 / (2 * n)) / shrink
    half = quantile / shrink * np.sqrt(shares * (1 - shares) / n + quantile**2 / (4 * n**2))
    return np.maximum(0.0, np.minimum(shares, centre - half)), np.minimum(1.0, np.maximum(shares, centre + half))


def _means(values: Numbers, there: NDArray[np.bool_]) -> _Means:
    """Return the means over classes of means over replicates, with their variances by crossed clusters.

    By classes, the variance of their means over their number. By replicates, the sum of squares of each replicate's
    contribution to the mean beyond its classes' means, over 1 - the sum of squared shares of cells: in a full array the
    variance of replicate means over their number.

    Args:
        values: (grids, classes, replicates).
        there: mask of the cells of all arrays; each class and each replicate has at least one.
    """
    first = values[:, 0, there[0].argmax()]  # means of what exceeds it: equal values scatter by nothing at all
    beyond = np.where(there, values - first[:, None, None], 0.0)
    size, count = len(there), there.sum(axis=1)
    means, weights = beyond.sum(axis=2) / count, 1 / (size * count)
    numbers = means.mean(axis=1)
    none = np.zeros(len(values))
    of_classes = ((means - numbers[:, None]) ** 2).sum(axis=1) / (size - 1) / size if size > 1 else none
    of_replicates, replicates = none, there.shape[1]
    if replicates > 1:
        added = np.where(there, weights[:, None] * (beyond - means[:, :, None]), 0.0).sum(axis=1)
        shares = (np.where(there, weights[:, None], 0.0).sum(axis=0) ** 2).sum()
        of_replicates = (added**2).sum(axis=1) / (1 - shares)
    variances = of_classes + of_replicates
    parts = sum(
        np.divide(variance, variances, out=np.zeros_like(variance), where=variances > 0) ** 2 / max(number - 1, 1)
        for variance, number in ((of_classes, size), (of_replicates, replicates))
    )
    freedoms = np.divide(1.0, parts, out=np.full(len(values), np.inf), where=parts > 0)
    return _Means(first + numbers, variances, freedoms, weights)
