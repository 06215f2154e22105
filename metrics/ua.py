"""UA: unlearning accuracy, the share of forget-class samples that a judge does not classify as the forget class.

    UA = 100 (1 - mean [s = c_f])    s: the class that the judge predicts, argmax_k p_k

As in Fan et al. 2024 (SalUn, arXiv:2310.12508) and the SAFEMax paper. `ua_second` asks the second judge, a classifier
of a different kind: where the two differ, the result depends on the judge.

Blind to: what the samples show instead. Either judge predicts some class even for noise; where that happens to be c_f,
a method that aims at noise scores low, and a destroyed model scores high elsewhere. Read it with the
pictures.
"""

import numpy as np

from unlearnbench import Score, metric

COMMON = {"unit": "%", "better": "higher", "aspect": "forgetting", "format": ".1f"}


def unlearning_accuracy(named, forget_class):
    """Return UA in percent for the classes (n,) that a judge names."""
    return 100 * float(np.mean(named != forget_class))


@metric(title="UA", headline=True, source="arXiv:2310.12508", **COMMON)
def ua(forget_probs, cell):
    return Score(unlearning_accuracy(forget_probs.argmax(axis=1), cell.forget_class), len(forget_probs))


@metric(title="UA 2nd judge", **COMMON)
def ua_second(forget_second, cell):
    return Score(unlearning_accuracy(forget_second, cell.forget_class), len(forget_second))
