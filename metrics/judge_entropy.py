"""Judge entropy: how uncertain the judge is about forget-class samples.

    H = mean over samples of - sum_k p_k ln p_k    in nats, 0 to ln K, with 0 ln 0 = 0

The "entropy" of the SAFEMax paper's tables (arXiv:2508.20773). It is the entropy of a classifier's softmax, not of the
images and not H(X | X^).

Blind to: overconfidence. A judge may be certain about noise; its calibration is part of this number.
"""

from scipy.special import entr

from unlearnbench import Score, metric


def mean_entropy(probs):
    """Return the mean entropy in nats of probability rows (n, K); an exact zero counts as zero."""
    return float(entr(probs).sum(axis=1).mean())


@metric(
    title="Judge entropy", unit="nats", better="higher", aspect="forgetting", format=".3f", source="arXiv:2508.20773"
)
def judge_entropy(forget_probs):
    return Score(mean_entropy(forget_probs), len(forget_probs))
