"""What came instead: the shares of forget-class samples that became noise, or a blank image.

    instead_noise  100 mean [v = no object, q >= 0.05, |I| < 0.3 and k < 6]
    instead_blank  100 mean [v = no object, q < 0.05]

v is the verdict of Forgotten's judge. Of an image without an object, q is the share of pixels that are 26 grey levels
(a tenth of all) or more from the median of their channel; with z, the grey levels less the mean of their channel,

    I = mean of z_i z_j over pairs of pixels side by side or one above the other / mean of z^2
    k = mean of z^4 / (mean of z^2)^2

over all channels. I is Moran's I (Biometrika 37, 1950), the autocorrelation of neighbours. White noise of N pixels has
mean -1 / (N - 1) and a standard deviation of 0.09 at 8x8 and of 0.02 at 32x32 (Cliff and Ord, Spatial Processes, 1981),
so 0.3 is beyond what chance gives at either size; most digits have more, even of 8x8 pixels. The kurtosis k is 3 for
Gaussian noise, less for noise that is clipped or of two levels, and more for a few pixels on a plain ground. A blank
image may have a trace of noise, or a speck.

The detail counts all that the samples became, and the table of what came instead reads it: still the class, another
class, noise, blank, and unrecognised, the rest without an object. These are all samples.
Papers aim at different ones: SAFEMax (arXiv:2508.20773) and SA (arXiv:2305.10120) at noise, SalUn (arXiv:2310.12508) at
an image of another class, and UOT-Unlearn (arXiv:2603.16489) counts noise as a failure. So neither way is better.

In percent of images of digits, if the judge rejects them all (n = 1,437 of each, blends fewer):

    images               noise   blank   unrecognised
    real digits            0.2     0.0           99.8
    Gaussian noise        98.8     0.0            1.2
    two-level noise       88.3     0.5           11.2
    shuffled pixels      100.0     0.0            0.0
    blank                  1.2    98.8            0.0
    smooth noise           0.0     0.0          100.0
    blends                 0.0     0.0          100.0
    shuffled patches      46.8     0.0           53.2

Blind to: noise whose neighbours are alike, such as smooth noise, or what a decoder makes of noise in a latent space,
and noise in which fewer than one pixel in eight differs from the ground: both count as unrecognised. At 8x8 a shuffled
patch has 2x2 pixels, which this cannot tell from noise. Unrecognised is whatever else the judge rejects, from fragments
to a good image of something that it never saw.
"""

import numpy as np

from unlearnbench import NO_OBJECT, Score, metric

COMMON = {"unit": "%", "better": "neither", "aspect": "forgetting", "format": ".1f"}
ALIKE = 26  # grey levels from its channel's median up to which a pixel is alike
RARE = 0.05  # the share of other pixels that a blank image may have
ALONE = 0.3  # the greatest autocorrelation of noise
PEAKED = 6  # its greatest kurtosis
VALUES = 4_000_000  # of pixels in memory at once


def centred(images):
    """Return images (n, C, H, W) less the mean of each of their channels."""
    return images - images.mean(axis=(2, 3), keepdims=True)


def mean(values):
    """Return the mean over all values of each image (n, ...)."""
    return values.reshape(len(values), -1).mean(axis=1)


def ratio(values, squares):
    """Return values over squares, both (n,); 0 for constant images, whose squares are 0."""
    return np.divide(values, squares, out=np.zeros_like(squares), where=squares > 0)


def far(images):
    """Return the share of pixels that are not alike their channel's median, of each of the images (n, C, H, W)."""
    return mean(np.abs(images - np.median(images, axis=(2, 3), keepdims=True)) >= ALIKE)


def autocorrelation(images):
    """Return Moran's I of images (n, C, H, W) over vertical and horizontal neighbours; 0 for a constant image."""
    z = centred(images)
    pairs = [z[:, :, 1:] * z[:, :, :-1], z[..., 1:] * z[..., :-1]]
    products = np.concatenate([pair.reshape(len(z), -1) for pair in pairs], axis=1)
    return ratio(mean(products), mean(z * z))


def kurtosis(images):
    """Return the kurtosis of the pixels of images (n, C, H, W), 3 where they are Gaussian; 0 for a constant image."""
    squares = centred(images) ** 2
    return ratio(mean(squares * squares), mean(squares) ** 2)


def kinds(images):
    """Return "blank", "noise" or "unrecognised" for each image without an object, (n, C, H, W) uint8."""
    size = max(1, VALUES // max(1, int(np.prod(images.shape[1:]))))
    found = [np.empty(0, dtype="<U12")]
    for part in (images[start : start + size].astype(np.float64) for start in range(0, len(images), size)):
        noise = (np.abs(autocorrelation(part)) < ALONE) & (kurtosis(part) < PEAKED)
        found.append(np.where(far(part) < RARE, "blank", np.where(noise, "noise", "unrecognised")))
    return np.concatenate(found)


def score(part, samples, verdicts, cell):
    """Return the share of a part of the samples (n, C, H, W), with the counts of all parts."""
    became = np.where(verdicts == cell.forget_class, "class", "other").astype("<U12")
    became[verdicts == NO_OBJECT] = kinds(samples[verdicts == NO_OBJECT])
    counts = {name: int((became == name).sum()) for name in ("class", "other", "noise", "blank", "unrecognised")}
    return Score(100 * counts[part] / len(verdicts), len(verdicts), {"instead": counts})


@metric(title="Noise", source="cf. Moran 1950", **COMMON)
def instead_noise(forget_samples, forget_verdicts, cell):
    return score("noise", forget_samples, forget_verdicts, cell)


@metric(title="Blank", **COMMON)
def instead_blank(forget_samples, forget_verdicts, cell):
    return score("blank", forget_samples, forget_verdicts, cell)
