"""The jobs of a cell, one after another, and the fields of its record, put together from theirs. Free of torch."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearnbench.cost.phases import PHASES, Cost
from unlearnbench.run.execution import Execution
from unlearnbench.run.plan import Plan
from unlearnbench.run.stale import Needed, is_apart
from unlearnbench.run.workers import Outcome
from unlearnbench.store.cell import UNLEARNED, Cell
from unlearnbench.store.records import Record

Fields = dict[str, Any]  # of a record
MERGED = ("metrics", "revisions", "artifacts", "probes")  # fields that several jobs contribute to
TAKEN = (  # fields that one job has
    "method_source_hash", "priors", "counts", "curves", "flops", "timestep_loss", "judge", "images",
)  # fmt: skip
LOST = "its unlearned weights cannot be read from the cache (UNLEARNBENCH_CACHE), where its first process left them"


@dataclass(frozen=True)
class Stages:
    """The jobs of one cell.

    Attributes:
        plan: of the run.
        execution: its options.
        cell: to be run.
        needed: the parts to run.
        last: the good record of the cell, if there is one: its attacks stay where its weights do.
        device_info: the device, as `run.jobs.resolve_devices` returns it.
        staged: folder for the unlearned model; None for none.
        run: `Workers.run` with everything but job and arguments.
    """

    plan: Plan
    execution: Execution
    cell: Cell
    needed: Needed
    last: Record | None
    device_info: Mapping[str, Any]
    staged: Path | None
    run: Callable[..., Outcome]

    @property
    def standing(self) -> Record | None:
        """The last record, where only attacks are to be made; None where the cell is to be measured."""
        return None if self.needed.measure else self.last

    def measured(self) -> Outcome:
        """Unlearn and measure; the value of the outcome are the fields of the record."""
        unlearned = self._unlearn()
        if unlearned.status != "ok" or unlearned.value.get("complete"):
            return unlearned if unlearned.value is None else Outcome("ok", together([unlearned.value], self.cell))
        if not self.plan.metrics:
            return Outcome("ok", together([unlearned.value], self.cell))
        key = unlearned.value["artifacts"][UNLEARNED]["key"]
        measured = self._job("measuring:measure_cell", key, self._names(attacks=False), self.needed.afresh)
        if measured.status != "ok" or measured.value is None:
            return measured if measured.status != "ok" else Outcome("failed", reason=LOST)
        return Outcome("ok", together([unlearned.value, measured.value, *self._kept(unlearned.value)], self.cell))

    def attacked(self, fields: Fields) -> Iterator[Fields]:
        """Make the attacks that are missing; yield the fields of the record after each."""
        reference = fields["artifacts"].get(UNLEARNED, {})
        for name in self._names(attacks=True):
            if "key" not in reference or (name in fields["metrics"] and name not in self.needed.attacks):
                continue
            outcome = self._job("measuring:attack_cell", reference["key"], name)
            if outcome.status == "ok" and outcome.value is None:
                outcome = Outcome("failed", reason=LOST)
            done = outcome.value if outcome.status == "ok" else {"metrics": {name: self._failure(name, outcome)}}
            fields = together([_without(fields, name), done], self.cell)
            yield fields

    def _unlearn(self) -> Outcome:
        if (folder := self.plan.given.get(self.cell.method)) is not None:
            return self._timed(
                "unlearning:adopt_model", self.cell, self.plan.dataset, folder, self.execution.cache, self.device_info
            )
        names = [*self._names(attacks=False), *self._names(attacks=True)]
        rest = self.device_info, self.execution.repeats, self.needed.afresh, self.staged
        return self._timed(
            "unlearning:unlearn_cell", self.cell, self.plan.dataset, names, self.execution.plugin_files,
            self.execution.cache, *rest,
        )  # fmt: skip

    def _job(self, job: str, key: str, what: str | Sequence[str], *more: Any) -> Outcome:
        """Run a job on unlearned weights."""
        files, cache = self.execution.plugin_files, self.execution.cache
        return self._timed(job, self.cell, self.plan.dataset, key, what, files, cache, self.device_info, *more)

    def _timed(self, job: str, *arguments: Any) -> Outcome:
        """Run a job, and add its seconds to its fields."""
        began = time.monotonic()
        outcome = self.run(f"unlearnbench.run.{job}", *arguments)
        if outcome.value is not None:
            outcome.value["seconds"] = time.monotonic() - began
        return outcome

    def _names(self, *, attacks: bool) -> list[str]:
        """Return the names of the attacks and other metrics apart, or of the rest, with those of the last record."""
        asked = {spec.name: spec.is_apart for spec in self.plan.metrics_of(self.cell)}
        recorded = {} if self.last is None else self.last.metrics
        known = {name: is_apart(entry) for name, entry in recorded.items() if name in self.plan.known_metrics}
        if self.execution.rerun == "always":
            known = {}
        return [name for name, attack in {**known, **asked}.items() if attack == attacks]

    def _kept(self, unlearned: Mapping[str, Any]) -> list[Fields]:
        """Return the attacks of the last record, if they attacked the same weights."""
        now = unlearned["artifacts"][UNLEARNED]["sha256"]
        if self.last is None or not self.needed.keeps or self.last.artifacts.get(UNLEARNED, {}).get("sha256") != now:
            return []
        return [{"metrics": {name: entry for name, entry in self.last.metrics.items() if is_apart(entry)}}]

    def _failure(self, name: str, outcome: Outcome) -> dict[str, Any]:
        """Return the record's entry on an attack that failed, which is no failure of its cell."""
        spec = next((spec for spec in self.plan.metrics if spec.name == name), None)
        recorded = {} if self.last is None else self.last.metrics.get(name, {})
        declared = dict(recorded) if spec is None else spec.declaration(self.plan.source_hashes[f"metric:{name}"])
        declared.pop("detail", None)
        cost = {"cost": Cost().to_json()}
        return {**declared, **cost, "value": None, "n": 0, "reason": outcome.reason, "failed": outcome.status}


