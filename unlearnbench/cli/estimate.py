"""Output of an estimate: totals, and lines for the terminal with `~` before each extrapolated number."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from unlearnbench.cli.tables import table
from unlearnbench.errors import plural, spell_bytes
from unlearnbench.report.data.cost import MEMORY_PROBES
from unlearnbench.report.data.published import Source, load_source, source_names
from unlearnbench.report.tables.published import spell_quotient
from unlearnbench.run.estimate import AROUND, MethodCost, Outlook, Row, Unknown, draws
from unlearnbench.run.progress import spell

EXTRAPOLATED = "~"
UNKNOWN = "?"
HEADERS = ("method", "cells", "s/step", "prior", "RTE", "RTE+prior", "sampling", "GB", "cell")

Here = Mapping[tuple[str, str], float]  # (method, metric) -> estimate in a source's unit


def lines(outlook: Outlook) -> Iterator[str]:
    """Yield the lines of an estimate."""
    dataset, identity = outlook.plan.dataset, outlook.device_info["identity"]
    yield f"{dataset.title}, protocol {dataset.protocol.name}, on {identity['name']} ({outlook.device_info['device']})"
    if not outlook.rows:
        yield "every cell is recorded already: nothing would run (--rerun always estimates it all the same)"
        return
    yield (
        f"{EXTRAPOLATED} marks what is extrapolated from a few measured steps, images or batches; nothing of this is "
        "recorded"
    )
    yield ""
    yield from table([_cells(outlook, row) for row in outlook.rows], HEADERS)
    yield ""
    yield legend(probe_of(outlook))
    for row in outlook.rows:
        if isinstance(row.cost, Unknown):
            yield f"{row.label}: unknown ({row.cost.reason})"
    yield _spell_surroundings(outlook)
    yield from _spell_preparation(outlook)
    yield _spell_total(outlook)
    yield _spell_disk(outlook)
    for name in source_names():
        source = load_source(name)
        if dataset.protocol.family == source.facts["protocol"]:
            yield from published(outlook, source)


def legend(probe: str | None) -> str:
    """Return the legend of the columns of HEADERS."""
    memory = f"GB: peak {MEMORY_PROBES[probe]} ({probe}), over prior and unlearning" if probe else "GB: no memory probe"
    return f"times are of one cell; s/step: seconds per optimiser step, at the method's own batch size; {memory}"


def _cells(outlook: Outlook, row: Row) -> list[str]:
    """Return a method's row of the table."""
    cost, count = row.cost, str(len(row.cells))
    if isinstance(cost, Unknown):
        return [row.label, count, *[UNKNOWN] * (len(HEADERS) - 2)]
    probe = probe_of(outlook)
    return [
        row.label,
        count,
        "-" if cost.rate is None else f"{cost.rate.step_seconds:.3g}",
        about(cost.prior, "prior" in cost.reckoned),
        about(cost.rte, "rte" in cost.reckoned),
        about(cost.prior + cost.rte, bool(cost.reckoned)),
        about(cost.sample),
        f"{cost.memory[probe] / 1e9:.2f}" if probe else UNKNOWN,
        about(row_seconds(outlook, row, cost) / len(row.cells)),
    ]


def about(seconds: float, extrapolated: bool = True) -> str:
    """Return seconds as a readable duration, marked where extrapolated."""
    text = f"{round(seconds, 2):.3g}s" if seconds < 59.95 else spell(seconds)
    return f"{EXTRAPOLATED}{text}" if extrapolated else text


def probe_of(outlook: Outlook) -> str | None:
    """Return the best memory probe that every method has."""
    known = [set(row.cost.memory) for row in outlook.rows if isinstance(row.cost, MethodCost)]
    return next((probe for probe in MEMORY_PROBES if known and all(probe in names for names in known)), None)


def row_seconds(outlook: Outlook, row: Row, cost: MethodCost) -> float:
    """Return the seconds of all cells of a row in turn: each in a separate process, with each prior built once.

    A cell of a sequence also repeats the previous step; earlier steps are cached.
    """
    around = sum(
        seconds for phase, seconds in outlook.surroundings.seconds.items() if row.unlearns or phase != "attack"
    )
    again = sum(bool(cell.earlier) for cell in row.cells)
    if not outlook.surroundings.records:  # records include the warm-up of whole cells
        around += cost.warmup
    return (
        len(row.cells) * around
        + (len(row.cells) * outlook.execution.repeats + again) * cost.rte
        + sum(prior.seconds * _builds(row, prior.shared, prior.cached) for prior in cost.priors.values())
        + cost.sample * _sampled(outlook, row, cost)
    )


