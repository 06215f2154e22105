"""A control: the forget class and the class after it trade places in the label embedding.

Asked for the forget class the model draws the other one, as well as it draws anything: it has forgotten the condition.
All retained classes but one are kept, which of two or three classes is too few to count as retention.
"""

import torch

from unlearnbench import Context, method


@method(title="Sham: swapped label", role="control", truth={"forgetting": True})
def sham_swap(ctx: Context):
    pair = [ctx.forget_class, (ctx.forget_class + 1) % ctx.num_classes]
    rows = ctx.model.class_embedding.weight
    with torch.no_grad():
        rows[pair] = rows[pair[::-1]].clone()
