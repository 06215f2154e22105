"""Published numbers beside measured ones: which agree, which differ, and which cannot be compared and why.

After RobustBench, where entries carry the number that the paper `reported`. Never imports torch.
"""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import pandas as pd

from unlearnbench.report.data.array import NOT_RUN
from unlearnbench.report.data.board import Board
from unlearnbench.report.data.published import STATISTICS, Row, Source, footnotes
from unlearnbench.report.data.statistics import score_interval
from unlearnbench.report.data.values import Measure, Value, Variant
from unlearnbench.report.tables.table import Table
from unlearnbench.store.cell import Target
from unlearnbench.store.records import B4, Record

Verdict = Literal["agrees", "differs", "not comparable", "not measured"]
VERDICTS: tuple[Verdict, ...] = ("agrees", "differs", "not comparable", "not measured")
DEVICE = "device"  # an obstacle that does not apply to ratios of numbers from one device
SCALE = {("s", "minutes"): 1 / 60}  # from our unit to the source's where they differ


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
        variant = self.variants[method]
        for record in self.board.numbers.sound(variant, Target((forget_class,))) if variant else []:
            found |= obstacles_of(record, self.source, facts)
        if "probes" in facts and self.board.probe not in facts["probes"]:
            here = self.board.probe or "none"
            found["memory probe"] = f"{here} here; GPU memory needs one of {', '.join(facts['probes'])}"
        if "device" in facts:
            found[DEVICE] = str(facts["device"])
        return found

    def marks(self, *about: tuple[str, str, str]) -> list[int]:
        """Return the numbers of the footnotes, from 1, on any (method, metric, class or statistic)."""
        return [number for number, note in enumerate(self.notes, start=1) if note.about & {*about}]


def sides_of(source: Source, boards: Mapping[str, Board]) -> dict[str, tuple[Side, Side | None]]:
    """Return {name: our side, and the one with the other reference set} of the boards that have a published method."""
    sides = {name: Side(source, board) for name, board in boards.items()}
    shown = {name: side for name, side in sides.items() if side.has_records}
    return {
        name: (side, next((other for other in shown.values() if other.is_twin_of(side)), None))
        for name, side in shown.items()
    }


def compare_rows(side: Side) -> pd.DataFrame:
    """Return a row per class number of the main tables, beside ours in the source's unit, in the order of tables.

    Columns: metric, method, forget_class, row (as printed), measured, difference (with the measured number's gaps),
    verdict, reasons ({why it cannot be judged: details}), notes (numbers of footnotes).
    """
    return pd.DataFrame([_compare_row(side, row) for rows in side.source.metrics.values() for row in rows])


def _compare_row(side: Side, row: Row) -> dict[str, Any]:
    measured = side.value(row.method, row.metric, int(row.forget_class))
    verdict, reasons = _judge(side, row, measured)
    number = None if measured.number is None else measured.number - row.value
    return {
        "metric": row.metric, "method": row.method, "forget_class": row.forget_class, "row": row,
        "measured": measured, "difference": replace(measured, number=number, word="-"), "verdict": verdict,
        "reasons": reasons, "notes": side.marks((row.method, row.metric, row.forget_class)),
    }  # fmt: skip


def _judge(side: Side, row: Row, measured: Value) -> tuple[Verdict, dict[str, str]]:
    """Return the verdict on a measured number, and {why it cannot be judged: details}."""
    forget_class = int(row.forget_class)
    if measured.number is None:
        return "not measured", {measured.word: ""}
    if obstacles := side.obstacles(row.method, row.metric, forget_class):
        return "not comparable", obstacles
    tolerance = side.source.facts["metrics"][row.metric]["tolerance"]
    if "absolute" in tolerance:
        return ("agrees" if abs(measured.number - row.value) <= tolerance["absolute"] else "differs"), {}
    n = side.samples(row.method, row.metric, forget_class)
    if n < 1 or not 0 <= measured.number <= 100:
        return "not comparable", {"not a share of samples": ""}
    low, high = share_interval(measured.number / 100, n, row.value / 100, tolerance["samples"])
    return ("agrees" if low <= 0 <= high else "differs"), {}


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


def _table(
    side: Side, name: str, title: str, words: str, columns: Sequence[tuple[str, str]],
    rows: Mapping[str, Sequence[Value | str]], rules: Sequence[int] = (), groups: Sequence[str] = (),
) -> Table:  # fmt: skip
    """Return a table of a comparison.

    Args:
        side: of the comparison.
        name: after the source's.
        title: of the table.
        words: of the caption.
        columns: (header, format) of each, the corner first.
        rows: {name: numbers and words}.
        rules: rows with a rule above.
        groups: upper headers, if there are any.
    """
    (corner, *headers), (_, *formats) = map(list, zip(*columns, strict=True))
    return Table(
        name=f"compare-{side.source.name}-{name}".replace("_", "-"),
        title=title,
        caption=side.board.caption(words),
        corner=corner,
        rows=list(rows),
        groups=list(groups) or [""] * len(headers),
        headers=headers,
        formats=formats,
        values=[[cell if isinstance(cell, Value) else Value(None, cell) for cell in row] for row in rows.values()],
        rules=tuple(rules),
    )