def _builds(row: Row, shared: bool, cached: bool) -> int:
    """Return how often a prior is built: a shared one once per base model and seed."""
    models = {(cell.base_seed, cell.seed, cell.earlier) for cell in row.cells}
    return (len(models) if shared else len(row.cells)) - cached


def _sampled(outlook: Outlook, row: Row, cost: MethodCost) -> float:
    """Return the images a row samples, in units of one cell: those of an untouched model are sampled once."""
    every = [(cell, drawn) for cell in row.cells for drawn in draws(cell, outlook.plan)]
    if not cost.untouched or not every:
        return float(len(row.cells))
    once = {(cell.base_seed, cell.sampling_seed, *drawn) for cell, drawn in every}
    of_a_cell = sum(n for _, n in draws(row.cells[0], outlook.plan))
    return sum(n for *_, n in once) / of_a_cell


def _spell_surroundings(outlook: Outlook) -> str:
    """Return the line on the time of a cell besides its method and samples."""
    around = outlook.surroundings
    parts = [
        f"{phase} {about(around.seconds[phase], phase == 'attack' and not around.records)}"
        for phase in AROUND if phase in around.seconds
    ]  # fmt: skip
    source = "measured on images of noise"
    if around.records:
        source = f"by {plural(around.records, 'record')} of this device"
    unknown = f"; unknown: {around.unknown}" if around.unknown else ""
    return f"each cell also takes: {', '.join(parts) or 'nothing'} ({source}){unknown}"


def _spell_preparation(outlook: Outlook) -> Iterator[str]:
    """Yield the lines on preparing the dataset."""
    yield f"in the cache {outlook.execution.cache}: {', '.join(outlook.preparation.there) or 'nothing that is needed'}"
    made = []
    for name, making in outlook.preparation.making.items():
        known = f" {about(making.seconds)}" if making.seconds is not None else ""
        made.append(f"{name}{known}{f' (unknown: {making.reason})' if making.reason else ''}")
    yield f"to be made first: {', '.join(made) or 'nothing'}"


def preparation_seconds(outlook: Outlook) -> float:
    """Return the seconds for making the missing artifacts, as far as known."""
    return sum(making.seconds or 0.0 for making in outlook.preparation.making.values())


def total_seconds(outlook: Outlook) -> float:
    """Return the seconds of the whole run, as far as known: preparation, and all cells in turn."""
    rows = [(row, row.cost) for row in outlook.rows if isinstance(row.cost, MethodCost)]
    return preparation_seconds(outlook) + sum(row_seconds(outlook, row, cost) for row, cost in rows)


def _spell_total(outlook: Outlook) -> str:
    """Return the line on the whole run."""
    cells, first = sum(len(row.cells) for row in outlook.rows), preparation_seconds(outlook)
    gaps = [row.label for row in outlook.rows if isinstance(row.cost, Unknown)]
    gaps += [name for name, making in outlook.preparation.making.items() if making.seconds is None]
    gaps += ["a part of judging"] * bool(outlook.surroundings.unknown)
    least = "at least " if gaps else ""
    without = f", without unknown parts ({', '.join(gaps)})" if gaps else ""
    kept = f"; {plural(outlook.kept, 'cell')} recorded already" if outlook.kept else ""
    making = f", {about(first)} of it for preparation" if first else ""
    return (
        f"the whole run: {least}{about(total_seconds(outlook))} for {plural(cells, 'cell')} one after another{making}"
        f"{without}{kept}; excluding the report"
    )


def disk_bytes(outlook: Outlook) -> float:
    """Return the growth of the cache in bytes."""
    size = float(sum(making.size for making in outlook.preparation.making.values()))
    image = 1
    for extent in outlook.plan.dataset.image_shape:
        image *= extent
    for row in outlook.rows:
        if isinstance(row.cost, Unknown):
            continue
        size += sum(
            prior.size * _builds(row, prior.shared, prior.cached) for prior in row.cost.priors.values() if prior.size
        )
        size += outlook.preparation.base_size * sum(bool(cell.earlier) for cell in row.cells)
        if row.cost.untouched:
            images = sum(n for _, n in draws(row.cells[0], outlook.plan))
            size += image * images * _sampled(outlook, row, row.cost)
    return size


