"""Settings of methods: the hyperparameters of a signature, with their types, choices and ranges."""

import inspect
import math
import operator
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, Literal

from annotated_types import BaseMetadata, Ge, GroupedMetadata, Gt, Le, Lt

from unlearnbench.errors import PluginError, UsageError
from unlearnbench.store.cell import Scalar

Bound = Gt | Ge | Lt | Le
BOUNDS: Mapping[type[Bound], tuple[str, Callable[[Any, Any], bool]]] = MappingProxyType(
    {
        Gt: ("more than", operator.gt),
        Ge: ("at least", operator.ge),
        Lt: ("less than", operator.lt),
        Le: ("at most", operator.le),
    }
)


@dataclass(frozen=True)
class Setting:
    """One hyperparameter of a method, from its signature."""

    name: str
    type: type
    default: Scalar
    choices: tuple[str, ...] = ()
    bounds: tuple[Bound, ...] = ()

    @property
    def range(self) -> str:
        """Its bounds in words, such as "more than 0, at most 1"; empty where it has none."""
        return ", ".join(f"{BOUNDS[type(bound)][0]} {_limit(bound):g}" for bound in self.bounds)

    @property
    def wanted(self) -> str:
        """Its valid values in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        words: dict[type, str] = {bool: "true or false", float: "a finite number"}
        kind = words.get(self.type, f"a value of type {self.type.__name__}")
        return f"{kind}, {self.range}" if self.bounds else kind

    def parse(self, text: str, owner: str) -> Scalar:
        """Return the value of a command-line text.

        Raises:
            UsageError: the text is not of this setting's type, or its value is outside the choices or the range.
        """
        try:
            return self.fit(_truth(text) if self.type is bool else self.type(text))
        except ValueError:
            raise UsageError(f"{owner}.{self.name} takes {self.wanted}, not {text!r}") from None

    def fit(self, value: object) -> Scalar:
        """Return a value of this setting's type; an integer fits a float.

        Raises:
            ValueError: it is of another type, not a finite number, or outside the choices or the range.
        """
        kinds = (int, float) if self.type is float else (self.type,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and self.type is not bool):
            raise ValueError(f"{value!r} is not {self.wanted}")
        fitting: Scalar = self.type(value)
        if isinstance(fitting, float) and not math.isfinite(fitting):
            raise ValueError(f"{value!r} is not {self.wanted}")
        outside = [bound for bound in self.bounds if not BOUNDS[type(bound)][1](fitting, _limit(bound))]
        if outside or (self.choices and fitting not in self.choices):
            raise ValueError(f"{value!r} is not {self.wanted}")
        return fitting


def _limit(bound: Bound) -> Any:
    return getattr(bound, type(bound).__name__.lower())


def _truth(text: str) -> bool:
    if text.lower() not in {"true", "false"}:
        raise ValueError(text)
    return text.lower() == "true"


def settings_of(function: Callable[..., Any], name: str) -> dict[str, Setting]:
    """Return a method's settings from its signature."""
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    if not parameters or parameters[0].kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
        raise PluginError(f"method {name} must take the context as its first parameter: def {name}(ctx, *, ...)")
    settings = {}
    for parameter in parameters[1:]:
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or parameter.default is inspect.Parameter.empty:
            raise PluginError(f"method {name}: setting {parameter.name} must be keyword-only and have a default")
        setting = _setting(name, parameter)
        try:
            settings[parameter.name] = replace(setting, default=setting.fit(parameter.default))
        except ValueError as error:
            raise PluginError(
                f"method {name}: the default of {parameter.name} does not fit its annotation: {error}"
            ) from None
    return settings


def _setting(name: str, parameter: inspect.Parameter) -> Setting:
    """Return one setting from a parameter, its default not yet checked."""
    annotation, metadata = parameter.annotation, list[object]()
    if typing.get_origin(annotation) is Annotated:
        annotation, *metadata = typing.get_args(annotation)
    bounds = _bounds(name, parameter.name, metadata)
    choices: tuple[Any, ...] = ()
    if typing.get_origin(annotation) is Literal:
        annotation, choices = str, typing.get_args(annotation)
    if annotation not in (bool, int, float, str) or not all(isinstance(choice, str) for choice in choices):
        raise PluginError(f"method {name}: annotate setting {parameter.name} as bool, int, float, str or Literal")
    if bounds and annotation not in (int, float):
        raise PluginError(f"method {name}: setting {parameter.name} has a range, which is for an int or a float")
    return Setting(parameter.name, annotation, parameter.default, choices, bounds)


def _bounds(name: str, setting: str, metadata: Iterable[object]) -> tuple[Bound, ...]:
    """Return the bounds among the annotations of a type; others than those of annotated-types are ignored."""
    found: list[object] = []
    for item in metadata:
        found += item if isinstance(item, GroupedMetadata) else [item]
    odd = [item for item in found if isinstance(item, BaseMetadata) and type(item) not in BOUNDS]
    bounds = tuple(item for item in found if isinstance(item, Gt | Ge | Lt | Le))
    if odd or not all(isinstance(_limit(bound), int | float) for bound in bounds):
        raise PluginError(f"method {name}: give setting {setting} a range of numbers, with Gt, Ge, Lt, Le or Interval")
    return bounds
