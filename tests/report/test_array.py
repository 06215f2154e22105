"""The array has what the records say, and every view shows what the array has."""

import math
import statistics
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.conftest import fake_record
from tests.report.test_one_rule import attack, lacking
from unlearnbench.report.data.array import ABSENT, NOT_RUN
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.sweeps import find_sweeps
from unlearnbench.report.data.values import variant_of
from unlearnbench.report.html.charts import scatter
from unlearnbench.report.html.heatmaps import class_heatmap
from unlearnbench.report.tables.every import all_tables
from unlearnbench.report.write.csv import to_csv
from unlearnbench.store.cell import Target


def gaps():
    made = [
        fake_record(m, c, seed=s, fid=5.0 + c + s + k, ua=90.0 - c - 5 * s - k, rte=2.0 + c + k)
        for k, m in enumerate(("alpha", "beta", "gamma")) for c in range(4) for s in range(2)
    ]  # fmt: skip
    lacking(made[0], "fake_fid")
    lacking(made[5], "fake_ua", phase="prior")
    made[9] = fake_record("beta", 0, seed=1, status="oom")
    made[10] = replace(made[10], disturbances=[{"phase": "forget", "what": "another process"}])
    return made[:-1]


def seeds():
    return [
        fake_record(m, c, seed=s, fid=5.0 + c * s + k, ua=80.0 + c - s, rte=2.0 + s, phases=repeats(2.0 + s + k))
        for k, m in enumerate("abcdef") for c in range(6) for s in range(3)
    ]  # fmt: skip


def repeats(seconds):
    return {"forget": {"seconds": seconds, "repeats": [seconds - 0.1, seconds, seconds + 0.2]}}


def sequence():
    steps = [((0,), ()), ((1,), ((0,),)), ((2,), ((0,), (1,)))]
    more = {"lost": {"shows": "forgetting", "value": 40.0}}
    made = [
        (fake_record(m, c[0], ua=90.0 - len(before) - k, more=more if before else {}), before)
        for k, m in enumerate(("alpha", "beta")) for c, before in steps
    ]  # fmt: skip
    return [replace(record, cell=replace(record.cell, earlier=before)) for record, before in made]


def sweeps():
    return [
        fake_record("alpha", c, settings={"x": x}, overrides={"x": x}, ua=50.0 + x + c, fid=9.0 - x, rte=1.0 + x)
        for x in (1, 2, 3) for c in range(3) if (x, c) != (3, 2)
    ] + [fake_record("original", c, role="reference", ua=1.0 + c) for c in range(3)]  # fmt: skip


def attacked():
    made = [fake_record(m, c, more={"relearn": attack(10.0 * c + k, area=50.0 + c)})
            for k, m in enumerate(("alpha", "beta")) for c in range(4)]  # fmt: skip
    return [*made, fake_record("gamma", 0), fake_record("alpha", 5)]


KINDS = pytest.mark.parametrize("make", [gaps, seeds, sequence, sweeps, attacked], ids=lambda make: make.__name__)


def board_of(make, stale=frozenset()):
    records = make()
    found = boards(records, stale)
    return found.get("digits-sequence") or found["digits"]


@KINDS
def test_the_array_has_what_the_records_say(make):
    board = board_of(make)
    numbers = board.numbers
    for record in board.rows:
        row = variant_of(record)
        r, t = numbers.rows.index(row), numbers.targets.index(record.cell.target)
        s = numbers.seeds.index(record.cell.seeds)
        assert numbers.records[r, t, s] is record and numbers.status[r, t, s] == record.status
        for measure in board.metrics:
            entry = record.metrics.get(measure.key)
            m = numbers.measures.index(measure)
            value, n = numbers.value[m, r, t, s], numbers.n[m, r, t, s]
            if entry is None:
                assert (np.isnan(value), n) == (True, ABSENT)
            else:
                assert n == entry["n"] and (value == entry["value"] or (np.isnan(value) and entry["value"] is None))


def means_of(board, row, measure):
    """Return {target: mean over seeds} of a row, from the records alone."""
    found = {}
    for target in board.targets:
        cells = [r for r in board.numbers.cells(row, target) if r.status == "ok" and r.cell.id not in board.stale]
        if measure.is_cost:
            known = [board.cost.number(r, measure) for r in cells]
        else:
            known = [r.metrics.get(measure.key, {}).get("value") for r in cells]
        if known := [number for number in known if number is not None]:
            found[target] = statistics.fmean(known)
    return found


@KINDS
def test_means_and_deviations_follow_from_the_records(make):
    board = board_of(make)
    for row in board.variants:
        for measure in [*board.metrics, *board.robustness, *board.cost.all]:
            by_class = means_of(board, row, measure)
            mean = board.numbers.mean(row, measure)
            for target in board.targets:
                assert board.numbers.cell(row, target, measure).number == by_class.get(target)
            assert mean.number == (statistics.fmean(by_class.values()) if by_class else None)
            assert mean.spread == (statistics.stdev(by_class.values()) if len(by_class) > 1 else None)
            assert mean.ok <= mean.expected