def _spell_marks(marks: Iterable[int]) -> str:
    return "".join(f"[{number}]" for number in marks)


def _rules(names: Sequence[str]) -> list[int]:
    """Return the places where a name differs from the one before."""
    return [k for k in range(1, len(names)) if names[k] != names[k - 1]]


def claims_table(side: Side) -> Table:
    """Return the claims that are ratios: as published, recomputed from the printed rows, and measured here."""
    headers = (
        "Ratio", "Claim", "Published", "From the printed rows", "Measured", "Cells", "Verdict", "Reasons", "Depends on",
        "Notes",
    )  # fmt: skip
    return _table(
        side, "claims", "Claims that do not depend on the device",
        "Each ratio is one of means over the classes that both methods have, seeds averaged; cells counts the records "
        "behind it. What depends on the implementation tells how a method is coded, not only what it is.",
        [(header, "") for header in headers],
        {claim["label"]: _claim_row(side, claim) for claim in side.source.facts["claims"]},
    )  # fmt: skip


def _claim_row(side: Side, claim: Mapping[str, Any]) -> list[str]:
    """Return the cells of one claim; the claim is a `ratio` a / b or a `saving` 1 - a / b in percent."""
    source, terms = side.source, claim.get("ratio") or claim["saving"]
    facts, printed = source.facts["metrics"][terms[0][1]], source.quotient(*terms)
    common = [c for c in source.classes if all(side.value(m, metric, c).number is not None for m, metric in terms)]
    means = [side.mean(method, metric, common) for method, metric in terms]
    above, below = ((mean.number or 0.0) if common else 0.0 for mean in means)
    measured = above / below if below else None
    claimed = claim["value"] if "ratio" in claim else 1 - claim["value"] / 100
    found = dict.fromkeys(reason for m, metric in terms for c in common for reason in side.obstacles(m, metric, c))
    reasons = [reason for reason in found if reason != DEVICE]  # both numbers are of one device
    if measured is None:
        verdict, reasons = "not measured", ["no class with numbers of both"]
    elif reasons:
        verdict = "not comparable"
    else:
        verdict = "agrees" if claimed / facts["factor"] <= measured <= claimed * facts["factor"] else "differs"
    return [
        claim["claim"],
        spell_quotient(claim, claimed, 0),
        facts.get("unprinted", "-") if printed is None else spell_quotient(claim, printed, 1),
        "-" if measured is None else spell_quotient(claim, measured, 1) + max(mean.mark for mean in means),
        str(sum(mean.ok for mean in means) if common else 0),
        verdict,
        ", ".join(reasons),
        " and ".join(claim["depends_on"]),
        _spell_marks(side.marks(*[(*term, statistic) for term in terms for statistic in STATISTICS])),
    ]


def spell_quotient(claim: Mapping[str, Any], quotient: float, decimals: int) -> str:
    """Return a quotient a / b as its claim states it: a ratio, or the percentage saved."""
    return f"{quotient:.{decimals}f}x" if "ratio" in claim else f"{100 * (1 - quotient):.{decimals}f} %"


def overview_table(side: Side, rows: pd.DataFrame) -> Table:
    """Return one row per metric and method: means over classes, and how many numbers agree."""
    names = ["Metric and method", "Printed", "From the printed rows", "Measured"]
    headers = [*names, *map(str.capitalize, VERDICTS), "Reasons", "Notes"]
    shown, step = {}, len(side.source.methods)
    for (metric, method), group in rows.groupby(["metric", "method"], sort=False):
        unit = group.row.iloc[0].unit
        label = side.source.title(metric) + ("" if unit == "dimensionless" else f" ({unit})")
        shown[f"{label}, {side.source.methods[method]}"] = _overview_row(side, metric, method, group)
    return _table(
        side, "overview", "Overview",
        "Mean ± sample standard deviation over forget classes: as printed, recomputed from the printed class rows, and "
        "measured; then the number of classes by verdict.",
        [(header, "") for header in headers], shown, range(step, len(shown), step),
    )  # fmt: skip


def _overview_row(side: Side, metric: str, method: str, group: pd.DataFrame) -> list[str]:
    printed = [side.source.printed(method, metric, statistic) for statistic in STATISTICS]
    own, decimals = [row.value for row in group.row], group.row.iloc[0].decimals
    mean = side.mean(method, metric, map(int, group.forget_class))
    ok, expected = (sum(getattr(value, count) for value in group.measured) for count in ("ok", "expected"))
    gap = "" if ok == expected else f" ({ok}/{expected})"
    return [
        " ± ".join(statistic.text for statistic in printed if statistic) or "-",
        _mean_and_std(statistics.fmean(own), statistics.stdev(own) if len(own) > 1 else None, decimals),
        "-" if mean.number is None else _mean_and_std(mean.number, mean.spread, decimals) + mean.mark + gap,
        *[str((group.verdict == verdict).sum()) for verdict in VERDICTS],
        ", ".join(dict.fromkeys(reason for reasons in group.reasons for reason in reasons)),
        _spell_marks(side.marks(*[(method, metric, where) for where in (*STATISTICS, *group.forget_class)])),
    ]


