"""FID, the Frechet distance between feature Gaussians of generated and real images of the retained classes.

    FID = |mu_g - mu_r|^2 + tr(S_g + S_r - 2 (S_g S_r)^(1/2))

Heusel et al. 2017, arXiv:1706.08500; arithmetic of torch-fidelity in float64. Real: all training images of the retained
classes. The features are the dataset's extractor, named in the caption, so only FIDs of one dataset compare.

Blind to: the forget class, which it never sees; and it is biased upwards at small n, so compare at equal n only.
"""

import torch

from unlearnbench import Score, Unmeasurable, metric


def frechet_distance(generated, real):
    """Return the FID of two feature arrays (n, D), float64."""
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    statistics = [fid_features_to_statistics(torch.from_numpy(features)) for features in (generated, real)]
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]


@metric(
    title="FID",
    unit="",
    range=(-0.01, None),  # 0 at the least, but for rounding
    better="lower",
    shows="retention",
    headline=True,
    format=".2f",
    source="arXiv:1706.08500, torch-fidelity",
)
def fid(retain_features, reference_features):
    for name, features in (("generated", retain_features), ("reference", reference_features)):
        n, dimensions = features.shape
        if n <= dimensions:
            raise Unmeasurable(
                f"{n} {name} images give no covariance of {dimensions} features: use more than {dimensions}"
            )
    return Score(frechet_distance(retain_features, reference_features), len(retain_features))
