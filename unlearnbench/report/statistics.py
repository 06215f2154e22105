"""What a grid of values (forget class x replicate) says beyond its mean: intervals, tests, and which rows are best.

A replicate is a seed that all classes share. The estimand is always the mean over classes like these and replicates
like these, with equal weights for classes, and within a class for its replicates, as tables average. Nothing here draws
from a generator without a fixed seed, and no result depends on the order in which values come.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit  # type: ignore[import-untyped]

LEAST_CLUSTERS = 3  # classes, or replicates of a single class: fewer tell nothing of their spread
DRAWS = 2000  # of a bootstrap
TOGETHER = 32  # grids whose bootstraps are drawn at once
MOST_EXACT = 20  # classes up to which all 2^C sign flips are counted
FLIPS = 2**16 - 1  # sign flips drawn where there are more classes
SAME = 1e-9  # of the greatest value: differences are rounded to multiples of it, so that float noise breaks no tie

Group: TypeAlias = Any  # a class, or whatever else was forgotten: it sorts and hashes
Replicate = TypeVar("Replicate", bound=Hashable)
Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row", bound=Hashable)


@dataclass(frozen=True)
class _Mean:
    """A mean over a grid, with what its classes and replicates say of its own scatter."""

    number: float
    variance: float  # of the mean
    freedom: float  # degrees of freedom of the variance; infinite where nothing scatters or there is one cell
    weights: Mapping[Group, float]  # of each cell of a class


def wilson(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval for a proportion, as shares 0..1; neither count need be an integer.

    Source: Wilson 1927, https://doi.org/10.1080/01621459.1927.10502953.
    """
    return _score_interval(successes / n, n, _quantile(level, math.inf)) if n > 0 else (0.0, 1.0)


def proportion_interval(
    cells: Mapping[tuple[Group, Replicate], tuple[float, int]], level: float = 0.95
) -> tuple[float, float] | None:
    """Return an interval for a mean share from {(class, replicate): (share 0..1, samples)}.

    None without samples, and for two classes, which tell too little of how others would differ.
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
    replicate that scatters 0.4 times as much as classes, which nothing shows. Too wide: 99 % for three replicates where
    neither classes nor replicates differ.
    """
    shares = {cell: share for cell, (share, n) in cells.items() if n > 0}
    if len({c for c, _ in shares}) in (0, 2):
        return None
    mean = _mean(shares)
    samples = 1 / math.fsum(mean.weights[cell[0]] ** 2 / cells[cell][1] for cell in shares)
    binomial = mean.number * (1 - mean.number) / samples
    effect = max(1.0, mean.variance / binomial) if binomial > 0 else 1.0
    quantile = _quantile(level, mean.freedom if effect > 1 else math.inf)
    return _score_interval(mean.number, samples / effect, quantile)


def mean_interval(cells: Mapping[tuple[Group, Replicate], float], level: float = 0.95) -> tuple[float, float] | None:
    """Return an interval for the mean from {(class, replicate): value}; cells may be missing.

    A hierarchical bootstrap gives its shape: classes and replicates are drawn anew, each crossed with all of the other
    (Owen 2007, https://doi.org/10.1214/07-AOAS122). Few classes and fewer replicates make percentiles too narrow
    (Hesterberg 2015, arXiv:1411.5279), so their distances from the mean are scaled to the width of Student's interval
    with the variance between class means plus that between replicate means, degrees of freedom by Satterthwaite. It
    does not fall below zero where no value does. None with fewer than three classes, or one class with fewer than three
    replicates: they say nothing of how others differ.

    Measured coverage of 95 % intervals by `tests/benchmarks/coverage.py`: 94 to 96 % for 3 to 10 classes with three
    replicates, and with one that does not scatter. Too narrow: 92 % with a single replicate that scatters 0.2 times as
    much as classes, which nothing shows; 92 % where three replicates scatter as much as classes or more; 91 to 93 % for
    skewed classes (skewness 2.9). Too wide: 99 % for three replicates where neither classes nor replicates differ.
    Percentiles alone cover 61 to 92 %, expanded for few classes 85 % where replicates scatter more than classes do.
    """
    return mean_intervals([cells], level)[0]


