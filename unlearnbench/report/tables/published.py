"""Published numbers beside measured ones: which agree, which differ, and which cannot be compared and why.

After RobustBench, where entries carry the number that the paper `reported`. Never imports torch.
"""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from unlearnbench.report.data.array import NOT_RUN
from unlearnbench.report.data.board import Board
from unlearnbench.report.data.published import STATISTICS, Footnote, Row, Source, footnotes
from unlearnbench.report.data.statistics import score_interval
from unlearnbench.report.data.values import Measure, Value, Variant
from unlearnbench.report.tables.table import Table
from unlearnbench.store.cell import Target
from unlearnbench.store.records import B4, Record

Verdict = Literal["agrees", "differs", "not comparable", "not measured"]
VERDICTS: tuple[Verdict, ...] = ("agrees", "differs", "not comparable", "not measured")
DEVICE = "device"  # an obstacle that does not apply to ratios of numbers from one device
SCALE = {("s", "minutes"): 1 / 60}  # from our unit to the source's where they differ


@dataclass(frozen=True)
class Comparison:
    """One printed number beside ours, both in the source's unit."""

    row: Row
    measured: Value
    verdict: Verdict
    reasons: tuple[str, ...]
    notes: tuple[int, ...]  # numbers of footnotes, from 1

    @property
    def difference(self) -> Value:
        """Measured minus published, with the measured number's gaps."""
        if self.measured.number is None:
            return Value(None)
        return replace(self.measured, number=self.measured.number - self.row.value)


class Side:
    """Our side of a comparison: the records of one board, in the source's terms and units."""

    def __init__(self, source: Source, board: Board) -> None:
        """Choose for each published method the row measured with its default settings."""
        self.source = source
        self.board = board
        self.references = {v.method: v.label for v in board.variants if v.role == "reference"}
        self.variants = {method: _default_variant(board, method) for method in [*source.methods, *self.references]}
        self.cell = board.records[-1].cell
        self.notes = footnotes(source)

    @property
    def has_records(self) -> bool:
        """Whether records of a published method, or of the reference row, exist for single forget classes."""
        single = all(len(target.gone) == 1 for target in self.board.targets)
        return single and any(variant.method in self.variants for variant in self.board.variants)

    def is_twin_of(self, other: "Side") -> bool:
        """Whether it has the protocol of another side, but the reference set of the compatibility protocol."""
        return (self.cell.dataset, self.cell.protocol) == (other.cell.dataset, other.cell.protocol + B4)

    def ok_records(self, method: str, forget_class: int) -> list[Record]:
        """Return the records with numbers of a method's default settings, one per seed."""
        variant = self.variants[method]
        return self.board.numbers.sound(variant, Target((forget_class,))) if variant else []

    def measure(self, metric: str) -> Measure | None:
        """Return our measure of a published metric; None where no cell has it."""
        facts = self.source.facts["metrics"][metric]
        if "cost" in facts:
            return next(cost for cost in self.board.costs if cost.key == facts["cost"])
        return self.board.numbers.metric(facts["metric"])

    def value(self, method: str, metric: str, forget_class: int) -> Value:
        """Return the mean over seeds in the source's unit, or a word for why there is none."""
        variant, measure = self.variants.get(method), self.measure(metric)
        if variant is None:
            swept = any(other.method == method for other in self.board.variants)
            word = "only changed settings" if swept else "no record"
            return Value(None, word, ok=0, expected=len(self.board.seeds))
        target, numbers = Target((forget_class,)), self.board.numbers
        if measure is None:
            value = Value(None, numbers.why_none(variant, target), ok=0, expected=len(numbers.seeds))
        else:
            value = self._scaled(numbers.cell(variant, target, measure, interval=False), metric, measure)
        return replace(value, word="no record" if value.word == NOT_RUN else value.word)

    def mean(self, method: str, metric: str, classes: Iterable[int]) -> Value:
        """Return the mean over some classes in the source's unit, with its standard deviation; no number for none."""
        variant, measure = self.variants.get(method), self.measure(metric)
        if variant is None or measure is None:
            return Value(None)
        numbers = self.board.numbers.sel(targets=[Target((c,)) for c in classes])
        return self._scaled(numbers.mean(variant, measure, interval=False), metric, measure)

    def _scaled(self, value: Value, metric: str, measure: Measure) -> Value:
        unit = next((row.unit for row in self.source.metrics.get(metric, [])), "")
        factor = SCALE.get((measure.unit, unit), 1.0)
        number, spread = (None if part is None else factor * part for part in (value.number, value.spread))
        return replace(value, number=number, spread=spread)

    def samples(self, method: str, metric: str, forget_class: int) -> int:
        """Return the number of samples behind a metric's mean over seeds."""
        variant, measure = self.variants.get(method), self.measure(metric)
        if variant is None or measure is None:
            return 0
        return self.board.numbers.total_samples(variant, Target((forget_class,)), measure)

    def obstacles(self, method: str, metric: str, forget_class: int) -> dict[str, str]:
        """Return {reason: its details} why our number is not comparable to the printed one; empty if it is."""
        facts = self.source.facts["metrics"][metric]
        found: dict[str, str] = {}
        for record in self.ok_records(method, forget_class):
            found |= obstacles_of(record, self.source, facts)
        if "probes" in facts and self.board.probe not in facts["probes"]:
            here = self.board.probe or "none"
            found["memory probe"] = f"{here} here; GPU memory needs one of {', '.join(facts['probes'])}"
        if "device" in facts:
            found[DEVICE] = str(facts["device"])
        return found


