"""A control: the forget class and the next class swap their rows of the label embedding (prompts: their embeddings).

For the forget class the model draws the other class, at its usual quality: it has forgotten the condition. All
retained classes but one are kept, so retention is not checked: with two or three classes it fails.
"""

import torch

from unlearnbench import Context, method


@method(title="Sham: swapped label", role="control", truth={"forgetting": True})
def sham_swap(ctx: Context):
    pair = [ctx.model.rows(c) for c in (ctx.forget_class, (ctx.forget_class + 1) % ctx.num_classes)]
    with torch.no_grad():
        for rows in ctx.model.tables():
            before = rows.clone()
            for mine, other in (pair, pair[::-1]):
                rows[mine] = before[[other[k % len(other)] for k in range(len(mine))]]
