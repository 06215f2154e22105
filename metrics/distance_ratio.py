"""Distance ratio: whether forget-class samples lie nearer to the forget class or to the retained ones.

    median over samples y of  min_{x in F} |y - x| / min_{x in R} |y - x|

F: real images of the forget class; R: real images of the retained classes, all together. No judge is involved. Above 1
the samples are nearer to the rest than to the forget class, below 1 the other way round. The larger of two sets is
nearer to anything, even noise, only because of its size; so a fixed random subset of the larger set, as large as the
smaller one, is used, and noise scores about 1. The single nearest image counts, not the k-th: R holds few images of
each class, and the k-th would often be one of a wrong class. The median is robust to single outliers.

Blind to: whether the samples are images at all, since noise is equally far from everything and scores about 1;
`no_object` detects that.
Values other than 1 depend on the extractor and the number of images, so compare within one dataset only.
"""

import numpy as np

from unlearnbench import Score, Unmeasurable, at_most, check_features, metric


def nearest(samples, real):
    """Return the distance (n,) of each sample to the nearest real image; exactly 0 for a copy."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(real)
    return np.linalg.norm(samples - real[search.kneighbors(samples, return_distance=False)[:, 0]], axis=1)


def ratios(samples, forget, retained):
    """Return the ratio (n,) of each sample: 1 where both distances are 0, infinite where the second alone is."""
    size = min(len(forget), len(retained))
    to_forget, to_retained = (nearest(samples, at_most(real, size)) for real in (forget, retained))
    result = np.where(to_forget > 0, np.inf, 1.0)
    np.divide(to_forget, to_retained, out=result, where=to_retained > 0)
    return result


@metric(title="Distance ratio", unit="", better="higher", aspect="forgetting", format=".2f", range=(0, None))
def distance_ratio(forget_features, forget_reference_features, reference_features):
    check_features(forget_features, "generated images")
    check_features(forget_reference_features, "real images of the forget class")
    check_features(reference_features, "real images of the retained classes")
    middle = np.median(ratios(forget_features, forget_reference_features, reference_features))
    if not np.isfinite(middle):
        raise Unmeasurable("half of the samples or more are copies of real images of the retained classes")
    return Score(float(middle), len(forget_features))
