"""From records to a board: what one report compares, with every gap visible."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

from unlearnbench.grid import Seeds, Target
from unlearnbench.hashing import canonical_json
from unlearnbench.report.cost import CONTESTED, Costs, disturbance_note, is_disturbed, ranks, repeated
from unlearnbench.report.looks import Look, looks_of
from unlearnbench.report.statistics import best_rows, mean_interval, proportion_interval
from unlearnbench.report.values import Measure, Value, Variant, variant_of
from unlearnbench.results import B4, Record, natural, records_digest

SEQUENCE, AT_ONCE = "-sequence", "-at-once"  # end the names of boards of several classes


class Board:
    """All comparable records of one dataset and protocol, on one device."""

    def __init__(self, records: Sequence[Record], source_hashes: Mapping[str, str]) -> None:
        """Take the latest records of one dataset and protocol, oldest first.

        Records of another device, judge, extractor, base model, image size or classes than the newest's are left out,
        and stale ones show no number; `notes` says so. Controls are no rows: they check the suite.

        Args:
            records: at least one.
            source_hashes: of the plugins as they are now, to find stale records.
        """
        device, setup, self.source_hashes = _device(records[-1]), _setup(records[-1]), source_hashes
        here = [record for record in records if _device(record) == device]
        self.records = [record for record in here if _setup(record) == setup]
        self.notes: list[str] = []
        self._best: dict[Measure, set[Variant]] = {}
        self._values: dict[tuple[Variant, Target, Measure], Value] = {}
        self._means: dict[tuple[Variant, Measure], Value] = {}
        if foreign := len(records) - len(here):
            self.notes.append(f"{foreign} records of other devices are left out; this report shows {self.device_name}")
        if other := len(here) - len(self.records):
            self.notes.append(
                f"{other} records with another judge, extractor, base model, image size or classes than the newest are "
                "left out"
            )
        self._stale = {record.cell.id for record in self.records if record.is_stale(source_hashes)}
        self._drop_superseded()
        self.rows = [r for r in self.records if r.method.get("role") != "control"] or self.records
        if self._stale:
            self.notes.append(
                f"{len(self._stale)} records are stale (their method or a metric has changed since) and show no "
                f"numbers: run their cells again"
            )
        sound = [record for record in self.records if record.status == "ok"]
        bases = {(r.cell.base_seed, r.artifacts.get("base", {}).get("sha256")) for r in sound}
        if len(bases) > len({seed for seed, _ in bases}):
            self.notes.append("records of one base seed rest on different base models: compare rows with care")
        images = {record.artifacts.get("images", {}).get("sha256") for record in sound}
        if len(images) > 1:
            self.notes.append(f"these records rest on {len(images)} different sets of images: compare rows with care")
        self.notes += [*self._unmeasurable(), *disturbance_note(self.ok_records)]

    def _drop_superseded(self) -> None:
        """Leave out stale rows whose label a fresh row has taken over, as after a change of default settings."""
        fresh = {
            variant_of(record).label: variant_of(record) for record in self.records if record.cell.id not in self._stale
        }
        kept = [r for r in self.records if fresh.get(variant_of(r).label, variant_of(r)) == variant_of(r)]
        if dropped := len(self.records) - len(kept):
            self.notes.append(f"{dropped} stale records of rows measured anew with other settings are left out")
            self.records = kept
            self._stale &= {record.cell.id for record in kept}

    @property
    def key(self) -> tuple[str, str]:
        """Dataset and protocol."""
        return self.records[-1].cell.dataset, self.records[-1].cell.protocol

    @cached_property
    def device_name(self) -> str:
        """The device's name."""
        return str(self.records[-1].provenance.get("device", {}).get("name", "an unknown device"))

    @cached_property
    def title(self) -> str:
        """The dataset's title."""
        return str(self.records[-1].dataset.get("title", self.records[-1].cell.dataset))

    @cached_property
    def digest(self) -> str:
        """Twelve hex digits of the records this board shows."""
        return records_digest(self.records)

    @cached_property
    def targets(self) -> list[Target]:
        """What any variant was to forget, sorted; mostly one class each."""
        return _targets(self.rows)

    @cached_property
    def replicates(self) -> list[Seeds]:
        """Seeds of any variant, sorted."""
        return _replicates(self.rows)

    @cached_property
    def variants(self) -> list[Variant]:
        """References first, then by label."""
        found = {variant_of(record): None for record in reversed(self.rows)}  # a label is the newest record's
        order = {"reference": 0, "gold": 1}
        return sorted(found, key=lambda variant: (order.get(variant.role, 2), natural(variant.label.lower())))

    @cached_property
    def looks(self) -> dict[str, Look]:
        """{label: colour and shape} of the rows; `boards` gives those of one folder one set."""
        return looks_of(self.variants)

    @cached_property
    def _cells(self) -> dict[tuple[Variant, Target], list[Record]]:
        cells: dict[tuple[Variant, Target], list[Record]] = {}
        for record in self.rows:
            cells.setdefault((variant_of(record), record.cell.target), []).append(record)
        return cells

    def cell_records(self, variant: Variant, target: Target) -> list[Record]:
        """Return the records, one per replicate, of a variant and target."""
        return sorted(self._cells.get((variant, target), []), key=lambda record: record.cell.seeds)

    @cached_property
    def ok_records(self) -> list[Record]:
        """The records that carry numbers."""
        return [record for record in self.records if record.status == "ok" and record.cell.id not in self._stale]

    @cached_property
    def ok_ids(self) -> set[str]:
        """Cell ids of the records that carry numbers."""
        return {record.cell.id for record in self.ok_records}

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
        return [measure for measure in self._measures if measure.shows != "robustness"]

    @property
    def robustness(self) -> list[Measure]:
        """The metrics after an attack that any record has a value of."""
        return [measure for measure in self._measures if measure.shows == "robustness"]

    @cached_property
    def _measures(self) -> list[Measure]:
        found: dict[str, Measure] = {}
        for record in self.ok_records:
            for name, entry in record.metrics.items():
                if entry["value"] is None:
                    continue
                found[name] = Measure(
                    name,
                    entry["title"],
                    entry["unit"],
                    entry["better"],
                    entry["format"],
                    entry["shows"],
                    entry["headline"],
                )
        order = ("forgetting", "retention", "judging", "robustness")
        return sorted(found.values(), key=lambda m: (order.index(m.shows), not m.headline, natural(m.key)))

    def _unmeasurable(self) -> list[str]:
        """Return a sentence for each metric that no record has a value of."""
        shown = {measure.key for measure in self._measures}
        entries = {name: entry for record in self.ok_records for name, entry in record.metrics.items()}
        return [
            f"{entry['title']} is not shown: {entry.get('reason') or 'no cell has a value'}"
            for name, entry in sorted(entries.items()) if name not in shown
        ]  # fmt: skip

    def headline(self, shows: str) -> Measure | None:
        """Return the first headline metric of "forgetting" or "retention"."""
        return next((measure for measure in self.headlines if measure.shows == shows), None)

    @property
    def headlines(self) -> list[Measure]:
        """The metrics of the main table."""
        return [measure for measure in self.metrics if measure.headline]

    @cached_property
    def ranks(self) -> dict[Variant, int]:
        """Ranks by run time of the methods whose repeats tell; references and controls unlearn nothing."""
        rows: dict[Variant, list[Record]] = {}
        for record in self.ok_records:
            if (variant := variant_of(record)).role in ("method", "gold"):
                rows.setdefault(variant, []).append(record)
        return ranks({variant: cells for variant, records in rows.items() if (cells := repeated(records))})

    def _number(self, record: Record, measure: Measure) -> float | None:
        """Return one record's number in the measure's unit."""
        if measure.shows == "cost":
            return self.cost.number(record, measure)
        value = record.metrics.get(measure.key, {}).get("value")
        return None if value is None else float(value)

    def value(self, variant: Variant, target: Target, measure: Measure) -> Value:
        """Return the value of one variant and target: the mean over replicates, or a word."""
        place = (variant, target, measure)
        if place not in self._values:
            self._values[place] = self._find_value(*place)
        return self._values[place]

    def _find_value(self, variant: Variant, target: Target, measure: Measure) -> Value:
        records = self.cell_records(variant, target)
        if not records:
            return Value(None, "-", ok=0, expected=len(self.replicates))
        numbers, word, disturbed = [], "n/a", 0
        for record in records:
            if record.cell.id in self._stale:
                word = "stale"
            elif record.status != "ok":
                word = record.status
            elif (number := self._number(record, measure)) is not None:
                numbers.append(number)
                disturbed += is_disturbed(record, measure)
        if not numbers:
            return Value(None, word, ok=0, expected=len(self.replicates))
        interval = self._interval(variant, measure, [target])
        mean, expected = statistics.fmean(numbers), len(self.replicates)
        return Value(mean, interval=interval, ok=len(numbers), expected=expected, disturbed=disturbed)

    def _interval(self, variant: Variant, measure: Measure, targets: Sequence[Target]) -> tuple[float, float] | None:
        """Return the 95 % interval of the mean over classes and replicates; None where they tell too little."""
        records = [r for t in targets for r in self.cell_records(variant, t) if r.cell.id in self.ok_ids]
        numbers = {(r.cell.target, r.cell.seeds): (r, self._number(r, measure)) for r in records}
        known = [number for _, number in numbers.values() if number is not None]
        if not measure.is_share or not all(0 <= number <= 100 for number in known):
            return mean_interval({key: number for key, (_, number) in numbers.items() if number is not None})
        shares = {
            key: (number / 100, int(record.metrics[measure.key]["n"]))
            for key, (record, number) in numbers.items() if number is not None
        }  # fmt: skip
        found = proportion_interval(shares)
        return None if found is None else (100 * found[0], 100 * found[1])

    def over_classes(self, variant: Variant, measure: Measure) -> Value:
        """Return the mean over forget classes, its 95 % interval, the standard deviation (divisor n - 1), and gaps."""
        if (variant, measure) not in self._means:
            self._means[variant, measure] = self._find_mean(variant, measure)
        return self._means[variant, measure]

    def _find_mean(self, variant: Variant, measure: Measure) -> Value:
        values = [self.value(variant, target, measure) for target in self._asked(measure)]
        numbers = [value.number for value in values if value.number is not None]
        ok, expected = sum(value.ok for value in values), sum(value.expected for value in values)
        if not numbers:
            word = next((value.word for value in values if value.word != "-"), "-")
            return Value(None, word, ok=ok, expected=expected)
        spread = statistics.stdev(numbers) if len(numbers) > 1 else None
        disturbed = sum(value.disturbed for value in values)
        interval = self._interval(variant, measure, self.targets)
        return Value(
            statistics.fmean(numbers), spread=spread, interval=interval, best=variant in self.best(measure), ok=ok,
            expected=expected, disturbed=disturbed,
        )  # fmt: skip

    def _asked(self, measure: Measure) -> list[Target]:
        """Return the targets for which a measure says something: the first step of a sequence has no earlier one."""
        known = [record.cell for record in self.ok_records if measure.key in record.metrics]
        later = bool(known) and all(cell.earlier for cell in known)
        return [target for target in self.targets if target.earlier or not later]

    def best(self, measure: Measure) -> set[Variant]:
        """Return the methods that share the mark of the best; none where nothing is separated, or nothing is better."""
        if measure not in self._best:
            self._best[measure] = self._find_best(measure)
        return self._best[measure]

    def _find_best(self, measure: Measure) -> set[Variant]:
        if measure.better == "neither" or (measure.shows == "cost" and measure.key not in CONTESTED):
            return set()
        values = {
            variant: {
                t: number for t in self._asked(measure)
                if (number := self.value(variant, t, measure).number) is not None
            }
            for variant in self.variants if variant.role == "method" and not self._lacks(variant, measure)
        }  # fmt: skip
        return best_rows(values, measure.better)

    def _lacks(self, variant: Variant, measure: Measure) -> bool:
        """Say whether a number of any class or replicate is missing: other base models are no other method."""
        values = [self.value(variant, target, measure) for target in self._asked(measure)]
        return any(value.ok < value.expected for value in values)

    def completeness(self, variant: Variant) -> str:
        """Return "9/10": cells with numbers of cells expected."""
        cells = [record for t in self.targets for record in self.cell_records(variant, t)]
        return f"{sum(record.cell.id in self.ok_ids for record in cells)}/{len(self.targets) * len(self.replicates)}"

    def failures(self) -> list[Record]:
        """Return the records without numbers, but for stale ones."""
        return [record for record in self.records if record.status != "ok"]

    def _samples(self, measures: Sequence[Measure], records: Sequence[Record]) -> str:
        """Return how many samples each metric rests on in a cell: `UA n=100`, `Recall n=1,291 to 1,298`."""
        words = []
        for measure in (m for m in measures if m.shows != "cost"):
            entries = [r.metrics.get(measure.key, {}) for r in records if r.cell.id in self.ok_ids]
            found = sorted({int(entry["n"]) for entry in entries if entry.get("value") is not None})
            if found:
                words.append(f"{measure.title} n={' to '.join(map(str, dict.fromkeys([found[0], found[-1]])))}")
        return ", ".join(words)

    def caption(self, measures: Sequence[Measure] = (), records: Sequence[Record] | None = None) -> str:
        """Return what every table must say of itself: dataset, protocol, judges, device, costs, digest.

        Args:
            measures: of the table, to say how many samples each metric rests on.
            records: that the table shows, if not those of the rows; it has no intervals then.
        """
        shown = self.rows if records is None else records
        last = self.records[-1]
        protocol = last.protocol
        samples = self._samples(measures, shown)
        clipped = ", x0 clipped" if protocol.get("clip_x0") else ""
        shortened = any(record.method.get("changed") for record in self.rows)
        judges = sorted({_worth(r.judge) for r in self.ok_records if r.judge})
        statistic = "95 % intervals: Wilson's, with the design effect of classes and seeds, or bootstrap"
        if len(_replicates(shown)) == 1:
            statistic += "; of one seed, so they leave out how seeds differ"
        versions = sorted({r.provenance.get("packages", {}).get("torch", "?") for r in self.records})
        return "; ".join(
            [
                f"Dataset: {self.title}",
                f"protocol {protocol.get('name')}: DDIM, {protocol.get('steps')} steps, eta {protocol.get('eta')}, "
                f"guidance w {protocol.get('guidance')}{clipped}, reference {protocol.get('reference')}",
                *([f"samples per cell {samples}"] if samples else []),
                f"features: {last.dataset.get('extractor')}",
                f"judge test accuracy {', '.join(judges) or 'unknown'}",
                f"forget classes {_spelled(_targets(shown))}, {_seeds(_replicates(shown))}",
                *(["settings other than the methods' defaults are in the table of settings"] if shortened else []),
                *([statistic] if records is None else []),
                f"device {self.device_name}, torch {', '.join(versions)}",
                *self.cost.caption(),
                f"records {self.digest}",
            ]
        )


