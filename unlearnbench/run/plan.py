"""The plan of a run: checked arguments resolved into cells, and the selection of cells without a record."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from unlearnbench.datasets import Dataset, Source, load_dataset
from unlearnbench.datasets.recipes import WITHOUT_CLASS_0
from unlearnbench.errors import UsageError, plural, suggest
from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.spec import MethodSpec, MetricSpec
from unlearnbench.run.arguments import (
    combinations,
    make_cells,
    parse_classes,
    parse_sequence,
    parse_sweeps,
    parse_targets,
    replicates,
)
from unlearnbench.run.execution import Execution
from unlearnbench.run.stale import Needed, needed
from unlearnbench.store.cell import Cell, Controls, Scalar, Seeds, Target, Track
from unlearnbench.store.records import DeviceModel, Record

MOST_CELLS = 100_000  # of one run
FRECHET = "FID"  # in the titles of metrics that need a covariance of the features


@dataclass(frozen=True)
class Plan:
    """The arguments of a run, checked and resolved."""

    dataset: Dataset
    methods: Mapping[str, MethodSpec]
    metrics: Sequence[MetricSpec]
    cells: Sequence[Cell]  # references first, which show a weak base model early; controls last
    controls: frozenset[str]  # ids of control cells that were not requested by name
    overrides: Mapping[str, Mapping[str, Scalar]]  # cell id -> settings that --set changed
    source_hashes: Mapping[str, str]  # of the selected plugins
    known_metrics: frozenset[str] = frozenset()  # names of all metrics
    warnings: Sequence[str] = ()  # a sentence on each metric that cannot be measured
    given: Mapping[str, Path] = field(default_factory=dict)  # row -> folder of a model that is not unlearned here
    tracks: Mapping[str, str] = field(default_factory=dict)  # cell id -> whose settings it has: "tuned" or "published"
    trials: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # cell id -> the record's entry on its trial

    def unlearns(self, cell: Cell) -> bool:
        """Say whether a cell's method is neither a reference nor a control."""
        return self.methods[cell.method].role in ("method", "gold", "given")

    def label(self, cell: Cell) -> str:
        """Return a method's title, with the settings that --set changed; the published ones in place of tuned ones."""
        changed = "".join(f", {name}={value}" for name, value in self.overrides[cell.id].items())
        published = " (as published)" if self.tracks.get(cell.id) == "published" else ""
        return f"{self.methods[cell.method].title}{published}{changed}"

    def describe(self, cell: Cell) -> str:
        """Return a cell in words, as it is shown while it runs."""
        words = [f"{name}={value}" for name, value in self.overrides[cell.id].items()]
        changed = ", ".join([*(["as published"] if self.tracks.get(cell.id) == "published" else []), *words])
        seed = f", seed {cell.seeds.label}" if len({c.seeds for c in self.cells}) > 1 else ""
        names = [self.dataset.class_names[c] for c in cell.forget_classes]
        named = "" if names == list(map(str, cell.forget_classes)) else f" {'+'.join(names)}"
        return f"{cell.method}{f' ({changed})' if changed else ''} forgets {cell.target.label}{named}{seed}"

    def metrics_of(self, cell: Cell) -> list[MetricSpec]:
        """Return the metrics that apply to a cell.

        Attacks apply to methods that unlearn, metrics of earlier classes to sequences, those of prompts to models that
        take them.
        """
        return [
            spec for spec in self.metrics
            if (self.unlearns(cell) or not spec.is_attack)
            and (cell.earlier or not any(need.startswith("earlier_") for need in spec.needs))
            and (self.dataset.prompts is not None or not spec.is_of_prompts)
        ]  # fmt: skip


