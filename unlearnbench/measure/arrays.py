"""Shared by metrics of feature arrays: a fixed subset of rows, and a check of the input."""

import numpy as np
from numpy.typing import NDArray

from unlearnbench.errors import Unmeasurable

__all__ = ["at_most", "check_features"]

MOST = 10_000  # images on a side of a metric whose time or memory grows with pairs of images


def at_most(features: NDArray[np.float64], most: int = MOST) -> NDArray[np.float64]:
    """Return all rows, or a fixed random choice of `most` of them."""
    if len(features) <= most:
        return features
    return features[np.random.default_rng(0).choice(len(features), most, replace=False)]


def check_features(features: NDArray[np.float64], images: str, least: int = 1, fewer: str = "") -> None:
    """Raise Unmeasurable unless there are enough images and all of their features are finite.

    Args:
        features: (n, D).
        images: the images in words, such as "generated images".
        least: number of images needed.
        fewer: predicate of the message for fewer images, such as "make no pair: use at least 2".
    """
    if len(features) < least:
        raise Unmeasurable(f"{len(features)} {images} {fewer}" if fewer else f"there are no {images}")
    if not np.isfinite(features).all():
        raise Unmeasurable(f"some features of the {images} are not finite")
