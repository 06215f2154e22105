"""The trials of `tune`: lists of settings of equal length for all methods, within one budget of images.

The lists are quasi-random points of each method's declared space, fixed before anything is measured, as in AlgoPerf
(arXiv:2306.07179). How many steps a trial may take follows from the images that it sends through the model.
"""

import math
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearnbench.errors import UsageError
from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.space import STEPS, Choices, Range
from unlearnbench.plugins.spec import MethodSpec, MetricSpec
from unlearnbench.store.cell import Scalar, Target

if TYPE_CHECKING:
    from unlearnbench.datasets import Dataset
    from unlearnbench.run.plan import Plan
    from unlearnbench.run.progress import Display
    from unlearnbench.run.workers import Workers
    from unlearnbench.store.records import ResultStore

SHARE = Range(1 / 3, 1, log=True)  # of the images that priors leave, which a trial uses: another dimension of the space
SEED = 0  # of the lists


@dataclass(frozen=True)
class Loop:
    """A loop of a method over its steps."""

    per_step: float  # of its own for each of the setting `steps`: 1, unless it takes a part of them
    images: Sequence[int]  # through the model in each of its first steps, up to where they repeat, if they do
    repeats: bool  # whether they do; else the mean of the later ones stands for what follows

    def through(self, steps: int) -> int:
        """Return the images in all steps, given the setting `steps`."""
        n, period = math.ceil(self.per_step * steps), len(self.images)
        if self.repeats or n <= period:
            return n // period * sum(self.images) + sum(self.images[: n % period])
        later = self.images[1:] or self.images
        return sum(self.images) + round((n - period) * sum(later) / len(later))


@dataclass(frozen=True)
class Work:
    """The images that one choice of settings sends through the model, forward and backward."""

    fixed: int  # priors, and all else outside loops
    loops: Sequence[Loop] = ()
    failure: str = ""  # why they could not be counted

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Work":
        """Return the work that `dataclasses.asdict` wrote."""
        return cls(**{**value, "loops": [Loop(**loop) for loop in value["loops"]]})

    def images(self, steps: int) -> int:
        """Return them for a value of the setting `steps`."""
        return self.fixed + sum(loop.through(steps) for loop in self.loops)


@dataclass(frozen=True)
class Trial:
    """One choice of settings of a method."""

    number: int
    settings: Mapping[str, Scalar]  # that were drawn; with `steps` once these are known
    share: float | None  # of the budget; None for a method without steps
    problem: str = ""  # why it cannot be run


@dataclass(frozen=True)
class Tuning:
    """The trials of all methods, and what they have in common."""

    images: int  # budget of a trial
    count: int  # length of each list
    trials: Mapping[str, Sequence[Trial]]
    measures: Mapping[str, str]  # the part that a metric has in the choice -> its name
    spaces: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # method -> its space, as records have it
    tuned_as: str = ""  # the name under which a decorator takes the values

    def to_run(self) -> dict[str, list[dict[str, Any]]]:
        """Return the trials that can be run, as `make_plan` takes them."""
        return self._facts(False)

    def not_to_run(self) -> dict[str, list[dict[str, Any]]]:
        """Return the others, with the reason."""
        return self._facts(True)

    def _facts(self, stopped: bool) -> dict[str, list[dict[str, Any]]]:
        return {
            name: chosen
            for name, trials in self.trials.items()
            if (chosen := [self._fact(name, trial) for trial in trials if bool(trial.problem) is stopped])
        }

    def _fact(self, name: str, trial: Trial) -> dict[str, Any]:
        facts = {
            "trial": trial.number, "of": self.count, "images": self.images, "space": self.spaces[name],
            "measures": dict(self.measures), "tuned_as": self.tuned_as,
            **({} if trial.share is None else {"share": trial.share}),
        }  # fmt: skip
        return {"settings": dict(trial.settings), "facts": facts, "problem": trial.problem}


