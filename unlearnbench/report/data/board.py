"""Boards: the comparable records of a report, with every gap visible."""

import copy
import re
import statistics
from collections.abc import Container, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unlearnbench.errors import plural
from unlearnbench.report.data.cost import CONTESTED, PHASES, Costs, disturbance_note, is_disturbed, ranks, repeated
from unlearnbench.report.data.environment import counted, mixture_notes, protocol_words, software_words
from unlearnbench.report.data.statistics import Interval, best_rows, mean_intervals, proportion_intervals
from unlearnbench.report.data.styles import Style, styles_of
from unlearnbench.report.data.values import Measure, Value, Variant, short, target_name, variant_of
from unlearnbench.store.cell import Seeds, Target
from unlearnbench.store.hashing import canonical_json
from unlearnbench.store.records import B4, Record, natural, records_digest

MOST_NAMED = 20  # forget classes named in a caption
# names that cannot be a board's folder: the report's own files, and reserved ones on Windows
TAKEN = re.compile(r"report\.(?:html|md)|(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?|.*\.", re.IGNORECASE)
SEQUENCE, AT_ONCE = "-sequence", "-at-once"  # suffixes of boards of several classes


class Board:
    """All comparable records of one dataset and protocol, on devices of one name."""

    def __init__(self, records: Sequence[Record], stale: Set[str] = frozenset()) -> None:
        """Take the latest records of one dataset and protocol, oldest first.

        Records with another device, judge, extractor, base model, image size or classes than the newest are left out,
        and stale ones show no number; `notes` says so. Controls are excluded from the rows.

        Args:
            records: at least one.
            stale: ids of cells with stale records.
        """
        device, setup = records[-1].device_model, _setup(records[-1])
        here = [record for record in records if record.device_model.matches(device)]
        self.records = [record for record in here if _setup(record) == setup]
        self.left_out: list[str] = []  # a sentence on each kind of records left out
        self._whole: Board | None = None  # the full board, where this one shows a subset of its rows
        self._best: dict[Measure, set[Variant]] = {}
        self._values: dict[Measure, dict[tuple[Variant, Target], Value]] = {}
        self._means: dict[Measure, dict[Variant, Value]] = {}
        self._bare: dict[Measure, dict[tuple[Variant, Target], Value]] = {}
        self._grids: dict[Measure, NDArray[np.float64]] = {}
        self._samples_of: dict[str, NDArray[np.float64]] = {}
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
        self.notes = [*self.left_out]
        self.rows = [r for r in self.records if r.method.get("role") != "control"] or self.records
        if len(self.devices) > 1:
            self.notes.append(
                f"these records rest on {len(self.devices)} devices of one name, {self.device_name}: compare costs "
                f"with care"
            )
        if self.stale:
            self.notes.append(
                f"{len(self.stale)} records are stale (their method or a metric has changed since) and show no "
                f"numbers: run their cells again"
            )
        sound = [record for record in self.records if record.status == "ok"]
        self.notes += mixture_notes(self.ok_records)
        images = {record.artifacts.get("images", {}).get("sha256") for record in sound}
        if len(images) > 1:
            self.notes.append(f"these records rest on {len(images)} different sets of images: compare rows with care")
        self.notes += [*self._unmeasurable(), *disturbance_note(self.ok_records)]

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
        """The dataset's title."""
        return short(self.records[-1].dataset.get("title", self.records[-1].cell.dataset))

    @cached_property
    def digest(self) -> str:
        """Twelve hex digits of the records this board shows."""
        return records_digest(self.records)

    @cached_property
    def targets(self) -> list[Target]:
        """The targets of all variants, sorted; mostly one class each."""
        return _targets(self.rows)

    @cached_property
    def class_names(self) -> list[object]:
        """The names of the classes, by number; empty where no record has them."""
        return list(self.records[-1].dataset.get("class_names") or [])

    def name_of(self, target: Target) -> str:
        """Return the name of a target."""
        return target_name(target, self.class_names)

    @cached_property
    def replicates(self) -> list[Seeds]:
        """Seeds of any variant, sorted."""
        return _replicates(self.rows)

    @cached_property
    def _variants(self) -> dict[str, Variant]:
        """{cell id: row}; equal rows are one object, labelled by the newest record."""
        found: dict[Variant, Variant] = {}
        own = {record.cell.id: variant_of(record) for record in reversed(self.rows)}
        return {name: found.setdefault(variant, variant) for name, variant in own.items()}

    @cached_property
    def variants(self) -> list[Variant]:
        """References first, then by label."""
        return self._everyone

    @cached_property
    def _everyone(self) -> list[Variant]:
        order = {"reference": 0, "gold": 1}
        found = dict.fromkeys(self._variants.values())
        return sorted(found, key=lambda variant: (order.get(variant.role, 2), natural(variant.label.lower())))

    def narrowed(self, variants: Iterable[Variant]) -> "Board":
        """Return this board with a subset of its rows, for a figure; numbers, marks and styles are unchanged."""
        kept, part = set(variants), copy.copy(self)
        part.variants = [variant for variant in self.variants if variant in kept]
        part._whole = self
        vars(part).pop("attacked", None)
        return part

    @cached_property
    def styles(self) -> dict[str, Style]:
        """{label: colour and shape} of the rows; `boards` shares them over all boards of a folder."""
        return styles_of(self.variants)

    @cached_property
    def _cells(self) -> dict[tuple[Variant, Target], list[Record]]:
        """{(row, target): records, one per replicate, by its seeds}."""
        cells: dict[tuple[Variant, Target], list[Record]] = {}
        for record in sorted(self.rows, key=lambda record: record.cell.seeds):
            cells.setdefault((self._variants[record.cell.id], record.cell.target), []).append(record)
        return cells

    def cell_records(self, variant: Variant, target: Target) -> list[Record]:
        """Return the records, one per replicate, of a variant and target."""
        return self._cells.get((variant, target), [])

    @cached_property
    def ok_records(self) -> list[Record]:
        """The records that carry numbers."""
        return [record for record in self.records if record.status == "ok" and record.cell.id not in self.stale]

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

    @cached_property
    def attacked(self) -> "Board | None":
        """The board of the cells that were attacked, so that others do not count as missing; None without any."""
        if self._whole is not None:
            whole = self._whole.attacked
            return None if whole is None else whole.narrowed(self.variants)
        records = [r for r in self.records if any(e.get("shows") == "robustness" for e in r.metrics.values())]
        if not records or not self.robustness:
            return None
        part = Board(records, self.stale)
        part.digest, part.styles = self.digest, self.styles  # a table names the records of its report
        return part

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
        """{label: {phase: seconds}}: means over forget classes, of rows with numbers and the phases that they have."""
        had: dict[Variant, set[str]] = {}
        for record in self._sound[0]:
            had.setdefault(self._variants[record.cell.id], set()).update(record.cost)
        found: dict[str, dict[str, float]] = {}
        for variant in self.variants:
            values = {p: self.bare_mean(variant, self.cost.phases[p]) for p in PHASES if p in had.get(variant, ())}
            if means := {phase: value.number for phase, value in values.items() if value.number is not None}:
                found[variant.label] = means
        return found

    @cached_property
    def ranks(self) -> dict[Variant, int]:
        """Ranks by run time of the methods with repeats in all cells; others would rank by fewer cells than are shown.

        References and controls unlearn nothing.
        """
        rows: dict[Variant, list[Record]] = {}
        for record in self.ok_records:
            variant = self._variants.get(record.cell.id)
            if variant is not None and variant.role in ("method", "gold"):
                rows.setdefault(variant, []).append(record)
        whole, found = len(self.targets) * len(self.replicates), {v: repeated(some) for v, some in rows.items()}
        return ranks({variant: cells for variant, cells in found.items() if len(cells) == whole})

    def value(self, variant: Variant, target: Target, measure: Measure) -> Value:
        """Return the value of one variant and target: the mean over replicates, or a word."""
        if measure not in self._values:
            intervals, width = self._intervals(measure, by_class=False), len(self.targets)
            self._values[measure] = {
                place: replace(value, interval=intervals[v * width + t])
                for (place, (v, t)), value in zip(self._where.items(), self._bare_values(measure).values(), strict=True)
            }
        return self._values[measure].get((variant, target), self._missing)

    def bare(self, variant: Variant, target: Target, measure: Measure) -> Value:
        """Return the value of one variant and target without its interval, which is expensive."""
        return self._bare_values(measure).get((variant, target), self._missing)

    @cached_property
    def _missing(self) -> Value:
        return Value(None, "-", ok=0, expected=len(self.replicates))

    def _bare_values(self, measure: Measure) -> dict[tuple[Variant, Target], Value]:
        """Return the values of all variants and targets that have records."""
        if measure not in self._bare:
            numbers, expected = self._numbers(measure), len(self.replicates)
            known = ~np.isnan(numbers)
            counts, disturbed = (found.sum(axis=2).tolist() for found in (known, known & self._disturbed(measure)))
            lists = numbers.tolist()
            self._bare[measure] = {
                place: Value(
                    statistics.fmean(number for number in lists[v][t] if number == number), ok=counts[v][t],
                    expected=expected, disturbed=disturbed[v][t],
                )
                if counts[v][t] else Value(None, self._why_none(place), ok=0, expected=expected)
                for place, (v, t) in self._where.items()
            }  # fmt: skip
        return self._bare[measure]

    def _why_none(self, place: tuple[Variant, Target]) -> str:
        """Return the word in place of a missing number of a variant and target."""
        words = ["stale" if r.cell.id in self.stale else r.status for r in self._cells[place]]
        return next((word for word in reversed(words) if word != "ok"), "n/a")

    @cached_property
    def _orders(self) -> tuple[dict[Variant, int], dict[Target, int], dict[Seeds, int]]:
        """Indices of rows, targets and replicates in arrays of numbers, in the order of bootstrap draws."""
        targets, replicates = sorted(self.targets), sorted(self.replicates, key=repr)
        return (
            {row: k for k, row in enumerate(self._everyone)},
            {target: k for k, target in enumerate(targets)},
            {seeds: k for k, seeds in enumerate(replicates)},
        )

    @cached_property
    def _where(self) -> dict[tuple[Variant, Target], tuple[int, int]]:
        """{(row, target): indices in arrays of numbers} where there are records."""
        rows, targets, _ = self._orders
        return {(row, target): (rows[row], targets[target]) for row, target in self._cells}

    @cached_property
    def _sound(self) -> tuple[list[Record], tuple[list[int], ...]]:
        """The rows' records with numbers, and their indices in arrays of numbers."""
        rows, targets, replicates = self._orders
        records = [record for record in self.rows if record.cell.id in self.ok_ids]
        places = [
            (rows[self._variants[r.cell.id]], targets[r.cell.target], replicates[r.cell.seeds]) for r in records
        ]  # fmt: skip
        return records, tuple(map(list, zip(*places, strict=True))) if places else ([], [], [])

    def _grid(self, numbers: Sequence[float | None], empty: float) -> NDArray[np.float64]:
        """Return numbers of the records of `_sound` as (rows, targets, replicates)."""
        grid = np.full([len(order) for order in self._orders], empty)
        grid[self._sound[1]] = np.array(numbers, dtype=np.float64)
        return grid

    def _numbers(self, measure: Measure) -> NDArray[np.float64]:
        """Return the array of a measure's numbers, NaN where there is none."""
        if measure not in self._grids:
            records = self._sound[0]
            if measure.aspect == "cost":
                numbers = [self.cost.number(record, measure) for record in records]
            else:
                numbers = [record.metrics.get(measure.key, {}).get("value") for record in records]
            self._grids[measure] = self._grid(numbers, np.nan)
        return self._grids[measure]

    def _counts(self, measure: Measure) -> NDArray[np.float64]:
        """Return the array of a metric's numbers of samples."""
        if measure.key not in self._samples_of:
            counts = [int(r.metrics.get(measure.key, {}).get("n", 0)) for r in self._sound[0]]
            self._samples_of[measure.key] = self._grid(counts, 0.0)
        return self._samples_of[measure.key]

    def _disturbed(self, measure: Measure) -> NDArray[np.bool_]:
        """Return the array that marks disturbed cells."""
        found = [bool(r.disturbances) and is_disturbed(r, measure) for r in self._sound[0]]
        return self._grid(found, 0.0).astype(np.bool_)

    def _intervals(self, measure: Measure, *, by_class: bool) -> list[Interval]:
        """Return the 95 % intervals of each row's mean over classes and replicates, or of each row's and target's."""
        numbers = self._numbers(measure)
        shape = numbers.shape if by_class else (-1, 1, numbers.shape[2])
        grids = numbers.reshape(shape)
        if not measure.is_share:
            return mean_intervals(grids)
        found: list[Interval] = [None] * len(grids)
        fits = (np.isnan(grids) | ((grids >= 0) & (grids <= 100))).all(axis=(1, 2))
        samples = self._counts(measure).reshape(shape)
        for index, interval in zip(
            np.flatnonzero(fits), proportion_intervals(grids[fits] / 100, samples[fits]), strict=True
        ):
            found[index] = None if interval is None else (100 * interval[0], 100 * interval[1])
        for index, interval in zip(np.flatnonzero(~fits), mean_intervals(grids[~fits]), strict=True):
            found[index] = interval
        return found

    def over_classes(self, variant: Variant, measure: Measure) -> Value:
        """Return the mean over forget classes, its 95 % interval, the standard deviation (divisor n - 1), and gaps."""
        if measure not in self._means:
            found = zip(self._everyone, self._intervals(measure, by_class=True), strict=True)
            self._means[measure] = {
                row: replace(mean, interval=None if mean.number is None else interval)
                for row, interval in found for mean in [self.bare_mean(row, measure)]
            }  # fmt: skip
        means = self._means[measure]
        return means[variant] if variant in means else self.bare_mean(variant, measure)

    def bare_mean(self, variant: Variant, measure: Measure, among: Container[Target] | None = None) -> Value:
        """Return the mean over forget classes without its interval, which is expensive.

        Every table, figure and chart shows this mean: over the classes with a number of this measure, whatever else
        their cells lack.

        Args:
            variant: the row.
            measure: the column.
            among: the targets it is over, if not all.
        """
        values = [self.bare(variant, t, measure) for t in self._asked(measure) if among is None or t in among]
        numbers = [value.number for value in values if value.number is not None]
        ok, expected = sum(value.ok for value in values), sum(value.expected for value in values)
        if not numbers:
            word = next((value.word for value in values if value.word != "-"), "-")
            return Value(None, word, ok=ok, expected=expected)
        spread = statistics.stdev(numbers) if len(numbers) > 1 else None
        disturbed = sum(value.disturbed for value in values)
        return Value(
            statistics.fmean(numbers), spread=spread, best=variant in self.best(measure), ok=ok, expected=expected,
            disturbed=disturbed,
        )  # fmt: skip

    def _asked(self, measure: Measure) -> list[Target]:
        """Return the targets that a measure applies to: the first step of a sequence has no earlier one."""
        return [t for t in self.targets if t.earlier] if measure.key in self._later else self.targets

    @cached_property
    def _later(self) -> set[str]:
        """Keys of the metrics that only cells with earlier steps have."""
        names = {bool(first): set[str]() for first in (False, True)}
        for record in self.ok_records:
            names[bool(record.cell.earlier)].update(record.metrics)
        return names[True] - names[False]

    def best(self, measure: Measure) -> set[Variant]:
        """Return the methods marked as best; none where no difference is significant, or no direction is better."""
        if measure not in self._best:
            self._best[measure] = self._find_best(measure)
        return self._best[measure]

    def _find_best(self, measure: Measure) -> set[Variant]:
        if measure.better == "neither" or (measure.aspect == "cost" and measure.key not in CONTESTED):
            return set()
        values = {
            variant: {
                t: number for t in self._asked(measure)
                if (number := self.bare(variant, t, measure).number) is not None
            }
            for variant in self._everyone if variant.role == "method" and not self._lacks(variant, measure)
        }  # fmt: skip
        return best_rows(values, measure.better)

    def _lacks(self, variant: Variant, measure: Measure) -> bool:
        """Say whether a number of any class or replicate is missing; base models count as replicates."""
        values = [self.bare(variant, target, measure) for target in self._asked(measure)]
        return any(value.ok < value.expected for value in values)

    def completeness(self, variant: Variant) -> str:
        """Return "9/10": cells with numbers of cells expected."""
        cells = [record for t in self.targets for record in self.cell_records(variant, t)]
        return f"{sum(record.cell.id in self.ok_ids for record in cells)}/{len(self.targets) * len(self.replicates)}"

    def failures(self) -> list[Record]:
        """Return the records without numbers, but for stale ones."""
        return [record for record in self.records if record.status != "ok"]

    @cached_property
    def _judges(self) -> str:
        """The judges' test performance in words."""
        return counted(_test_performance(record.judge) for record in self.ok_records if record.judge)

    @cached_property
    def _environment(self) -> tuple[str, str, str]:
        """Rules of the protocol, feature extractors, device and software; with numbers of cells where they differ."""
        return (
            counted(protocol_words(record.protocol) for record in self.records),
            counted(str(record.dataset.get("extractor")) for record in self.records),
            f"{self.device_words}, {software_words(self.records)}",
        )

    def _samples(self, measures: Sequence[Measure], records: Sequence[Record] | None) -> str:
        """Return the number of samples per metric and cell: `UA n=100`, `Recall n=1,291 to 1,298`."""
        words = []
        for measure in (m for m in measures if m.aspect != "cost"):
            if records is None:
                found = self._counts(measure)[~np.isnan(self._numbers(measure))].astype(int).tolist()
            else:
                entries = [r.metrics.get(measure.key, {}) for r in records if r.cell.id in self.ok_ids]
                found = [int(entry["n"]) for entry in entries if entry.get("value") is not None]
            if found:
                words.append(f"{measure.title} n={' to '.join(map(str, dict.fromkeys([min(found), max(found)])))}")
        return ", ".join(words)

    @cached_property
    def _is_shortened(self) -> bool:
        """Whether any record has settings other than its method's defaults."""
        return any(record.method.get("changed") for record in self.rows)

    def _spelled(self, targets: Sequence[Target]) -> str:
        """Write targets by name; many, or numbers of single classes, as 0-9."""
        names = [self.name_of(target) for target in targets]
        single = all(len(target.gone) == 1 for target in targets)
        if single and (len(names) > MOST_NAMED or names == [target.label for target in targets]):
            return _spans([target.classes[0] for target in targets])
        return ("; " if any(target.earlier for target in targets) else ", ").join(names)

    def caption(self, measures: Sequence[Measure] = (), records: Sequence[Record] | None = None) -> str:
        """Return the facts that every table states: dataset, protocol, judges, device, costs, digest.

        Args:
            measures: of the table, for their numbers of samples.
            records: that the table shows, if not those of the rows; it has no intervals then.
        """
        targets = self.targets if records is None else _targets(records)
        replicates = self.replicates if records is None else _replicates(records)
        rules, extractor, hardware = self._environment
        samples = self._samples(measures, records)
        statistic = "95 % intervals: Wilson's, with the design effect of classes and seeds, or bootstrap"
        if len(replicates) == 1:
            statistic += "; single seed: seed-to-seed variance is not included"
        shortened = ["settings other than the methods' defaults are in the table of settings"]
        return "; ".join(
            [
                f"Dataset: {self.title}",
                f"protocol {self.records[-1].protocol.get('name')}: {rules}",
                *([f"samples per cell {samples}"] if samples else []),
                f"features: {extractor}",
                f"judge test accuracy {self._judges or 'unknown'}",
                f"forget classes {self._spelled(targets)}, {_seeds(replicates)}",
                *(shortened if self._is_shortened else []),
                *([statistic] if records is None else []),
                f"device {hardware}",
                *self.cost.caption,
                f"records {self.digest}",
            ]
        )


def _targets(records: Iterable[Record]) -> list[Target]:
    return sorted({record.cell.target for record in records}, key=lambda target: (len(target.earlier), target))


def _replicates(records: Iterable[Record]) -> list[Seeds]:
    return sorted({record.cell.seeds for record in records})


def _seeds(replicates: Sequence[Seeds]) -> str:
    """Return the seeds of replicates: one number each, or those of base model, unlearning and sampling."""
    if all(len(set(seeds)) == 1 for seeds in replicates):
        return f"seeds {_spans([seeds.unlearning for seeds in replicates])}"
    return "seeds (base, unlearning, sampling) " + ", ".join(str(tuple(seeds)) for seeds in replicates)


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


def _setup(record: Record) -> str:
    """Return the user's choices besides the protocol; one table never mixes two, since their scales differ."""
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
