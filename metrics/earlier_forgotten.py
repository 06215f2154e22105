"""Earlier forgotten: what a sequence has kept of its earlier steps: the classes forgotten then, still forgotten now.

    100 mean [v not in G]    over samples asked for classes forgotten earlier; G: all classes forgotten so far

G, not only the class that was asked for: a method that turned 0 into 1 and then forgets 1 has to show neither. The
verdicts are those of `forgotten`; the detail has each earlier class by itself. Computed in sequences only, from the
second step on; the difference from `forgotten` at a class's own step is what later steps brought back.

Blind to: what `forgotten` is blind to.
"""

import numpy as np

from unlearnbench import Score, metric


@metric(title="Earlier forgotten", unit="%", better="higher", shows="forgetting", format=".1f")
def earlier_forgotten(earlier_verdicts, earlier_labels, cell):
    hidden = ~np.isin(earlier_verdicts, cell.target.gone)
    each = {str(c): 100 * float(np.mean(hidden[earlier_labels == c])) for c in np.unique(earlier_labels)}
    return Score(100 * float(np.mean(hidden)), len(hidden), each)
