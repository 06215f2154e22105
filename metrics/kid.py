"""KID, the squared maximum mean discrepancy between features of generated and real images of the retained classes.

    KID = mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i,j} k(x_i, y_j),    k(a, b) = (a b / D + 1)^3

Binkowski et al. 2018, arXiv:1801.01401; kernel of torch-fidelity in float64. Unbiased at any n, so small sets are
comparable to large ones, and it may fall below zero. All pairs enter instead of the mean over random subsets of 1,000
that is customary for large sets: the same expectation, less noise, and no dependence on the order of the images. Of
more than 10,000 images on a side, a fixed random subset of 10,000 is used.

Blind to: the forget class, which it never sees; and to what the extractor does not encode. Samples come in equal
numbers per class, so pairs of one class are rarer among them than among independent draws: at small n that pulls a good
model's KID somewhat below zero.
"""

import numpy as np

from unlearnbench import Score, at_most, check_features, metric

ROWS = 1_000  # of a kernel matrix in memory at once


def mean_kernel(a, b, same=False):
    """Return the mean polynomial kernel over all pairs of rows, over all pairs i != j where `same`."""
    from torch_fidelity.metric_kid import kernel_poly

    total = 0.0
    for start in range(0, len(a), ROWS):
        kernel = kernel_poly(
            a[start : start + ROWS], b, kid_kernel_poly_degree=3, kid_kernel_poly_gamma=None, kid_kernel_poly_coef0=1
        )
        total += kernel.sum() - (np.trace(kernel, offset=start) if same else 0.0)
    return float(total / (len(a) * (len(b) - same)))


@metric(
    title="KID",
    unit="",
    better="lower",
    aspect="retention",
    format=".4f",
    source="arXiv:1801.01401, torch-fidelity",
)
def kid(retain_features, reference_features):
    for features, images in ((retain_features, "generated images"), (reference_features, "reference images")):
        check_features(features, images, 2, "make no pair: use at least 2")
    x, y = at_most(retain_features), at_most(reference_features)
    return Score(mean_kernel(x, x, same=True) + mean_kernel(y, y, same=True) - 2 * mean_kernel(x, y), len(x))
