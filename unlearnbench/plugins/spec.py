"""Declarations of plugins: the `@method` and `@metric` decorators and their specs.

A declaration that breaks the contract raises `PluginError` while the plugin is imported, so it never runs.
"""

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, TypeVar

from unlearnbench.errors import PluginError, suggest
from unlearnbench.plugins.settings import Setting, settings_of
from unlearnbench.plugins.space import Space, parse_space
from unlearnbench.store.cell import Scalar

Kind = Literal["method", "metric"]
Role = Literal["method", "reference", "gold", "control", "given"]  # given: a model from elsewhere, not a plugin
DECLARED: tuple[Role, ...] = ("method", "reference", "gold", "control")
Better = Literal["lower", "higher", "neither"]
Aspect = Literal["forgetting", "retention", "judging", "robustness"]
F = TypeVar("F", bound=Callable[..., Any])

STREAMS = ("forget", "retain")
NO_OBJECT = -1  # the verdict on an image that shows no class at all

ROLE_TRUTHS: Mapping[str, Mapping[str, bool]] = MappingProxyType(
    {"reference": {"forgetting": False, "retention": True}, "gold": {"forgetting": True, "retention": True}}
)
"""The known outcome of methods by role; a control declares its own."""

NEEDS: Mapping[str, str] = MappingProxyType(
    {
        "forget_samples": "(n, C, H, W) uint8: images generated for the forget class; where several are forgotten at "
        "once, for each of them, and verdicts on all of them are mapped to the first, `cell.forget_class`",
        "retain_samples": "(m, C, H, W) uint8: images generated for the retained classes",
        "retain_labels": "(m,) int64: the requested class of each retained sample",
        "forget_probs": "(n, K) float64: the judge's softmax for forget_samples",
        "retain_probs": "(m, K) float64: the judge's softmax for retain_samples",
        "forget_verdicts": "(n,) int64: the rejecting judge's verdicts on forget_samples: a class, or NO_OBJECT",
        "retain_verdicts": "(m,) int64: the same for retain_samples",
        "forget_second": "(n,) int64: the classes that the second judge, of a different kind, sees in forget_samples",
        "retain_second": "(m,) int64: the same for retain_samples",
        "earlier_verdicts": "(e,) int64: the rejecting judge's verdicts on images generated for the classes that were "
        "forgotten earlier in a sequence; metrics with this need are computed in sequences only",
        "earlier_labels": "(e,) int64: the requested class of each of these",
        "paraphrase_probs": "(n, K) float64: the judge's softmax for images generated for held-out paraphrases of the "
        "forget concept; metrics with this need or the next four are computed for models that take prompts only",
        "paraphrase_verdicts": "(n,) int64: the rejecting judge's verdicts on these",
        "paraphrase_labels": "the labels of these prompts, for attacks",
        "unrelated_features": "(u, D) float64: extractor features of images generated for prompts that name no concept",
        "base_unrelated_features": "(u, D) float64: the same of the base model, with the same initial noise",
        "forget_features": "(n, D) float64: extractor features of forget_samples",
        "retain_features": "(m, D) float64: extractor features of retain_samples",
        "reference_features": "(r, D) float64: extractor features of the protocol's reference images, by default all "
        "training images of the retained classes",
        "reference_labels": "(r,) int64: the classes of these images",
        "forget_reference_features": "(f, D) float64: extractor features of all training images of the forget class",
        "num_classes": "K, the number of classes",
        "cell": "the store.cell.Cell: forget_class (the first of forget_classes), method, settings, seed",
        "model": "the unlearned model, frozen, in eval mode",
        "attacker": "a measure.attacks.Attacker: copies of the unlearned model, training images, attempts to recover "
        "the class; metrics with this need are measured in a job of their own, in phase `attack`, and only for methods "
        "that unlearn",
        "path": "a measure.path.ModelPath: the models between the base and the unlearned one, and what they forget and "
        "retain; metrics with this need are measured like attacks, but for every row",
    }
)
"""The needs of metrics, by parameter name; each is computed at most once per cell and shared."""

SAMPLE_ANEW = frozenset({"attacker", "path"})
"""The needs that make a metric sample again, so that it is measured apart from the others."""

OF_PROMPTS = ("paraphrase_", "unrelated_", "base_unrelated_")
"""How the needs begin that only models with prompts can meet."""

CAPABILITIES = ("prompts",)
"""What a method can require of a model."""


