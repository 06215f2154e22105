"""The trials of `tune`, as records have them, and the choice among them: one rule, for reports and tests.

Eligible is a trial that was run on every class, within its budget, whose retention reaches a floor; where none does,
those within NEAR points of the highest retention. Of these, trials within TIE points of the best forgetting are ties,
and the one with the lowest value of the third metric (FID) is chosen; then that with fewest images; then the first.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.values import short
from unlearnbench.store.cell import Scalar
from unlearnbench.store.hashing import canonical_json
from unlearnbench.store.records import Record

FLOOR = 95.0  # of the metric of retention
NEAR = 5.0  # points below the highest retention, where no trial reaches the floor
TIE = 2.0  # points below the best forgetting
EDGE = 0.05  # share of a range that is its edge
PARTS = ("forgetting", "retention", "ties")  # that metrics have in the choice
SLACK = 1.01  # of the budget: classes differ in their images


@dataclass(frozen=True)
class Trial:
    """One choice of settings of a method, with means over classes."""

    number: int
    settings: Mapping[str, Scalar]  # that were drawn, and the steps that they leave
    forgetting: float  # NaN where it counts as failed
    retention: float
    ties: float  # of the metric that breaks ties
    images: float  # through the model, forward and backward
    seconds: float  # of its cells together
    problem: str = ""  # why it counts as failed

    @property
    def counts(self) -> bool:
        """Whether it was run on every class, within its budget."""
        return not self.problem


@dataclass(frozen=True)
class Tuned:
    """A method's trials, by number, and the choice among them."""

    method: str
    title: str
    of: int  # length of the list
    budget: int  # images of a trial
    tuned_as: str  # the name under which a decorator takes the values
    space: Mapping[str, Mapping[str, Any]]  # as records have it
    trials: Sequence[Trial]
    floor: float = FLOOR

    @property
    def chosen(self) -> Trial | None:
        """The trial that the rule chooses; None where none counts."""
        return choose(self.trials, self.floor)

    @property
    def failed(self) -> int:
        """The number of trials that count as failed."""
        return sum(not trial.counts for trial in self.trials)

    @property
    def seconds(self) -> float:
        """What all trials took."""
        return math.fsum(trial.seconds for trial in self.trials)

    def best_of_first(self, count: int) -> float | None:
        """Return the forgetting of the choice among the first trials; None where none of them reaches the floor."""
        first = [trial for trial in self.trials if trial.number < count and trial.retention >= self.floor]
        chosen = choose(first, self.floor)
        return None if chosen is None else chosen.forgetting

    def edges(self) -> list[str]:
        """Return the settings whose chosen value lies at the edge of its range: there the range has to grow."""
        chosen = self.chosen
        return [] if chosen is None else [n for n, domain in self.space.items() if at_edge(chosen.settings[n], domain)]


def choose(trials: Sequence[Trial], floor: float = FLOOR) -> Trial | None:
    """Return the trial that the rule of this file chooses; None where none counts."""
    sound = [trial for trial in trials if trial.counts]
    if not sound:
        return None
    highest = max(trial.retention for trial in sound)
    least = floor if highest >= floor else highest - NEAR
    eligible = [trial for trial in sound if trial.retention >= least]
    best = max(trial.forgetting for trial in eligible)
    tied = [trial for trial in eligible if trial.forgetting >= best - TIE]
    return min(tied, key=lambda trial: (trial.ties, trial.images, trial.number))


def at_edge(value: Scalar, domain: Mapping[str, Any]) -> bool:
    """Say whether a value lies within EDGE of an end of its range; a choice never does."""
    if "choices" in domain:
        return False
    assert isinstance(value, int | float)
    low, high, place = (math.log(x) if domain["log"] else x for x in (domain["low"], domain["high"], value))
    return not EDGE < (place - low) / (high - low) < 1 - EDGE


def tunings(board: Board, floor: float = FLOOR) -> list[Tuned]:
    """Return what was tuned on a board, by the title of methods.

    Of each method the list of its newest record counts: after a change of its space or of the budget, older trials
    are left out.
    """
    found: dict[str, list[Record]] = {}
    for record in board.records:
        if record.tuning:
            found.setdefault(record.cell.method, []).append(record)
    tuned = [_tuned(name, records, board, floor) for name, records in found.items()]
    return sorted(tuned, key=lambda each: each.title.lower())


def _tuned(name: str, records: Sequence[Record], board: Board, floor: float) -> Tuned:
    newest = records[-1].tuning
    current = [record for record in records if _list(record) == _list(records[-1])]
    wanted = {(record.cell.target, record.cell.seeds) for record in current}
    by_trial: dict[int, list[Record]] = {}
    for record in current:
        by_trial.setdefault(int(record.tuning["trial"]), []).append(record)
    trials = [_trial(number, by_trial[number], len(wanted), board) for number in sorted(by_trial)]
    title = short(records[-1].method.get("title", name))
    length = max(int(record.tuning["of"]) for record in current)
    return Tuned(
        name, title, length, int(newest["images"]), str(newest.get("tuned_as", "")), newest["space"], trials, floor
    )


def _list(record: Record) -> str:
    """Return what identifies the list of a trial; a longer one begins with the shorter."""
    own = ("trial", "of", "share")
    return canonical_json({name: value for name, value in record.tuning.items() if name not in own})


def _trial(number: int, every: Sequence[Record], cells: int, board: Board) -> Trial:
    """Return a trial from the records of its classes and seeds; those with other settings than the newest are old."""
    records = [record for record in every if record.cell.settings == every[-1].cell.settings]
    first, names = records[0], records[0].tuning["measures"]
    sound = [r for r in records if r.status == "ok" and r.cell.id not in board.stale]
    values = [[r.metrics.get(names[part], {}).get("value") for part in PARTS] for r in sound]
    images = max(map(_images, records))
    whole = len(sound) == cells and not any(value is None for row in values for value in row)
    problem = "" if whole else _problem(records, board) or "not run on every class"
    if not problem and images > SLACK * first.tuning["images"]:
        problem = f"over budget: {images:,} images"
    forgetting, retention, ties = [math.nan] * 3 if problem else map(fmean, zip(*values, strict=True))
    seconds = math.fsum(record.wall_seconds or 0.0 for record in records)
    settings = first.method.get("overrides", {})
    return Trial(number, settings, forgetting, retention, ties, fmean(map(_images, records)), seconds, problem)


def _images(record: Record) -> int:
    return int(record.counts.get("forward_images", 0)) + int(record.counts.get("backward_images", 0))


def _problem(records: Sequence[Record], board: Board) -> str:
    """Return the first reason for a missing number; empty where it is the cell that is missing."""
    stale = ("stale" for record in records if record.cell.id in board.stale)
    failed = (record.reason or record.status for record in records if record.status != "ok")
    lacking = (
        str(entry["reason"]) for record in records for entry in record.metrics.values() if entry.get("value") is None
    )
    return next((reason for reasons in (failed, stale, lacking) for reason in reasons), "")
