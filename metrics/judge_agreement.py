"""Agreement: the share of all samples, forget and retained, on which judge and second judge predict the same class.

    100 mean [argmax_k p_k = s]

The detail has the two sides. Judges of different kinds disagree most on images unlike their training data, so a low
share on a side means that its accuracies depend on the judge.

Blind to: errors that the judges share. Two judges may agree on the class of pure noise.
"""

import numpy as np

from unlearnbench import Score, metric


@metric(title="Agreement", unit="%", better="higher", aspect="judging", format=".1f")
def judge_agreement(forget_probs, retain_probs, forget_second, retain_second):
    forget = forget_probs.argmax(axis=1) == forget_second
    retain = retain_probs.argmax(axis=1) == retain_second
    both = np.concatenate([forget, retain])
    shares = [100 * float(np.mean(same)) for same in (both, forget, retain)]
    return Score(shares[0], len(both), {"forget": shares[1], "retain": shares[2]})
