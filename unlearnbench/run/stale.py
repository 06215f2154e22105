"""Which records no longer hold, and which cells therefore run: the one place of both rules."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unlearnbench.datasets import Dataset, Images, Source, _module, _unguided, resolve
from unlearnbench.datasets.recipes import GivenJudge
from unlearnbench.errors import UsageError
from unlearnbench.run.saving import is_saved
from unlearnbench.store.cell import Rerun
from unlearnbench.store.records import DeviceModel, Record


def needs_run(
    record: Record | None,
    rerun: Rerun,
    source_hashes: Mapping[str, str],
    metrics: Sequence[str],
    device: DeviceModel,
    dataset: Dataset,
    repeats: int = 1,
    models: Path | None = None,
) -> bool:
    """Decide whether a cell runs, given its last record. The one place of the rerun policy.

    `missing` runs what has no result: no record, an interrupted one, one of another source or model of device, with
    fewer metrics or fewer repeats, or without its model in the folder of `models`, where one is wanted.
    `failed` also runs what failed. `always` runs everything.
    """
    if rerun == "always" or record is None or record.status == "interrupted":
        return True
    if not record.device_model.matches(device) or record.is_stale(source_hashes):
        return True
    if (record.dataset.get("digest"), record.dataset.get("content", "")) != (dataset.digest, dataset.content):
        return True
    if record.dataset.get("panel", dataset.panel) != dataset.panel:
        return True
    if record.status == "ok":
        timed = len(record.cost.get("forget", {}).get("repeats", ())) or 1
        if models is not None and not is_saved(models, record):
            return True
        return timed < repeats or not set(metrics) <= set(record.metrics)
    return rerun == "failed"


def current_digests(recorded: Iterable[tuple[Mapping[str, Any], str]]) -> dict[str, str]:
    """Return {"dataset:DIGEST": digest as it would be now} for the datasets of records, for telling stale ones.

    Args:
        recorded: what each record says of its dataset (`Dataset.to_json`), and its protocol's name.
    """
    found = {(facts.get("digest"), facts.get("panel")): (facts, protocol) for facts, protocol in recorded}
    now: dict[str, str] = {}
    for (old, panel), (facts, protocol) in found.items():
        dataset = current_dataset(facts, protocol)
        if dataset is not None:
            now |= {f"dataset:{old}": dataset.digest, f"panel:{panel}": dataset.panel}
    return now


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
            image_shape=tuple(facts["image_shape"]), flip=_module(str(facts["kind"])).FLIP, load=_never,
        )  # fmt: skip
        protocol_now = _unguided(dataset.protocol) if unguided else dataset.protocol
        given: dict[str, Any] = {
            part: GivenJudge(getattr(dataset, part).network, sha256) for part, sha256 in hashes.items() if sha256
        }
        chosen = facts["choices"] if base or given else dataset.choices
        return replace(dataset, protocol=protocol_now, choices=chosen, **given)
    except (KeyError, TypeError, ValueError, ImportError, AttributeError, UsageError):
        return None


def _never(*_: object) -> Images:
    raise AssertionError("a dataset made to be compared has no images")
