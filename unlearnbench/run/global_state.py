"""Global state of a process that a method could change to affect its own evaluation.

A snapshot is taken before the method's file is imported, and compared after the method has returned. New modules are
not changes; replaced objects are.
"""

import builtins
import os
import random
import sys
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.special
import sklearn
import torch
from torch.nn.modules import module as hooks
from torch.optim import Optimizer

PACKAGES = frozenset({  # their functions and classes are used in an evaluation
    "PIL", "builtins", "copy", "diffusers", "functools", "itertools", "json", "math", "numpy", "operator", "random",
    "safetensors", "scipy", "sklearn", "statistics", "time", "torch", "torch_fidelity", "torchvision", "unlearnbench",
})  # fmt: skip
NOT_USED = (  # they replace their attributes themselves
    "torch._dynamo", "torch._inductor", "torch.fx", "torch._functorch", "torch._subclasses", "torch.compiler",
)  # fmt: skip
COMPILER = str(Path(torch.__file__).parent / "_dynamo")
MATMUL = (
    "allow_tf32", "allow_fp16_reduced_precision_reduction", "allow_bf16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)  # fmt: skip
OPTIMIZER_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
MOST = 5  # changes listed in a message
REMEDY = "change it within a `with` block, or put it back before the method returns"
_MISSING = object()


class GlobalState:
    """A snapshot of the flags, functions and classes of this process."""

    def __init__(self) -> None:
        import torch._dynamo  # optimisers import it, which replaces functions of torch

        self._flags = _flags()
        self._random = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
        self._environment, self._filters = dict(os.environ), list(warnings.filters)
        self._modules, self._classes, self._code = _attributes()

    def changes(self) -> list[str]:
        """Return the names of everything that changed."""
        now = _flags()
        flags = [f"{name} ({value!r} before, now {now[name]!r})" for name, value in self._flags.items()
                 if not _same(value, now[name])]  # fmt: skip
        patched = [f"{name}.{key}" for name, (module, old) in self._modules.items()
                   for key in [*_replaced(old, vars(module)), *_shadowing(old, vars(module))]]  # fmt: skip
        for cls, old in self._classes.items():
            added = [key for key in vars(cls).keys() - old.keys() if _overrides(cls, key)]
            patched += [f"{cls.__module__}.{cls.__qualname__}.{key}" for key in [*_replaced(old, vars(cls)), *added]]
        edited = [f"{function.__module__}.{function.__qualname__}" for function, code in self._code.items()
                  if not all(map(_is, code, _code_of(function)))]  # fmt: skip
        return [*flags, *patched, *edited]

    def complaint(self) -> str:
        """Return the names of the first `changes`, and the number of further ones; empty if there are none."""
        changes = self.changes()
        more = f" and {len(changes) - MOST} more" if len(changes) > MOST else ""
        return f"{', '.join(changes[:MOST])}{more}"

    def restore(self) -> None:
        """Restore state that may change: global random generators, environment variables, warning filters."""
        torch_state, numpy_state, python_state = self._random
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
        if os.environ != self._environment:
            os.environ.clear()
            os.environ.update(self._environment)
        warnings.filters[:] = self._filters  # type: ignore[index]


def _is(one: object, other: object) -> bool:
    return one is other


def _same(one: object, other: object) -> bool:
    return type(one) is type(other) and one == other


def _flags() -> dict[str, Any]:
    """Return the value of every flag that affects computations, by a readable name."""
    tiny = sys.float_info.min / 2
    read: dict[str, Callable[[], Any]] = {
        "torch's default dtype": torch.get_default_dtype,
        "torch's default device": lambda: str(torch.get_default_device()),
        "torch's grad mode": torch.is_grad_enabled,
        "torch.inference_mode": torch.is_inference_mode_enabled,
        "torch.autocast's cache": torch.is_autocast_cache_enabled,
        "the stack of TorchFunctionModes": torch._C._len_torch_function_stack,
        "the stack of TorchDispatchModes": torch._C._len_torch_dispatch_stack,
        "torch.use_deterministic_algorithms": torch.are_deterministic_algorithms_enabled,
        "torch.use_deterministic_algorithms(warn_only)": torch.is_deterministic_algorithms_warn_only_enabled,
        "torch.set_float32_matmul_precision": torch.get_float32_matmul_precision,
        "torch.autograd.set_detect_anomaly": torch.is_anomaly_enabled,
        "torch's default generator": lambda: id(torch.default_generator),
        "torch.set_flush_denormal": lambda: tiny * 1 == 0,
        "torch's hooks of saved tensors": lambda: torch._C._autograd._top_saved_tensors_default_hooks(True) is not None,
        "torch.backends.mha's fast path": torch.backends.mha.get_fastpath_enabled,
        "numpy.seterr": np.geterr,
        "numpy.seterrcall": lambda: id(np.geterrcall()),
        "scipy.special.seterr": scipy.special.geterr,
        "sklearn.set_config": sklearn.get_config,
    }  # fmt: skip
    for name in ("flash", "mem_efficient", "math", "cudnn"):
        read[f"torch.backends.cuda.enable_{name}_sdp"] = getattr(torch.backends.cuda, f"{name}_sdp_enabled")
    for device in ("cpu", "cuda"):
        read[f"torch.autocast({device!r})"] = partial(torch.is_autocast_enabled, device)
        read[f"torch.autocast({device!r})'s dtype"] = partial(torch.get_autocast_dtype, device)
    for kind in ("flash", "mem_efficient", "math", "cudnn"):
        read[f"torch.backends.cuda.enable_{kind}_sdp"] = getattr(torch.backends.cuda, f"{kind}_sdp_enabled")
    for name in MATMUL:
        read[f"torch.backends.cuda.matmul.{name}"] = partial(getattr, torch.backends.cuda.matmul, name)
    read |= {name: value for backend in _backends() for name, value in _switches(backend)}
    for name in (name for name in vars(hooks) if name.startswith("_global")):
        read[f"torch.nn.modules.module.{name}"] = partial(_hooks, hooks, name)
    optimizer = sys.modules[Optimizer.__module__]
    for name in OPTIMIZER_HOOKS:
        read[f"torch.optim.optimizer.{name}"] = partial(_hooks, optimizer, name)
    return {name: _value(getter) for name, getter in read.items()}


def _value(getter: Callable[[], Any]) -> Any:
    """Return a flag's value; torch refuses to read some after old and new names of a flag were mixed."""
    try:
        return getter()
    except (RuntimeError, AttributeError) as error:
        return str(error).split("\n")[0]


def _hooks(module: types.ModuleType, name: str) -> Any:
    """Return the identity of a set of hooks."""
    registered = getattr(module, name)
    return [id(hook) for hook in registered.values()] if isinstance(registered, Mapping) else registered


def _backends() -> Iterator[tuple[str, Any]]:
    """Yield torch.backends, its modules, and objects that replace modules in it."""
    yield "torch.backends", torch.backends
    for name, backend in vars(torch.backends).items():
        if isinstance(backend, types.ModuleType) and sys.modules.get(f"torch.backends.{name}") is backend:
            yield f"torch.backends.{name}", backend
            for part, inner in {**vars(type(backend)), **vars(backend)}.items():
                if type(inner).__module__.startswith("torch.backends"):
                    yield f"torch.backends.{name}.{part}", inner


def _switches(backend: tuple[str, Any]) -> Iterator[tuple[str, Callable[[], Any]]]:
    """Yield the names and getters of a backend's properties (a type of torch) and plain values."""
    name, place = backend
    for cls in type(place).__mro__:
        for key, value in vars(cls).items():
            if isinstance(value, torch.backends.ContextProp):
                yield f"{name}.{key}", partial(getattr, place, key)
    for key, value in list(getattr(place, "__dict__", {}).items()):
        if not key.startswith("_") and isinstance(value, bool | int | str | None):
            yield f"{name}.{key}", partial(getattr, place, key)


Attributes = dict[str, object]


def _attributes() -> tuple[
    dict[str, tuple[types.ModuleType, Attributes]], dict[type, Attributes], dict[types.FunctionType, tuple[Any, ...]]
]:
    """Return the attributes of the packages' modules and of all classes in them, and the code of their functions."""
    modules: dict[str, tuple[types.ModuleType, Attributes]] = {}
    classes: dict[type, Attributes] = {}
    for name, module in list(sys.modules.items()):
        known = name.partition(".")[0] in PACKAGES and not name.startswith(NOT_USED)
        if known and isinstance(module, types.ModuleType):
            modules[name] = module, dict(vars(module))
            for value in modules[name][1].values():
                if issubclass(type(value), type) and value not in classes:  # isinstance warns for lazy objects
                    classes[value] = dict(vars(value))  # type: ignore[index]
    places = [attributes for _, attributes in modules.values()]
    functions = {value for place in (*places, *classes.values()) for value in place.values() if _is_function(value)}
    return modules, classes, {function: _code_of(function) for function in functions}  # type: ignore[arg-type,misc]


def _is_function(value: object) -> bool:
    return type(value) is types.FunctionType


def _code_of(function: types.FunctionType) -> tuple[Any, ...]:
    return function.__code__, function.__defaults__, function.__kwdefaults__


def _replaced(old: Attributes, now: Mapping[str, object]) -> list[str]:
    """Return the names of functions, classes and constants that were replaced."""
    return [
        key for key, value in old.items()
        if now.get(key, _MISSING) is not value and (_is_code(value) or key.isupper())
        and not _is_first_use(value, now.get(key)) and not _is_compilers(now.get(key))
    ]  # fmt: skip


def _is_first_use(old: object, now: object) -> bool:
    """Say whether torch wrapped an optimiser's `step` in its own hooks, as it does for the first instance.

    An inherited `step` (AdamW's is Adam's) may be wrapped in both classes, the subclass first.
    """
    code, wrapped = getattr(now, "__code__", None), getattr(now, "__wrapped__", None)
    ours = wrapped is not None and (wrapped is old or wrapped is getattr(old, "__wrapped__", None))
    return ours and code in Optimizer.profile_hook_step.__code__.co_consts


def _is_compilers(now: object) -> bool:
    """Say whether a function is one of torch.compile's replacements of torch's functions."""
    return getattr(getattr(now, "__code__", None), "co_filename", "").startswith(COMPILER)


def _shadowing(old: Attributes, now: Mapping[str, object]) -> list[str]:
    """Return the names of builtins that a module now shadows."""
    return [key for key in now.keys() - old.keys() if not key.startswith("__") and hasattr(builtins, key)]


def _is_code(value: object) -> bool:
    return callable(value) or isinstance(value, property | classmethod | staticmethod)


def _overrides(cls: type, key: str) -> bool:
    """Say whether a new attribute of a class overrides an inherited one."""
    inherited = next((vars(base)[key] for base in cls.__mro__[1:] if key in vars(base)), _MISSING)
    if inherited is _MISSING or not _is_code(value := vars(cls)[key]):
        return False
    return not (_is_compilers(value) or _is_first_use(inherited, value))
