"""Boards: the comparable records of a report, with every gap visible."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from unlearnbench.errors import plural
from unlearnbench.report.data.array import ABSENT, Numbers, array_of, one_by_one
from unlearnbench.report.data.cost import PHASES, Costs, disturbance_note
from unlearnbench.report.data.curves import curve_measures, curve_of
from unlearnbench.report.data.environment import counted, mixture_notes, protocol_words, software_words
from unlearnbench.report.data.instead import instead_measures
from unlearnbench.report.data.judges import judged, recognition_notes
from unlearnbench.report.data.styles import Style, styles_of
from unlearnbench.report.data.values import GIVEN, Measure, Variant, short, target_name, variant_of
from unlearnbench.store.cell import Seeds, Target
from unlearnbench.store.hashing import canonical_json
from unlearnbench.store.records import B4, Record, natural, records_digest

MOST_NAMED = 20  # forget classes named in a caption
# names that cannot be a board's folder: the report's own files, and reserved ones on Windows
TAKEN = re.compile(r"report\.(?:html|md)|(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?|.*\.", re.IGNORECASE)
SMOKE = "smoke"  # the protocol of runs that try whether everything works
SEQUENCE, AT_ONCE = "-sequence", "-at-once"  # suffixes of boards of several classes


class Board:
    """All comparable records of one dataset and protocol, on devices of one name."""

    def __init__(self, records: Sequence[Record], stale: Set[str] = frozenset()) -> None:
        """Take the latest records of one dataset and protocol, oldest first.

        Records with another device, judge, extractor, base model, image size or classes than the newest are left out,
        and stale ones show no number; `notes` says so. Controls are excluded from the rows.

        Args:
            records: at least one.
            stale: ids of cells with stale records, and `ID NAME` of stale attacks of others.
        """
        device, setup = records[-1].device_model, _setup(records[-1])
        here = [record for record in records if record.device_model.matches(device)]
        self.records = [record for record in here if _setup(record) == setup]
        self.left_out: list[str] = []  # a sentence on each kind of records left out
        if foreign := len(records) - len(here):
            self.left_out.append(
                f"{plural(foreign, 'record')} of other devices left out; this report shows {self.device_name}"
            )
        if other := len(here) - len(self.records):
            self.left_out.append(
                f"{plural(other, 'record')} with another judge, extractor, base model, image size or classes than the "
                "newest left out"
            )
        self.stale = stale & {record.cell.id for record in self.records}  # ids of cells
        self._drop_superseded()
        self.records = _without_attacks(self.records, stale - self.stale)
        self.notes = [*self.left_out]
        self.rows = [r for r in self.records if r.method.get("role") != "control"] or self.records
        if len(self.devices) > 1:
            self.notes.append(
                f"these records rest on {len(self.devices)} devices of one name, {self.device_name}{self._nodes()}: "
                f"compare costs with care"
            )
        if self.stale:
            self.notes.append(
                f"{len(self.stale)} records are stale (their method or a metric has changed since) and show no "
                f"numbers: run their cells again"
            )
        self.notes += [*self._attack_notes(), *self._given()]
        sound = [record for record in self.records if record.status == "ok"]
        self.notes += mixture_notes(self.ok_records)
        images = {record.artifacts.get("images", {}).get("sha256") for record in sound}
        if len(images) > 1:
            self.notes.append(f"these records rest on {len(images)} different sets of images: compare rows with care")
        self.notes += [*self._unmeasurable(), *disturbance_note(self.ok_records)]
        if self.untouched is not None:
            self.notes += recognition_notes(self.untouched, self.class_names)

    def _nodes(self) -> str:
        """Return the nodes of a cluster that the records name, in brackets; empty without any."""
        nodes = sorted({str(r.provenance["node"]) for r in self.records if "node" in r.provenance}, key=natural)
        more = f" and {len(nodes) - MOST_NAMED} more" if len(nodes) > MOST_NAMED else ""
        return f" (nodes {', '.join(nodes[:MOST_NAMED])}{more})" if nodes else ""

    def _drop_superseded(self) -> None:
        """Leave out stale rows with the label of a current row, as after a change of default settings."""
        rows = {record.cell.id: variant_of(record) for record in self.records}
        fresh = {variant.label: variant for name, variant in rows.items() if name not in self.stale}
        kept = [r for r in self.records if (own := rows[r.cell.id]) == fresh.get(own.label, own)]
        if dropped := len(self.records) - len(kept):
            self.left_out.append(
                f"{plural(dropped, 'stale record')} of rows measured anew with other settings left out"
            )
            self.records = kept
            self.stale &= {record.cell.id for record in kept}

    def _attack_notes(self) -> list[str]:
        """Return a sentence each on stale and on failed attacks."""
        entries = [entry for record in self.ok_records for entry in record.metrics.values()]
        stale, failed = sum("stale" in entry for entry in entries), len(self.failed_attacks)
        counts = [f"{plural(n, 'attack')} {'is' if n == 1 else 'are'}" for n in (stale, failed)]
        return [
            *([f"{counts[0]} stale (the attack or its rules have changed since) and without a number: run their cells "
               f"again with these metrics, which repeats the attacks alone"] if stale else []),
            *([f"{counts[1]} without a number for having failed: see the reasons below, and run again with --rerun "
               f"failed"] if failed else []),
        ]  # fmt: skip

    def _given(self) -> list[str]:
        """Return a sentence on the rows that were unlearned elsewhere."""
        labels = sorted({variant_of(record).label for record in self.rows if record.method.get("role") == GIVEN})
        if not labels:
            return []
        were, models = ("was", "a model") if len(labels) == 1 else ("were", "models")
        return [f"{', '.join(labels)} {were} unlearned elsewhere and given as {models}: the cost is not measured"]

    @property
    def key(self) -> tuple[str, str]:
        """Dataset and protocol."""
        return self.records[-1].cell.dataset, self.records[-1].cell.protocol

    @cached_property
    def device_name(self) -> str:
        """The device's name."""
        return str(self.records[-1].provenance.get("device", {}).get("name", "an unknown device"))

    @cached_property
    def devices(self) -> list[str]:
        """The identities of the devices of these records, sorted; mostly one."""
        return sorted({str(record.provenance.get("device", {}).get("uuid")) for record in self.records})

    @property
    def device_words(self) -> str:
        """The device's name, and the number of such devices."""
        return f"{self.device_name} ({len(self.devices)} of them)" if len(self.devices) > 1 else self.device_name

    @cached_property
    def title(self) -> str:
        """The dataset's title; a run that only tries whether everything works says so."""
        title = short(self.records[-1].dataset.get("title", self.records[-1].cell.dataset))
        return f"{title}, a demonstration" if self.key[1].removesuffix(B4) == SMOKE else title

    @cached_property
    def digest(self) -> str:
        """Twelve hex digits of the records this board shows."""
        return records_digest(self.records)

    @property
    def targets(self) -> tuple[Target, ...]:
        """The targets of all rows, sorted; mostly one class each."""
        return self.numbers.targets

    @cached_property
    def class_names(self) -> list[object]:
        """The names of the classes, by number; empty where no record has them."""
        return list(self.records[-1].dataset.get("class_names") or [])

    def name_of(self, target: Target) -> str:
        """Return the name of a target."""
        return target_name(target, self.class_names)

    @property
    def seeds(self) -> tuple[Seeds, ...]:
        """Seeds of any row, sorted."""
        return self.numbers.seeds

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The rows of tables: references first, then by label."""
        return self.numbers.rows

    @cached_property
    def styles(self) -> Mapping[str, Style]:
        """{label: colour and shape} of the rows; `boards` shares them over all boards of a folder."""
        return styles_of(self.variants)

    @cached_property
    def every(self) -> Numbers:
        """The numbers of all records, controls included."""
        keys = [measure.key for measure in self._measures]
        reads = self.cost.reads | {derived: read for a in self._relearning for derived, read in _of_curves(a).items()}

        def read(record: Record) -> tuple[list[float | None], list[int]]:
            entries = [record.metrics.get(key) for key in keys]
            others = [read(record) for read in reads.values()]
            return (
                [None if entry is None else entry["value"] for entry in entries] + others,
                [ABSENT if entry is None else entry["n"] for entry in entries]
                + [ABSENT if number is None else 0 for number in others],
            )

        return array_of(self.records, self.stale, [*self._measures, *reads], read, self._later)

    @cached_property
    def untouched(self) -> Numbers | None:
        """What judges make of the untouched model's images, per class; None where no record says."""
        records = [record for record in self.rows if record.method.get("role") == "reference"]
        reads = judged([measure for measure in self.metrics if measure.key not in self._later])
        found = array_of(records, self.stale, list(reads), one_by_one(reads)) if records and reads else None
        return None if found is None or np.isnan(found.value).all() else found

    @cached_property
    def instead(self) -> Numbers | None:
        """The shares of what came instead of the forget class; None where no record says."""
        reads = instead_measures()
        found = array_of(self.rows, self.stale, list(reads), one_by_one(reads))
        return None if np.isnan(found.value).all() else found

    @property
    def _relearning(self) -> list[Measure]:
        """The attacks that have steps."""
        return [a for a in self.robustness if any(curve_of(record, a) is not None for record in self.ok_records)]

    @cached_property
    def numbers(self) -> Numbers:
        """The numbers of the rows."""
        return self.every.sel(rows=dict.fromkeys(map(variant_of, self.rows)))

    @cached_property
    def attacked(self) -> Numbers | None:
        """The numbers of the cells that were attacked, so that others do not count as missing; None without any."""
        where = np.vectorize(_is_attacked, otypes=[np.bool_])(self.numbers.records)
        return self.numbers.sel(where=where) if self.robustness and where.any() else None

    @cached_property
    def ok_records(self) -> list[Record]:
        """The records that carry numbers."""
        return [record for record in self.records if record.status == "ok" and record.cell.id not in self.stale]

    @cached_property
    def cost(self) -> Costs:
        """What the cells with numbers cost."""
        return Costs(self.ok_records)

    @property
    def probe(self) -> str | None:
        """The memory probe whose numbers are shown."""
        return self.cost.probe

    @property
    def costs(self) -> list[Measure]:
        """The costs of the main tables."""
        return self.cost.main

    @property
    def metrics(self) -> list[Measure]:
        """The metrics that any record has a value of, forgetting first, headlines first; none after an attack."""
        return [measure for measure in self._measures if measure.aspect != "robustness"]

    @property
    def robustness(self) -> list[Measure]:
        """The metrics after an attack that any record has a value of."""
        return [measure for measure in self._measures if measure.aspect == "robustness"]

    @cached_property
    def _measures(self) -> list[Measure]:
        entries = {
            name: entry
            for record in self.ok_records for name, entry in record.metrics.items() if entry["value"] is not None
        }  # fmt: skip
        found = [
            Measure(
                name, short(entry["title"]), short(entry["unit"]), entry["better"], entry["format"], entry["shows"],
                entry["headline"],
            )
            for name, entry in entries.items()
        ]  # fmt: skip
        order = ("forgetting", "retention", "judging", "robustness")
        return sorted(found, key=lambda m: (order.index(m.aspect), not m.headline, natural(m.key)))

    def _unmeasurable(self) -> list[str]:
        """Return a sentence for each metric that no record has a value of."""
        shown = {measure.key for measure in self._measures}
        entries = {name: entry for record in self.ok_records for name, entry in record.metrics.items()}
        return [
            f"{entry['title']} is not shown: {entry.get('reason') or 'no cell has a value'}"
            for name, entry in sorted(entries.items()) if name not in shown
        ]  # fmt: skip

    def headline(self, aspect: str) -> Measure | None:
        """Return the first headline metric of "forgetting" or "retention"."""
        return next((measure for measure in self.headlines if measure.aspect == aspect), None)

    @property
    def headlines(self) -> list[Measure]:
        """The metrics of the main table."""
        return [measure for measure in self.metrics if measure.headline]

    @cached_property
    def phase_seconds(self) -> dict[str, dict[str, float]]:
        """{label: {phase: seconds}}: means over forget classes, of rows that unlearned here and phases they have."""
        found: dict[str, dict[str, float]] = {}
        for row in self.variants:
            means = {p: self.numbers.mean(row, self.cost.phases[p], interval=False).number for p in PHASES}
            known = {phase: seconds for phase, seconds in means.items() if seconds}
            if known and means["forget"] is not None:
                found[row.label] = known
        return found

    @cached_property
    def ranks(self) -> dict[Variant, int]:
        """Ranks by run time of the methods that were repeated in all cells."""
        by_key = {measure.key: measure for measure in self.cost.all}
        return self.numbers.ranks(by_key["rte"], by_key["range"])

    @cached_property
    def _later(self) -> frozenset[str]:
        """Keys of the metrics that only cells with earlier steps have."""
        names = {bool(first): set[str]() for first in (False, True)}
        for record in self.ok_records:
            names[bool(record.cell.earlier)].update(record.metrics)
        return frozenset(names[True] - names[False])

    def failures(self) -> list[Record]:
        """Return the records without numbers, but for stale ones."""
        return [record for record in self.records if record.status != "ok"]

    @cached_property
    def failed_attacks(self) -> list[tuple[Record, Mapping[str, Any]]]:
        """The attacks that failed on cells with numbers: record and entry."""
        return [(r, entry) for r in self.ok_records for entry in r.metrics.values() if entry.get("failed")]

    @cached_property
    def test_accuracy(self) -> str:
        """The judges' test performance in words."""
        return counted(_test_performance(record.judge) for record in self.ok_records if record.judge)

    def _samples(self, measures: Sequence[Measure], numbers: Numbers) -> str:
        """Return the number of samples per metric and cell: `UA n=100`, `Recall n=1,291 to 1,298`."""
        found = {m.title: numbers.samples(m) for m in measures if not m.is_cost}
        return ", ".join(
            f"{title} n={' to '.join(f'{n:,}' for n in dict.fromkeys([known[0], known[-1]]))}"
            for title, known in found.items() if known
        )  # fmt: skip

    def _spelled(self, targets: Sequence[Target]) -> str:
        """Write targets by name; many, or numbers of single classes, as 0-9."""
        names = [self.name_of(target) for target in targets]
        single = all(len(target.gone) == 1 for target in targets)
        if single and (len(names) > MOST_NAMED or names == [target.label for target in targets]):
            return _spans([target.classes[0] for target in targets])
        return ("; " if any(target.earlier for target in targets) else ", ").join(names)

    def caption(self, words: str, measures: Sequence[Measure] = (), numbers: Numbers | None = None) -> str:
        """Return the caption of a table: its own words, then classes, seeds, samples, dataset, protocol and records.

        What all tables of a report share is in `setup`.

        Args:
            words: on this table alone, in whole sentences.
            measures: of the table, for their numbers of samples.
            numbers: that the table shows, if not those of the rows.
        """
        shown = self.numbers if numbers is None else numbers
        samples = self._samples(measures, shown)
        facts = [
            f"Forget classes {self._spelled(shown.targets)}, {_seeds(shown.seeds)}",
            *([f"samples per cell {samples}"] if samples else []),
            self.origin,
            f"records {self.digest}",
        ]
        return f"{words} {'; '.join(facts)}."

    @property
    def origin(self) -> str:
        """Dataset and protocol in words, as captions name them."""
        return f"{self.title}, protocol {self._protocol}"

    @property
    def _protocol(self) -> str:
        return str(self.records[-1].protocol.get("name"))

    @cached_property
    def setup(self) -> list[tuple[str, str]]:
        """What all tables share: (name, facts in words); with numbers of cells where they differ."""
        intervals = (
            "Of 95 %: Wilson's with the design effect of classes and seeds for shares of samples, a bootstrap over "
            "classes and seeds scaled to Student's width for others"
        )
        if len(self.seeds) == 1:
            intervals += "; with a single seed they do not include the variance between seeds"
        shortened = any(record.method.get("changed") for record in self.rows)
        return [
            ("Dataset", self.title),
            ("Protocol", f"{self._protocol}: {counted(protocol_words(record.protocol) for record in self.records)}"),
            ("Features", counted(str(record.dataset.get("extractor")) for record in self.records)),
            ("Judges", f"test accuracy {self.test_accuracy or 'unknown'}"),
            *([("Settings", "those other than the methods' defaults are in the table of settings")] * shortened),
            *self._tracks(),
            ("Intervals", intervals),
            ("Device", f"{self.device_words}, {software_words(self.records)}"),
            ("Costs", "; ".join(self.cost.caption)),
        ]

    def _tracks(self) -> list[tuple[str, str]]:
        """Return which rows have tuned settings and which the published ones; nothing where no record says."""
        words = {"tuned": "tuned for this dataset", "published": "as published"}
        found: dict[str, set[str]] = {}
        for record in self.rows:
            if track := str(record.method.get("track", "")):
                found.setdefault(words[track], set()).add(str(record.method.get("title", record.cell.method)))
        spelled = [f"{track}: {', '.join(sorted(names, key=natural))}" for track, names in sorted(found.items())]
        others = "; others have no tuned values, or changed ones"
        return [("Track", "; ".join(spelled) + others)] if spelled else []

    @cached_property
    def beyond_tuning(self) -> Numbers | None:
        """The numbers of the classes on which nothing was tuned; None where that is all classes, or none."""
        tuned = {c for record in self.rows for c in record.dataset.get("tuning_classes") or ()}
        others = [target for target in self.targets if not tuned & set(target.gone)]
        return self.numbers.sel(targets=others) if 0 < len(others) < len(self.targets) else None


