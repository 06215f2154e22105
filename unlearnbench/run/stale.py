"""The rules for stale records and for cells to run.

A record is stale where one of these has changed since:

- the source of its method and of its metrics: the syntax tree of a plugin's file and of the helpers it imports from
  its folder, without docstrings and comments (`plugins/sources.py`);
- the recipes of its dataset: base model, judges, feature extractor, protocol (`Dataset.digest` and
  `Dataset.judges_digest`);
- parts of the harness, by their declared revisions (`store/revisions.py`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from unlearnbench.datasets import Dataset, Images, Source, module_of, resolve, without_guidance
from unlearnbench.datasets.recipes import GivenJudge
from unlearnbench.errors import UsageError
from unlearnbench.plugins.spec import MethodSpec, MetricSpec
from unlearnbench.run.execution import Execution
from unlearnbench.store.records import DeviceModel, Record
from unlearnbench.store.revisions import REVISIONS, Part, of_parts

JUDGED = ("_probs", "_verdicts", "_second", "_features")  # suffixes of needs that use a judge or an extractor
FIRST = dict.fromkeys(REVISIONS, 1)  # of records older than revisions
Recipes = tuple[str, str]  # digest and judges_digest of a dataset


def rests_on(method: MethodSpec, metrics: Iterable[MetricSpec], dataset: Dataset) -> dict[str, int]:
    """Return the revisions of the parts of the harness that affect a cell's numbers, for its record."""
    needs = {need for spec in metrics for need in spec.needs}
    parts: set[Part] = {"sampler", "measuring"}
    if not dataset.checkpoint:
        parts.add("base")
    if method.role != "reference":
        parts.add("unlearning")
    if "attacker" in needs:
        parts |= {"attacks", "judges"}
    if any(need.endswith(JUDGED) for need in needs):
        parts.add("judges")
    return of_parts(parts)


def is_stale(record: Record, sources: Mapping[str, str], recipes: Recipes | None) -> bool:
    """Say whether sources, recipes or revisions of a record have changed since it was measured.

    Args:
        record: of any cell.
        sources: {"method:NAME" or "metric:NAME": hash of its source now}; missing names are not checked.
        recipes: of the record's dataset now; None where unknown.
    """
    measured = [(f"method:{record.cell.method}", record.method.get("source_hash"))]
    measured += [(f"metric:{name}", entry.get("source_hash")) for name, entry in record.metrics.items()]
    if any(sources.get(key, value) != value for key, value in measured):
        return True
    if recipes is not None:
        recorded = (record.dataset.get("digest"), record.dataset.get("panel", recipes[1]))  # old records lack it
        if recorded != recipes:
            return True
    return any(REVISIONS.get(part, rev) != rev for part, rev in (record.revisions or FIRST).items())  # type: ignore[call-overload]


def stale_ids(records: Iterable[Record], sources: Mapping[str, str]) -> frozenset[str]:
    """Return the ids of cells with stale records, for reports.

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
    return frozenset(found)


def needs_run(
    record: Record | None, execution: Execution, *, sources: Mapping[str, str], metrics: Iterable[str],
    device: DeviceModel, dataset: Dataset,
) -> bool:  # fmt: skip
    """Apply the rerun policy to a cell, given its last record.

    `missing` runs cells without a result: no record, or one that is interrupted, stale, of another model of device or
    other images, with fewer metrics or repeats, or without its model in the folder of `models`, if requested. `failed`
    also runs failed cells. `always` runs everything.
    """
    if execution.rerun == "always" or record is None or record.status == "interrupted":
        return True
    if not record.device_model.matches(device) or record.dataset.get("content", "") != dataset.content:
        return True
    if is_stale(record, sources, (dataset.digest, dataset.judges_digest)):
        return True
    if record.status == "ok":
        timed = len(record.cost.get("forget", {}).get("repeats", ())) or 1
        if execution.models is not None and not _is_saved(execution.models, record):
            return True
        return timed < execution.repeats or not set(metrics) <= set(record.metrics)
    return execution.rerun == "failed"


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
        base, unguided = choices.pop("base", ""), choices.pop("unguided", False)
        hashes = {"judge": choices.pop("judge_weights", ""), "second": choices.pop("second_judge_weights", "")}
        dataset = resolve(
            Source(str(facts["kind"]), protocol, **choices), name="", title="", class_names=facts["class_names"],
            image_shape=tuple(facts["image_shape"]), flip=module_of(str(facts["kind"])).FLIP, load=_never,
        )  # fmt: skip
        protocol_now = without_guidance(dataset.protocol) if unguided else dataset.protocol
        given: dict[str, Any] = {
            part: GivenJudge(getattr(dataset, part).network, sha256) for part, sha256 in hashes.items() if sha256
        }
        chosen = facts["choices"] if base or given else dataset.choices
        return replace(dataset, protocol=protocol_now, choices=chosen, **given)
    except (KeyError, TypeError, ValueError, ImportError, AttributeError, UsageError):
        return None


def _never(*_: object) -> Images:
    raise AssertionError("a dataset made to be compared has no images")