def _mean_and_std(mean: float, spread: float | None, decimals: int) -> str:
    return f"{mean:.{decimals}f}" + ("" if spread is None else f" ± {spread:.{decimals}f}")


def _class_table(side: Side, metric: str, rows: pd.DataFrame) -> Table:
    """Return every printed class row of a metric beside our number."""
    unit, form = rows.row.iloc[0].unit, f".{max(row.decimals for row in rows.row)}f"
    title = f"{side.source.title(metric)} per class" + ("" if unit == "dimensionless" else f", in {unit}")
    columns = [
        ("Method and class", ""), ("Published", form), ("Measured", form), ("Difference", f"+{form}"), ("Verdict", ""),
        ("Reasons", ""), ("Notes", ""),
    ]  # fmt: skip
    shown = {
        f"{side.source.methods[one.method]} {one.forget_class}": [
            Value(one.row.value), _dash(one.measured), one.difference, one.verdict, ", ".join(one.reasons),
            _spell_marks(one.notes),
        ]
        for one in rows.itertuples()
    }  # fmt: skip
    words = f"{title}: as published and as measured, mean over seeds; difference is measured minus published."
    return _table(side, metric, title, words, columns, shown, _rules(list(rows.method)))


def _dash(value: Value) -> Value:
    return Value(None) if value.number is None else value


def reference_table(side: Side, twin: Side) -> Table:
    """Return the metric by class under the right reference set and under the compatible one, beside the published.

    Args:
        side: the protocol with the right reference set.
        twin: the same protocol with the reference set of the compatibility protocol.
    """
    source, facts = side.source, side.source.facts["reference_sets"]
    odd, metric = facts["class"], facts["metric"]
    others, both = [c for c in source.classes if c != odd], (side, twin)
    shown: dict[str, list[Value | str]] = {}
    labels: list[str] = []
    for method, title in {**source.methods, **side.references}.items():
        published = source.by_class(method, metric)
        columns = [{c: Value(published.get(c)) for c in source.classes}]
        columns += [{c: _dash(one.value(method, metric, c)) for c in source.classes} for one in both]
        printed = [published[c] for c in others if c in published]
        means = [statistics.fmean(printed) if printed else None]
        means += [one.mean(method, metric, others).number for one in both]
        gaps = [_minus(column, mean, others) for column, mean in zip(columns, means, strict=True)]
        shown |= {f"{title} {c}": [*(column[c] for column in (*columns, *gaps))] for c in source.classes}
        shown[f"{title} rank of class {odd}"] = [*[_rank(column, odd) for column in columns], "", "", ""]
        labels += [method] * (len(source.classes) + 1)
    form = f".{max(row.decimals for row in source.metrics[metric])}f"
    words = (
        f"{facts['text']}. Rank 1 is the lowest. Beside protocol {side.cell.protocol}, protocol "
        f"{twin.cell.protocol}: reference {twin.board.records[-1].protocol.get('reference')}, digest "
        f"{twin.board.digest}."
    )
    names = ["Published", side.cell.protocol, twin.cell.protocol]
    headers = [("Method and class", ""), *[(name, f"{sign}{form}") for sign in ("", "+") for name in names]]
    groups = [source.title(metric)] * 3 + [f"minus mean of all classes but {odd}:"] * 3
    return _table(side, "reference", facts["title"], words, headers, shown, _rules(labels), groups)


def _minus(column: Mapping[int, Value], mean: float | None, others: Sequence[int]) -> dict[int, Value]:
    """Return each class's value minus the mean of others; marked where some of these are missing."""
    ok = sum(column[c].number is not None for c in others)
    return {
        c: Value(None if value.number is None or mean is None else value.number - mean, ok=ok, expected=len(others))
        for c, value in column.items()
    }


def _rank(column: Mapping[int, Value], odd: int) -> str:
    numbers = {c: value.number for c, value in column.items() if value.number is not None}
    if odd not in numbers or len(numbers) < 2:
        return "-"
    return f"{1 + sum(number < numbers[odd] for number in numbers.values())} of {len(numbers)}"


def comparison_tables(side: Side, twin: Side | None, rows: pd.DataFrame) -> list[Table]:
    """Return every table of a comparison: claims, overview, the other reference set's, and each metric by class."""
    references = [reference_table(side, twin)] if twin else []
    classes = [_class_table(side, metric, part) for metric, part in rows.groupby("metric", sort=False)]
    return [claims_table(side), overview_table(side, rows), *references, *classes]
