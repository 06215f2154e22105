"""Unrelated drift: how far samples for prompts that name no concept have moved from those of the base model.

    mean_i ||f(x_i) - f(x_i^0)|| / mean_i ||f(x_i^0) - f(x_(i+1)^0)||

x_i and x_i^0 are samples of the unlearned and of the base model for the same unrelated prompt and the same initial
noise, f their features (the extractor of FID); i + 1 is the next sample of the base model, of the same prompt but for
the last one of each. 0: nothing changed; 1: as different as two samples of different noise, so that nothing of the base
model's images is left but, possibly, their kind. Retention within the domain is what Retained and FID measure, over the
other concepts.

Computed for models that take prompts only.

Source: cross-domain retention of concept erasure, in text-to-image models mostly by CLIP score and FID on COCO (cf.
arXiv:2402.11846, UnlearnCanvas); the paired distance is this package's, since it needs no judge of what prompts mean.

Blind to: whether a change is for the worse.
"""

import numpy as np

from unlearnbench import Score, Unmeasurable, check_features, metric


def paired_distance(a, b):
    """Return the mean Euclidean distance of paired rows (n, D)."""
    return float(np.linalg.norm(a - b, axis=1).mean())


@metric(
    title="Unrelated drift",
    unit="",
    better="lower",
    aspect="retention",
    format=".3f",
    source="cf. arXiv:2402.11846",
    range=(0.0, None),
)
def unrelated_drift(unrelated_features, base_unrelated_features):
    check_features(unrelated_features, "generated images for unrelated prompts", least=2)
    between = paired_distance(base_unrelated_features, np.roll(base_unrelated_features, -1, axis=0))
    if between == 0:
        raise Unmeasurable("the base model draws the same image for every unrelated prompt and noise")
    return Score(paired_distance(unrelated_features, base_unrelated_features) / between, len(unrelated_features))
