"""FID infinity: the FID of the retained classes extrapolated to infinitely many generated images.

    FID_n = FID_inf + a / n,    FID_inf the intercept of a least-squares line in 1/n

Chong & Forsyth 2020, arXiv:1911.07023, with 15 sizes n evenly spaced from half of the generated images to all of them;
each FID is of a random choice without replacement with a fixed seed, arithmetic of torch-fidelity in float64. The bias
of FID at small n depends on the model, so it can reverse an order; this removes most of it. The detail has the
points of the line. Subsets depend on the order of images. Since fifteen FIDs are slow, it is computed only
when named.

Blind to: the forget class; and the bias from the finite number of real images stays. An extrapolation is noisier than
FID itself and may fall below zero.
"""

import numpy as np

from unlearnbench import Score, check_features, metric

POINTS = 15


def fid_at_sizes(generated, real):
    """Return 15 sizes from half to all generated features (n, D), float64, and the FID at each."""
    import torch
    from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

    random = np.random.default_rng(0)
    target = fid_features_to_statistics(torch.from_numpy(real))
    sizes = [int(n) for n in np.linspace(len(generated) // 2, len(generated), POINTS).round()]
    values = []
    for n in sizes:
        chosen = generated[random.choice(len(generated), n, replace=False)]
        statistics = fid_features_to_statistics(torch.from_numpy(chosen))
        values.append(float(fid_statistics_to_metric(statistics, target, verbose=False)[KEY_METRIC_FID]))
    return sizes, values


def intercept(sizes, values):
    """Return the value at 1/n = 0 of the least-squares line of values in 1/n."""
    return float(np.polynomial.polynomial.polyfit(1 / np.array(sizes), values, 1)[0])


@metric(
    title="FID inf",
    unit="",
    better="lower",
    aspect="retention",
    format=".2f",
    source="arXiv:1911.07023, torch-fidelity",
    optional=True,
)
def fid_infinity(retain_features, reference_features):
    dimensions = retain_features.shape[1]
    for features, images, least in (
        (retain_features, "generated images", 2 * (dimensions + 1)),
        (reference_features, "reference images", dimensions + 1),
    ):
        check_features(features, images, least, f"are too few for {dimensions} features: use {least}")
    sizes, values = fid_at_sizes(retain_features, reference_features)
    return Score(intercept(sizes, values), len(retain_features), {"sizes": sizes, "fid": values})