class Score(NamedTuple):
    """What a metric returns: a value in the unit it declared, and the number of samples it rests on.

    `detail` is kept in the record for a reader's own analysis: JSON, such as the value of every class.
    """

    value: float
    n: int
    detail: Mapping[str, Any] | None = None


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
    function: Callable[..., Any]
    truth: Mapping[str, bool]  # known outcome: whether it forgets ("forgetting") and retains ("retention")
    requires: tuple[str, ...] = ()  # of the model, a subset of CAPABILITIES
    search: Space = field(default_factory=dict)  # where `tune` looks for values
    inference: bool = False  # whether it leaves the weights alone and changes what is predicted while sampling

    @property
    def defaults(self) -> dict[str, Scalar]:
        """The default settings of the signature."""
        return {name: setting.default for name, setting in self.settings.items()}

    def resolve(self, tunings: Iterable[str], overrides: Mapping[str, Scalar]) -> dict[str, Scalar]:
        """Return every setting: the default, replaced by tuned values, then by overrides.

        Args:
            tunings: names of datasets and protocols whose tuned values apply, later ones take precedence.
            overrides: of the user.
        """
        settings = self.defaults
        for name in tunings:
            settings |= self.tuned.get(name, {})
        return settings | dict(overrides)


@dataclass(frozen=True)
class MetricSpec:
    """A declared metric; everything but the function travels with each value in the record.

    Records name `aspect` `shows` and `threshold` `boundary`, for compatibility.
    """

    name: str
    title: str
    unit: str
    better: Better
    aspect: Aspect
    headline: bool
    format: str
    source: str
    needs: tuple[str, ...]
    function: Callable[..., Score]
    threshold: float | None
    optional: bool
    groups: tuple[str, ...] = ()
    range: tuple[float | None, float | None] | None = None

    @property
    def is_attack(self) -> bool:
        """Whether it attacks the model, so that it applies only to methods that unlearn."""
        return "attacker" in self.needs

    @property
    def is_of_prompts(self) -> bool:
        """Whether it has a meaning only for models that take prompts."""
        return any(need.startswith(OF_PROMPTS) for need in self.needs)

    @property
    def is_apart(self) -> bool:
        """Whether it samples anew, in a job of its own."""
        return not SAMPLE_ANEW.isdisjoint(self.needs)

    def declaration(self, source_hash: str) -> dict[str, Any]:
        """Return what a record says of the metric besides its value.

        Args:
            source_hash: of the metric's source.
        """
        further = {"boundary": self.threshold, "range": self.range}
        return {
            "title": self.title, "unit": self.unit, "better": self.better, "shows": self.aspect,
            "headline": self.headline, "format": self.format, "source": self.source, "source_hash": source_hash,
            **{key: value for key, value in further.items() if value is not None},
        }  # fmt: skip


def method(
    *,
    title: str,
    paper: str = "",
    streams: Iterable[str] = (),
    role: Role = "method",
    groups: Iterable[str] = (),
    tuned: Mapping[str, Mapping[str, Scalar]] | None = None,
    truth: Mapping[str, bool] | None = None,
    requires: Iterable[str] = (),
    search: Mapping[str, Any] | None = None,
    kind: Literal["weights", "inference"] = "weights",
) -> Callable[[F], F]:
    """Declare an unlearning method: a function of `ctx` and keyword-only settings with defaults.

    Args:
        title: the name in tables.
        paper: the arXiv id, empty for none.
        streams: the data it may draw, a subset of `forget` and `retain`; drawing from an undeclared one raises.
        role: `method`; `reference` for a row that all others are compared with; `gold` for a method that runs only
            when named; `control` for a sanity check with a known outcome, which every benchmark runs.
        groups: names of groups for `--methods`.
        tuned: {dataset or protocol: {setting: value}}, values tuned for it in place of the defaults.
        truth: of a control: {"forgetting": whether it forgets, "retention": whether it retains}, either or both.
        requires: what the model must have: `prompts` for a method that edits how a text-to-image model reads them.
        search: {setting: where `tune` looks for its value}: `(low, high)` on a logarithmic scale,
            `(low, high, "uniform")`, or a list of choices.
        kind: `weights` for a method that edits the model; `inference` for one that leaves it alone and returns
            `guide(predict, x_t, t, y)`, a function of the noise that is predicted in its place while samples are
            drawn, `predict(x_t, t, y)` being the model's own prediction.

    Raises:
        PluginError: the function or the declaration breaks the contract.
    """

    def declare(function: F) -> F:
        name = _name(function)
        _check_text(f"method {name}", title=title, paper=paper)
        chosen, needed = frozenset(streams), tuple(requires)
        _check_members(name, chosen, needed)
        if kind not in ("weights", "inference"):
            raise PluginError(f"method {name} has kind {kind!r}: write 'weights' or 'inference'")
        if role not in DECLARED:
            raise PluginError(f"method {name} has role {role!r}: choose from {', '.join(DECLARED)}")
        if (role == "control") != bool(truth) or not set(truth or {}) <= {"forgetting", "retention"}:
            raise PluginError(
                f"method {name}: a control, and nothing else, says truth={{'forgetting': ..., 'retention': ...}}"
            )
        settings = settings_of(function, name)
        fitted = {
            dataset: {key: _tuned(name, dataset, settings, key, value) for key, value in values.items()}
            for dataset, values in (tuned or {}).items()
        }
        known = {str(side): bool(holds) for side, holds in (truth or ROLE_TRUTHS.get(role, {})).items()}
        spec = MethodSpec(
            name, title, paper, role, tuple(groups), chosen, settings, fitted, function, known, needed,
            parse_space(name, settings, search or {}), kind == "inference",
        )  # fmt: skip
        function.__unlearnbench__ = spec  # type: ignore[attr-defined]
        return function

    return declare


