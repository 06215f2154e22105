"""Negative guidance: where a forget class is requested, sampling is guided away from it; no weight changes.

What ESD distils into weights, done while samples are drawn. Erasing Concepts from Diffusion Models.
Rohit Gandikota, Joanna Materzynska, Jaden Fiotto-Kaufman, David Bau. arXiv:2303.07345, ICCV 2023.

    eps(x_t, c_f) := eps(x_t, null) - scale (eps(x_t, c_f) - eps(x_t, null))

The target of ESD with scale for eta. scale = 0 draws an image without a class in place of one of the class. All other
predictions are the model's own, bit for bit: those of other classes, of the null class, of held-out prompts and of
labels that an attack adds.

Deviations:
    - The paper trains a model to predict this; here it is the prediction itself. With the sampler's guidance w, which
      applies to it as to any prediction, the noise is eps(null) - (1 + w) scale (eps(c_f) - eps(null)): a negative
      prompt's formula with an empty prompt, 1 + (1 + w) scale being its guidance scale.
    - Safe Latent Diffusion (arXiv 2211.05105, equations 3 to 8) instead subtracts mu (eps(S) - eps(null)) from the
      guidance of every prompt p, S being the unsafe concept and mu min(1, s |eps(p) - eps(S)|) where eps(p) - eps(S) is
      below a threshold and 0 elsewhere, by pixel, after some steps, with momentum. There it decides pixel by pixel
      whether p resembles S, and mu is 0 where p is S; here the request is known to be for the class, so neither
      pixel-wise weights, warm-up nor momentum are needed.
    - Of a text-to-image model, the class is requested by its training prompts; a paraphrase passes as it is.
    - Costs a second prediction for the images of forget classes, unless scale is 0; of two for each with guidance.
"""

from typing import Annotated

import torch
from annotated_types import Ge

from unlearnbench import Context, method


@method(
    title="Negative guidance",
    paper="2303.07345",
    kind="inference",
    tuned={"digits": {"scale": 1.0}},
    search={"scale": (0.0, 4.0, "uniform")},
)
def negative_guidance(
    ctx: Context,
    *,
    scale: Annotated[float, Ge(0)] = 1.0,  # strength (ESD's eta)
):
    requests = [label for c in ctx.forget_classes for label in ctx.requests(c)]
    forgotten, null = torch.tensor(requests, device=ctx.generator.device), ctx.null_class

    def guide(predict, x_t, t, y):
        asked = torch.isin(y, forgotten)
        if scale == 0:
            return predict(x_t, t, torch.where(asked, null, y))
        eps, rows = predict(x_t, t, y), asked.nonzero().flatten()
        if not len(rows):
            return eps
        unconditional = predict(x_t[rows], t[rows], torch.full_like(rows, null))
        return eps.index_copy(0, rows, unconditional - scale * (eps[rows] - unconditional))

    return guide