def tuned_metrics(registry: Registry) -> dict[str, str]:
    """Return {part: name} of the metrics that the choice rests on.

    Those that controls are checked against, one of forgetting and one of retention, and the headline of retention
    where less is better, which breaks ties.

    Raises:
        UsageError: there is none for a part.
    """
    known = [spec for spec in registry.select_metrics("all") if not (spec.is_attack or spec.is_of_prompts)]

    def first(part: str, specs: Iterable[MetricSpec]) -> str:
        found = next(iter(sorted(specs, key=lambda spec: not spec.headline)), None)
        if found is None:
            raise UsageError(f"no metric can stand for {part} in the choice of settings")
        return found.name

    return {
        "forgetting": first("forgetting", (s for s in known if s.aspect == "forgetting" and s.threshold is not None)),
        "retention": first("retention", (s for s in known if s.aspect == "retention" and s.threshold is not None)),
        "ties": first("ties", (s for s in known if s.aspect == "retention" and s.headline and s.better == "lower")),
    }


def draw_trials(
    registry: Registry, methods: Sequence[MethodSpec], count: int, images: int, tuned_as: str = ""
) -> Tuning:
    """Return the lists of trials, without their steps.

    Args:
        registry: the plugins.
        methods: to be tuned; one without a declared space has no trial.
        count: length of each list; a point that gives the settings of an earlier one is left out.
        images: budget of a trial, forward and backward.
        tuned_as: the name under which a decorator takes the values.

    Raises:
        UsageError: optuna is not installed, or no method declares where its settings are searched.
    """
    searched = [spec for spec in methods if spec.role == "method" and spec.search]
    if not searched:
        raise UsageError("none of these methods declares where its settings are searched (@method(search=...))")
    spaces: dict[str, dict[str, Range | Choices]] = {
        spec.name: {**spec.search, **({"": SHARE} if STEPS in spec.settings else {})} for spec in searched
    }
    trials = {name: _distinct(_list(space, count)) for name, space in spaces.items()}
    known = {spec.name: {key: domain.to_json() for key, domain in spec.search.items()} for spec in searched}
    return Tuning(images, count, trials, tuned_metrics(registry), known, tuned_as)


def _list(space: Mapping[str, Range | Choices], count: int) -> list[Trial]:
    """Return the first points of a scrambled Sobol sequence over a space, which a longer list begins with as well."""
    found = []
    for number, places in enumerate(_points(sorted(space), count)):
        values = {name: domain.at(places[name]) for name, domain in space.items()}
        share = values.pop("", None)
        found.append(Trial(number, values, None if share is None else float(share)))
    return found


def _points(names: Sequence[str], count: int) -> list[dict[str, float]]:
    """Return points of the unit cube, by the names of its sides."""
    try:
        import optuna
    except ImportError as error:
        missing = "tune makes its lists with optuna: install the extra, pip install 'unlearnbench[tune]'"
        raise UsageError(missing) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its sampler is called experimental
        sampler = optuna.samplers.QMCSampler(scramble=True, seed=SEED)
    study = optuna.create_study(sampler=sampler)
    sides = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in names}
    # The sampler draws a study's first trial at random, so that one is made up and left out.
    study.add_trial(optuna.create_trial(params=dict.fromkeys(names, 0.5), distributions=sides, value=0.0))
    return [dict(study.ask(sides).params) for _ in range(count)]


def _distinct(trials: Iterable[Trial]) -> list[Trial]:
    found: dict[tuple[object, ...], Trial] = {}
    for trial in trials:
        found.setdefault((*sorted(trial.settings.items()), trial.share), trial)
    return list(found.values())


def fitted(tuning: Tuning, work: Mapping[str, Sequence[Work]], methods: Mapping[str, MethodSpec]) -> Tuning:
    """Return the trials with as many steps as their share of the budget allows.

    Args:
        tuning: without them.
        work: {method: of each of its trials}.
        methods: by name.
    """
    trials = {}
    for name, of in tuning.trials.items():
        pairs = zip(of, work[name], strict=True)
        fit = [_fitted(trial, each, tuning.images, methods[name]) for trial, each in pairs]
        settings = {id(trial): tuple(sorted(trial.settings.items())) for trial in fit}
        runs = {settings[id(trial)]: trial for trial in reversed(fit) if not trial.problem}  # the first of equal ones
        trials[name] = [trial for trial in fit if trial.problem or runs[settings[id(trial)]] is trial]
    return replace(tuning, trials=trials)


