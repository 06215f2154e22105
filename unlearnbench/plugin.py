"""What a plugin declares: the `@method` and `@metric` decorators and the specs they make.

A declaration that breaks the contract raises `PluginError` while the plugin is imported, so it never runs.
"""

import difflib
import inspect
import math
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar

from unlearnbench.errors import PluginError, UsageError
from unlearnbench.grid import Scalar

Kind = Literal["method", "metric"]
Role = Literal["method", "reference", "gold", "control"]
Better = Literal["lower", "higher", "neither"]
Shows = Literal["forgetting", "retention", "judging", "robustness"]
F = TypeVar("F", bound=Callable[..., Any])

STREAMS = ("forget", "retain")
NO_OBJECT = -1  # the verdict on an image that shows no class at all

ROLE_TRUTHS: Mapping[str, Mapping[str, bool]] = MappingProxyType(
    {"reference": {"forgetting": False, "retention": True}, "gold": {"forgetting": True, "retention": True}}
)
"""What is known beforehand of every method of a role; a control says it of itself."""

NEEDS: Mapping[str, str] = MappingProxyType(
    {
        "forget_samples": "(n, C, H, W) uint8: images generated for the forget class; where several are forgotten at "
        "once, for each, and judges name all of them as the first, `cell.forget_class`",
        "retain_samples": "(m, C, H, W) uint8: images generated for the retained classes",
        "retain_labels": "(m,) int64: the class each retained sample was asked for",
        "forget_probs": "(n, K) float64: the judge's softmax for forget_samples",
        "retain_probs": "(m, K) float64: the judge's softmax for retain_samples",
        "forget_verdicts": "(n,) int64: what the rejecting judge makes of forget_samples: a class, or NO_OBJECT",
        "retain_verdicts": "(m,) int64: the same for retain_samples",
        "forget_second": "(n,) int64: the class that the second judge, one of another kind, names for forget_samples",
        "retain_second": "(m,) int64: the same for retain_samples",
        "earlier_verdicts": "(e,) int64: what the rejecting judge makes of images generated for the classes that were "
        "forgotten earlier in a sequence; a metric that asks for them is computed in sequences only",
        "earlier_labels": "(e,) int64: the class each of these was asked for",
        "forget_features": "(n, D) float64: extractor features of forget_samples",
        "retain_features": "(m, D) float64: extractor features of retain_samples",
        "reference_features": "(r, D) float64: extractor features of the protocol's reference images, by default all "
        "training images of the retained classes",
        "reference_labels": "(r,) int64: the classes of these images",
        "forget_reference_features": "(f, D) float64: extractor features of all training images of the forget class",
        "num_classes": "K, the number of classes",
        "cell": "the grid.Cell: forget_class (the first of forget_classes), method, settings, seed",
        "model": "the unlearned model, frozen, in eval mode",
        "attacker": "an attacks.Attacker: copies of the unlearned model, training images, attempts to bring back the "
        "class; a metric that asks for it is timed in phase `attack`",
    }
)
"""Everything a metric may ask for by parameter name; each is computed at most once per cell and shared."""


class Score(NamedTuple):
    """What a metric returns: a value in the unit it declared, and the number of samples it rests on.

    `detail` is kept in the record for a reader's own analysis: JSON, such as the value of every class.
    """

    value: float
    n: int
    detail: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Setting:
    """One hyperparameter of a method, read off its signature."""

    name: str
    type: type
    default: Scalar
    choices: tuple[str, ...] = ()

    def parse(self, text: str, owner: str) -> Scalar:
        """Return the value that a command-line text stands for.

        Raises:
            UsageError: the text is not of this setting's type or not one of its choices.
        """
        wanted = f"one of {', '.join(self.choices)}" if self.choices else f"a value of type {self.type.__name__}"
        complaint = UsageError(f"{owner}.{self.name} takes {wanted}, not {text!r}")
        if self.type is bool:
            if text.lower() not in {"true", "false"}:
                raise UsageError(f"{owner}.{self.name} takes true or false, not {text!r}")
            return text.lower() == "true"
        try:
            value: Scalar = self.type(text)
        except ValueError:
            raise complaint from None
        if isinstance(value, float) and not math.isfinite(value):
            raise UsageError(f"{owner}.{self.name} takes a finite number, not {text!r}")
        if self.choices and value not in self.choices:
            raise complaint
        return value


