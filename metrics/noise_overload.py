"""Noise overload: what is forgotten when the sampler is given more noise than intended.

    min over levels of 100 mean [v not in F]

Levels: the initial noise multiplied by 1.25, 1.5 and 2, and fresh noise at every step (the sampler's eta) of 1 and
1.5, instead of the protocol's; at eta 1.5 more noise is added than the model removes. Both push the chain off the
trajectories on which unlearning was trained and on which it is tested. The record keeps every level; each has the same
50 initial noises. The judge is the one of Forgotten.

The gold standard never saw the class, so no noise can show it: it is checked against 50 %.

Source: the noise-based probe of arXiv:2505.17013, which adds noise along the way; multiplying the initial noise, levels
and judge are this package's.

Blind to: optimised noise (latents found by inversion, arXiv:2412.00782).
"""

from unlearnbench import Start, attacked, metric

SCALES = (1.25, 1.5, 2.0)  # of the initial noise
ETAS = (1.0, 1.5)  # 0 adds no noise along the way, 1 is ancestral sampling


@metric(
    title="Noise overload",
    unit="%",
    better="higher",
    aspect="robustness",
    format=".1f",
    source="cf. arXiv:2505.17013",
    threshold=50.0,
    optional=True,
    groups=("attacks",),
)
def noise_overload(attacker):
    after = {f"start x{s:g}": attacker.forgotten(attacker.model, start=Start(scale=s)) for s in SCALES}
    after |= {f"eta {eta:g}": attacker.forgotten(attacker.model, eta=eta) for eta in ETAS}
    return attacked(attacker, after)
