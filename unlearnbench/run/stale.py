"""Which records are stale, and which cells therefore run: the one place of both rules.

A record rests on three things, and is stale where one of them is another now:

- the source of its method and of its metrics: the syntax tree of a plugin's file and of the helpers it imports from
  its folder, without docstrings and comments (`plugins/sources.py`);
- the recipes of its dataset: base model, judges, feature extractor, protocol (`Dataset.digest` and
  `Dataset.judges_digest`);
- parts of the harness, by their declared revisions (`store/revisions.py`).
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from unlearnbench.datasets import Dataset, Images, Source, module_of, resolve, without_guidance
from unlearnbench.datasets.recipes import GivenJudge
from unlearnbench.errors import UsageError
from unlearnbench.plugins.spec import MethodSpec, MetricSpec
from unlearnbench.run.execution import Execution
from unlearnbench.run.saving import is_saved
from unlearnbench.store.records import DeviceModel, Record
from unlearnbench.store.revisions import REVISIONS, Part, of_parts

JUDGED = ("_probs", "_verdicts", "_second", "_features")  # end the needs that a judge or an extractor fills
FIRST = dict.fromkeys(REVISIONS, 1)  # what records of before there were revisions rest on
Recipes = tuple[str, str]  # digest and panel of a dataset


def rests_on(method: MethodSpec, metrics: Iterable[MetricSpec], dataset: Dataset) -> dict[str, int]:
    """Return the revisions of the parts of the harness that a cell's numbers rest on, as its record carries them."""
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
    """Say whether something that a record rests on is another now than when it was measured.

    Args:
        record: of any cell.
        sources: {"method:NAME" or "metric:NAME": hash of its source now}; what it does not name is not judged.
        recipes: of the record's dataset as they are now; None where nobody can tell.
    """
    measured = {f"method:{record.cell.method}": record.method.get("source_hash")}
    measured |= {f"metric:{name}": entry.get("source_hash") for name, entry in record.metrics.items()}
    if any(sources.get(key, value) != value for key, value in measured.items()):
        return True
    if recipes is not None:
        recorded = (record.dataset.get("digest"), record.dataset.get("panel", recipes[1]))  # once there was no panel
        if recorded != recipes:
            return True
    return any(REVISIONS.get(part, rev) != rev for part, rev in (record.revisions or FIRST).items())  # type: ignore[call-overload]


def stale_ids(records: Iterable[Record], sources: Mapping[str, str]) -> frozenset[str]:
    """Return the ids of the cells whose records are stale, as reports are handed them.

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
    """Decide whether a cell runs, given its last record. The one place of the rerun policy.

    `missing` runs what has no result: no record, an interrupted or stale one, one of another model of device or other
    images, with fewer metrics or fewer repeats, or without its model in the folder of `models`, where one is wanted.
    `failed` also runs what failed. `always` runs everything.
    """
    if execution.rerun == "always" or record is None or record.status == "interrupted":
        return True
    if not record.device_model.matches(device) or record.dataset.get("content", "") != dataset.content:
        return True
    if is_stale(record, sources, (dataset.digest, dataset.judges_digest)):
        return True
    if record.status == "ok":
        timed = len(record.cost.get("forget", {}).get("repeats", ())) or 1
        if execution.models is not None and not is_saved(execution.models, record):
            return True
        return timed < execution.repeats or not set(metrics) <= set(record.metrics)
    return execution.rerun == "failed"


def current_dataset(facts: Mapping[str, Any], protocol: str) -> Dataset | None:
    """Return the dataset of a record with the recipes it would have now, or None where nobody can tell.

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