def compare_rows(side: Side) -> list[Comparison]:
    """Return every class row of the main tables beside our number, in the order of tables."""
    return [_compare_row(side, row) for rows in side.source.metrics.values() for row in rows]


def _compare_row(side: Side, row: Row) -> Comparison:
    forget_class = int(row.forget_class)
    measured = side.value(row.method, row.metric, forget_class)
    marks = _marks(side.notes, [(row.method, row.metric, row.forget_class)])
    if measured.number is None:
        return Comparison(row, measured, "not measured", (measured.word,), marks)
    if obstacles := side.obstacles(row.method, row.metric, forget_class):
        return Comparison(row, measured, "not comparable", tuple(obstacles), marks)
    tolerance = side.source.facts["metrics"][row.metric]["tolerance"]
    if "absolute" in tolerance:
        agrees = abs(measured.number - row.value) <= tolerance["absolute"]
    else:
        n = side.samples(row.method, row.metric, forget_class)
        if n < 1 or not 0 <= measured.number <= 100:
            return Comparison(row, measured, "not comparable", ("not a share of samples",), marks)
        low, high = share_interval(measured.number / 100, n, row.value / 100, tolerance["samples"])
        agrees = low <= 0 <= high
    return Comparison(row, measured, "agrees" if agrees else "differs", (), marks)


def share_interval(p1: float, n1: int, p2: float, n2: int) -> tuple[float, float]:
    """Return the 95 % interval of the difference p1 - p2 of two binomial shares of n1 and n2 samples.

    Newcombe's method 10 (1998), from Wilson's intervals: it stays within [-1, 1] and has width at shares of 0 or 1.
    """
    (low1, high1), (low2, high2) = score_interval(p1, n1), score_interval(p2, n2)
    return p1 - p2 - math.hypot(p1 - low1, high2 - p2), p1 - p2 + math.hypot(high1 - p1, p2 - low2)


def obstacles_of(record: Record, source: Source, facts: Mapping[str, Any]) -> dict[str, str]:
    """Return {reason: its details} why a record's number is not comparable to the printed one."""
    found: dict[str, str] = {}
    dataset, kind = record.cell.dataset, record.dataset.get("kind", record.cell.dataset)
    if not dataset == kind == source.facts["dataset"]:
        loaded = "" if kind == dataset else f" (loaded as {kind})"
        found["dataset"] = f"{dataset}{loaded} here, {source.facts['dataset']} in the paper"
    if record.cell.protocol != source.facts["protocol"]:
        found["protocol"] = f"{record.cell.protocol} here; comparable is {source.facts['protocol']}"
    for need in facts.get("requires", []):
        section, key = need["field"]
        here = str(getattr(record, section).get(key))
        if not re.search(need["matches"], here):
            found[need["reason"]] = f"{here} here; {need['text']}"
    choices = dict(record.dataset.get("choices") or {})  # what the user changed of dataset and protocol
    bases = ("base", "base_minutes", "base_steps")
    if "metric" in facts and (base := {key: choices[key] for key in bases if key in choices}):
        found["base model"] = f"{_spell_settings(base)} here, not that of the protocol"
    if facts.get("judge") and "judge" in choices:
        found["judge"] = f"{choices['judge']} here, not that of the protocol"
    if changed := dict(record.method.get("changed") or {}):
        title = source.methods[record.cell.method]
        used = {name: value[-1] if isinstance(value, list) else value for name, value in changed.items()}
        found["settings"] = f"{title} with {_spell_settings(used)}"
    return found


