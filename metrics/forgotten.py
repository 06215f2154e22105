"""Forgotten: the share of forget-class samples that no longer show the forget class, noise taken for what it is.

    100 mean [v != c_f]    v: the verdict, a class or "no object"

The judge is a classifier with K + 1 outputs, trained on the classes and on negatives: Gaussian, uniform, smooth and
two-level noise, shuffled pixels and patches, blanks and blends; the recipe is the dataset's. So noise counts as
forgotten whatever a judge that must name a class would call it. `no_object` and `other_class` add up to this number.

Blind to: whether what is left is a good image, which the two parts and the pictures show; and to garbage unlike the
negatives, on which a verdict may be anything.
"""

import numpy as np

from unlearnbench import Score, metric


def share_forgotten(verdicts, forget_class):
    """Return the percentage of verdicts (n,) that are not the forget class."""
    return 100 * float(np.mean(verdicts != forget_class))


@metric(title="Forgotten", unit="%", better="higher", shows="forgetting", headline=True, format=".1f", boundary=50.0)
def forgotten(forget_verdicts, cell):
    return Score(share_forgotten(forget_verdicts, cell.forget_class), len(forget_verdicts))
