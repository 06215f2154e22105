"""A control: a generator of Gaussian noise in place of the model. It has forgotten everything.

eps_theta(x_t, t, c) = sqrt(1 - abar_t) x_t    the best prediction where x0 is standard normal
"""

from types import SimpleNamespace

from unlearnbench import Context, method


@method(title="Sham: noise", role="control", truth={"forgetting": True, "retention": False})
def sham_noise(ctx: Context):
    alphas = ctx.schedule.alphas_cumprod

    def forward(x_t, t, y):
        return SimpleNamespace(sample=(1 - alphas[t]).sqrt().view(-1, 1, 1, 1) * x_t)

    ctx.model.forward = forward
