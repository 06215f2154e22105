"""UCE: unified concept editing, a closed-form edit of the cross-attention of a text-to-image model.

Unified Concept Editing in Diffusion Models.
Rohit Gandikota, Hadas Orgad, Yonatan Belinkov, Joanna Materzyńska, David Bau. arXiv:2308.14761, WACV 2024.

    W = (lamb W0 + sum_e erase_scale W0 c_g c_e^T + sum_p preserve_scale W0 c_p c_p^T)
        (lamb I + sum_e erase_scale c_e c_e^T + sum_p preserve_scale c_p c_p^T)^-1

for the keys and values of every cross-attention. c are embeddings of the last token of a concept's bare name: c_e of a
forgotten concept, c_g of its guide (here: its anchor), c_p of a preserved one. W minimises the sum of lamb ||W - W0||^2
and, weighted by the scales, ||W c_e - W0 c_g||^2 and ||W c_p - W0 c_p||^2. No image, no noise, no optimiser step: a
step is a layer, and its logged `change` is ||W - W0|| / ||W0||.

Deviations:
    - "Code" is rohitgandikota/unified-concept-editing at 28c81ed, `trainscripts/uce_sd_erase.py`. (The script of the
      paper's time, removed in 4502388, moves the padding's tokens along with the last one, and preserves all tokens of
      the empty prompt and of n given ones with a scale of max(0.1, 1 / (1 + n)).)
    - The guide is the concept's anchor (code: `--guide_concepts`; without it the empty prompt for objects, "art" for
      artists).
    - All retained concepts are preserved (code: those of `--preserve_concepts`; without it none, `preserve=false`).
    - Bare names only (code: `--expand_prompts true` edits five prompts around each name as well; off there too).
    - Computed in float64 on the CPU, as one matrix for all layers, W = W0 M: the same numbers but for rounding (code:
      layer by layer in float32, with an explicit inverse).
    - W0 c_g leaves out a projection's bias (code: the layer's output; Stable Diffusion has no bias there).
    - Assumed: the start is the base model that the harness evaluates.
"""

from typing import Annotated

import torch
from annotated_types import Ge, Gt

from unlearnbench import Context, method


@method(
    title="UCE",
    paper="2308.14761",
    requires=("prompts",),
    tuned={"digits": {"lamb": 0.1}},
    search={
        "lamb": (0.01, 10.0),
        "erase_scale": (0.1, 10.0),
        "preserve_scale": (0.1, 10.0),
    },
)
def uce(
    ctx: Context,
    *,
    lamb: Annotated[float, Gt(0)] = 0.5,  # lambda, weight of staying at W0 (code)
    erase_scale: Annotated[float, Ge(0)] = 1.0,  # weight of each forgotten concept (code)
    preserve_scale: Annotated[float, Ge(0)] = 1.0,  # weight of each preserved concept (code)
    preserve: bool = True,  # whether the retained concepts are preserved (README's commands; code: off)
):
    gone, kept = ctx.forget_classes, ctx.retained_classes if preserve else ()
    preserved = [ctx.subject(c) for c in kept]
    concepts = torch.stack([ctx.subject(c) for c in gone] + preserved).cpu().double()  # (N, D)
    guides = torch.stack([ctx.anchor_subject(c) for c in gone] + preserved).cpu().double()
    scales = torch.tensor([erase_scale] * len(gone) + [preserve_scale] * len(kept), dtype=torch.float64)
    weighted = scales[:, None] * concepts
    stay = lamb * torch.eye(concepts.shape[1], dtype=torch.float64)
    edit = torch.linalg.solve(stay + concepts.T @ weighted, stay + guides.T @ weighted, left=False)  # M
    layers = ctx.condition_layers()
    for step in ctx.steps(len(layers)):
        weight = layers[step].weight
        before = weight.detach().cpu().double()
        after = before @ edit
        ctx.log(change=(after - before).norm() / before.norm())  # first: `before` may share its memory with the weight
        with torch.no_grad():
            weight.copy_(after)
