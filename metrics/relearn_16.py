"""Relearning from 16 images: what is still forgotten after a short fine-tuning on 16 images of the forget class.

    100 mean [v not in F]    v: verdicts on samples of the fine-tuned model, F: the forget classes

80 steps of Adam at 2e-4 on L_eps per pixel, all weights, label dropout 0.1, gradient norm 1. A batch is 16 draws from
the 16 images of each forget class (chosen by dataset and seed alone), noised afresh, and 16 retained images, so that
the rest of the model stays whole: an attacker wants the class *and* the model. The value is the last point of a curve
over 0, 5, 10, 20, 40 and 80 steps, 50 samples a point. The record keeps the curve, `steps_until_back`, the first of
these steps at which less than 50 % is forgotten, and `area`, the normalised area under the curve: 100 if nothing ever
comes back. The judge is the one of Forgotten.

A model that never saw the class learns it from these images too, so the number means nothing alone: what the gold
standard relearns in the same steps is the images' doing, and only what a method relearns beyond it was still there.

Source: the fine-tuning probes of concept erasure, arXiv:2505.16174; schedule and judge are this suite's.

Blind to: slower recovery than 80 steps (as many as a cheap method takes, no more), other step sizes, adapters in place
of all weights. The images are the same for every method, but others could teach more or less.
"""

from unlearnbench import metric, relearning_curve


@metric(
    title="Relearn 16 images",
    unit="%",
    better="higher",
    shows="robustness",
    format=".1f",
    source="cf. arXiv:2505.16174",
    optional=True,
    groups=("attacks",),
)
def relearn_16(attacker):
    return relearning_curve(attacker, images=16)
