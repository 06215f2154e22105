"""The record of a cell, from the outcome of its jobs."""

import time
from collections.abc import Mapping
from typing import Any

from unlearnbench.plugins.spec import MethodSpec
from unlearnbench.run.plan import Plan
from unlearnbench.run.stages import Fields
from unlearnbench.run.stale import rests_on
from unlearnbench.run.workers import Outcome
from unlearnbench.store.cell import Cell, Scalar
from unlearnbench.store.provenance import software_provenance
from unlearnbench.store.records import Record


class Start:
    """The start of a cell."""

    def __init__(self) -> None:
        self.utc, self._began = utc(time.time()), time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self._began


def utc(seconds: float) -> str:
    """Return a time, in seconds since the epoch, as records have it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class Recorder:
    """Makes the records of a plan's cells."""

    def __init__(self, plan: Plan, place: Mapping[str, str] | None = None) -> None:
        """Take the plan, and further facts of provenance, such as the node of a cluster."""
        self._plan, self._facts = plan, {**software_provenance(), **(place or {})}

    def record(
        self, cell: Cell, outcome: Outcome, identity: Mapping[str, Any], *, started: str, seconds: float | None,
        disturbance: str = "",
    ) -> Record:  # fmt: skip
        """Return the record of a cell.

        Args:
            cell: of the plan.
            outcome: of its jobs.
            identity: of the device.
            started: time of its start, as `utc` returns it.
            seconds: since then, unless the outcome counts them; None where nobody knows.
            disturbance: what may have disturbed all of its timed phases; empty for nothing.
        """
        spec, dataset = self._plan.methods[cell.method], self._plan.dataset
        fields: Fields = dict(outcome.value or {})
        track = self._plan.tracks.get(cell.id)
        source_hash = fields.pop("method_source_hash", self._plan.source_hashes[f"method:{cell.method}"])
        if disturbance:
            known = fields.get("disturbances", [])
            new = [{"phase": phase, "what": disturbance} for phase in fields.get("cost", {})]
            fields["disturbances"] = [*known, *(entry for entry in new if entry not in known)]
        return Record(
            cell=cell,
            method={
                "title": spec.title, "paper": spec.paper, "role": spec.role, "overrides": self._plan.overrides[cell.id],
                "changed": _changed(spec, cell), "source_hash": source_hash, "truth": dict(spec.truth),
                **({"track": track} if track else {}),
                **({"inference": True} if spec.inference else {}),
            },
            tuning=self._plan.trials.get(cell.id, {}),
            status=outcome.status,
            reason=outcome.reason,
            traceback=outcome.traceback,
            protocol=dataset.protocol.to_json(),
            dataset=dataset.to_json(),
            provenance={**self._facts, "device": dict(identity), "started_utc": started},
            **{
                "revisions": rests_on(spec, self._plan.metrics_of(cell), dataset), "wall_seconds": seconds, **fields,
            },
        )  # fmt: skip


def _changed(spec: MethodSpec, cell: Cell) -> dict[str, list[Scalar]]:
    """Return {setting: [default, value]} of the settings that differ from the method's."""
    return {
        name: [spec.defaults[name], value]
        for name, value in cell.settings.items()
        if value != spec.defaults.get(name, value)
    }
