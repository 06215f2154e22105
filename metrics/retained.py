"""Retained: the share of retained-class samples in which the rejecting judge sees the requested class.

    retained        100 mean [v = c]                  v: the verdict, a class or "no object"
    worst_retained  min over c of 100 mean [v = c]    over the retained classes c

"No object" counts against it, so noise that a judge without a reject option would assign to the right class fails. The
detail of `retained` is the whole confusion, a list of K rows of K + 1 counts: row = requested class (that of the forget
class from the forget samples), column = verdict, the last column "no object". The detail of `worst_retained` has
every class; its n is the number of samples per class.

Blind to: diversity. A model that draws one good image per class scores 100; recall, coverage and FID detect that. A
minimum over classes is biased downwards at few samples per class, which its interval, that of a single class, does
not include.
"""

import numpy as np

from unlearnbench import NO_OBJECT, Score, metric

COMMON = {"unit": "%", "better": "higher", "aspect": "retention", "format": ".1f"}


def confusion(asked, verdicts, num_classes):
    """Return counts (K, K + 1) of asked-for classes (n,) by verdicts (n,)."""
    columns = np.where(verdicts == NO_OBJECT, num_classes, verdicts)
    cells = asked * (num_classes + 1) + columns
    return np.bincount(cells, minlength=num_classes * (num_classes + 1)).reshape(num_classes, num_classes + 1)


@metric(title="Retained", threshold=50.0, **COMMON)
def retained(forget_verdicts, retain_verdicts, retain_labels, cell, num_classes):
    asked = np.concatenate([np.full(len(forget_verdicts), cell.forget_class, dtype=np.int64), retain_labels])
    counts = confusion(asked, np.concatenate([forget_verdicts, retain_verdicts]), num_classes)
    share = 100 * float(np.mean(retain_verdicts == retain_labels))
    return Score(share, len(retain_labels), {"confusion": counts.tolist()})


@metric(title="Worst retained", headline=True, **COMMON)
def worst_retained(retain_verdicts, retain_labels):
    classes, counts = np.unique(retain_labels, return_counts=True)
    shares = {int(c): 100 * float(np.mean(retain_verdicts[retain_labels == c] == c)) for c in classes}
    worst = min(shares, key=lambda c: shares[c])
    detail = {"class": worst, "by_class": {str(c): share for c, share in shares.items()}}
    return Score(shares[worst], int(counts.min()), detail)
