"""UA by the second judge: the share of forget-class samples that it does not name as the forget class.

    100 mean [s != c_f]    s: the class that the second judge names

The formula of `ua` with a classifier of another kind. Where the two differ, forgetting lies in the judge's eye.

Blind to: what the samples are instead, as `ua` is: it too must name some class even for noise.
"""

import numpy as np

from unlearnbench import Score, metric


@metric(title="UA 2nd judge", unit="%", better="higher", shows="forgetting", format=".1f")
def ua_second(forget_second, cell):
    return Score(100 * float(np.mean(forget_second != cell.forget_class)), len(forget_second))