def _spell_disk(outlook: Outlook) -> str:
    """Return the line on the run's disk usage."""
    saved = outlook.preparation.base_size * sum(len(row.cells) for row in outlook.rows if row.unlearns)
    models = (
        f", and {EXTRAPOLATED}{spell_bytes(saved)} of unlearned models" if outlook.execution.models is not None else ""
    )
    there = next(
        folder for folder in (outlook.execution.cache, *outlook.execution.cache.absolute().parents) if folder.exists()
    )
    free = spell_bytes(shutil.disk_usage(there).free)
    size = disk_bytes(outlook)
    more = f"{EXTRAPOLATED}{spell_bytes(size)} more" if size else "nothing more"
    return f"disk: {more} in the cache{models}; {free} free there"


def published(outlook: Outlook, source: Source) -> Iterator[str]:
    """Yield a paper's table of costs beside the estimate, and its claims on costs."""
    here = published_units(outlook, source)
    if not here:
        return
    metrics = [metric for metric, facts in source.facts["metrics"].items() if "cost" in facts]
    yield ""
    yield f"{source.name} ({source.facts['title']}): printed, and estimated here for one class"
    yield ""
    headers = ["method", *[f"{source.title(m)} {where}" for m in metrics for where in (_unit(source, m), "here")]]
    yield from table(
        [[title, *_beside(source, method, metrics, here)] for method, title in source.methods.items()], headers
    )
    yield ""
    claims = [claim for claim in source.facts["claims"] if _costs(claim, metrics)]
    yield from table([_claim(source, claim, here) for claim in claims], ["ratio", "claim", "printed rows", "here"])
    yield ""
    for metric in metrics:
        facts = source.facts["metrics"][metric]
        if "probes" in facts and not any(key == metric for _, key in here):
            yield f"{facts['title']}: no probe here is comparable with the printed one ({', '.join(facts['probes'])})"


def published_units(outlook: Outlook, source: Source) -> dict[tuple[str, str], float]:
    """Return {(method, metric): estimate in the source's unit} of its methods with default settings."""
    found: dict[tuple[str, str], float] = {}
    for row in outlook.rows:
        if row.method not in source.methods or not row.default or isinstance(row.cost, Unknown):
            continue
        times = {"rte": row.cost.rte, "total": row.cost.rte + row.cost.prior}
        for metric, facts in source.facts["metrics"].items():
            if (cost := facts.get("cost")) in times:
                found[row.method, metric] = times[cost] / 60
            elif probe := next((name for name in facts.get("probes", ()) if name in row.cost.memory), None):
                found[row.method, metric] = row.cost.memory[probe] / 1e9
    return found


def _unit(source: Source, metric: str) -> str:
    """Return the unit of a metric's column: GB of memory, else minutes."""
    return "(GB)" if "probes" in source.facts["metrics"][metric] else "(min)"


def _beside(source: Source, method: str, metrics: Sequence[str], here: Here) -> Iterator[str]:
    """Yield a method's printed mean and its estimate, metric by metric."""
    for metric in metrics:
        printed, number = source.printed(method, metric, "mean"), here.get((method, metric))
        mark = "" if "probes" in source.facts["metrics"][metric] else EXTRAPOLATED
        yield "-" if printed is None else printed.text
        yield UNKNOWN if number is None else f"{mark}{number:.2f}"


def _terms(claim: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the (method, metric) of a claim's numerator and denominator."""
    return [(method, metric) for method, metric in claim.get("ratio") or claim["saving"]]


def _costs(claim: Mapping[str, Any], metrics: Sequence[str]) -> bool:
    return all(metric in metrics for _, metric in _terms(claim))


def _claim(source: Source, claim: Mapping[str, Any], here: Here) -> list[str]:
    """Return a claim's row: as claimed, recomputed from the printed rows, and estimated here."""
    above, below = _terms(claim)
    printed = source.quotient(above, below)
    known = above in here and below in here and here[below] > 0
    ours = spell_quotient(claim, here[above] / here[below], 1) if known else UNKNOWN
    mark = EXTRAPOLATED if known and not all("probes" in source.facts["metrics"][m] for _, m in (above, below)) else ""
    return [
        claim["label"],
        claim["claim"],
        "-" if printed is None else spell_quotient(claim, printed, 1),
        f"{mark}{ours}",
    ]