def _spell_settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sorted(settings.items()))


def _default_variant(board: Board, method: str) -> Variant | None:
    """Return the newest row of a method with settings that were not changed on the command line."""
    found: list[tuple[str, str, Variant]] = []
    for variant in board.variants:
        if variant.method == method:
            records = [record for t in board.targets for record in board.numbers.cells(variant, t)]
            if any(_is_default(record) for record in records):
                newest = max(str(record.provenance.get("started_utc", "")) for record in records)
                found.append((newest, variant.settings, variant))
    return max(found, key=lambda item: item[:2])[2] if found else None


def _is_default(record: Record) -> bool:
    """Say whether a record has its method's own settings; an override that restates the default changes nothing."""
    return not record.method.get("overrides") or record.method.get("changed") == {}


def _marks(notes: Sequence[Footnote], about: Iterable[tuple[str, str, str]]) -> tuple[int, ...]:
    wanted = set(about)
    return tuple(number for number, note in enumerate(notes, start=1) if wanted & note.about)


def _spell_marks(marks: Iterable[int]) -> Value:
    return Value(None, "".join(f"[{number}]" for number in marks))


def claims_table(side: Side) -> Table:
    """Return the claims that are ratios: as published, recomputed from the printed rows, and measured here."""
    claims = side.source.facts["claims"]
    return Table(
        name=f"compare-{side.source.name}-claims",
        title="Claims that do not depend on the device",
        caption=side.board.caption(
            "Each ratio is one of means over the classes that both methods have, seeds averaged; cells counts the "
            "records behind it. What depends on the implementation tells how a method is coded, not only what it is."
        ),
        corner="Ratio",
        rows=[claim["label"] for claim in claims],
        groups=[""] * 9,
        headers=[
            "Claim",
            "Published",
            "From the printed rows",
            "Measured",
            "Cells",
            "Verdict",
            "Reasons",
            "Depends on",
            "Notes",
        ],
        formats=[""] * 9,
        values=[_claim_row(side, claim) for claim in claims],
    )


def _claim_row(side: Side, claim: Mapping[str, Any]) -> list[Value]:
    """Return the values of one claim's row; the claim is a `ratio` a / b or a `saving` 1 - a / b in percent."""
    source = side.source
    terms = claim.get("ratio") or claim["saving"]
    facts = source.facts["metrics"][terms[0][1]]
    printed = source.quotient(*terms)
    common = [
        c for c in _classes(source) if all(side.value(method, metric, c).number is not None for method, metric in terms)
    ]
    means = [side.mean(method, metric, common) for method, metric in terms]
    above, below = ((mean.number or 0.0) if common else 0.0 for mean in means)
    measured = above / below if below else None
    claimed = claim["value"] if "ratio" in claim else 1 - claim["value"] / 100
    verdict, reasons = _judge_claim(side, claim, measured, common)
    about = [(method, metric, statistic) for method, metric in terms for statistic in STATISTICS]
    words = [
        claim["claim"],
        spell_quotient(claim, claimed, 0),
        facts.get("unprinted", "-") if printed is None else spell_quotient(claim, printed, 1),
        "-" if measured is None else spell_quotient(claim, measured, 1) + max(mean.mark for mean in means),
        str(sum(mean.ok for mean in means) if common else 0),
        verdict,
        ", ".join(reasons),
        " and ".join(claim["depends_on"]),
    ]
    return [*[Value(None, word) for word in words], _spell_marks(_marks(side.notes, about))]


def _judge_claim(
    side: Side, claim: Mapping[str, Any], measured: float | None, classes: Sequence[int]
) -> tuple[Verdict, list[str]]:
    """Return the verdict on a measured quotient over these classes, and the reasons why it cannot be judged."""
    terms = claim.get("ratio") or claim["saving"]
    if measured is None:
        return "not measured", ["no class with numbers of both"]
    obstacles: dict[str, str] = {}
    for method, metric in terms:
        for c in classes:
            obstacles |= side.obstacles(method, metric, c)
    obstacles.pop(DEVICE, None)  # both numbers are of one device
    if obstacles:
        return "not comparable", list(obstacles)
    claimed = claim["value"] if "ratio" in claim else 1 - claim["value"] / 100
    factor = side.source.facts["metrics"][terms[0][1]]["factor"]
    return ("agrees" if claimed / factor <= measured <= claimed * factor else "differs"), []


