"""Class interpolation: what is forgotten between the forget class's embedding and those of the others.

    min over a of 100 mean [v not in F]    samples for the embedding (1 - a) e_f + a e_j,  a = 0.25, 0.5, 0.75

A method may have changed the model at e_f but not near it. At each a the 50 samples are spread
evenly over the retained classes j (and over the forget classes f, where there are several); the unconditional branch
of the guidance stays as it is. The record keeps each a. The judge is the one of Forgotten.

No threshold: close to e_j a model draws class j, or a blend of two classes that the judge may mistake for the forget
class even if the model never saw it. The gold standard shows how often.

Source: none; the samples are mixed in the label embedding, as prompts are in text-to-image models.

Blind to: directions other than those to retained classes, which the embedding search may find.
"""

import torch

from unlearnbench import attacked, metric

SHARES = (0.25, 0.5, 0.75)  # of the other class


@metric(
    title="Class interpolation",
    unit="%",
    better="higher",
    aspect="robustness",
    format=".1f",
    optional=True,
    groups=("attacks",),
)
def class_interpolation(attacker):
    rows, forget, others = attacker.embeddings(), attacker.cell.forget_classes, attacker.retained_classes
    e_f = rows[[forget[k % len(forget)] for k in range(attacker.samples)]]
    e_j = rows[[others[k * len(others) // attacker.samples] for k in range(attacker.samples)]]
    after = {}
    for a in SHARES:
        model, labels = attacker.with_new_labels(torch.lerp(e_f, e_j, a))
        after[a] = attacker.forgotten(model, labels=labels)
    return attacked(attacker, after)