def known_numbers(board):
    """Return every number that the array has: of cells, means, deviations, medians, intervals, ranks and AUCs."""
    values = []
    for numbers in filter(None, (board.numbers, board.every, board.attacked, board.untouched, board.beyond_tuning)):
        for measure in numbers.measures:
            for row in numbers.rows:
                values += [numbers.mean(row, measure), numbers.median(row, measure)]
                values += [numbers.cell(row, target, measure) for target in numbers.targets]
    found = {value.number for value in values} | {value.spread for value in values}
    found |= {end for value in values for end in value.interval or ()}
    return (found | set(board.ranks.values())) - {None}


@KINDS
def test_every_number_of_every_table_is_the_arrays(make):
    board = board_of(make)
    known, seen = known_numbers(board), 0
    for table in all_tables(board):
        if table.name == "validation":
            continue
        for row in table.values:
            for value in row:
                numbers = [value.number, value.spread, *(value.interval or ())]
                assert {number for number in numbers if number is not None} <= known, (table.name, value)
                seen += value.number is not None
        for name, column in pd.read_csv(pd.io.common.StringIO(to_csv(table))).items():
            if pd.api.types.is_float_dtype(column) and not name.endswith("disturbed cells"):
                shown = [number for number in column if not math.isnan(number)]
                assert all(any(math.isclose(a, b, rel_tol=1e-12) for b in known) for a in shown), (table.name, name)
    assert seen > 10


@KINDS
def test_the_page_and_the_frame_show_the_arrays_numbers(make):
    board = board_of(make)
    for measure in [*board.metrics, *board.costs]:
        for label, cells in class_heatmap(board, measure).rows:
            row = next(row for row in board.variants if row.label == label)
            values = [*[board.numbers.cell(row, t, measure) for t in board.targets], board.numbers.mean(row, measure)]
            words = [v.word if v.number is None else f"{v.number:{measure.format}}" for v in values]
            assert [cell.text.split("†")[0].split(" (")[0] for cell in cells] == words
    x, y = board.headline("retention"), board.headline("forgetting")
    for dot in scatter(board, x, y, "t").dots if x and y else []:
        if ", class " not in dot.words:
            row = next(row for row in board.variants if row.label == dot.label)
            assert f"{board.numbers.mean(row, x).number:{x.format}}" in dot.words
    frame = board.every.frame()
    numbers = board.every
    assert frame["value"].notna().sum() == np.isfinite(numbers.value).sum() + np.isinf(numbers.value).sum()
    for cell_id, own in frame.groupby("cell_id"):
        record = next(record for record in board.records if record.cell.id == cell_id)
        for line in own[own["shows"].isin(["forgetting", "retention"])].itertuples():
            value = record.metrics[line.metric]["value"]
            assert line.value == value or (value is None and math.isnan(line.value))


def test_a_sweep_has_means_over_its_own_classes():
    board = board_of(sweeps)
    (sweep,) = find_sweeps(board)
    ua = board.headline("forgetting")
    means = {row.label: sweep.mean(row, ua) for row in board.variants}
    assert (means["Alpha (x=3)"].number, means["Alpha (x=3)"].gap) == (53.5, " (2/3)")
    assert means["Original"].number == 2.0


def test_a_part_has_no_empty_targets_and_the_same_numbers():
    numbers, fid = board_of(gaps).numbers, board_of(gaps).headline("retention")
    part = numbers.sel(rows=numbers.rows[:1], targets=[Target((0,)), Target((3,))])
    assert (len(part.rows), part.targets, len(part.seeds)) == (1, (Target((0,)), Target((3,))), 2)
    for target in part.targets:
        assert part.cell(part.rows[0], target, fid) == numbers.cell(part.rows[0], target, fid)
    one = np.zeros(numbers.status.shape, dtype=bool)
    one[1, 2, 0] = True
    alone = numbers.sel(where=one)
    assert (len(alone.rows), len(alone.targets), len(alone.seeds), alone.expected) == (1, 1, 1, 1)


def test_words_stand_where_numbers_are_missing():
    records = gaps()
    board = boards(records, {records[2].cell.id})["digits"]
    numbers, ua = board.numbers, board.headline("forgetting")
    alpha, beta, gamma = numbers.rows
    assert numbers.cell(alpha, Target((1,)), ua).ok == 1  # the other one is stale
    assert numbers.cell(beta, Target((7,)), ua).word == NOT_RUN
    assert numbers.why_none(beta, Target((0,))) == "oom"
    assert numbers.completeness(gamma) == "7/8"
