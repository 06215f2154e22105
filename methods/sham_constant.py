"""A control: a generator of one grey image in place of the model. It has forgotten everything.

eps_theta(x_t, t, c) = x_t / sqrt(1 - abar_t)    the best prediction where x0 is always zero, mid-grey
"""

from types import SimpleNamespace

from unlearnbench import Context, method


@method(title="Sham: constant", role="control", truth={"forgetting": True, "retention": False})
def sham_constant(ctx: Context):
    alphas = ctx.schedule.alphas_cumprod

    def forward(x_t, t, y):
        return SimpleNamespace(sample=x_t / (1 - alphas[t]).sqrt().view(-1, 1, 1, 1))

    ctx.model.forward = forward
