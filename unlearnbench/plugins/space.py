"""Search spaces of methods' settings, declared as data in their decorators."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlearnbench.errors import PluginError, suggest
from unlearnbench.plugins.settings import Setting
from unlearnbench.store.cell import Scalar

STEPS = "steps"  # the setting that a budget of images decides
DIGITS = 3  # significant ones of a value that is drawn, so that it can be written down


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included, drawn evenly or, with `log`, evenly on a logarithmic scale."""

    low: float
    high: float
    log: bool
    whole: bool = False  # whether its values are integers

    def at(self, place: float) -> float | int:
        """Return the value at a place from 0 to 1, rounded to three digits within the range."""
        low, high = (math.log(end) if self.log else end for end in (self.low, self.high))
        value = low + place * (high - low)
        rounded = min(max(float(f"{math.exp(value) if self.log else value:.{DIGITS}g}"), self.low), self.high)
        return round(rounded) if self.whole else rounded

    def to_json(self) -> dict[str, Any]:
        """Return the record's entry on it."""
        return {"low": self.low, "high": self.high, "log": self.log}


@dataclass(frozen=True)
class Choices:
    """A few values without an order."""

    values: tuple[Scalar, ...]

    def at(self, place: float) -> Scalar:
        """Return the value at a place from 0 to 1, all of them equally long."""
        return self.values[min(int(place * len(self.values)), len(self.values) - 1)]

    def to_json(self) -> dict[str, Any]:
        """Return the record's entry on it."""
        return {"choices": list(self.values)}


Space = Mapping[str, Range | Choices]


def parse_space(
    method: str, settings: Mapping[str, Setting], declared: Mapping[str, Any]
) -> dict[str, Range | Choices]:
    """Return the space that a decorator declares.

    Args:
        method: its name, for messages.
        settings: of the method.
        declared: setting -> `(low, high)` on a logarithmic scale, `(low, high, "uniform")`, or a list of choices.

    Raises:
        PluginError: it names what is not a setting, or a value does not fit the setting's annotation.
    """
    return {name: _domain(method, settings, name, value) for name, value in declared.items()}


def _domain(method: str, settings: Mapping[str, Setting], name: str, declared: object) -> Range | Choices:
    what = f"method {method}: search[{name!r}]"
    if name == STEPS:
        raise PluginError(f"method {method}: search names {name!r}, which follows from the budget: leave it out")
    if name not in settings:
        raise PluginError(f"method {method}: search names {name!r}{suggest(name, settings)}, not a setting")
    setting = settings[name]
    values = tuple(declared) if isinstance(declared, list | tuple) else ()
    log = values[2:] != ("uniform",)
    if isinstance(declared, tuple):
        values = values if log else values[:2]
        if setting.type not in (int, float) or len(values) != 2:
            raise PluginError(f'{what} must be (low, high), (low, high, "uniform") or a list of choices')
    elif len(values) < 2 or len(set(values)) < len(values):
        raise PluginError(f"{what} must be a range, or a list of at least two different choices")
    try:
        fitted = tuple(setting.fit(value) for value in values)
    except ValueError as error:
        raise PluginError(f"{what} does not fit its annotation: {error}") from None
    if isinstance(declared, list):
        return Choices(fitted)
    low, high = float(fitted[0]), float(fitted[1])
    if not low < high or (log and low <= 0):
        raise PluginError(f"{what} must rise, from above zero on a logarithmic scale")
    return Range(low, high, log, setting.type is int)
