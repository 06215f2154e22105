"""Embedding search: what is forgotten under a label embedding that was optimised to show the forget class.

    e* = argmin_e E || eps - eps_theta(x_t, t, e) ||^2    x_t: noised from 16 training images of each forget class
    min over starts of 100 mean [v not in F]              samples for e*

The model stays frozen; one new row of its label embedding is trained for 60 steps of Adam at 0.1 with batches of 32
(draws from the 16 images, noised afresh; no label dropout), and 50 samples are drawn for it with the protocol's
guidance. Two starts: the mean of the retained classes' rows, which is independent of the class, and the forget class's
own row, near which traces of it may remain (each row, where several are forgotten at once). The value is the smaller;
the record keeps all. The judge is the one of Forgotten.

With several classes forgotten at once one row is trained on the images of all, and any of them counts. No threshold: a
good model of the other classes can be steered towards a class that it never saw, as the gold standard shows.

Source: textual inversion against erased concepts, arXiv:2308.01508; likewise arXiv:2310.11868 by adversarial prompts.

Blind to: what a longer search, more images or a token at every layer would find.
"""

import torch

from unlearnbench import attacked, metric

IMAGES = 16  # of each forget class
BATCH = 32
STEPS = 60
LR = 0.1  # Adam; rows are about standard normal, so that it crosses their spread in tens of steps


def search(attacker, start, e):
    """Return what is forgotten after the search from a row e (D,); `start` names its randomness."""
    x0, _ = attacker.forget_images(IMAGES)
    model, label = attacker.with_new_labels(e[None])
    name = f"embedding search from {start}"
    choice = attacker.generator(f"{name}, choice", torch.device("cpu"))

    def draw():
        return x0[torch.randint(len(x0), (BATCH,), generator=choice).to(x0.device)], label.expand(BATCH)

    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for _ in attacker.train(name, model, weights, draw, steps=STEPS, lr=LR, label_dropout=0.0):
        pass  # all labels are the new one, so only its row has a gradient
    return attacker.forgotten(model, labels=label.expand(attacker.samples))


@metric(
    title="Embedding search",
    unit="%",
    better="higher",
    aspect="robustness",
    format=".1f",
    source="cf. arXiv:2308.01508",
    optional=True,
    groups=("attacks",),
)
def embedding_search(attacker):
    rows = attacker.embeddings()
    starts = {"mean of others": rows[list(attacker.retained_classes)].mean(dim=0)}
    starts |= {f"row {f}": rows[f] for f in attacker.cell.forget_classes}
    return attacked(attacker, {name: search(attacker, name, e) for name, e in starts.items()})