def _seeds(chosen: Sequence[Seeds]) -> str:
    """Return seeds in words: one number each, or those of base model, unlearning and sampling."""
    if all(len(set(seeds)) == 1 for seeds in chosen):
        return f"seed{'s' * (len(chosen) > 1)} {_spans([seeds.unlearning for seeds in chosen])}"
    return "seeds (base, unlearning, sampling) " + ", ".join(str(tuple(seeds)) for seeds in chosen)


def _without_attacks(records: Sequence[Record], stale: Set[str]) -> list[Record]:
    """Return records without the numbers of stale attacks (`ID NAME`); their digests stay those of the files."""
    by_cell: dict[str, set[str]] = {}
    for cell, _, name in (text.partition(" ") for text in stale):
        by_cell.setdefault(cell, set()).add(name)
    shown = []
    for record in records:
        if names := by_cell.get(record.cell.id, set()) & record.metrics.keys():
            kept = {key: value for key, value in record.metrics.items() if key not in names}
            lost = {name: _outdated(record.metrics[name]) for name in names}
            digest, record = record.digest, replace(record, metrics={**kept, **lost})
            vars(record)["digest"] = digest
        shown.append(record)
    return shown


def _outdated(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry of a stale attack as a report shows it."""
    facts = {name: fact for name, fact in entry.items() if name not in ("detail", "failed")}
    return {**facts, "value": None, "n": 0, "reason": "it is stale", "stale": True}


def _of_curves(attack: Measure) -> dict[Measure, Callable[[Record], float | None]]:
    """Return {measure: read} of the numbers of an attack's curve."""

    def read(name: str, record: Record) -> float | None:
        curve = curve_of(record, attack)
        return None if curve is None else getattr(curve, name)

    return {measure: partial(read, name) for name, measure in curve_measures(attack).items()}


def _is_attacked(record: Record | None) -> bool:
    return record is not None and any(entry.get("shows") == "robustness" for entry in record.metrics.values())


def _test_performance(judge: Mapping[str, Any]) -> str:
    """Return the judges' test performance in words: accuracies, and the share that the rejecting one rejects."""
    words = [f"{100 * judge['test_accuracy']:.1f}% (n={judge['n']})"]
    if second := judge.get("second"):
        words.append(f"second judge {100 * second['test_accuracy']:.1f}%")
    if rejecting := judge.get("rejecting"):
        words.append(
            f"rejecting judge {100 * rejecting['test_accuracy']:.1f}%, rejects {100 * rejecting['test_rejected']:.1f}%"
        )
    return ", ".join(words)


def boards(records: Iterable[Record], stale: Set[str] = frozenset()) -> dict[str, Board]:
    """Return {folder name: board}, one per dataset and protocol; two are never mixed.

    The name is the dataset's, with the protocol's where there are several beside their compatibility forms. Cells that
    forget several classes, at once or one after another, have separate boards.
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    known = list(records)
    first = {_row(r, r.cell.target.steps[0]) for r in known if r.cell.earlier}
    for record in known:
        cell = record.cell
        groups.setdefault((cell.dataset, cell.protocol, _form(cell.target)), []).append(record)
        if not cell.earlier and _row(record, cell.target) in first:
            groups.setdefault((cell.dataset, cell.protocol, SEQUENCE), []).append(record)
    for group in groups.values():
        group.sort(key=lambda record: str(record.provenance.get("started_utc", "")))
    families = {(dataset, protocol.removesuffix(B4)) for dataset, protocol, _ in groups}
    datasets = [dataset for dataset, _ in families]

    def name(dataset: str, protocol: str, form: str) -> str:
        family = "" if datasets.count(dataset) == 1 else f"-{protocol.removesuffix(B4)}"
        return dataset + family + (B4 if protocol.endswith(B4) else "") + form

    found: dict[str, Board] = {}
    for key, group in sorted(groups.items()):
        folder = name(*key)
        while folder in found or TAKEN.fullmatch(folder):  # by another dataset's combined name, for example
            folder = f"_{folder}_"
        found[folder] = Board(group, stale)
    shared = styles_of(variant for board in found.values() for variant in board.variants)
    for board in found.values():
        board.styles = shared
    return found


def _row(record: Record, target: Target) -> tuple[Any, ...]:
    """Return the key shared by the steps of one sequence, with one of their targets."""
    cell = record.cell
    settings = canonical_json(dict(cell.settings))
    return cell.dataset, cell.protocol, cell.method, settings, cell.seeds, record.device_model[:2], target


def _form(target: Target) -> str:
    return SEQUENCE if target.earlier else AT_ONCE if len(target.classes) > 1 else ""


def _setup(record: Record) -> list[Any]:
    """Return the user's choices besides the protocol; one table never mixes two, since their scales differ."""
    names = ("choices", "image_shape", "class_names")
    return [record.dataset.get(name) or {} for name in names]


def _spans(numbers: Sequence[int]) -> str:
    """Write sorted integers as 0-9 or 0, 3, 5-7."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans) or "none"