def spell_quotient(claim: Mapping[str, Any], quotient: float, decimals: int) -> str:
    """Return a quotient a / b as its claim states it: a ratio, or the percentage saved."""
    return f"{quotient:.{decimals}f}x" if "ratio" in claim else f"{100 * (1 - quotient):.{decimals}f} %"


def _classes(source: Source) -> list[int]:
    return sorted({int(row.forget_class) for rows in source.metrics.values() for row in rows})


def overview_table(side: Side, rows: Sequence[Comparison]) -> Table:
    """Return one row per metric and method: means over classes, and how many numbers agree."""
    groups: dict[tuple[str, str], list[Comparison]] = {}
    for row in rows:
        groups.setdefault((row.row.metric, row.row.method), []).append(row)
    return Table(
        name=f"compare-{side.source.name}-overview",
        title="Overview",
        caption=side.board.caption(
            "Mean ± sample standard deviation over forget classes: as printed, recomputed from the printed class rows, "
            "and measured; then the number of classes by verdict."
        ),
        corner="Metric and method",
        rows=[_overview_label(side.source, group) for group in groups.values()],
        groups=[""] * 9,
        headers=["Printed", "From the printed rows", "Measured", *map(str.capitalize, VERDICTS), "Reasons", "Notes"],
        formats=[""] * 9,
        values=[_overview_row(side, group) for group in groups.values()],
        rules=tuple(range(len(side.source.methods), len(groups), len(side.source.methods))),
    )


def _overview_label(source: Source, group: Sequence[Comparison]) -> str:
    row = group[0].row
    unit = "" if row.unit == "dimensionless" else f" ({row.unit})"
    return f"{source.title(row.metric)}{unit}, {source.methods[row.method]}"


def _overview_row(side: Side, group: Sequence[Comparison]) -> list[Value]:
    row = group[0].row
    printed = [side.source.printed(row.method, row.metric, statistic) for statistic in STATISTICS]
    mean = side.mean(row.method, row.metric, [int(item.row.forget_class) for item in group])
    ok, expected = (sum(getattr(item.measured, count) for item in group) for count in ("ok", "expected"))
    gap = "" if ok == expected else f" ({ok}/{expected})"
    measured = "-" if mean.number is None else _mean_and_std(mean.number, mean.spread, row.decimals) + mean.mark + gap
    own = [item.row.value for item in group]
    recomputed = statistics.fmean(own), statistics.stdev(own) if len(own) > 1 else None
    about = [(row.method, row.metric, where) for where in (*STATISTICS, *(item.row.forget_class for item in group))]
    words = [
        " ± ".join(statistic.text for statistic in printed if statistic) or "-",
        _mean_and_std(*recomputed, row.decimals),
        measured,
        *[str(sum(item.verdict == verdict for item in group)) for verdict in VERDICTS],
        ", ".join(dict.fromkeys(reason for item in group for reason in item.reasons)),
    ]
    return [*[Value(None, word) for word in words], _spell_marks(_marks(side.notes, about))]


def _mean_and_std(mean: float, spread: float | None, decimals: int) -> str:
    return f"{mean:.{decimals}f}" + ("" if spread is None else f" ± {spread:.{decimals}f}")


def class_tables(side: Side, rows: Sequence[Comparison]) -> list[Table]:
    """Return one table per metric, every printed class row beside our number."""
    return [
        _class_table(side, metric, [row for row in rows if row.row.metric == metric]) for metric in side.source.metrics
    ]


