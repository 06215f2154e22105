"""FID: the Frechet distance between feature Gaussians of generated and real images of the retained classes.

    FID = |mu_g - mu_r|^2 + tr(S_g + S_r - 2 (S_g S_r)^(1/2))

    worst class FID = max over c of FID(generated for c, real of c)

Heusel et al. 2017, arXiv:1706.08500; arithmetic of torch-fidelity in float64. Real: all training images of the retained
classes. The features are the dataset's extractor, named in the caption, so only FIDs of one dataset are comparable.

A single ruined class, which hardly affects the FID of all classes together, shows in `worst_class_fid`, the largest FID
of a single retained class. Its detail has every class; its n is the smallest number of generated images of a class.

Blind to: the forget class, which it never sees; and it is biased upwards at small n, so compare at equal n only. The
worst class is biased twice, by its smaller n and as a maximum over noisy values, so never compare it with the FID of
all classes.
"""

import numpy as np
import torch

from unlearnbench import Score, check_features, metric

COMMON = {
    "unit": "",
    "range": (-0.01, None),  # 0 at the least, but for rounding
    "better": "lower",
    "aspect": "retention",
    "format": ".2f",
    "source": "arXiv:1706.08500, torch-fidelity",
}


def frechet_distance(generated, real):
    """Return the FID of two feature arrays (n, D), float64."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    statistics = [fid_features_to_statistics(torch.from_numpy(features)) for features in (generated, real)]
    return float(fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID])


def check(features, images):
    """Raise Unmeasurable unless features (n, D) have a covariance."""
    dimensions = features.shape[1]
    check_features(
        features, images, dimensions + 1,
        f"give no covariance of {dimensions} features: use more than {dimensions}",
    )  # fmt: skip


@metric(title="FID", headline=True, **COMMON)
def fid(retain_features, reference_features):
    check(retain_features, "generated images")
    check(reference_features, "reference images")
    return Score(frechet_distance(retain_features, reference_features), len(retain_features))


@metric(title="Worst class FID", **COMMON)
def worst_class_fid(retain_features, retain_labels, reference_features, reference_labels):
    classes, counts = np.unique(retain_labels, return_counts=True)
    generated = [retain_features[retain_labels == c] for c in classes]
    real = [reference_features[reference_labels == c] for c in classes]
    for parts, images in ((generated, "generated images of a class"), (real, "reference images of a class")):
        for features in sorted(parts, key=len):  # the fewest first, for the reason that is given
            check(features, images)
    each = {int(c): frechet_distance(*sides) for c, *sides in zip(classes, generated, real, strict=True)}
    return Score(max(each.values()), int(counts.min()), {"by_class": {str(c): value for c, value in each.items()}})
