"""Equal retention: what is forgotten once each model retains the same.

    100 mean [v not in F]    samples for the forget classes F of the model (1 - a) theta_0 + a theta_u at the largest
                             a with 100 mean [v = c] >= 0.95 R_0 on the retained classes; v: verdicts

A method that forgets more because it destroys more is hard to compare with a gentle one. So every unlearned model
theta_u is moved back towards the base model theta_0 until it retains 95 % of the base's own share R_0 of retained-class
samples that show their class, and the models there are compared. The level depends on base model, classes and seed
alone, so it is the same for all methods. A model that holds it is not moved (a = 1).

Of a = 0, 0.25, 0.5, 0.75 and 1 the largest that holds the level is taken, whether or not smaller ones do, so a dip on
the way counts for nothing; below 1, the next quarter is halved three times, towards a model that holds the level. The
value is that of a model that was sampled, at most 1/32 below the crossing, and nothing is interpolated between shares.
The record keeps every point of the curve. Each has the same 50 forget-class samples and about 100 of the retained
classes, from the initial noise of the cell's own (not more than a cell has). The judge is the one of Forgotten.

The controls on digits: 0 for the original and for a small random update; 0 for random weights, although they
"forget" all, since a model that retains something is close to the base; most for a swapped label, which costs a single
retained class. So there is no threshold, and `validate` counts the random weights against it. Controls without weights
(noise, constant) have no value, nor have models with hooks, a forward of their own or another network.

Source: calibration by model mixing, arXiv:2406.09179 (language models), which also asks for the a that restores
retention; level, search, judge and samples are this package's.

Blind to: paths other than the straight one. A model trained anew lies in another basin, with a barrier between: if it
holds the level itself it is not moved, but if it just misses it, a falls to nearly 0 although a slightly better
training would score 100. On digits this barrier stands before `retrain` and before SAFEMax, which both retain nothing
halfway and hold the level at the end: read the value with the curve. Retention that verdicts do not show, such as
variety, is not equal. The level is found with about 100 samples, whose chance (a standard error of about 2 points)
moves a; the value's interval is that of its own 50 samples. A moved model is not the one in use: the value says how
well a method separates the class from the others, Forgotten and Retained what it delivers.
"""

from unlearnbench import Score, metric

KEPT = 0.95  # of the base model's retained share
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)  # values of a
HALVINGS = 3  # of the quarter in which the level is crossed


@metric(
    title="At equal retention",
    unit="%",
    better="higher",
    aspect="forgetting",
    format=".1f",
    source="cf. arXiv:2406.09179",
    optional=True,
    groups=("equal",),
)
def equal_retention(path):
    curve = {a: path.at(a) for a in QUARTERS}
    level = KEPT * curve[0.0].retained
    at = max(a for a in curve if curve[a].retained >= level)
    above = min(a for a in (*QUARTERS, 2.0) if a > at)  # does not hold the level, or is out of reach
    for _ in range(HALVINGS if at < 1 else 0):
        middle = (at + above) / 2
        curve[middle] = path.at(middle)
        at, above = (middle, above) if curve[middle].retained >= level else (at, middle)
    points = [curve[a] for a in sorted(curve)]
    detail = {
        "a": [point.a for point in points],
        "forget": [point.forgotten for point in points],
        "retain": [point.retained for point in points],
        "at": at,
        "level": level,
        "n_retain": len(path.retain_labels),
    }
    return Score(curve[at].forgotten, len(path.forget_labels), detail)
