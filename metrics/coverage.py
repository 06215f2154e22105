"""Coverage: the share of real images of the retained classes with a generated one in their neighbourhood; diversity.

    mean over real x of [|y - x| < r_k(x) for some generated y]    r_k(x): distance of x to its k-th nearest real image

Naeem et al. 2020, arXiv:2002.09797, with k = 5, open balls around real images as in the authors' code; computed here
in float64. From 0 to 1. More than 10,000 images on a side give way to a fixed random choice of 10,000. It grows with
the number of generated images, so compare at equal n only. n is the number of real images it is a share of.

Blind to: fidelity. Bad images beside enough good ones cost nothing; `density` sees them.
"""

import numpy as np

from unlearnbench import Score, Unmeasurable, metric

K = 5
MOST = 10_000  # images per side
ROWS = 1_000  # of a distance matrix in memory at once
INSIDE = 1 - 1e-6  # of a radius, so that rounding brings no copy of the k-th neighbour into the open ball


def at_most(features, most=MOST):
    """Return all rows, or a fixed random choice of `most` of them."""
    if len(features) <= most:
        return features
    return features[np.random.default_rng(0).choice(len(features), most, replace=False)]


def coverage_of(generated, real):
    """Return the coverage of two feature arrays (n, D), float64."""
    import torch

    generated, real = torch.from_numpy(generated), torch.from_numpy(real)
    covered = 0
    for some in real.split(ROWS):
        radii = torch.cdist(some, real).kthvalue(K + 1).values  # the first is itself
        covered += int((torch.cdist(some, generated).amin(dim=1) < radii * INSIDE).sum())
    return covered / len(real)


@metric(
    title="Coverage", unit="", better="higher", shows="retention", format=".3f", source="arXiv:2002.09797",
    range=(0, 1),
)  # fmt: skip
def coverage(retain_features, reference_features):
    if len(reference_features) <= K:
        n = len(reference_features)
        raise Unmeasurable(f"{n} reference images have no {K} neighbours each: use more than {K}")
    for name, features in (("generated", retain_features), ("reference", reference_features)):
        if not np.isfinite(features).all():
            raise Unmeasurable(f"some features of the {name} images are not finite")
    real = at_most(reference_features)
    return Score(coverage_of(at_most(retain_features), real), len(real))