def _fitted(trial: Trial, work: Work, images: int, spec: MethodSpec) -> Trial:
    """Return a trial with its steps: as many as fit into its share of what is left by all else."""
    if work.failure:
        return replace(trial, settings=_with_steps(trial, spec, 1), problem=work.failure)
    least = work.images(1)
    if least > images:
        takes = "priors and a single step take" if work.fixed <= images else "priors alone take"
        problem = f"infeasible: its {takes} {least:,} images, and the budget is {images:,}"
        return replace(trial, settings=_with_steps(trial, spec, 1), problem=problem)
    if trial.share is None:
        return trial
    if not any(sum(loop.images) for loop in work.loops):
        return replace(trial, settings=_with_steps(trial, spec, 1), problem="no image goes through the model in a step")
    most = work.fixed + trial.share * (images - work.fixed)
    return replace(
        trial, settings=_with_steps(trial, spec, bisect_right(range(2, images + 2), most, key=work.images) + 1)
    )


def _with_steps(trial: Trial, spec: MethodSpec, steps: int) -> dict[str, Scalar]:
    return {**trial.settings, **({STEPS: steps} if STEPS in spec.settings else {})}


def rehearsed(
    tuning: Tuning, registry: Registry, dataset: "Dataset", target: Target, plugin_files: Sequence[Path], cache: Path,
    workers: "Workers", display: "Display",
) -> Tuning:  # fmt: skip
    """Return the trials with their steps, after counting the images of each in a rehearsal; a process per method.

    Args:
        tuning: without steps.
        registry: the plugins.
        dataset: of the trials.
        target: one of those to be forgotten.
        plugin_files: files of plugins.
        cache: folder of artifacts.
        workers: start processes.
        display: shows progress.
    """
    from unlearnbench.run.workers import expect

    work: dict[str, Sequence[Work]] = {}
    for name, trials in tuning.trials.items():
        with display.task(f"{name}: images of {len(trials)} trials", announce=False) as task:
            outcome = workers.run(
                "unlearnbench.run.rehearsal:count_images", name, [trial.settings for trial in trials], dataset, target,
                plugin_files, cache, on_progress=task.progress, on_warning=display.warn, on_tick=display.tick,
            )  # fmt: skip
        work[name] = expect(outcome)
    return fitted(tuning, work, {name: registry.method(name) for name in tuning.trials})


def take_over(plan: "Plan", store: "ResultStore") -> None:
    """Give kept records of a plan's cells the facts of its trials, where they were recorded for another list."""
    for record in store.read().records:
        facts = plan.trials.get(record.cell.id)
        if facts is not None and record.tuning != facts:
            store.append(replace(record, tuning=facts))


def record_problems(
    tuning: Tuning, plan: "Plan", store: "ResultStore", workers: "Workers", device: str, devices: str
) -> None:
    """Record the trials that cannot be run as failed, for every class.

    Args:
        tuning: all trials.
        plan: the cells of those that cannot be run.
        store: takes the records; what says the same already stays.
        workers: start processes.
        device: as the user named it, where no record of this dataset and protocol has one.
        devices: likewise.
    """
    import time

    from unlearnbench.run.recording import Recorder, utc
    from unlearnbench.run.workers import Outcome, expect

    problems = {(name, trial.number): trial.problem for name, of in tuning.trials.items() for trial in of}
    board = (plan.dataset.name, plan.dataset.protocol.name)
    records = [record for record in store.read().records if (record.cell.dataset, record.cell.protocol) == board]
    known = {record.cell.id: (record.tuning, record.reason) for record in records}
    measured = [record.provenance["device"] for record in records if record.status == "ok"]
    identity = measured[-1] if measured else None
    for cell in plan.cells:
        facts = plan.trials[cell.id]
        reason = problems[cell.method, facts["trial"]]
        if known.get(cell.id) == (facts, reason):
            continue
        if identity is None:
            identity = expect(workers.run("unlearnbench.run.jobs:resolve_devices", device, devices))[0]["identity"]
        outcome = Outcome("failed", reason=reason)
        store.append(Recorder(plan).record(cell, outcome, identity, started=utc(time.time()), seconds=0.0))
