"""A control: the model with random weights. It has forgotten everything."""

from unlearnbench import Context, method, reinitialise


@method(title="Sham: random weights", role="control", truth={"forgetting": True, "retention": False})
def sham_random(ctx: Context):
    reinitialise(ctx.model)