@dataclass(frozen=True)
class MethodSpec:
    """A declared unlearning method."""

    name: str
    title: str
    paper: str
    role: Role
    groups: tuple[str, ...]
    streams: frozenset[str]
    settings: Mapping[str, Setting]
    tuned: Mapping[str, Mapping[str, Scalar]]
    function: Callable[..., None]
    truth: Mapping[str, bool]  # what is known beforehand: whether it forgets ("forgetting"), retains ("retention")

    @property
    def defaults(self) -> dict[str, Scalar]:
        """The settings as the signature gives them."""
        return {name: setting.default for name, setting in self.settings.items()}

    def resolve(self, tunings: Iterable[str], overrides: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Return every setting: the default, then what is tuned, then the override.

        Args:
            tunings: names of datasets and protocols whose tuned values apply, later ones over earlier ones.
            overrides: of the user.
        """
        settings = self.defaults
        for name in tunings:
            settings |= self.tuned.get(name, {})
        return settings | dict(overrides)


@dataclass(frozen=True)
class MetricSpec:
    """A declared metric; everything but the function travels with each value in the record."""

    name: str
    title: str
    unit: str
    better: Better
    shows: Shows
    headline: bool
    format: str
    source: str
    needs: tuple[str, ...]
    function: Callable[..., Score]
    boundary: float | None
    optional: bool
    groups: tuple[str, ...] = ()
    range: tuple[float | None, float | None] | None = None


def method(
    *,
    title: str,
    paper: str = "",
    streams: Iterable[str] = (),
    role: Role = "method",
    groups: Iterable[str] = (),
    tuned: Mapping[str, Mapping[str, Scalar]] | None = None,
    truth: Mapping[str, bool] | None = None,
) -> Callable[[F], F]:
    """Declare an unlearning method: a function of `ctx` and keyword-only settings with defaults.

    Args:
        title: the name in tables.
        paper: the arXiv id, empty for none.
        streams: the data it may draw, a subset of `forget` and `retain`; drawing from another raises.
        role: `method`; `reference` for a row all others are compared with; `gold` for one that runs only when named;
            `control` for a sham whose outcome is known beforehand and which every benchmark runs.
        groups: names under which `--methods` selects it together with others.
        tuned: {dataset or protocol: {setting: value}}, values found for another one than the defaults were.
        truth: of a control: {"forgetting": whether it forgets, "retention": whether it retains}, either or both.

    Raises:
        PluginError: the function or the declaration breaks the contract.
    """

    def declare(function: F) -> F:
        name = _name(function)
        _check_text(f"method {name}", title=title, paper=paper)
        chosen = frozenset(streams)
        if unknown := sorted(chosen - set(STREAMS)):
            raise PluginError(f"method {name} declares unknown streams {unknown}: choose from {', '.join(STREAMS)}")
        if role not in typing.get_args(Role):
            raise PluginError(f"method {name} has role {role!r}: choose from {', '.join(typing.get_args(Role))}")
        if (role == "control") != bool(truth) or not set(truth or {}) <= {"forgetting", "retention"}:
            raise PluginError(
                f"method {name}: a control, and nothing else, says truth={{'forgetting': ..., 'retention': ...}}"
            )
        settings = _settings(function, name)
        for dataset, values in (tuned or {}).items():
            for key, value in values.items():
                _check_tuned(name, dataset, settings, key, value)
        known = {str(side): bool(holds) for side, holds in (truth or ROLE_TRUTHS.get(role, {})).items()}
        spec = MethodSpec(name, title, paper, role, tuple(groups), chosen, settings, tuned or {}, function, known)
        function.__unlearnbench__ = spec  # type: ignore[attr-defined]
        return function

    return declare


def metric(
    *,
    title: str,
    unit: str,
    better: Better,
    shows: Shows,
    headline: bool = False,
    format: str = ".2f",
    source: str = "",
    boundary: float | None = None,
    optional: bool = False,
    groups: Iterable[str] = (),
    range: tuple[float | None, float | None] | None = None,
) -> Callable[[F], F]:
    """Declare a metric: a function whose parameter names are its needs (see `NEEDS`) and that returns a `Score`.

    Args:
        title: the column header.
        unit: of the value; empty for a dimensionless one.
        better: the direction of improvement, `lower` or `higher`; `neither` for a description.
        shows: the side of unlearning it speaks of, `forgetting` or `retention`; `robustness`: forgetting after an
            attack; or `judging`: how far the judges are to be believed; reports group by it.
        headline: it is an axis of the trade-off figure and stands in the paper's tables.
        format: Python format spec of the value in tables.
        source: paper and equation, or library.
        boundary: the value from which on, in the better direction, a model counts as forgetting or retaining; every
            benchmark checks its controls against it.
        optional: it is computed only when named, not with `--metrics all`.
        groups: names under which `--metrics` selects it together with others.
        range: the least and the greatest value there can be, None for no limit; a cell with another one fails. Of a
            value in `%` or `nats` the unit says it.

    Raises:
        PluginError: an unknown need, direction or format.
    """

    def declare(function: F) -> F:
        name = _name(function)
        _check_text(f"metric {name}", title=title, unit=unit, format=format, source=source)
        needs = tuple(inspect.signature(function).parameters)
        for need in needs:
            if need not in NEEDS:
                raise PluginError(
                    f"metric {name} asks for {need!r}{suggest(need, NEEDS)}: needs are {', '.join(NEEDS)}"
                )
        for key, value, known in (("better", better, Better), ("shows", shows, Shows)):
            if value not in typing.get_args(known):
                choices = ", ".join(map(repr, typing.get_args(known)))
                raise PluginError(f"metric {name} has {key}={value!r}: write one of {choices}")
        if boundary is not None and (better == "neither" or shows == "judging"):
            raise PluginError(
                f"metric {name} has a boundary, so it must be better lower or higher on a side of unlearning"
            )
        try:
            f"{1.5:{format}}"
        except ValueError:
            raise PluginError(f"metric {name} has format={format!r}, which cannot format a number") from None
        function.__unlearnbench__ = MetricSpec(  # type: ignore[attr-defined]
            name, title, unit, better, shows, bool(headline), format, source, needs, function, boundary, bool(optional),
            tuple(groups), range,
        )  # fmt: skip
        return function

    return declare


def _check_text(owner: str, **texts: object) -> None:
    for key, text in texts.items():
        if not isinstance(text, str) or not text.isprintable():
            raise PluginError(f"{owner}: {key} must be one line of text, not {text!r}")


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", function))


def _settings(function: Callable[..., Any], name: str) -> dict[str, Setting]:
    """Read a method's settings off its signature."""
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    if not parameters or parameters[0].kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
        raise PluginError(f"method {name} must take the context as its first parameter: def {name}(ctx, *, ...)")
    settings = {}
    for parameter in parameters[1:]:
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY or parameter.default is inspect.Parameter.empty:
            raise PluginError(f"method {name}: setting {parameter.name} must be keyword-only and have a default")
        annotation, choices = parameter.annotation, ()
        if typing.get_origin(annotation) is Literal:
            choices = typing.get_args(annotation)
            annotation = str
        if annotation not in (bool, int, float, str):
            raise PluginError(f"method {name}: annotate setting {parameter.name} as bool, int, float, str or Literal")
        default = float(parameter.default) if annotation is float else parameter.default
        if type(default) is not annotation or (choices and default not in choices):
            raise PluginError(f"method {name}: the default of {parameter.name} does not fit its annotation")
        if isinstance(default, float) and not math.isfinite(default):
            raise PluginError(f"method {name}: the default of {parameter.name} is not a finite number")
        settings[parameter.name] = Setting(parameter.name, annotation, default, choices)
    return settings


def _check_tuned(name: str, dataset: str, settings: Mapping[str, Setting], key: str, value: Scalar) -> None:
    if key not in settings:
        raise PluginError(f"method {name}: tuned[{dataset!r}] names {key!r}{suggest(key, settings)}, not a setting")
    if type(value) is not settings[key].type or (settings[key].choices and value not in settings[key].choices):
        raise PluginError(f"method {name}: tuned[{dataset!r}][{key!r}] = {value!r} does not fit its annotation")


def suggest(name: str, names: Iterable[str]) -> str:
    """Return " (did you mean X?)" for the name nearest to a wrong one, or nothing."""
    close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
    return f" (did you mean {close[0]}?)" if close else ""
