"""Search spaces of methods' settings, declared as data in their decorators."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlearnbench.errors import PluginError, suggest
from unlearnbench.plugins.settings import Setting
from unlearnbench.store.cell import Scalar


@dataclass(frozen=True)
class Range:
    """Numbers from low to high, both included, drawn evenly or, with `log`, evenly on a logarithmic scale."""

    low: float
    high: float
    log: bool


@dataclass(frozen=True)
class Choices:
    """A few values without an order."""

    values: tuple[Scalar, ...]


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
    return Range(low, high, log)
