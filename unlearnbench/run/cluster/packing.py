"""Division of cells into parts, one per job, that take about the same time."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean

from unlearnbench.run.plan import Plan
from unlearnbench.store.cell import Cell
from unlearnbench.store.hashing import canonical_json
from unlearnbench.store.records import DeviceModel, Record

MOST_PARTS = 1000  # Slurm's usual limit on arrays
Kind = tuple[str, str]  # method and settings


def kind_of(cell: Cell) -> Kind:
    """Return what cells of about the same duration have in common."""
    return cell.method, canonical_json(dict(cell.settings))


def known_seconds(records: Iterable[Record], plan: Plan, device: DeviceModel | None) -> dict[Kind, float]:
    """Return the seconds that cells of a kind took on average, from good records of this dataset and device."""
    found: dict[Kind, list[float]] = {}
    place = (plan.dataset.name, plan.dataset.protocol.name)
    for record in records:
        alike = device is not None and record.device_model.matches(device)
        if (
            record.status == "ok"
            and record.wall_seconds
            and alike
            and place == (record.cell.dataset, record.cell.protocol)
        ):
            found.setdefault(kind_of(record.cell), []).append(record.wall_seconds)
    return {kind: fmean(seconds) for kind, seconds in found.items()}


def packed(
    cells: Sequence[Cell], seconds: Mapping[Kind, float], workers: int, minutes: float | None
) -> list[list[Cell]]:
    """Return the cells of each part, in their order.

    Steps of one sequence stay together, since each goes on from the one before. Where no time is known, all cells count
    alike and each worker gets one part, with its share of each method.

    Args:
        cells: to be run.
        seconds: of each kind of cell, as far as known.
        workers: jobs at once.
        minutes: that a part should take; None for one part per worker.
    """
    typical = fmean(seconds.values()) if seconds else 1.0
    sequences = {(kind_of(cell), cell.seeds) for cell in cells if cell.earlier}
    groups: dict[object, list[Cell]] = {}
    for cell in sorted(cells, key=kind_of):
        alike = kind_of(cell), cell.seeds
        groups.setdefault(alike if alike in sequences else cell.id, []).append(cell)
    weights = [(sum(seconds.get(kind_of(cell), typical) for cell in group), group) for group in groups.values()]
    total = sum(weight for weight, _ in weights)
    wanted = math.ceil(total / (60 * minutes)) if minutes and seconds else 1
    loads = [0.0] * min(max(workers, wanted), len(weights), MOST_PARTS)
    parts: list[set[str]] = [set() for _ in loads]
    for weight, group in sorted(weights, key=lambda entry: -entry[0]):  # the longest first, each to the emptiest part
        lightest = loads.index(min(loads))
        loads[lightest] += weight
        parts[lightest] |= {cell.id for cell in group}
    return [[cell for cell in cells if cell.id in part] for part in parts]
