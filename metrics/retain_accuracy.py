"""Retained accuracy: the share of retained-class samples that the judge classifies as the requested class.

    100 mean [argmax_k p_k = c]

Blind to: diversity. A model that draws one good image per class scores 100; FID detects that.
"""

import numpy as np

from unlearnbench import Score, metric


@metric(title="Retained acc.", unit="%", better="higher", aspect="retention", format=".1f")
def retain_accuracy(retain_probs, retain_labels):
    return Score(100 * float(np.mean(retain_probs.argmax(axis=1) == retain_labels)), len(retain_labels))
