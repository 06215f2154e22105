"""Worst class FID: the largest FID of a single retained class, between its generated and its real images.

    max over c of FID(generated for c, real of c)

FID as in `fid`, arithmetic of torch-fidelity in float64; the detail has every class. One ruined class that the FID of
all classes together hardly shows stands out here. n is the smallest number of generated images of a class.

Blind to: the forget class. It is biased upwards twice, as FID is at small n and as a maximum over noisy values is, so
compare at equal n only and never with the FID of all classes.
"""

import numpy as np

from unlearnbench import Score, Unmeasurable, metric


def fid_by_class(generated, labels, real, real_labels):
    """Return {class: FID} for features (n, D), float64, and the class of each row."""
    import torch
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    result = {}
    for c in np.unique(labels):
        sides = generated[labels == c], real[real_labels == c]
        statistics = [fid_features_to_statistics(torch.from_numpy(features)) for features in sides]
        result[int(c)] = float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])
    return result


@metric(
    title="Worst class FID",
    unit="",
    range=(-0.01, None),  # 0 at the least, but for rounding
    better="lower",
    shows="retention",
    format=".2f",
    source="arXiv:1706.08500, torch-fidelity",
)
def worst_class_fid(retain_features, retain_labels, reference_features, reference_labels):
    classes, counts = np.unique(retain_labels, return_counts=True)
    sides = (
        ("generated", retain_features, int(counts.min())),
        ("reference", reference_features, min(int(np.sum(reference_labels == c)) for c in classes)),
    )
    for name, features, n in sides:
        dimensions = features.shape[1]
        if n <= dimensions:
            raise Unmeasurable(
                f"{n} {name} images of a class give no covariance of {dimensions} features: use more than {dimensions}"
            )
        if not np.isfinite(features).all():
            raise Unmeasurable(f"some features of the {name} images are not finite")
    values = fid_by_class(retain_features, retain_labels, reference_features, reference_labels)
    return Score(max(values.values()), sides[0][2], {"by_class": {str(c): value for c, value in values.items()}})