def make_plan(
    registry: Registry, *, methods: str, classes: str, source: Source, metrics: str, sweeps: Sequence[str],
    seeds: str = "0", base_seeds: str = "", sampling_seeds: str = "", controls: Controls = "first", sequence: str = "",
    every_class: bool = False, retained: str = "", track: Track = "tuned",
    trials: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Plan:  # fmt: skip
    """Check the user's arguments and return the plan.

    `trials` are those of `tune`, as `run.tuning.Tuning.to_run` gives them: methods have their settings alone.

    Raises:
        UsageError: an argument is unknown, malformed or out of range.
    """
    dataset = load_dataset(source)
    _check_weights(dataset)
    if retained:
        dataset = dataset.evaluating(parse_classes(retained, dataset.class_names))
    if not methods:
        raise UsageError("say what to run: --methods all, a group such as paper, or names separated by commas")
    if every_class:
        classes = f"@0-@{dataset.num_classes - 1}"
    targets = _parse_targets(classes, sequence, dataset)
    for target in targets:
        if not dataset.measured(target):
            raise UsageError(f"--retained {retained} leaves no class to measure once it is forgotten: name others too")
    if dataset.checkpoint and base_seeds:
        raise UsageError("--base names a trained model and --base-seeds trains one per seed: give one of them")
    chosen_seeds = replicates(seeds, "0" if dataset.checkpoint else base_seeds, sampling_seeds)
    chosen_metrics = registry.select_metrics(metrics)
    selected = registry.select_methods(methods)
    chosen_methods = {spec.name: spec for spec in selected if dataset.offers.issuperset(spec.requires)}
    left_out = check_required(selected, chosen_methods, methods, dataset)
    swept = _parse_overrides(registry, chosen_methods, parse_sweeps(sweeps))
    if trials is None:
        variants = _variants(chosen_methods, swept, dataset.tunings, track)
    else:
        chosen_methods = {name: spec for name, spec in chosen_methods.items() if name in trials}
        variants = _trials(chosen_methods, trials)
    if (count := len(variants) * len(targets) * len(chosen_seeds)) > MOST_CELLS:
        raise UsageError(f"that makes {count} cells, more than {MOST_CELLS}: split the run")
    resolved = [(variant.method, variant.settings) for variant in variants]
    cells = make_cells(dataset.name, dataset.protocol.name, resolved, targets, chosen_seeds)
    known = dict(zip((cell.id for cell in cells), variants * (len(cells) // max(len(variants), 1)), strict=True))
    overrides = {name: variant.overrides for name, variant in known.items()}
    added = {spec.name: spec for spec in _controls(registry, controls, chosen_metrics)}
    checks = _control_cells(added.values(), dataset, targets, chosen_seeds, controls)
    checks = [cell for cell in checks if cell.id not in overrides]
    chosen_methods = added | chosen_methods
    hashes = {f"method:{name}": registry.source_hash("method", name) for name in chosen_methods}
    hashes |= {f"metric:{spec.name}": registry.source_hash("metric", spec.name) for spec in chosen_metrics}
    overrides |= {cell.id: {} for cell in checks}
    ids = frozenset(cell.id for cell in checks)
    names = frozenset(plugin.name for plugin in registry.plugins("metric"))
    ordered = sorted([*cells, *checks], key=lambda cell: chosen_methods[cell.method].role != "reference")
    warnings = _few_samples(dataset, targets) if any(FRECHET in spec.title for spec in chosen_metrics) else []
    warnings += left_out
    return Plan(
        dataset, chosen_methods, chosen_metrics, ordered, ids, overrides, hashes, names, warnings,
        tracks={name: variant.track for name, variant in known.items() if variant.track},
        trials={name: variant.trial for name, variant in known.items() if variant.trial},
    )  # fmt: skip


class _Variant(NamedTuple):
    """A method with one choice of settings."""

    method: str
    settings: Mapping[str, Scalar]  # all of them
    overrides: Mapping[str, Scalar]  # of the user, or of a trial
    track: str = ""  # whose settings these are, where tuned ones exist and nothing is changed
    trial: Mapping[str, Any] = {}  # the record's entry


def _variants(
    methods: Mapping[str, MethodSpec], swept: Mapping[str, Mapping[str, Sequence[Scalar]]], tunings: Sequence[str],
    track: Track,
) -> list[_Variant]:  # fmt: skip
    """Return the settings of methods that a user asks for; only unlearning methods have tracks."""
    found = []
    for name, spec in methods.items():
        tuned, published = spec.resolve(tunings, {}), spec.resolve((), {})
        differ = spec.role == "method" and tuned != published
        tracks = {"tuned": tuned, "published": published} if differ else {"": tuned}
        chosen = tracks if track == "both" or "" in tracks else {track: tracks[track]}
        for values in combinations(swept.get(name, {})):
            settings = {key: {**base, **values} for key, base in chosen.items()}
            found += [_Variant(name, each, values, "" if values else key) for key, each in settings.items()]
    return list({(v.method, *sorted(v.settings.items())): v for v in found}.values())


def _trials(methods: Mapping[str, MethodSpec], trials: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[_Variant]:
    """Return the settings of trials: the published ones where nothing was drawn, whatever was tuned before."""
    return [
        _Variant(name, spec.resolve((), trial["settings"]), trial["settings"], trial=trial["facts"])
        for name, spec in methods.items() for trial in trials[name]
    ]  # fmt: skip


def check_required(selected: Sequence[MethodSpec], chosen: Iterable[str], methods: str, dataset: Dataset) -> list[str]:
    """Return a sentence on the methods of a group that this kind of model cannot be unlearned by.

    Raises:
        UsageError: one of them is named, or no method is left.
    """
    lacking = {spec.name: spec.requires for spec in selected if spec.name not in chosen}
    named = {part.strip() for part in methods.split(",")} & lacking.keys()
    for name in sorted(named or (set() if list(chosen) else lacking)):
        raise UsageError(
            f"{name} requires a model that takes {' and '.join(lacking[name])}, and that of {dataset.name} takes class "
            f"labels: give --model text, or a text-to-image model with --base"
        )
    return [f"left out, as the model takes no {' and '.join(needs)}: {name}" for name, needs in lacking.items()]


def _check_weights(dataset: Dataset) -> None:
    """Raise UsageError where the weights that a user gave for a judge do not fit it."""
    if dataset.weights:
        from unlearnbench.judges.weights import check_given  # imports torch

        check_given(dataset)


def _parse_targets(classes: str, sequence: str, dataset: Dataset) -> list[Target]:
    if bool(classes) == bool(sequence):
        raise UsageError("say what to forget: --classes 0-9 one at a time, or --sequence 0,1,2 one after another")
    names = dataset.class_names
    targets = parse_targets(classes, names) if classes else parse_sequence(sequence, names)
    for target in targets:
        if dataset.protocol.reference == WITHOUT_CLASS_0 and set(range(1, len(names))) <= set(target.gone):
            raise UsageError(
                f"{dataset.protocol.name} drops class 0, so no retained class is left to compare with: use "
                f"{dataset.protocol.family}"
            )
    return targets


def _few_samples(dataset: Dataset, targets: Sequence[Target]) -> list[str]:
    """Return sentences on targets with too few retained images, generated or real, for a covariance."""
    most = 500 if dataset.protocol.reference == WITHOUT_CLASS_0 else max(dataset.train_counts, default=0)
    smaller = ", or choose --extractor own, which has fewer features" if dataset.extractor is None else ""
    found: list[str] = []
    for kind, advice in (("generated", "forget fewer classes at once"), ("real", "add training images of them")):
        counts = [
            len(dataset.measured(target)) * dataset.protocol.retain_samples if kind == "generated"
            else sum(min(dataset.train_counts[c], most) for c in dataset.measured(target))
            for target in targets if kind == "generated" or dataset.train_counts
        ]  # fmt: skip
        short = [(count, target) for count, target in zip(counts, targets, strict=False) if count <= dataset.features]
        if short:
            count, target = min(short)
            names = " and ".join(dataset.class_names[c] for c in target.gone)
            more = f" (and for {plural(len(short) - 1, 'more target')})" if len(short) > 1 else ""
            found.append(
                f"FID cannot be measured where {names} is forgotten{more}: a covariance of {dataset.features} features "
                f"takes more than {dataset.features} images, and of the retained classes there are {count} {kind} "
                f"ones: {advice}{smaller}"
            )
    return found


def _controls(registry: Registry, controls: Controls, metrics: Sequence[MetricSpec]) -> list[MethodSpec]:
    """Return the controls that a run adds: none without a metric to check, unless requested."""
    checked = controls == "every" or any(s.threshold is not None and not s.is_attack for s in metrics)
    return registry.controls() if checked and controls != "none" else []


def _control_cells(
    specs: Iterable[MethodSpec], dataset: Dataset, targets: Iterable[Target], seeds: Sequence[Seeds], controls: Controls
) -> list[Cell]:
    """Return the cells of the controls, for the first class and replicate or, if requested, for every class.

    Their outcome is known for single classes only.
    """
    classes = [target for target in targets if len(target.gone) == 1]
    tunings = dataset.tunings
    resolved = [(spec.name, spec.resolve(tunings, {})) for spec in specs]
    some = classes if controls == "every" else classes[:1]
    return make_cells(dataset.name, dataset.protocol.name, resolved, some, seeds[:1])


def _parse_overrides(
    registry: Registry, methods: Mapping[str, MethodSpec], sweeps: Mapping[str, Mapping[str, Sequence[str]]]
) -> dict[str, dict[str, list[Scalar]]]:
    """Return {method: {setting: typed values}}.

    Raises:
        UsageError: a method is not selected, a setting is unknown, or a value is invalid or given twice.
    """
    parsed: dict[str, dict[str, list[Scalar]]] = {}
    for name, settings in sweeps.items():
        spec = registry.method(name)
        if name not in methods:
            raise UsageError(f"--set names {name}, which --methods does not select: add it there")
        for setting, texts in settings.items():
            if setting not in spec.settings:
                known = ", ".join(spec.settings) or "no settings"
                raise UsageError(f"{name} has no setting {setting!r}{suggest(setting, spec.settings)}: it has {known}")
            values = [spec.settings[setting].parse(text, name) for text in texts]
            if len(set(values)) < len(values):
                raise UsageError(f"--set {name}.{setting} gives a value twice: write each value once")
            parsed.setdefault(name, {})[setting] = values
    return parsed


@dataclass(frozen=True)
class Selection:
    """The result of the rerun policy on a plan's cells and records."""

    todo: list[Cell]  # with a part to be run
    needed: Mapping[str, Needed]  # cell id -> these parts
    kept: list[Record]  # records of the other cells
    last: Mapping[str, Record]  # cell id -> the good record of a cell to be run, if there is one

    @property
    def failed(self) -> list[Record]:
        """The failed records that are kept."""
        return [record for record in self.kept if record.failure]


def select(plan: Plan, records: Sequence[Record], execution: Execution, device: DeviceModel | None) -> Selection:
    """Return the cells of a plan to be measured.

    Args:
        plan: the cells.
        records: the last one of each cell.
        execution: the options of the run.
        device: model of the run's device; None where it is not known yet, so that no record counts.
    """
    latest = {record.cell.id: record for record in records}

    def wanted(cell: Cell) -> Needed | None:
        chosen = execution if plan.unlearns(cell) else replace(execution, models=None)
        return _needed(plan, cell, latest.get(cell.id), chosen, device)

    standing = [] if execution.controls == "every" else _checks_made(plan, records, execution, device)
    checked = {record.cell.method for record in standing}
    cells = [cell for cell in plan.cells if cell.id not in plan.controls or cell.method not in checked]
    parts = {cell.id: part for cell in cells if (part := wanted(cell)) is not None}
    todo = [cell for cell in cells if cell.id in parts]
    kept = {cell.id: latest[cell.id] for cell in cells if cell.id not in parts}
    kept |= {record.cell.id: record for record in standing}
    last = {name: latest[name] for name in parts if name in latest and latest[name].status == "ok"}
    return Selection(todo, parts, list(kept.values()), last)


def _needed(
    plan: Plan, cell: Cell, record: Record | None, execution: Execution, device: DeviceModel | None
) -> Needed | None:
    return needed(
        record, execution, sources=plan.source_hashes, metrics=plan.metrics_of(cell), device=device,
        dataset=plan.dataset,
    )  # fmt: skip


def _checks_made(
    plan: Plan, records: Iterable[Record], execution: Execution, device: DeviceModel | None
) -> list[Record]:
    """Return the successful records of controls, of any class."""
    once = replace(execution, repeats=1, models=None)
    settings = {cell.method: cell.settings for cell in plan.cells if cell.id in plan.controls}
    alike = [
        r for r in records
        if r.status == "ok" and settings.get(r.cell.method) == r.cell.settings and len(r.cell.target.gone) == 1
        and (r.cell.dataset, r.cell.protocol) == (plan.dataset.name, plan.dataset.protocol.name)
    ]  # fmt: skip

    return [record for record in alike if _needed(plan, record.cell, record, once, device) is None]