def mean_intervals(
    grids: Sequence[Mapping[tuple[Group, Replicate], float]], level: float = 0.95
) -> list[tuple[float, float] | None]:
    """Return the `mean_interval` of each of many grids, those with the same cells missing drawn together."""
    alike: dict[tuple[int, int, bytes], list[tuple[int, NDArray[np.float64]]]] = {}
    for index, cells in enumerate(grids):
        values = _grid(cells)
        if (len(values) if len(values) > 1 else values.shape[1]) >= LEAST_CLUSTERS:
            alike.setdefault((*values.shape, np.isnan(values).tobytes()), []).append((index, values))
    found: list[tuple[float, float] | None] = [None] * len(grids)
    for group in alike.values():
        for start in range(0, len(group), TOGETHER):
            part = group[start : start + TOGETHER]
            means = _bootstrap(np.stack([values for _, values in part]))
            lows, highs = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=1)
            for (index, _), low, high in zip(part, lows, highs, strict=True):
                found[index] = _scaled(grids[index], float(low), float(high), level)
    return found


def _grid(cells: Mapping[tuple[Group, Replicate], float]) -> NDArray[np.float64]:
    """Return the values as (classes, replicates), NaN where a cell is missing."""
    rows = {c: k for k, c in enumerate(sorted({c for c, _ in cells}))}
    columns = {r: k for k, r in enumerate(sorted({r for _, r in cells}, key=repr))}
    values = np.full((len(rows), len(columns)), np.nan)
    for (c, r), value in cells.items():
        values[rows[c], columns[r]] = value
    return values


def _scaled(
    cells: Mapping[tuple[Group, Replicate], float], low: float, high: float, level: float
) -> tuple[float, float]:
    """Return the percentiles with their distances from the mean scaled to the width of Student's interval."""
    mean = _mean(cells)
    below, above = max(mean.number - low, 0.0), max(high - mean.number, 0.0)
    if not below + above:
        return mean.number, mean.number
    scale = 2 * _quantile(level, mean.freedom) * math.sqrt(mean.variance) / (below + above)
    low, high = mean.number - scale * below, mean.number + scale * above
    return (max(low, 0.0) if min(cells.values()) >= 0 else low), high


