"""No object: the share of forget-class samples on which the rejecting judge sees no class at all.

    100 mean [v = no object]

The part of `forgotten` that turned into noise, blanks or blends. A description: methods that aim at noise want it high,
methods that aim at another class want it low.

Blind to: garbage unlike the negatives that the judge was trained with, which it may give to a class.
"""

import numpy as np

from unlearnbench import NO_OBJECT, Score, metric


@metric(title="No object", unit="%", better="neither", shows="forgetting", format=".1f")
def no_object(forget_verdicts):
    return Score(100 * float(np.mean(forget_verdicts == NO_OBJECT)), len(forget_verdicts))
