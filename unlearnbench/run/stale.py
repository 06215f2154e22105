"""The rules for stale records, and for the parts of cells to run.

A cell has three parts: its method unlearns, metrics measure the weights that it left, attacks try to recover the class.
A metric that samples anew for another reason counts as an attack here.
Unlearned weights are artifacts with a key, so they are never stale. A record is stale where one of these has changed:

- the source of its method and of its metrics: the syntax tree of a plugin's file and of the helpers it imports from
  its folder, without docstrings and comments (`plugins/sources.py`);
- the recipes of its dataset: base model, judges, feature extractor, protocol (`Dataset.digest` and
  `Dataset.judges_digest`);
- parts of the harness, by their declared revisions (`store/revisions.py`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from unlearnbench.datasets import Dataset, Images, Source, module_of, parse_labels, resolve, without_guidance
from unlearnbench.datasets.conditions import Prompts
from unlearnbench.datasets.recipes import GivenJudge
from unlearnbench.errors import UsageError
from unlearnbench.plugins.spec import MethodSpec, MetricSpec
from unlearnbench.run.execution import Execution
from unlearnbench.store.cell import UNLEARNED
from unlearnbench.store.records import DeviceModel, Record
from unlearnbench.store.revisions import REVISIONS, Part, of_parts

JUDGED = ("_probs", "_verdicts", "_second", "_features")  # suffixes of needs that use a judge or an extractor
FIRST = dict.fromkeys(REVISIONS, 1)  # of records older than revisions
Recipes = tuple[str, str]  # digest and judges_digest of a dataset


def rests_on(method: MethodSpec, metrics: Iterable[MetricSpec], dataset: Dataset) -> dict[str, int]:
    """Return the revisions of the parts of the harness that affect a cell's numbers, for the record of a failed one."""
    return unlearning_rests_on(method.role, dataset, sampled=True) | measuring_rests_on(metrics)


def unlearning_rests_on(role: str, dataset: Dataset, *, sampled: bool) -> dict[str, int]:
    """Return the revisions of the parts of the harness that affect unlearned weights.

    Args:
        role: of the method.
        dataset: whose base model is unlearned.
        sampled: whether the method drew samples.
    """
    chosen = {"base": not dataset.checkpoint, "unlearning": role != "reference", "sampler": sampled}
    parts: tuple[Part, ...] = ("base", "unlearning", "sampler")
    return of_parts([part for part in parts if chosen[part]])


def measuring_rests_on(metrics: Iterable[MetricSpec]) -> dict[str, int]:
    """Return the revisions of the parts of the harness that affect these metrics, given the weights."""
    specs = list(metrics)
    parts: set[Part] = {"sampler", "measuring"}
    if any(spec.is_apart for spec in specs):
        parts |= {"attacks", "judges"}
    if any(need.endswith(JUDGED) for spec in specs for need in spec.needs):
        parts.add("judges")
    return of_parts(parts)


def is_apart(entry: Mapping[str, Any]) -> bool:
    """Say whether a record's entry on a metric is that of an attack or its like, which is a part of its own."""
    return "cost" in entry


def is_stale(record: Record, sources: Mapping[str, str], recipes: Recipes | None) -> bool:
    """Say whether a record's weights or metrics are stale: its attacks may be so alone, see `stale_attacks`.

    Args:
        record: of any cell.
        sources: {"method:NAME" or "metric:NAME": hash of its source now}; missing names are not checked.
        recipes: of the record's dataset now; None where unknown.
    """
    measured = {name: entry for name, entry in record.metrics.items() if not is_apart(entry)}
    return bool(_have_changed(measured, sources)) or _is_all_stale(record, sources, recipes)


def _is_all_stale(record: Record, sources: Mapping[str, str], recipes: Recipes | None) -> bool:
    """Say whether something has changed that attacks rest on too, as on a method, recipe or judge."""
    if _differs(f"method:{record.cell.method}", record.method, sources):
        return True
    if recipes is not None:
        recorded = (record.dataset.get("digest"), record.dataset.get("panel", recipes[1]))  # old records lack it
        if recorded != recipes:
            return True
    apart = {"attacks"} if any(map(is_apart, record.metrics.values())) else set()
    return bool(_raised(record) - apart)


def stale_attacks(record: Record, sources: Mapping[str, str]) -> frozenset[str]:
    """Return the names of the attacks of a record that are stale though it is not: arguments as of `is_stale`."""
    attacks = {name: entry for name, entry in record.metrics.items() if is_apart(entry)}
    return frozenset(attacks) if "attacks" in _raised(record) else _have_changed(attacks, sources)


def _raised(record: Record) -> set[str]:
    """Return the parts of the harness with another revision than a record rests on."""
    revisions = record.revisions or FIRST
    return {part for part, revision in revisions.items() if REVISIONS.get(part, revision) != revision}  # type: ignore[call-overload]


def _have_changed(metrics: Mapping[str, Mapping[str, Any]], sources: Mapping[str, str]) -> frozenset[str]:
    return frozenset(name for name, entry in metrics.items() if _differs(f"metric:{name}", entry, sources))


def _differs(key: str, recorded: Mapping[str, Any], sources: Mapping[str, str]) -> bool:
    return bool(sources.get(key, recorded.get("source_hash")) != recorded.get("source_hash"))