def _bootstrap(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return (grids, draws) means over classes and replicates that are drawn anew, with replacement.

    Args:
        values: (grids, classes, replicates), NaN where a cell is missing, in all alike; draws without a cell fall.
    """
    there = ~np.isnan(values)
    of_class, of_replicate = _resamples(*values.shape[1:])
    found = of_replicate @ there[0].T.astype(np.float64)  # (draws, classes): cells of a class that a draw has
    filled = np.where(there, values, 0.0).transpose(0, 2, 1)
    means = np.matmul(of_replicate, filled) / np.maximum(found, 1)
    weights = of_class * (found > 0)
    total = weights.sum(axis=1)
    result: NDArray[np.float64] = (weights * means).sum(axis=2)[:, total > 0] / total[total > 0]
    return result


@lru_cache(maxsize=16)
def _resamples(classes: int, replicates: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how often each draw has each class, and each replicate: (draws, classes) and (draws, replicates)."""
    rng = np.random.default_rng(0)
    both = [rng.multinomial(n, np.full(n, 1 / n), DRAWS).astype(np.float64) for n in (classes, replicates)]
    return both[0], both[1]


def paired_p(a: Mapping[Group, float], b: Mapping[Group, float]) -> float:
    """Return the two-sided p of the mean paired difference over the classes both have, by a sign-flip permutation test.

    Exact up to 20 classes; beyond, over 65,535 flips from a fixed seed. It is 1 where fewer than two classes are
    shared. The least p that C classes can give is 2 / 2^C: 0.002 with ten, above 0.05 with fewer than six.
    """
    differences = _differences(a, b)
    if len(differences) < 2:
        return 1.0
    observed = abs(int(differences.sum()))
    if len(differences) > MOST_EXACT:
        signs = 2 * np.random.default_rng(0).integers(0, 2, (FLIPS, len(differences))) - 1
        return (1 + int((np.abs(signs @ differences) >= observed).sum())) / (1 + FLIPS)
    sums = differences[:1]  # flipping all signs changes no |sum|, so the first keeps its own
    for difference in differences[1:]:
        sums = np.concatenate([sums + difference, sums - difference])
    return float((np.abs(sums) >= observed).mean())


def holm(p_values: Mapping[Key, float]) -> dict[Key, float]:
    """Return p values adjusted for their number (Holm 1979): reject those up to a level, and any error is that rare."""
    adjusted: dict[Key, float] = {}
    greatest = 0.0
    for rank, key in enumerate(sorted(p_values, key=lambda key: p_values[key])):
        greatest = max(greatest, min(1.0, (len(p_values) - rank) * p_values[key]))
        adjusted[key] = greatest
    return {key: adjusted[key] for key in p_values}


def best_rows(values: Mapping[Row, Mapping[Group, float]], better: str, level: float = 0.05) -> set[Row]:
    """Return the rows that share the mark of the best, from {row: {class: value}}; better is "lower" or "higher".

    They are the row with the best mean and every row that is not separably worse, by `paired_p` against the best with
    Holm's correction for the number of rows. A row that lacks a class another one has takes no part.

    Empty where no row is separably worse than the best, so that a mark always separates. That is always so with fewer
    than six classes, where no exact two-sided test reaches 0.05; ten classes can separate up to 26 rows.
    """
    classes = set().union(*values.values())
    rows = {row: found for row, found in values.items() if found.keys() == classes}
    if not rows or not classes:
        return set()
    sign = -1 if better == "higher" else 1
    means = {row: sign * fmean(found[c] for c in sorted(classes)) for row, found in rows.items()}
    best = min(means.values())
    leaders = {row for row, mean in means.items() if math.isclose(mean, best, rel_tol=SAME)}
    leader = rows[next(row for row in rows if row in leaders)]
    adjusted = holm({row: paired_p(found, leader) for row, found in rows.items() if row not in leaders})
    worse = {row for row, p in adjusted.items() if p <= level}
    return rows.keys() - worse if worse else set()


def auc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """Return the probability that a positive exceeds a negative, ties half: the area under the ROC curve."""
    ordered = np.sort(np.asarray(negatives, dtype=np.float64))
    below, up_to = (np.searchsorted(ordered, np.asarray(positives), side).sum() for side in ("left", "right"))
    return float(below + up_to) / (2 * len(positives) * len(negatives))


def _quantile(level: float, freedom: float) -> float:
    """Return the two-sided quantile of Student's t; of the normal with infinitely many degrees of freedom."""
    return float(stdtrit(freedom, (1 + level) / 2))


def _score_interval(share: float, n: float, quantile: float) -> tuple[float, float]:
    """Return Wilson's interval with any quantile; it holds the share itself and stays within 0..1."""
    shrink = 1 + quantile**2 / n
    centre = (share + quantile**2 / (2 * n)) / shrink
    half = quantile / shrink * math.sqrt(share * (1 - share) / n + quantile**2 / (4 * n**2))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def _mean(cells: Mapping[tuple[Group, Replicate], float]) -> _Mean:
    """Return the mean over classes of means over replicates, with its variance by crossed clusters.

    By classes, the variance of their means over their number. By replicates, the sum of squares of what each adds to
    the mean beyond its classes' means, over 1 - the sum of the squared shares of cells: in a full grid the variance of
    replicate means over their number.
    """
    of_class: dict[Group, list[float]] = {}
    for (c, _), value in cells.items():
        of_class.setdefault(c, []).append(value)
    means = {c: fmean(found) for c, found in of_class.items()}
    weights = {c: 1 / (len(means) * len(found)) for c, found in of_class.items()}
    number = fmean(means.values())

    added: dict[Replicate, list[tuple[float, float]]] = {}  # replicate -> (weight, weighted value) of its cells
    for (c, replicate), value in cells.items():
        added.setdefault(replicate, []).append((weights[c], weights[c] * (value - means[c])))
    variances = []  # (variance, degrees of freedom)
    if len(means) > 1:
        squares = math.fsum((mean - number) ** 2 for mean in means.values())
        variances.append((squares / (len(means) - 1) / len(means), len(means) - 1))
    if len(added) > 1:
        squares = math.fsum(math.fsum(value for _, value in found) ** 2 for found in added.values())
        shares = math.fsum(math.fsum(weight for weight, _ in found) ** 2 for found in added.values())
        variances.append((squares / (1 - shares), len(added) - 1))

    variance = math.fsum(v for v, _ in variances)
    parts = math.fsum((v / variance) ** 2 / freedom for v, freedom in variances) if variance else 0.0
    return _Mean(number, variance, 1 / parts if parts else math.inf, weights)


def _differences(a: Mapping[Group, float], b: Mapping[Group, float]) -> NDArray[np.int64]:
    """Return a - b over the classes both have, in units of a billionth of the greatest value."""
    both = sorted(a.keys() & b.keys())
    greatest = max((abs(values[c]) for values in (a, b) for c in both), default=0.0)
    if not greatest:
        return np.zeros(len(both), dtype=np.int64)
    return np.array([round((a[c] - b[c]) / greatest / SAME) for c in both], dtype=np.int64)