def _targets(records: Iterable[Record]) -> list[Target]:
    return sorted({record.cell.target for record in records}, key=lambda target: (len(target.earlier), target))


def _spelled(targets: Sequence[Target]) -> str:
    """Write single classes as 0-9, or every target out: 0+1; 2 after 0, 1."""
    if all(len(target.gone) == 1 for target in targets):
        return _spans([target.classes[0] for target in targets])
    return "; ".join(target.label for target in targets)


def _replicates(records: Iterable[Record]) -> list[Seeds]:
    return sorted({record.cell.seeds for record in records})


def _seeds(replicates: Sequence[Seeds]) -> str:
    """Return the seeds of replicates: one number each, or those of base model, unlearning and sampling."""
    if all(len(set(seeds)) == 1 for seeds in replicates):
        return f"seeds {_spans([seeds.unlearning for seeds in replicates])}"
    return "seeds (base, unlearning, sampling) " + ", ".join(str(tuple(seeds)) for seeds in replicates)


def _worth(judge: Mapping[str, Any]) -> str:
    """Return what the judges are worth on test images: accuracies, and how many the rejecting one rejects."""
    words = [f"{100 * judge['test_accuracy']:.1f}% (n={judge['n']})"]
    if second := judge.get("second"):
        words.append(f"second judge {100 * second['test_accuracy']:.1f}%")
    if rejecting := judge.get("rejecting"):
        words.append(
            f"rejecting judge {100 * rejecting['test_accuracy']:.1f}%, rejects {100 * rejecting['test_rejected']:.1f}%"
        )
    return ", ".join(words)