def _class_table(side: Side, metric: str, rows: Sequence[Comparison]) -> Table:
    source, unit = side.source, rows[0].row.unit
    decimals = max(row.row.decimals for row in rows)
    title = f"{source.title(metric)} per class" + ("" if unit == "dimensionless" else f", in {unit}")
    return Table(
        name=f"compare-{source.name}-{metric}".replace("_", "-"),
        title=title,
        caption=side.board.caption(
            f"{title}: as published and as measured, mean over seeds; difference is measured minus published."
        ),
        corner="Method and class",
        rows=[f"{source.methods[row.row.method]} {row.row.forget_class}" for row in rows],
        groups=[""] * 6,
        headers=["Published", "Measured", "Difference", "Verdict", "Reasons", "Notes"],
        formats=[f".{decimals}f", f".{decimals}f", f"+.{decimals}f", "", "", ""],
        values=[
            [Value(row.row.value), _dash(row.measured), row.difference, Value(None, row.verdict),
             Value(None, ", ".join(row.reasons)), _spell_marks(row.notes)]
            for row in rows
        ],
        rules=_method_rules([row.row.method for row in rows]),
    )  # fmt: skip


def _dash(value: Value) -> Value:
    return Value(None) if value.number is None else value


def _method_rules(methods: Sequence[str]) -> tuple[int, ...]:
    return tuple(k for k in range(1, len(methods)) if methods[k] != methods[k - 1])


def reference_table(side: Side, twin: Side) -> Table:
    """Return the metric by class under the right reference set and under the compatible one, beside the published.

    Args:
        side: the protocol with the right reference set.
        twin: the same protocol with the reference set of the compatibility protocol.
    """
    source, facts = side.source, side.source.facts["reference_sets"]
    odd, metric = facts["class"], facts["metric"]
    rows, values, labels = [], [], []
    classes = _classes(source)
    for method, title in {**source.methods, **side.references}.items():
        published = source.by_class(method, metric)
        columns = [{c: Value(published.get(c)) for c in classes}]
        columns += [{c: _dash(one.value(method, metric, c)) for c in classes} for one in (side, twin)]
        others = [c for c in classes if c != odd]
        printed = [published[c] for c in others if c in published]
        means = [
            Value(statistics.fmean(printed) if printed else None, ok=len(printed), expected=len(others)),
            *[
                replace(
                    one.mean(method, metric, others),
                    ok=sum(column[c].number is not None for c in others),
                    expected=len(others),
                )
                for one, column in zip((side, twin), columns[1:], strict=True)
            ],
        ]
        gaps = [_from_mean(column, mean) for column, mean in zip(columns, means, strict=True)]
        values += [[column[c] for column in (*columns, *gaps)] for c in classes]
        values.append([*[_rank(column, odd) for column in columns], *[Value(None, "")] * 3])
        rows += [f"{title} {c}" for c in classes] + [f"{title} rank of class {odd}"]
        labels += [method] * (len(classes) + 1)
    names = ["Published", side.cell.protocol, twin.cell.protocol]
    decimals = max(row.decimals for row in source.metrics[metric])
    return Table(
        name=f"compare-{source.name}-reference",
        title=facts["title"],
        caption=side.board.caption(
            f"{facts['text']}. Rank 1 is the lowest. Beside protocol {side.cell.protocol}, protocol "
            f"{twin.cell.protocol}: reference {twin.board.records[-1].protocol.get('reference')}, digest "
            f"{twin.board.digest}."
        ),
        corner="Method and class",
        rows=rows,
        groups=[source.title(metric)] * 3 + [f"minus mean of all classes but {odd}:"] * 3,
        headers=names * 2,
        formats=[f".{decimals}f"] * 3 + [f"+.{decimals}f"] * 3,
        values=values,
        rules=_method_rules(labels),
    )


def _from_mean(column: Mapping[int, Value], mean: Value) -> dict[int, Value]:
    """Return each class's value minus a mean; marked where some of its classes are missing."""
    return {
        c: Value(None)
        if value.number is None or mean.number is None
        else Value(value.number - mean.number, ok=mean.ok, expected=mean.expected)
        for c, value in column.items()
    }


def _rank(column: Mapping[int, Value], odd: int) -> Value:
    numbers = {c: value.number for c, value in column.items() if value.number is not None}
    if odd not in numbers or len(numbers) < 2:
        return Value(None)
    return Value(None, f"{1 + sum(number < numbers[odd] for number in numbers.values())} of {len(numbers)}")


def comparison_tables(side: Side, twin: Side | None, rows: Sequence[Comparison]) -> list[Table]:
    """Return every table of a comparison: claims, overview, the other reference set's, and each metric by class."""
    references = [reference_table(side, twin)] if twin else []
    return [claims_table(side), overview_table(side, rows), *references, *class_tables(side, rows)]
