"""Robustness to attack: forgetting before and after each, as tables and figures, with the gold standard as control."""

import math
from dataclasses import replace

from unlearnbench.report.data.array import Numbers
from unlearnbench.report.data.board import Board
from unlearnbench.report.data.curves import attack_curves, curve_measures
from unlearnbench.report.data.values import Measure, Value, Variant
from unlearnbench.report.tables.summary import overview
from unlearnbench.report.tables.table import Table

NO_EVIDENCE = "an attack that succeeds there is no evidence of residual knowledge"
NO_GOLD = (
    "No gold standard is among the rows, so attack success on a model that never saw the class is unknown: add one to "
    "--methods by name (see 'unlearnbench list methods')."
)


def _words(part: Numbers) -> str:
    """Return the sentence on the gold standards among the rows, or on their absence."""
    gold = [row.label for row in part.rows if row.role == "gold"]
    if not gold:
        return NO_GOLD
    was = "was" if len(gold) == 1 else "were"
    return f"{', '.join(gold)} {was} never trained on the class: {NO_EVIDENCE}."


def robustness_tables(board: Board) -> list[Table]:
    """Return the table of forgetting before and after each attack, and that of relearning; none without attacks."""
    part = board.attacked
    return [] if part is None else [_overview(board, part), *_relearning_tables(board, part)]


def _overview(board: Board, part: Numbers) -> Table:
    before = board.headline("forgetting")
    measures = [*([before] if before else []), *board.robustness]
    words = (
        "Forgetting before and after each attack (described by 'unlearnbench list metrics --cards'): mean over the "
        f"attacked forget classes [95 % interval]. {_words(part)}"
    )
    groups = ["Before" if measure == before else "After" for measure in measures]
    caption = board.caption(words, measures, part)
    return overview(part, "robustness", "Robustness to attack", measures, caption, groups)


def _relearning_tables(board: Board, part: Numbers) -> list[Table]:
    """Return the table of steps until the class is back, and of the area under the curve."""
    attacks = attack_curves(part, board.robustness)
    if not attacks:
        return []
    words = (
        "Steps: the first evaluated step at which less than 50 % is forgotten, median over cells, 'never' counted as "
        "later than all. Area: under the curve of forgetting over steps, 100 % if nothing comes back, mean over forget "
        f"classes [95 % interval]. {_words(part)}"
    )
    last = {
        attack: max(c.steps[-1] for some in rows.values() for c in some.values()) for attack, rows in attacks.items()
    }
    return [
        Table(
            name="relearning",
            title="Relearning",
            caption=board.caption(words, list(attacks), part),
            corner="Method",
            rows=[row.label for row in part.rows],
            groups=[attack.title for attack in attacks for _ in range(2)],
            headers=["steps until back ↑", "area (%) ↑"] * len(attacks),
            formats=["g", ".1f"] * len(attacks),
            values=[
                [value for attack in attacks for value in _relearned(part, row, attack, last[attack])]
                for row in part.rows
            ],
        )
    ]


def _relearned(part: Numbers, row: Variant, attack: Measure, last: int) -> tuple[Value, Value]:
    """Return the median of steps until back, or `never`, and the mean area."""
    measures = curve_measures(attack)
    back, area = part.median(row, measures["back"]), part.mean(row, measures["area"])
    if back.number is None:
        return (Value(None, area.word, ok=0, expected=part.expected),) * 2
    if math.isinf(back.number):
        back = replace(back, number=None, word=f"never in {last}")
    return back, replace(area, spread=None, best=False)
