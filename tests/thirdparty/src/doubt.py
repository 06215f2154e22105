"""Doubt: how often the judge is unsure of what it sees.

    100 mean [max_k p_k < 0.9]    over the samples asked for the forget class, or for the retained classes

An example of this package, not a published metric.

Blind to: whether the judge is right where it is sure.
"""

import numpy as np

from unlearnbench import Score, metric

COMMON = {"unit": "%", "better": "neither", "aspect": "judging", "format": ".1f"}


def share_unsure(probs):
    """Return the percentage of probability rows (n, K) with no class above 0.9."""
    return 100 * float(np.mean(probs.max(axis=1) < 0.9))


@metric(title="Doubt", **COMMON)
def doubt(forget_probs):
    return Score(share_unsure(forget_probs), len(forget_probs))


@metric(title="Doubt retained", **COMMON)
def doubt_retained(retain_probs):
    return Score(share_unsure(retain_probs), len(retain_probs))
