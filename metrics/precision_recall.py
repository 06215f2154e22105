"""Precision and recall: the share of generated images that look real, and the share of real images that are covered.

    precision  mean over generated y of [|y - x| <= r_3(x) for some real x]       fidelity
    recall     mean over real x of [|x - y| <= r_3(y) for some generated y]       diversity

r_3 is the distance of an image to its 3rd nearest in its set (real or generated); all images are of retained classes.
Kynkäänniemi et al. 2019, arXiv:1904.06991, eq. 2, with k = 3; arithmetic of torch-fidelity (generated first, real
second) in float64. From 0 to 1. Of more than 10,000 images on a side, a fixed random subset of 10,000 is used. Both
depend on both numbers of images (fewer generated images have wider balls), so compare at equal n only. n is the number
of images that the share is of: generated ones for precision, real ones for recall.

Blind to: diversity (precision: a single good image repeated scores 1) and fidelity (recall: generated images scattered
wide, noise among them, have balls that reach far). One outlier among the real images has a ball so wide that bad images
may lie inside. `density` and `coverage`, whose balls are all around real images and are counted, are made against this.
"""

from unlearnbench import Score, at_most, check_features, metric

K = 3
ROWS = 1_000  # of a distance matrix in memory at once
COMMON = {
    "unit": "",
    "range": (0, 1),
    "better": "higher",
    "aspect": "retention",
    "format": ".3f",
    "source": "arXiv:1904.06991, torch-fidelity",
}


def precision_and_recall(generated, real):
    """Return precision and recall of two feature arrays (n, D), float64."""
    import torch
    from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

    found = prc_features_to_metric(
        torch.from_numpy(generated), torch.from_numpy(real), prc_neighborhood=K, prc_batch_size=ROWS, save_cpu_ram=True,
        verbose=False,
    )  # fmt: skip
    return float(found[KEY_METRIC_PRECISION]), float(found[KEY_METRIC_RECALL])


def chosen(generated, real):
    """Return the images of either side that enter.

    Raises:
        Unmeasurable: there are too few, or their features are not finite.
    """
    for features, images in ((generated, "generated images"), (real, "reference images")):
        check_features(features, images, K + 1, f"have no {K} neighbours each: use more than {K}")
    return at_most(generated), at_most(real)


@metric(title="Precision", **COMMON)
def precision(retain_features, reference_features):
    generated, real = chosen(retain_features, reference_features)
    return Score(precision_and_recall(generated, real)[0], len(generated))


@metric(title="Recall", **COMMON)
def recall(retain_features, reference_features):
    generated, real = chosen(retain_features, reference_features)
    return Score(precision_and_recall(generated, real)[1], len(real))
