"""A dry run: what must be trained or downloaded first, and how long the run will take."""

from collections.abc import Iterable, Iterator, Sequence
from statistics import fmean

import torch

from unlearnbench.cli.estimate import HEADERS, UNKNOWN, about, legend
from unlearnbench.cli.tables import table
from unlearnbench.errors import plural
from unlearnbench.report.data.cost import Costs
from unlearnbench.run.at_hand import Look, at_hand
from unlearnbench.run.estimate import variants
from unlearnbench.run.execution import Execution
from unlearnbench.run.jobs import resolve_devices
from unlearnbench.run.plan import Plan, select
from unlearnbench.run.progress import spell
from unlearnbench.store.cell import Cell
from unlearnbench.store.records import DeviceModel, Record, ResultStore, device_model

MOST_NAMED = 5  # methods named in a line
MEASURES = "'unlearnbench estimate' with the same options measures it"


def dry_run(plan: Plan, store: ResultStore, execution: Execution) -> Iterator[str]:
    """Yield a description of a run with the arguments of `Benchmark`, line by line; nothing is written.

    Raises:
        UsageError: the run could not start: no such device, or unreadable base model or images.
    """
    infos, rerun = resolve_devices(execution.device, execution.devices), execution.rerun
    plan.dataset.check_device(infos[0]["identity"]["type"])
    reading = store.read()
    here = device_model(infos[0]["identity"])
    selection = select(plan, reading.records, execution, here)
    todo = {cell.id for cell in selection.todo}
    yield from (cell.id if cell.id in todo else f"{cell.id} (recorded)" for cell in plan.cells)
    yield from (f"warning: {warning}" for warning in plan.warnings)
    yield from (f"warning: {problem}" for problem in reading.problems)
    checks = f", {len(plan.controls)} of them controls (--controls)" if plan.controls else ""
    yield f"{plural(len(plan.cells), 'cell')}{checks}"
    yield f"to measure: {len(todo)}; recorded in {store.root} already: {len(plan.cells) - len(todo)} (--rerun {rerun})"
    names = ", ".join(each["name"] for each in infos)
    yield f"device{'s' * (len(infos) > 1)}: {names} ({infos[0]['identity']['name']})"
    if selection.todo:
        needs = {need for spec in plan.metrics for need in spec.needs}
        seeds = sorted({cell.base_seed for cell in selection.todo})
        there, lacking = at_hand(plan.dataset, Look(execution.cache), torch.device(infos[0]["device"]), needs, seeds)
        yield f"in the cache {execution.cache}: {', '.join(there) or 'nothing of what is needed'}"
        yield f"to be made first: {', '.join(lacking) or 'nothing'}"
        yield from by_records(plan, selection.todo, reading.records, here, len(infos))


def by_records(
    plan: Plan, cells: Sequence[Cell], records: Iterable[Record], device: DeviceModel, devices: int = 1
) -> Iterator[str]:
    """Yield the expected times of cells, per method and in total, from records of the same device and settings.

    Args:
        plan: holds the cells.
        cells: to be measured.
        records: of earlier ones.
        device: model of the device.
        devices: number of such devices, each running one cell at a time.
    """
    known = [record for record in records if record.status == "ok" and record.device_model.matches(device)]
    rows = [(alike, [record for record in known if _alike(record.cell, alike[0])]) for alike in variants(cells)]
    behind = [record for _, found in rows for record in found]
    if behind:
        costs = Costs(behind)
        yield ""
        yield from table([_row(plan, alike, found, costs) for alike, found in rows], HEADERS)
        yield ""
        yield legend(costs.probe)
    yield duration(rows, devices)


def _alike(one: Cell, other: Cell) -> bool:
    """Say whether two cells do the same work: dataset, protocol, method, settings."""
    return all(
        getattr(one, name) == getattr(other, name) for name in ("dataset", "protocol", "method", "settings")
    ) and bool(one.earlier) == bool(other.earlier)


def _row(plan: Plan, cells: Sequence[Cell], records: Sequence[Record], costs: Costs) -> list[str]:
    """Return a method's row of the table: means over its records."""
    label = plan.label(cells[0])
    if not records:
        return [label, str(len(cells)), *[UNKNOWN] * (len(HEADERS) - 2)]
    prior, rte, sample = (
        fmean(float(record.cost.get(phase, {}).get("seconds", 0.0)) for record in records)
        for phase in ("prior", "forget", "sample")
    )
    steps = fmean(record.counts.get("optimizer_steps", 0) for record in records)
    times = (prior, rte, prior + rte, sample)
    peaks = [peak for record in records if (peak := costs.number(record, costs.main[-1])) is not None]
    return [
        label,
        str(len(cells)),
        f"{rte / steps:.3g}" if steps else "-",
        *[about(seconds, extrapolated=False) for seconds in times],
        f"{fmean(peaks):.2f}" if peaks else UNKNOWN,
        about(fmean(record.wall_seconds or 0.0 for record in records), extrapolated=False),
    ]


def duration(rows: Sequence[tuple[Sequence[Cell], Sequence[Record]]], devices: int = 1) -> str:
    """Return the expected time of all cells in words, given each method's cells and comparable records."""
    known = [(cells, records) for cells, records in rows if records]
    unknown = list(dict.fromkeys(cells[0].method for cells, records in rows if not records))
    named = ", ".join(unknown[:MOST_NAMED]) + (f" and {len(unknown) - MOST_NAMED} more" * (len(unknown) > MOST_NAMED))
    if not known:
        return (
            f"the time is unknown: there is no record of {named} with these settings on this device and "
            f"dataset yet; {MEASURES}"
        )
    seconds = sum(len(cells) * fmean(record.wall_seconds or 0.0 for record in records) for cells, records in known)
    how = "one after another" if devices == 1 else f"on {devices} devices at once"
    behind = sum(len(records) for _, records in known)
    some, every = (sum(len(cells) for cells, _ in part) for part in (known, rows))
    which = f"{some} of {plural(every, 'cell')}" if unknown else plural(every, "cell")
    rest = f"; unknown for {named} ({MEASURES})" if unknown else ""
    return (
        f"about {spell(seconds / devices)} for {which}, {how}, by {plural(behind, 'record')} of the same device, "
        f"dataset and settings{rest}; excluding what must be trained first"
    )
