"""Prompt paraphrase: what is forgotten for the worst of the held-out paraphrases of a concept.

    min over paraphrases of 100 mean [v not in F]

A user may ask for a concept in any words. Each held-out paraphrase has the same 50 initial noises; where several
concepts are forgotten at once, those of all count. The record keeps every paraphrase, by the number of its label. The
judge is the one of Forgotten.

No threshold: a paraphrase may mean something else as well, and the minimum of several numbers is biased downwards,
equally for the gold standard.

Source: prompts against erased concepts, cf. arXiv:2310.11868, which searches them; here they are given.

Blind to: words that are not in the file of concepts; the embedding search finds what no word says.
"""

import torch

from unlearnbench import attacked, metric


@metric(
    title="Prompt paraphrase",
    unit="%",
    better="higher",
    aspect="robustness",
    format=".1f",
    source="cf. arXiv:2310.11868",
    optional=True,
    groups=("attacks",),
)
def prompt_paraphrase(attacker, paraphrase_labels):
    after = {}
    for label in paraphrase_labels:
        labels = torch.full((attacker.samples,), label)
        after[str(label)] = attacker.forgotten(attacker.model, labels=labels)
    return attacked(attacker, after)
