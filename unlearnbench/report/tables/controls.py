"""Sanity checks: metrics on controls with a known outcome."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.statistics import auc, class_mean
from unlearnbench.report.data.values import Measure, Value, target_name, variant_of
from unlearnbench.report.tables.table import Table
from unlearnbench.store.records import Record

DISTRUST = "Sanity checks failed: do not use these numbers until the cause is known."
WORDS = {"forgetting": ("does not forget", "forgets"), "retention": ("does not retain", "retains")}


@dataclass(frozen=True)
class Check:
    """One cell of a control, one metric with a threshold, and the known outcome."""

    record: Record
    measure: Measure
    value: float
    threshold: float
    known: bool  # that the control forgets, or retains

    @property
    def found(self) -> bool:
        """Whether the metric says that it forgets, or retains."""
        return self.value <= self.threshold if self.measure.better == "lower" else self.value >= self.threshold

    @property
    def sentence(self) -> str:
        """The violation as a sentence."""
        row, cell = variant_of(self.record).label, self.record.cell
        name = target_name(cell.target, self.record.dataset.get("class_names") or [])
        form, unit = self.measure.format, "%" if self.measure.unit == "%" else ""
        return (
            f"{row} {WORDS[_side(self.measure)][self.known]}, but {self.measure.title} (class {name}, "
            f"seed {cell.seeds.label}) is {self.value:{form}}{unit}, on the wrong side of {self.threshold:{form}}{unit}"
            f"{'; or its base model is too weak to tell' if self.record.method.get('role') == 'reference' else ''}"
        )


def _side(measure: Measure) -> str:
    """Return the side of unlearning that a metric is checked on."""
    return "forgetting" if measure.aspect == "robustness" else measure.aspect


def _known(record: Record, measure: Measure) -> bool | None:
    """Return a record's known outcome; for attacks it is known only of a gold standard, which resists them."""
    if measure.aspect == "robustness" and record.method.get("role") != "gold":
        return None
    known = record.method["truth"].get(_side(measure))
    return None if known is None else bool(known)


def controls(board: Board) -> list[Record]:
    """Return the records with numbers and a known outcome: controls, references and gold standards."""
    found = [r for r in board.ok_records if r.method.get("truth") and not r.method.get("overrides")]
    order = {"reference": 0, "gold": 1}
    return sorted(found, key=lambda r: (order.get(str(r.method.get("role")), 2), variant_of(r).label.lower()))


def checks(board: Board) -> Iterator[Check]:
    """Yield every check that the records allow."""
    for record in controls(board):
        for measure in [*board.metrics, *board.robustness]:
            entry, known = record.metrics.get(measure.key, {}), _known(record, measure)
            if known is not None and entry.get("value") is not None and entry.get("boundary") is not None:
                yield Check(record, measure, float(entry["value"]), float(entry["boundary"]), known)


def untouched_alarms(record: Record) -> list[str]:
    """Return the violations of a single record of the untouched model."""
    return alarms(Board([record]))


def alarms(board: Board) -> list[str]:
    """Return a sentence for each control on the wrong side; while there is one, no number can be trusted."""
    return [check.sentence for check in checks(board) if check.found != check.known]


def check_tables(board: Board) -> list[Table]:
    """Return the tables of controls and of each metric's power to separate them; none where no control was run."""
    made = list(checks(board))
    return [_controls_table(board, made), *_validation_tables(board)] if made else []


def _controls_table(board: Board, made: Sequence[Check]) -> Table:
    rows = list(dict.fromkeys(variant_of(check.record).label for check in made))
    measures = [m for m in [*board.metrics, *board.robustness] if any(check.measure == m for check in made)]
    values = []
    for row in rows:
        own = [check for check in made if variant_of(check.record).label == row]
        numbers = [
            {
                (check.record.cell.target, check.record.cell.seeds): check.value
                for check in own
                if check.measure == measure
            }
            for measure in measures
        ]
        known = [WORDS[side][truth] for side, truth in own[0].record.method["truth"].items()]
        wrong = {check.record.cell.id for check in own if check.found != check.known}
        cells = len({check.record.cell.id for check in own})
        values.append([
            Value(None, str(cells)), Value(None, ", ".join(known)),
            *[Value(class_mean(found)) if found else Value(None) for found in numbers],
            Value(None, f"WRONG in {len(wrong)}" if wrong else "as known"),
        ])  # fmt: skip
    return Table(
        name="controls",
        title="Controls",
        caption="What is known of controls, and what metrics say: means over forget classes. "
        f"{board.caption(measures, controls(board))}.",
        corner="Control",
        rows=rows,
        groups=[""] * (len(measures) + 3),
        headers=["Cells", "Known", *[measure.header for measure in measures], "Side"],
        formats=["", "", *[measure.format for measure in measures], ""],
        values=values,
    )


def _validation_tables(board: Board) -> list[Table]:
    """Return the table of how well each metric separates controls that forget, or retain, from those that do not.

    None where all controls are of one kind.
    """
    rows, values = [], []
    for measure in board.metrics:
        sides: dict[bool, list[float]] = {True: [], False: []}
        for record in controls(board):
            known, value = record.method["truth"].get(measure.aspect), record.metrics.get(measure.key, {}).get("value")
            if known is not None and value is not None:
                sides[bool(known)].append(float(value) if measure.better == "higher" else -float(value))
        if measure.better != "neither" and all(sides.values()):
            rows.append(measure.header)
            counts = [Value(None, str(len(sides[side]))) for side in (True, False)]
            values.append([Value(None, measure.aspect), Value(auc(sides[True], sides[False])), *counts])
    words = (
        "AUC is the probability that a control cell which forgets (or retains, as the side is) has a better value than "
        "one which does not, ties half: 1 separates them, 0.5 says nothing, 0 is upside down. Every cell counts alike."
    )
    table = Table(
        name="validation",
        title="How well each metric separates the controls",
        caption=f"{words} {board.caption(board.metrics, controls(board))}.",
        corner="Metric",
        rows=rows,
        groups=[""] * 4,
        headers=["Side", "AUC ↑", "Cells that do", "Cells that do not"],
        formats=["", ".3f", "", ""],
        values=values,
    )
    return [table] if rows else []
