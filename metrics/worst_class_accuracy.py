"""Worst retained class: the lowest accuracy over the retained classes, as `retain_accuracy` counts it.

    min over c of 100 mean [argmax_k p_k = c]

A minimum over classes is biased downwards at few samples per class; n is the number of samples per class.
"""

import numpy as np

from unlearnbench import Score, metric


def accuracy_by_class(probs, labels):
    """Return {class: accuracy in percent} for judge probabilities (m, K) and asked-for labels (m,)."""
    correct = probs.argmax(axis=1) == labels
    return {int(c): 100 * float(correct[labels == c].mean()) for c in np.unique(labels)}


@metric(title="Worst class acc.", unit="%", better="higher", shows="retention", format=".1f")
def worst_class_accuracy(retain_probs, retain_labels):
    smallest = min(np.unique(retain_labels, return_counts=True)[1])
    return Score(min(accuracy_by_class(retain_probs, retain_labels).values()), smallest)
