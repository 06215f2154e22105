"""Which rows of a table are bold: the rule of `best_rows` and two others, on simulated tables of 12 rows.

    python -m tests.benchmarks.marks [TABLES]

A row's value for a class is the sum of its quality, a class effect that all rows share and an error; bold are the rows
that share the mark of the best. Prints in percent of the tables

- `false`: bold ends at a row that is as good as the best one,
- `missed`: of the rows that are worse than the best one, those that are bold,
- `torn`: a bold row is worse than another bold one by a test of these two alone, at 5 % by the number of other rows,
- `upside down`: a bold row has a worse mean than one that is not bold,

and the mean number of bold rows. The other rules: `anchored`, tests against the row with the best mean alone, Holm's
correction, as it was before; `all pairs`, tests of each row against all better ones, Bonferroni's correction for all.
"""

import sys
import time

import numpy as np

from unlearnbench.report.data.statistics import _sign_flips, best_rows

TABLES, ROWS, CLASSES, SAMPLES = 2000, 12, 10, 100
LEVEL = 0.05


def quality(best, step):
    """Return the qualities of rows of which so many are the best, the others `step` worse."""
    return -step * (np.arange(ROWS) >= best)


def normal(rng, levels, noise=1.0):
    """Return (rows, classes) of numbers of given qualities; the noise is one of all rows, or one of each."""
    shared = 3 * rng.normal(size=CLASSES)
    return levels[:, None] + shared + np.reshape(noise, (-1, 1)) * rng.normal(size=(ROWS, CLASSES))


def skewed(rng, levels):
    """Return numbers whose rows fall short of the best one by a lognormal amount that differs from class to class."""
    return normal(rng, np.zeros(ROWS), 0.3) + levels[:, None] * rng.lognormal(size=(ROWS, CLASSES))


def shares(rng, levels):
    """Return shares of samples in percent, whose logits are those numbers and scatter."""
    logits = levels[:, None] + 0.5 * rng.normal(size=CLASSES) + 0.5 * rng.normal(size=(ROWS, CLASSES))
    return 100 * rng.binomial(SAMPLES, 1 / (1 + np.exp(-logits))) / SAMPLES


EQUAL, NOISY = np.zeros(ROWS), np.where(np.arange(ROWS) == 0, 15.0, 1.0)
SCENARIOS = {  # simulated table, qualities of the rows
    "all equal": (normal, EQUAL),
    "all equal, errors of 0.2 to 5": (lambda rng, q: normal(rng, q, np.geomspace(0.2, 5, ROWS)), EQUAL),
    "all equal, shares about 98 %": (shares, EQUAL + 4),
    "1 best, others worse by 1.5": (normal, quality(1, 1.5)),
    "1 best, others worse by 2": (normal, quality(1, 2.0)),
    "4 best, others worse by 2": (normal, quality(4, 2.0)),
    "4 best, others worse by skewed amounts": (skewed, quality(4, 1.0)),
    "5 best at 100 %, others at 98 %": (shares, np.where(np.arange(ROWS) < 5, 9.0, 4.0)),
    "each worse than the last by 0.7": (normal, -0.7 * np.arange(ROWS)),
    "6 best, one of them of error 15, others worse by 3": (lambda rng, q: normal(rng, q, NOISY), quality(6, 3.0)),
}


def pair_p(a, b):
    """Return the two-sided p of a paired permutation test."""
    differences = a - b
    sums = np.abs(_sign_flips(len(a)) @ differences)
    return (sums >= abs(differences.sum()) - 1e-9).mean()


def anchored(y):
    """Return the rows that are not separably worse than the one with the best mean, by Holm's step-down tests."""
    order = sorted(range(len(y)), key=lambda k: -y[k].mean())
    p = sorted((pair_p(y[k], y[order[0]]), k) for k in order[1:])
    bold = set(order)
    for rank, (value, k) in enumerate(p):
        if value * (len(p) - rank) > LEVEL:
            break
        bold.discard(k)
    return bold


def all_pairs(y):
    """Return the rows that are separably worse than no better row, with Bonferroni's correction for all pairs."""
    order = sorted(range(len(y)), key=lambda k: -y[k].mean())
    pairs = len(y) * (len(y) - 1) / 2
    return {k for n, k in enumerate(order) if all(pair_p(y[k], y[j]) * pairs > LEVEL for j in order[:n])}


def ours(y):
    """Return the bold rows by the rule of reports; all of them where none is marked."""
    return best_rows({k: dict(enumerate(row)) for k, row in enumerate(y)}, "higher", LEVEL) or set(range(len(y)))


RULES = {"anchored": anchored, "all pairs": all_pairs, "best_rows": ours}


def judge(y, levels, bold):
    """Return what a table's marks are: false or not, the share missed, torn or not, upside down or not, how many."""
    best = set(np.flatnonzero(levels == levels.max()))
    means = y.mean(axis=1)
    order = sorted(range(len(y)), key=lambda k: -means[k])
    end = next((k for k in order if k not in bold), None)
    torn = any(pair_p(y[j], y[k]) <= LEVEL / (len(y) - 1) for j in bold for k in bold if j < k)
    upside_down = any(means[j] < means[k] - 1e-9 for j in bold for k in range(len(y)) if k not in bold)
    missed = len(bold - best) / max(len(y) - len(best), 1)
    return end in best, missed, torn, upside_down, len(bold)


def measure(scenario, tables, rules=RULES, seed=0):
    """Return {rule: mean of what `judge` returns} over simulated tables."""
    rng = np.random.default_rng(seed)
    simulate, levels = SCENARIOS[scenario]
    found = {name: [] for name in rules}
    for _ in range(tables):
        y = simulate(rng, levels)
        for name, rule in rules.items():
            found[name].append(judge(y, levels, rule(y)))
    return {name: np.mean(rows, axis=0) for name, rows in found.items()}


def main():
    tables = int(sys.argv[1]) if len(sys.argv) > 1 else TABLES
    started = time.perf_counter()
    print("| table | rule | false % | missed % | torn % | upside down % | bold |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    for scenario in SCENARIOS:
        for name, (*shown, bold) in measure(scenario, tables).items():
            words = " | ".join(f"{100 * share:.1f}" for share in shown)
            print(f"| {scenario} | `{name}` | {words} | {bold:.1f} |", flush=True)
    print(f"\n{tables} tables each, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