def boards(records: Iterable[Record], source_hashes: Mapping[str, str]) -> dict[str, Board]:
    """Return {folder name: board}, one per dataset and protocol; two are never mixed.

    The name is the dataset's, with the protocol's where there are several beside their compatibility forms. Cells that
    forget several classes, at once or one after another, have boards of their own.
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

    found = {name(*key): Board(group, source_hashes) for key, group in sorted(groups.items())}
    shared = looks_of(variant for board in found.values() for variant in board.variants)
    for board in found.values():
        board.looks = shared
    return found


def _row(record: Record, target: Target) -> tuple[Any, ...]:
    """Return what the steps of one sequence have in common, with one of their targets."""
    cell = record.cell
    settings = canonical_json(dict(cell.settings))
    return cell.dataset, cell.protocol, cell.method, settings, cell.seeds, _device(record), target


def _form(target: Target) -> str:
    return SEQUENCE if target.earlier else AT_ONCE if len(target.classes) > 1 else ""


def _device(record: Record) -> Any:
    return record.provenance.get("device", {}).get("uuid")


def _setup(record: Record) -> str:
    """Return what the user chose besides the protocol: two choices in one table would be two scales in one column."""
    names = ("choices", "image_shape", "class_names")
    return canonical_json([record.dataset.get(name) or {} for name in names])


def _spans(numbers: Sequence[int]) -> str:
    """Write sorted integers as 0-9 or 0, 3, 5-7."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in spans) or "none"
