"""Precision: the share of generated images of the retained classes that lie among the real ones; fidelity.

    mean over generated y of [|y - x| <= r_3(x) for some real x]    r_3(x): distance of x to its 3rd nearest real image

Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 2, with k = 3; arithmetic of torch-fidelity (generated first, real
second) in float64. From 0 to 1. More than 10,000 images on a side give way to a fixed random choice of 10,000. It
depends on both numbers of images, so compare at equal n only.

Blind to: diversity, since a single good image repeated scores 1; and one outlier among the real images has a ball so
wide that bad images may lie inside, which `density` is made against.
"""

import numpy as np

from unlearnbench import Score, Unmeasurable, metric

K = 3
MOST = 10_000  # images per side
ROWS = 1_000  # of a distance matrix in memory at once


def at_most(features, most=MOST):
    """Return all rows, or a fixed random choice of `most` of them."""
    if len(features) <= most:
        return features
    return features[np.random.default_rng(0).choice(len(features), most, replace=False)]


def precision_of(generated, real):
    """Return the precision of two feature arrays (n, D), float64."""
    import torch
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, prc_features_to_metric

    found = prc_features_to_metric(
        torch.from_numpy(generated), torch.from_numpy(real), prc_neighborhood=K, prc_batch_size=ROWS, save_cpu_ram=True,
        verbose=False,
    )  # fmt: skip
    return float(found[KEY_METRIC_PRECISION])


@metric(
    title="Precision",
    unit="",
    range=(0, 1),
    better="higher",
    shows="retention",
    format=".3f",
    source="arXiv:1904.06991, torch-fidelity",
)
def precision(retain_features, reference_features):
    for name, features in (("generated", retain_features), ("reference", reference_features)):
        if len(features) <= K:
            raise Unmeasurable(f"{len(features)} {name} images have no {K} neighbours each: use more than {K}")
        if not np.isfinite(features).all():
            raise Unmeasurable(f"some features of the {name} images are not finite")
    generated = at_most(retain_features)
    return Score(precision_of(generated, at_most(reference_features)), len(generated))
