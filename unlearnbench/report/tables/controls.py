"""Sanity checks: metrics on controls with a known outcome."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from unlearnbench.report.data.array import Numbers
from unlearnbench.report.data.board import Board
from unlearnbench.report.data.values import Measure, Value, Variant, target_name, variant_of
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
    known = (record.method.get("truth") or {}).get(_side(measure))
    return None if known is None else bool(known)


def controls(board: Board) -> Numbers:
    """Return the numbers of the rows with a known outcome: controls, references and gold standards."""
    return board.every.sel(rows={row for row in board.every.rows if _truth(board.every, row)})


def _truth(numbers: Numbers, row: Variant) -> dict[str, bool]:
    """Return {side: known outcome} of a row with the method's default settings; empty where nothing is known."""
    for target in numbers.targets:
        for record in numbers.sound(row, target):
            return {} if record.method.get("overrides") else dict(record.method.get("truth") or {})
    return {}


def checks(board: Board) -> Iterator[Check]:
    """Yield every check that the records allow."""
    known_rows = controls(board)
    for row in known_rows.rows:
        for record in [record for target in known_rows.targets for record in known_rows.sound(row, target)]:
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
    numbers = controls(board)
    measures = [m for m in [*board.metrics, *board.robustness] if any(check.measure == m for check in made)]
    checked: dict[str, list[Check]] = {}
    for check in made:
        checked.setdefault(variant_of(check.record).label, []).append(check)
    rows = [row for row in numbers.rows if row.label in checked]
    return Table(
        name="controls",
        title="Controls",
        caption=board.caption(
            "Known outcome of each control, and means over forget classes of the metrics that must agree with it.",
            measures,
            numbers,
        ),
        corner="Control",
        rows=[row.label for row in rows],
        groups=[""] * (len(measures) + 3),
        headers=["Cells", "Known outcome", *[measure.header for measure in measures], "Result"],
        formats=["", "", *[measure.format for measure in measures], ""],
        values=[_control_row(numbers, row, measures, checked[row.label]) for row in rows],
    )


def _control_row(numbers: Numbers, row: Variant, measures: Sequence[Measure], made: Sequence[Check]) -> list[Value]:
    known = [WORDS[side][truth] for side, truth in _truth(numbers, row).items()]
    wrong = {check.record.cell.id for check in made if check.found != check.known}
    asked = {check.measure for check in made}
    means = [numbers.mean(row, measure, interval=False).number if measure in asked else None for measure in measures]
    return [
        Value(None, str(len({check.record.cell.id for check in made}))), Value(None, ", ".join(known)),
        *[Value(mean) for mean in means],
        Value(None, f"WRONG in {len(wrong)}" if wrong else "as known"),
    ]  # fmt: skip


def _validation_tables(board: Board) -> list[Table]:
    """Return the table of how well each metric separates controls that forget, or retain, from those that do not.

    None where all controls are of one kind.
    """
    numbers, rows, values = controls(board), [], []
    for measure in board.metrics:
        known = {row: _truth(numbers, row).get(measure.aspect) for row in numbers.rows}
        sides = [[row for row, truth in known.items() if truth is side] for side in (True, False)]
        counts = [sum(len(numbers.numbers(row, measure)) for row in side) for side in sides]
        if measure.better != "neither" and all(counts):
            rows.append(measure.header)
            cells = [Value(None, str(count)) for count in counts]
            values.append([Value(None, measure.aspect), Value(numbers.auc(measure, *sides)), *cells])
    words = (
        "AUC is the probability that a control cell that forgets (or retains, by aspect) has a better value than one "
        "that does not, ties counted half: 1 is perfect separation, 0.5 is chance, 0 is reversed. Cells weigh alike."
    )
    table = Table(
        name="validation",
        title="How well each metric separates the controls",
        caption=board.caption(words, board.metrics, numbers),
        corner="Metric",
        rows=rows,
        groups=[""] * 4,
        headers=["Aspect", "AUC ↑", "Positive cells", "Negative cells"],
        formats=["", ".3f", "", ""],
        values=values,
    )
    return [table] if rows else []