def together(parts: Sequence[Mapping[str, Any]], cell: Cell) -> Fields:
    """Return the fields of a record from those of its parts; costs of a phase add up.

    Args:
        parts: results of jobs, and fields of a record, in the order in which they were made.
        cell: that the record is on: weights that another cell unlearned are charged as reused.
    """
    fields: Fields = {name: {} for name in MERGED}
    costs: dict[str, Cost] = {}
    outside: dict[str, float] = {}
    for part in parts:
        mine = part.get("made_by", cell.id) == cell.id
        for name in MERGED:
            fields[name] = {**fields[name], **part.get(name, {})}
        fields |= {name: part[name] for name in TAKEN if name in part}
        for phase, cost in part.get("cost", {}).items():
            costs.setdefault(phase, Cost()).add(Cost.from_json(cost) if mine else Cost.earlier(cost))
        for name, seconds in (_outside(part) if mine else {}).items():
            outside[name] = outside.get(name, 0.0) + seconds
        fields["disturbances"] = [*fields.get("disturbances", []), *part.get("disturbances", [])]
    attacks = [Cost.from_json(entry["cost"]) for entry in fields["metrics"].values() if is_apart(entry)]
    if attacks:  # each is recorded with its metric
        costs["attack"] = Cost()
        for cost in attacks:
            costs["attack"].add(cost)
    fields |= {"cost": {phase: costs[phase].to_json() for phase in PHASES if phase in costs}, "outside": outside}
    spent = sum(cost.seconds - cost.reused_seconds for cost in costs.values())
    repeated = sum(cost.repeats[0] - cost.seconds for cost in costs.values() if cost.repeats)
    return {**fields, "wall_seconds": spent + repeated + sum(outside.values())}


def _outside(part: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds of a part outside all phases; `start` are those that its process did not see."""
    unseen = max(part["seconds"] - part["seconds_seen"], 0.0) if "seconds" in part and part.get("fresh", True) else 0.0
    return {**({"start": unseen} if unseen else {}), **part.get("outside", {})}


def fields_of(record: Record) -> Fields:
    """Return the fields of a record that its jobs made."""
    fields = {name: getattr(record, name) for name in (*MERGED, "cost", "outside", "disturbances")}
    fields |= {name: getattr(record, name) for name in TAKEN if name != "method_source_hash"}
    return {**fields, "method_source_hash": record.method.get("source_hash", "")}


def _without(fields: Fields, attack: str) -> Fields:
    """Return the fields without an attack that is made again."""
    return {**fields, "metrics": {name: entry for name, entry in fields["metrics"].items() if name != attack}}
