"""Density and coverage: generated images in the neighbourhoods of real ones, of retained classes or the forget class.

    density   1/(k M) sum over generated y, real x of [|y - x| < r_k(x)]       fidelity
    coverage  mean over real x of [|y - x| < r_k(x) for some generated y]      diversity

r_k(x) is the distance of x to its k-th nearest real image, M the number of generated images. Naeem et al. 2020,
arXiv:2002.09797, with k = 5, open balls around real images as in the authors' code; computed here in float64.

`density` and `coverage` are of the retained classes. Density is about 1 for other images of the real kind and 1 for the
real images themselves, 0 for images far from all, above 1 where the images cluster among the real ones.
Coverage is from 0 to 1 and grows with the number of generated images, so compare it at equal n only; its n is the
number of real images it is a share of. Of more than 10,000 images on a side, a fixed random subset of 10,000 is used.

`forget_density` is the density of forget-class samples among the real images of the forget class, all of them: whether
they still lie in the class's region. No judge is involved. About 1 for other images of the class, 0 when no sample lies
in its region; a model that draws the class's most typical images only may exceed 1.

Blind to: diversity (density: a single typical image repeated scores high) and fidelity (coverage: bad images do
not matter besides enough good ones), so read the two together. Forget density does not distinguish noise from
another class, and misses images of the class that the extractor puts elsewhere, such as the same objects in
unusual colours; near a class that overlaps the forget class it is not quite 0.
"""

from unlearnbench import Score, at_most, check_features, metric

K = 5
ROWS = 1_000  # of a distance matrix in memory at once
INSIDE = 1 - 1e-6  # of a radius, so that rounding brings no copy of the k-th neighbour into the open ball
COMMON = {"unit": "", "format": ".3f", "source": "arXiv:2002.09797"}


def radii(real):
    """Return the radius (n,) of the neighbourhood of each of the real images, features (n, D), float64."""
    import torch

    distances = [torch.cdist(some, real).kthvalue(K + 1).values for some in real.split(ROWS)]  # the first is itself
    return torch.cat(distances) * INSIDE


def density_of(generated, real):
    """Return the density of two feature arrays (n, D), float64."""
    import torch

    generated, real = torch.from_numpy(generated), torch.from_numpy(real)
    r = radii(real)
    inside = sum(int((torch.cdist(some, real) < r).sum()) for some in generated.split(ROWS))
    return inside / (K * len(generated))


def coverage_of(generated, real):
    """Return the coverage of two feature arrays (n, D), float64."""
    import torch

    generated, real = torch.from_numpy(generated), torch.from_numpy(real)
    parts = zip(real.split(ROWS), radii(real).split(ROWS), strict=True)
    return sum(int((torch.cdist(some, generated).amin(dim=1) < r).sum()) for some, r in parts) / len(real)


def check(generated, real, names=("generated images", "reference images")):
    """Raise Unmeasurable unless the real images have neighbours and all features are finite."""
    check_features(real, names[1], K + 1, f"have no {K} neighbours each: use more than {K}")
    check_features(generated, names[0])


@metric(title="Density", better="higher", aspect="retention", range=(0, None), **COMMON)
def density(retain_features, reference_features):
    check(retain_features, reference_features)
    generated = at_most(retain_features)
    return Score(density_of(generated, at_most(reference_features)), len(generated))


@metric(title="Coverage", better="higher", aspect="retention", range=(0, 1), **COMMON)
def coverage(retain_features, reference_features):
    check(retain_features, reference_features)
    real = at_most(reference_features)
    return Score(coverage_of(at_most(retain_features), real), len(real))


@metric(title="Forget density", better="lower", aspect="forgetting", range=(0, None), **COMMON)
def forget_density(forget_features, forget_reference_features):
    names = ("generated images of the forget class", "real images of the forget class")
    check(forget_features, forget_reference_features, names)
    return Score(density_of(forget_features, forget_reference_features), len(forget_features))
