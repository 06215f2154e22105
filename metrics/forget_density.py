"""Forget density: how far forget-class samples still lie where the real images of the forget class are.

    1/(k n) sum over samples y, real images x of the forget class of [|y - x| < r_k(x)]

r_k(x) is the distance of x to its k-th nearest real image of the class, k = 5: the density of Naeem et al. 2020,
arXiv:2002.09797, within one class. No judge has a say. About 1 for other images of the class, 0 when no sample lies
where the class is; a model that draws the class's most typical images only may exceed 1. All images enter.

Blind to: where the samples went, noise and another class alike; and to images of the class that the extractor puts
elsewhere, such as the same objects in unusual colours. Near a class that overlaps the forget class it is not quite 0.
"""

import numpy as np

from unlearnbench import Score, Unmeasurable, metric

K = 5
ROWS = 1_000  # of a distance matrix in memory at once
INSIDE = 1 - 1e-6  # of a radius, so that rounding brings no copy of the k-th neighbour into the open ball


def density_of(generated, real):
    """Return the density of two feature arrays (n, D), float64."""
    import torch

    generated, real = torch.from_numpy(generated), torch.from_numpy(real)
    radii = torch.cat([torch.cdist(some, real).kthvalue(K + 1).values for some in real.split(ROWS)])  # 1st: itself
    radii *= INSIDE
    inside = sum(int((torch.cdist(some, real) < radii).sum()) for some in generated.split(ROWS))
    return inside / (K * len(generated))


@metric(
    title="Forget density", unit="", better="lower", shows="forgetting", format=".3f", source="arXiv:2002.09797",
    range=(0, None),
)  # fmt: skip
def forget_density(forget_features, forget_reference_features):
    if len(forget_reference_features) <= K:
        n = len(forget_reference_features)
        raise Unmeasurable(f"{n} real images of the forget class have no {K} neighbours each: use more than {K}")
    for name, features in (("generated", forget_features), ("real", forget_reference_features)):
        if not np.isfinite(features).all():
            raise Unmeasurable(f"some features of the {name} images of the forget class are not finite")
    return Score(density_of(forget_features, forget_reference_features), len(forget_features))