def stale_ids(records: Iterable[Record], sources: Mapping[str, str]) -> frozenset[str]:
    """Return the ids of cells with stale records, and `ID NAME` of stale attacks of others, for reports.

    Args:
        records: of any datasets.
        sources: of all plugins, `Registry.source_hashes`.
    """
    now: dict[tuple[object, ...], Recipes | None] = {}
    found = set()
    for record in records:
        facts, protocol = record.dataset, record.cell.protocol
        key = (facts.get("digest"), facts.get("panel"), protocol)
        if key not in now:
            dataset = current_dataset(facts, protocol)
            now[key] = None if dataset is None else (dataset.digest, dataset.judges_digest)
        if is_stale(record, sources, now[key]):
            found.add(record.cell.id)
        else:
            found |= {f"{record.cell.id} {name}" for name in stale_attacks(record, sources)}
    return frozenset(found)


class Needed(NamedTuple):
    """The parts of a cell to run. Weights are unlearned where the cache lacks them."""

    measure: bool  # the weights, by all metrics but attacks
    attacks: tuple[str, ...] = ()  # those of `metrics`, for weights that are kept; new ones meet all
    keeps: bool = False  # the attacks of the last record stay, where they met the same weights
    afresh: bool = False  # unlearn, whatever the cache has


def needed(
    record: Record | None, execution: Execution, *, sources: Mapping[str, str], metrics: Sequence[MetricSpec],
    device: DeviceModel | None, dataset: Dataset,
) -> Needed | None:  # fmt: skip
    """Apply the rerun policy to a cell, given its last record; return None where nothing is to be done.

    `missing` runs what has no result: cells without a record, or with one that is interrupted, stale, of another model
    of device or other images, with fewer metrics or repeats, or without its model in the folder of `models`, if
    requested; of other cells the attacks that are missing or stale. `failed` also runs failed cells and attacks.
    `always` runs everything.
    """
    attacks = tuple(spec.name for spec in metrics if spec.is_apart)
    if execution.rerun == "always":
        return Needed(True, attacks, afresh=True)
    if record is None or record.status == "interrupted":
        return Needed(True, attacks)
    if device is None or not record.device_model.matches(device):
        return Needed(True, attacks)
    if record.dataset.get("content", "") != dataset.content:
        return Needed(True, attacks)
    if record.status != "ok":
        stale = is_stale(record, sources, (dataset.digest, dataset.judges_digest))
        return Needed(True, attacks) if stale or execution.rerun == "failed" else None
    old = stale_attacks(record, sources)
    lost = (
        {name for name, entry in record.metrics.items() if entry.get("failed")} if execution.rerun == "failed" else {}
    )
    again = tuple(name for name in attacks if name not in record.metrics or name in old or name in lost)
    if _is_all_stale(record, sources, (dataset.digest, dataset.judges_digest)):
        return Needed(True, attacks)
    if _measured_in_part(record, execution, sources, metrics, dataset):
        return Needed(True, again, keeps=True)
    if not again:
        return None
    return Needed(False, again) if _weights_are_kept(record, execution.cache) else Needed(True, again, keeps=True)


def _weights_are_kept(record: Record, cache: Path) -> bool:
    """Say whether the cache seems to have the weights that a record rests on."""
    key = record.artifacts.get(UNLEARNED, {}).get("key", "")
    return bool(key) and (cache / UNLEARNED / key[:24]).is_dir()


def _measured_in_part(
    record: Record, execution: Execution, sources: Mapping[str, str], metrics: Sequence[MetricSpec], dataset: Dataset
) -> bool:
    """Say whether a good record's weights or metrics are stale, or less than requested."""
    if is_stale(record, sources, (dataset.digest, dataset.judges_digest)):
        return True
    if execution.models is not None and not _is_saved(execution.models, record):
        return True
    timed = len(record.cost.get("forget", {}).get("repeats", ())) or 1
    return timed < execution.repeats or not {spec.name for spec in metrics if not spec.is_apart} <= set(record.metrics)


def _is_saved(models: Path, record: Record) -> bool:
    from unlearnbench.run.saving import is_saved  # imports torch, which a report does without

    return is_saved(models, record)


def current_dataset(facts: Mapping[str, Any], protocol: str) -> Dataset | None:
    """Return the dataset of a record with its present recipes, or None where unknown.

    Args:
        facts: `Dataset.to_json` as recorded.
        protocol: the name of the record's protocol.
    """
    try:
        choices = dict(facts["choices"])
        base, unguided, labels = choices.pop("base", ""), choices.pop("unguided", False), choices.pop("labels", "")
        module = module_of(str(facts["kind"]))
        recorded = Prompts.from_json(facts["prompts"]) if "prompts" in facts else None  # models on labels have none
        prompts = recorded if choices.pop("concepts", "") else getattr(module, "PROMPTS", None)
        hashes = {"judge": choices.pop("judge_weights", ""), "second": choices.pop("second_judge_weights", "")}
        dataset = resolve(
            Source(str(facts["kind"]), protocol, **choices), name="", title="", class_names=facts["class_names"],
            image_shape=tuple(facts["image_shape"]), flip=module.FLIP, load=_never, prompts=prompts,
            train_counts=tuple(facts.get("train_counts", ())),
        )  # fmt: skip
        protocol_now = without_guidance(dataset.protocol) if unguided else dataset.protocol
        given: dict[str, Any] = {
            part: GivenJudge(getattr(dataset, part).network, sha256) for part, sha256 in hashes.items() if sha256
        }
        chosen = facts["choices"] if base or given or "concepts" in facts["choices"] else dataset.choices
        rows = parse_labels(labels, dataset.class_names, base)
        return replace(dataset, protocol=protocol_now, choices=chosen, labels=rows, **given)
    except (KeyError, TypeError, ValueError, ImportError, AttributeError, UsageError):
        return None


def _never(*_: object) -> Images:
    raise AssertionError("a dataset made to be compared has no images")
