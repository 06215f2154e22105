"""Guidance sweep: what is forgotten at the worst of several guidance weights.

    min over w of 100 mean [v not in F]    samples with (1 + w) eps(x, c_f) - w eps(x, null),  w = 0, 1, 2, 3, 5, 7

A user of the model chooses w. Unlearning that holds at the protocol's w may be undone by another: without guidance
(w = 0) only the conditional prediction is used, and a large w amplifies small traces of the class. Each
w has the same 50 initial noises; the record keeps every w. The judge is the one of Forgotten.

The minimum of six numbers is biased downwards, equally for the gold standard. The gold standard never saw the class, so
no w can show it: it is checked against 50 %.

Source: guidance is Ho & Salimans 2022 (arXiv:2207.12598); the sweep as an attack is this package's.

Blind to: guidance by anything but the null class, and w that change along the way.
"""

from unlearnbench import attacked, metric

WEIGHTS = (0, 1, 2, 3, 5, 7)


@metric(
    title="Guidance sweep",
    unit="%",
    better="higher",
    aspect="robustness",
    format=".1f",
    source="cf. arXiv:2207.12598",
    threshold=50.0,
    optional=True,
    groups=("attacks",),
)
def guidance_sweep(attacker):
    return attacked(attacker, {w: attacker.forgotten(attacker.model, guidance=float(w)) for w in WEIGHTS})