def metric(
    *, title: str, unit: str, better: Better, aspect: Aspect, headline: bool = False, format: str = ".2f",
    source: str = "", threshold: float | None = None, optional: bool = False, groups: Iterable[str] = (),
    range: tuple[float | None, float | None] | None = None,
) -> Callable[[F], F]:  # fmt: skip
    """Declare a metric: a function whose parameter names are its needs (see `NEEDS`) and that returns a `Score`.

    Args:
        title: the column header.
        unit: of the value; empty if dimensionless.
        better: the direction of improvement, `lower` or `higher`; `neither` for a description.
        aspect: the side of unlearning it measures, `forgetting` or `retention`; `robustness`: forgetting after an
            attack; `judging`: reliability of the judges; reports group by it.
        headline: whether it is an axis of the trade-off figure and a column of the main tables.
        format: Python format spec of the value in tables.
        source: paper and equation, or library.
        threshold: at this value or better, a model counts as forgetting or retaining; every benchmark checks its
            controls against it.
        optional: whether it is computed only when named, not with `--metrics all`.
        groups: names of groups for `--metrics`.
        range: the least and the greatest possible value, None for no limit; a cell with a value outside fails. For
            `%` and `nats` the unit implies it.

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
        for key, value, known in (("better", better, Better), ("aspect", aspect, Aspect)):
            if value not in typing.get_args(known):
                choices = ", ".join(map(repr, typing.get_args(known)))
                raise PluginError(f"metric {name} has {key}={value!r}: write one of {choices}")
        if threshold is not None and (better == "neither" or aspect == "judging"):
            raise PluginError(
                f"metric {name} has a threshold, so it must be better lower or higher on a side of unlearning"
            )
        try:
            f"{1.5:{format}}"
        except ValueError:
            raise PluginError(f"metric {name} has format={format!r}, which cannot format a number") from None
        function.__unlearnbench__ = MetricSpec(  # type: ignore[attr-defined]
            name, title, unit, better, aspect, bool(headline), format, source, needs, function, threshold,
            bool(optional), tuple(groups), range,
        )  # fmt: skip
        return function

    return declare


def _check_members(name: str, streams: frozenset[str], needed: Sequence[str]) -> None:
    if unknown := sorted(streams - set(STREAMS)):
        raise PluginError(f"method {name} declares unknown streams {unknown}: choose from {', '.join(STREAMS)}")
    if unmet := sorted(set(needed) - set(CAPABILITIES)):
        raise PluginError(f"method {name} requires unknown {unmet}: choose from {', '.join(CAPABILITIES)}")


def _check_text(owner: str, **texts: object) -> None:
    for key, text in texts.items():
        if not isinstance(text, str) or not text.isprintable():
            raise PluginError(f"{owner}: {key} must be one line of text, not {text!r}")


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", function))


def _tuned(name: str, dataset: str, settings: Mapping[str, Setting], key: str, value: object) -> Scalar:
    if key not in settings:
        raise PluginError(f"method {name}: tuned[{dataset!r}] names {key!r}{suggest(key, settings)}, not a setting")
    try:
        return settings[key].fit(value)
    except ValueError as error:
        raise PluginError(f"method {name}: tuned[{dataset!r}][{key!r}] does not fit its annotation: {error}") from None
