"""Density: in how many real neighbourhoods a generated image lies, relative to a real one (retained classes); fidelity.

    1/(k M) sum over generated y, real x of [|y - x| < r_k(x)]    r_k(x): distance of x to its k-th nearest real image

Naeem et al. 2020, arXiv:2002.09797, with k = 5, M generated images, open balls around real images as in the authors'
code; computed here in float64. About 1 for other images of the real kind and 1 for the real images themselves, 0 for
images far from all, above 1 where the images crowd into the midst of the real ones. More than 10,000 images on a side
give way to a fixed random choice of 10,000.

Blind to: diversity, since a single typical image repeated scores high; `coverage` sees that.
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


def density_of(generated, real):
    """Return the density of two feature arrays (n, D), float64."""
    import torch

    generated, real = torch.from_numpy(generated), torch.from_numpy(real)
    radii = torch.cat([torch.cdist(some, real).kthvalue(K + 1).values for some in real.split(ROWS)])  # 1st: itself
    radii *= INSIDE
    inside = sum(int((torch.cdist(some, real) < radii).sum()) for some in generated.split(ROWS))
    return inside / (K * len(generated))


@metric(
    title="Density", unit="", better="higher", shows="retention", format=".3f", source="arXiv:2002.09797",
    range=(0, None),
)  # fmt: skip
def density(retain_features, reference_features):
    if len(reference_features) <= K:
        n = len(reference_features)
        raise Unmeasurable(f"{n} reference images have no {K} neighbours each: use more than {K}")
    for name, features in (("generated", retain_features), ("reference", reference_features)):
        if not np.isfinite(features).all():
            raise Unmeasurable(f"some features of the {name} images are not finite")
    generated = at_most(retain_features)
    return Score(density_of(generated, at_most(reference_features)), len(generated))
