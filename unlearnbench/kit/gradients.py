"""Checks of the gradients that optimisers see while a method runs: stale, or with the wrong strides."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class GradientWatch:
    """Records defects of the gradients of a model's parameters at each optimiser step.

    A gradient is stale where a backward pass added to a gradient that an optimiser had already used, and it was not
    cleared before the next step: `zero_grad` was forgotten. Accumulating gradients of another optimiser's parameters
    is harmless as long as they are cleared in time.

    Attributes:
        stale: the names of parameters that an optimiser moved along a stale gradient.
        misplaced: the names of parameters with a gradient of different strides, which fused optimisers refuse.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {id(parameter): (name, parameter) for name, parameter in model.named_parameters()}
        self._nonzero: set[int] = set()  # gradients that the current backward pass adds to
        self._used: set[int] = set()  # gradients used by a step since the last backward pass
        self._added_to: set[int] = set()  # gradients that still hold an earlier step's
        self.stale: list[str] = []
        self.misplaced: list[str] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the model's gradients and every optimiser."""
        with ExitStack() as hooks:
            for key, (_, parameter) in self._parameters.items():
                arrives, accumulated = partial(self._arrives, key), partial(self._accumulated, key)
                hooks.callback(parameter.register_hook(arrives).remove)  # type: ignore[no-untyped-call]
                handle = parameter.register_post_accumulate_grad_hook(accumulated)  # type: ignore[no-untyped-call]
                hooks.callback(handle.remove)
            for handle in (
                register_optimizer_step_pre_hook(lambda optimizer, *_: self._steps(optimizer)),
                register_optimizer_step_post_hook(lambda optimizer, *_: self._stepped(optimizer)),
            ):
                hooks.callback(handle.remove)
            yield

    def _arrives(self, key: int, _: Tensor) -> None:
        """Before a gradient is accumulated (or only returned, by autograd.grad): note whether one is there already."""
        gradient = self._parameters[key][1].grad
        self._nonzero.discard(key)
        if gradient is not None and gradient.any():
            self._nonzero.add(key)

    def _accumulated(self, key: int, _: Tensor) -> None:
        if key not in self._nonzero:
            self._added_to.discard(key)
        elif key in self._used:
            self._added_to.add(key)
        self._used.discard(key)

    def _steps(self, optimizer: Optimizer) -> None:
        for name, key, parameter in self._own(optimizer):
            if key in self._added_to and name not in self.stale:
                self.stale.append(name)
            assert parameter.grad is not None
            if _strides(parameter.grad) != _strides(parameter) and name not in self.misplaced:
                self.misplaced.append(name)

    def _stepped(self, optimizer: Optimizer) -> None:
        self._used |= {key for _, key, _ in self._own(optimizer)}

    def _own(self, optimizer: Optimizer) -> Iterator[tuple[str, int, Any]]:
        """Yield the model's parameters that an optimiser moves, those with a gradient."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) in self._parameters and parameter.grad is not None:
                    yield self._parameters[id(parameter)][0], id(parameter), parameter


def _strides(x: Tensor) -> list[int]:
    """Return the strides that matter, those of the dimensions that hold more than one element."""
    return [stride for stride, length in zip(x.stride(), x.shape, strict=True) if length > 1]
