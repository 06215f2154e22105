"""What methods return: nothing, or, of kind inference, the guide that predicts in the model's place."""

from functools import partial

from torch import Tensor, nn

from unlearnbench.errors import PluginError, one_line
from unlearnbench.models.denoiser import Denoiser
from unlearnbench.models.diffusion import Guide, Predict
from unlearnbench.models.training import trainable_copy
from unlearnbench.models.weights import is_same
from unlearnbench.plugins.spec import MethodSpec
from unlearnbench.unlearn.context import Context


def unlearned_model(method: MethodSpec, context: Context, returned: object) -> Denoiser:
    """Return the model that a method leaves, frozen: the one it edited, or a copy of its base with its guide.

    Args:
        method: that has run.
        context: that it ran with.
        returned: by it.

    Raises:
        PluginError: a method that edits the model returns a value, or one of kind inference returns no function or
            has changed the model.
    """
    if not method.inference:
        if returned is not None:
            raise PluginError(
                f"{method.name} returns {one_line(repr(returned), 60)}: edit ctx.model in place and return nothing, or "
                f'declare kind="inference" and return a guide'
            )
        return context.model.requires_grad_(False)
    if not callable(returned) or isinstance(returned, nn.Module):
        raise PluginError(
            f'{method.name} has kind="inference" and returns {one_line(repr(returned), 60)}: return a function '
            f"guide(predict, x_t, t, y) of the predicted noise"
        )
    earlier, context.model.guide = context.base.guide, None
    if not is_same(context.model, context.base):
        raise PluginError(
            f'{method.name} has kind="inference" and changes ctx.model: leave its weights alone, and return a guide'
        )
    model = trainable_copy(context.base).requires_grad_(False)  # not compiled, as models are that weights stand for
    model.guide = _after(earlier, returned)
    return model


def _after(earlier: Guide | None, guide: Guide) -> Guide:
    """Return a plain function, which copies of a model share: a guide whose model may be guided by an earlier one."""

    def guided(predict: Predict, x_t: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return guide(predict if earlier is None else partial(earlier, predict), x_t, t, y)

    return guided
