"""Forgotten: the share of forget-class samples that no longer show the forget class, with noise recognised as such.

    forgotten          100 mean [v != c_f]                     v: the verdict, a class or "no object"
    no_object          100 mean [v = no object]
    other_class        100 mean [v != c_f and v != no object]
    earlier_forgotten  100 mean [v not in G]                   over samples of classes forgotten earlier;
                                                               G: all classes forgotten so far

The judge is a classifier with K + 1 outputs, trained on the classes and on negatives: Gaussian, uniform, smooth and
two-level noise, shuffled pixels and patches, blanks and blends; the recipe is the dataset's. So noise counts as
forgotten, whichever class a judge without a reject option would see in it.

`no_object` and `other_class` add up to `forgotten`: samples that became noise, blanks or blends, and samples that
still show an object. Both are descriptions: methods that aim at noise want the first high and the second low,
methods that aim at another class the other way round.

`earlier_forgotten` measures whether earlier steps of a sequence stay forgotten; it is computed in sequences only, from
the second step on. A sample counts as not forgotten if it shows any class in G: a method that turned 0 into 1 and then
forgets 1 must show neither. The detail has each earlier class; the difference from `forgotten` at a class's own step
is what later steps recovered.

Blind to: the quality of the remaining images, which the pictures show; which other class it is, which the confusion
in the detail of `retained` shows; and garbage unlike the negatives, on which a verdict may be anything.
"""

import numpy as np

from unlearnbench import NO_OBJECT, Score, metric

COMMON = {"unit": "%", "aspect": "forgetting", "format": ".1f"}


def percent(hits):
    """Return the percentage of samples (n,) that are hits."""
    return 100 * float(np.mean(hits))


@metric(title="Forgotten", better="higher", headline=True, threshold=50.0, **COMMON)
def forgotten(forget_verdicts, cell):
    return Score(percent(forget_verdicts != cell.forget_class), len(forget_verdicts))


@metric(title="No object", better="neither", **COMMON)
def no_object(forget_verdicts):
    return Score(percent(forget_verdicts == NO_OBJECT), len(forget_verdicts))


@metric(title="Other class", better="neither", **COMMON)
def other_class(forget_verdicts, cell):
    other = (forget_verdicts != cell.forget_class) & (forget_verdicts != NO_OBJECT)
    return Score(percent(other), len(forget_verdicts))


@metric(title="Earlier forgotten", better="higher", **COMMON)
def earlier_forgotten(earlier_verdicts, earlier_labels, cell):
    hidden = ~np.isin(earlier_verdicts, cell.target.gone)
    each = {str(c): percent(hidden[earlier_labels == c]) for c in np.unique(earlier_labels)}
    return Score(percent(hidden), len(hidden), each)
