"""Other class: the share of forget-class samples in which the rejecting judge sees another class.

    100 mean [v != c_f and v != no object]

The part of `forgotten` that still shows an object. A description: methods that aim at another class want it high,
methods that aim at noise want it low.

Blind to: which class it is (the confusion in the detail of `retained` has that) and how good the image is.
"""

import numpy as np

from unlearnbench import NO_OBJECT, Score, metric


@metric(title="Other class", unit="%", better="neither", shows="forgetting", format=".1f")
def other_class(forget_verdicts, cell):
    other = (forget_verdicts != cell.forget_class) & (forget_verdicts != NO_OBJECT)
    return Score(100 * float(np.mean(other)), len(forget_verdicts))
