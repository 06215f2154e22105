"""A control: a small random step, which changes every weight and forgets nothing.

theta <- theta + scale std(theta) n,  n ~ N(0, I),  tensor by tensor
"""

from typing import Annotated

import torch
from annotated_types import Gt

from unlearnbench import Context, method


@method(title="Sham: small update", role="control", truth={"forgetting": False, "retention": True})
def sham_update(
    ctx: Context,
    *,
    scale: Annotated[float, Gt(0)] = 0.01,  # of a tensor's own standard deviation
):
    with torch.no_grad():
        for weights in ctx.model.parameters():
            noise = torch.randn(weights.shape, generator=ctx.generator, device=weights.device)
            weights += scale * weights.std(correction=0) * noise
