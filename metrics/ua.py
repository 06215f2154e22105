"""UA, unlearning accuracy: the share of forget-class samples that the judge does not name as the forget class.

    UA = 100 (1 - mean [argmax_k p_k = c_f])

As in Fan et al. 2024 (SalUn, arXiv:2310.12508) and the SAFEMax paper.

Blind to: what the samples are instead. The judge must name some class even for noise; where noise happens to look
like c_f to it, a method that aims at noise scores low, and a destroyed model scores high elsewhere. Read it with the
pictures.
"""

import numpy as np

from unlearnbench import Score, metric


def unlearning_accuracy(probs, forget_class):
    """Return UA in percent for judge probabilities (n, K)."""
    return 100 * float(np.mean(probs.argmax(axis=1) != forget_class))


@metric(
    title="UA", unit="%", better="higher", shows="forgetting", headline=True, format=".1f", source="arXiv:2310.12508"
)
def ua(forget_probs, cell):
    return Score(unlearning_accuracy(forget_probs, cell.forget_class), len(forget_probs))
