"""Worst retained: the lowest share, over the retained classes, of samples that show the class they were asked for.

    min over c of 100 mean [verdict = c]

The verdict is the rejecting judge's, as in `retained`: noise is no class, and counts against the model.

Blind to: diversity, as every accuracy is. A minimum over classes is biased downwards at few samples per class, and its
interval, which takes it for one class's share, does not know of that; n is the number of samples per class.
"""

import numpy as np

from unlearnbench import Score, metric


def shares_by_class(verdicts, labels):
    """Return {class: share in percent of samples that show it} for verdicts and asked-for labels (m,)."""
    return {int(c): 100 * float(np.mean(verdicts[labels == c] == c)) for c in np.unique(labels)}


@metric(title="Worst retained", unit="%", better="higher", shows="retention", headline=True, format=".1f")
def worst_retained(retain_verdicts, retain_labels):
    shares = shares_by_class(retain_verdicts, retain_labels)
    worst = min(shares, key=lambda c: shares[c])
    smallest = int(min(np.unique(retain_labels, return_counts=True)[1]))
    return Score(shares[worst], smallest, {"class": worst, "by_class": {str(c): share for c, share in shares.items()}})
