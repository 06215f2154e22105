"""Where and how the records of a board were measured: each fact once, with the number of cells where it differs."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from unlearnbench.errors import one_line
from unlearnbench.store.cell import SOLVERS
from unlearnbench.store.records import Record, natural

MOST_VALUES = 5  # of one fact that differs between records
MOST_FACTS, MOST_LETTERS, DEEPEST = 300, 20_000, 6  # facts of a list, characters of a fact, depth of nesting
SHORT = 12  # hex digits of a commit or of a digest that are shown
MADE = {"base": "base models", "judge": "judges", "rejecting": "rejecting judges", "second": "second judges",
        "extractor": "feature extractors"}  # fmt: skip


def counted(values: Iterable[str]) -> str:
    """Return distinct values in words: a single one as it is; of several the most common first, with numbers of cells.

    For example "2.9.0", or "2.9.0 (12 cells), 2.10.0 (3)".
    """
    return spelled(Counter(values))


def spelled(counts: Mapping[str, int]) -> str:
    """Return values with their numbers of cells, as `counted` does."""
    ordered = sorted(counts, key=lambda value: (-counts[value], natural(value)))
    if len(ordered) < 2:
        return "".join(ordered)
    unit = " cell" if counts[ordered[0]] == 1 else " cells"
    shown = [f"{value} ({counts[value]}{'' if k else unit})" for k, value in enumerate(ordered[:MOST_VALUES])]
    more = [f"{len(ordered) - MOST_VALUES} more"] if len(ordered) > MOST_VALUES else []
    return ", ".join([*shown, *more])


def protocol_words(protocol: Mapping[str, Any]) -> str:
    """Return the rules of sampling and the reference set in a few words."""
    clipped = ", x0 clipped" if protocol.get("clip_x0") else ""
    solver = protocol.get("solver", "ddim")
    eta = f", eta {protocol.get('eta')}" if solver == "ddim" else ""
    return (
        f"{SOLVERS.get(solver, solver)}, {protocol.get('steps')} steps{eta}, guidance w {protocol.get('guidance')}"
        f"{clipped}, reference {protocol.get('reference')}"
    )


def software_words(records: Sequence[Record]) -> str:
    """Return the drivers, where there are any, and the versions of torch."""
    drivers = [str(d["driver"]) for r in records if "driver" in (d := r.provenance.get("device") or {})]
    versions = [str(record.provenance.get("packages", {}).get("torch", "?")) for record in records]
    return f"{f'driver {counted(drivers)}, ' if drivers else ''}torch {counted(versions)}"


def code_words(records: Sequence[Record]) -> str:
    """Return the commits that the records were measured at, and the number of cells with uncommitted changes."""
    states = [record.provenance.get("git") or {} for record in records]
    commits = counted(str(state.get("commit") or "none")[:SHORT] for state in states)
    dirty = sum(bool(state.get("dirty")) for state in states)
    return f"{commits}; {dirty} of {len(records)} cells with changes that were not committed" if dirty else commits


def mixture_notes(records: Sequence[Record]) -> list[str]:
    """Return a sentence for each artifact that rows of one table should share but do not, with its digests.

    Base models are shared per seed, judges and the feature extractor per dataset. Another sentence covers records
    without a known processor, where others of the same device name have one.
    """
    found: dict[tuple[str, int], Counter[str]] = {}
    for record in records:
        for name in MADE:
            if digest := str((record.artifacts.get(name) or {}).get("sha256") or ""):
                seed = record.cell.base_seed if name == "base" else 0
                found.setdefault((name, seed), Counter())[digest[:SHORT]] += 1
    return [
        f"these records rest on different {MADE[name]}{f' of seed {seed}' if name == 'base' else ''}, SHA-256 "
        f"{spelled(counts)}: compare rows with care"
        for (name, seed), counts in sorted(found.items()) if len(counts) > 1
    ] + _unknown_processors(records)  # fmt: skip


def _unknown_processors(records: Sequence[Record]) -> list[str]:
    processors = Counter(record.device_model.processor for record in records)
    unknown = processors.pop("", 0)
    if not (unknown and processors):
        return []
    return [
        f"the processor of {len(records) - unknown} of {len(records)} cells is known ({spelled(processors)}), and may "
        "differ in the rest: compare run times with care"
    ]


def protocol_facts(records: Sequence[Record]) -> list[tuple[str, str]]:
    """Return every rule of evaluation, and the facts of the dataset."""
    return [
        (f"{kind}{name}", words)
        for kind, section in (("", "protocol"), ("dataset ", "dataset"), ("judge ", "judge"))
        for name, words in _facts([getattr(record, section) for record in records], flat=False)
        if words
    ]


def provenance_facts(records: Sequence[Record], digest: str) -> list[tuple[str, str]]:
    """Return the provenance of the records."""
    dates = sorted(str(record.provenance.get("started_utc", "")) for record in records)
    made = [record.artifacts.get("base") or {} for record in records]
    bases = [str(base.get("sha256") or "") for base in made]
    steps = [f"{base['steps']:,}" for base in made if "steps" in base]
    return [
        ("records", f"{len(records)}, digest {digest}"),
        ("measured", f"{dates[0]} to {dates[-1]}"),
        *_facts([{**record.provenance, "started_utc": None} for record in records], flat=True),
        *([("base model sha256", counted(filter(None, bases)))] if any(bases) else []),
        *([("base model steps", counted(steps))] if steps else []),
    ]


def _facts(parts: Sequence[Mapping[str, Any]], *, flat: bool) -> list[tuple[str, str]]:
    """Return (name, values in words) of one section of records, by name; None is left out."""
    alike: dict[str, tuple[Mapping[str, Any], int]] = {}
    for part in parts:  # mostly equal
        key = repr(part)
        alike[key] = part, alike.get(key, (part, 0))[1] + 1
    found: dict[str, Counter[str]] = {}
    for part, count in alike.values():
        for name, value in _flat(part) if flat else ((name.replace("_", " "), plain(v)) for name, v in part.items()):
            found.setdefault(name, Counter())[value] += count
    facts = [(one_line(name, MOST_LETTERS), spelled(counts)) for name, counts in sorted(found.items())]
    more = len(facts) - MOST_FACTS
    return [*facts[:MOST_FACTS], ("and", f"{more} more facts in the records")] if more > 0 else facts


def _flat(facts: Mapping[str, Any], above: str = "", depth: int = 0) -> Iterator[tuple[str, str]]:
    for name, value in facts.items():
        words = f"{above}{name.replace('_', ' ')}"
        if isinstance(value, Mapping) and depth < DEEPEST:
            yield from _flat(value, f"{words} ", depth + 1)
        elif value is not None:
            yield words, plain(value)


def plain(value: object, depth: int = 0) -> str:
    """Return a JSON value as one readable line, truncated in depth, number and length."""
    if isinstance(value, Mapping | list) and depth == DEEPEST:
        return "…"
    if isinstance(value, Mapping):
        parts = [f"{key}={plain(inner, depth + 1)}" for key, inner in islice(sorted(value.items()), MOST_FACTS)]
    elif isinstance(value, list):
        parts = [plain(inner, depth + 1) for inner in value[:MOST_FACTS]]
    else:
        return one_line(f"{value:g}" if isinstance(value, float) else str(value))
    return one_line(", ".join(parts + ["…"] * (len(value) > MOST_FACTS)), MOST_LETTERS)
