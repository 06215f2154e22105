import math

import pytest

from tests.conftest import fake_record
from unlearnbench.errors import UsageError
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.tuning import Trial, at_edge, choose, tunings
from unlearnbench.report.tables.every import all_tables
from unlearnbench.report.tables.tuning import counts, tuning_tables
from unlearnbench.report.tuning import render_tuning
from unlearnbench.report.write.terminal import to_terminal
from unlearnbench.store.records import Reading

LR = {"low": 1e-4, "high": 1e-2, "log": True}


def trial(number, forgetting, retention=99.0, ties=2.0, images=1000.0, problem=""):
    return Trial(number, {"lr": 1e-3}, forgetting, retention, ties, images, 5.0, problem)


@pytest.mark.parametrize(
    ("trials", "chosen"),
    [
        ([trial(0, 80), trial(1, 90)], 1),  # the best forgetting
        ([trial(0, 80), trial(1, 90, retention=94.9)], 0),  # of those that retain enough
        ([trial(0, 80, retention=95.0), trial(1, 90, retention=94.9)], 0),
        ([trial(0, 80, retention=90), trial(1, 90, retention=85), trial(2, 99, retention=84.9)], 1),  # none does
        ([trial(0, 98, ties=1.9), trial(1, 100, ties=2.0)], 0),  # ties: the third metric
        ([trial(0, 97.9, ties=1.9), trial(1, 100, ties=2.0)], 1),
        ([trial(0, 98, images=900), trial(1, 100, images=800), trial(2, 100, images=850)], 1),  # then images
        ([trial(2, 99), trial(1, 99)], 1),  # then the number
        ([trial(0, math.nan, problem="it broke"), trial(1, 3)], 1),  # failed ones do not count
        ([trial(0, math.nan, problem="it broke")], None),
        ([], None),
    ],
)
def test_the_choice_follows_the_rule(trials, chosen):
    found = choose(trials)
    assert (None if found is None else found.number) == chosen


@pytest.mark.parametrize(
    ("value", "domain", "edge"),
    [
        (1e-4, LR, True), (1.2e-4, LR, True), (1.3e-4, LR, False), (1e-3, LR, False), (9e-3, LR, True),
        (0.0, {"low": 0.0, "high": 1.0, "log": False}, True), (0.5, {"low": 0.0, "high": 1.0, "log": False}, False),
        (0.96, {"low": 0.0, "high": 1.0, "log": False}, True), (64, {"choices": [16, 32, 64]}, False),
    ],
)  # fmt: skip
def test_an_edge_is_on_the_scale_of_the_range(value, domain, edge):
    assert at_edge(value, domain) is edge


def record(number, forget_class=2, *, lr=1e-3, forgotten=90.0, retained=98.0, fid=2.0, images=500, tuning=None, **more):
    """Return the record of a trial's class."""
    shares = {"n": 100, "unit": "%", "better": "higher", "format": ".1f"}
    found = {
        "forgotten": {**shares, "value": forgotten, "title": "Forgotten", "shows": "forgetting", "headline": True},
        "retained": {**shares, "value": retained, "title": "Retained", "shows": "retention"},
        "fake_fid": {"value": fid},
    }
    facts = {
        "trial": number, "of": 4, "images": 1000, "space": {"lr": LR}, "share": 0.5,
        "measures": {"forgetting": "forgotten", "retention": "retained", "ties": "fake_fid"},
    }  # fmt: skip
    settings = {"lr": lr, "steps": 10 + number}
    return fake_record(
        "alpha", forget_class, seed=1000, settings=settings, overrides=settings, more=found,
        counts={"forward_images": images // 2, "backward_images": images // 2}, tuning={**facts, **(tuning or {})},
        **more,
    )  # fmt: skip


def tuned_of(records, stale=frozenset()):
    (board,) = boards(records, stale).values()
    (tuned,) = tunings(board)
    return board, tuned


def test_trials_are_means_over_classes_and_costs_add_up():
    _, tuned = tuned_of([record(0, 2, forgotten=80), record(0, 5, forgotten=90), record(1, 2), record(1, 5)])
    assert [t.number for t in tuned.trials] == [0, 1]
    assert (tuned.trials[0].forgetting, tuned.trials[0].images, tuned.trials[0].seconds) == (85, 500, 14)
    assert (tuned.of, tuned.budget, tuned.failed, tuned.seconds) == (4, 1000, 0, 28)
    assert tuned.chosen.settings == {"lr": 1e-3, "steps": 11}


@pytest.mark.parametrize(
    ("second", "stale", "words"),
    [
        ([], False, "not run on every class"),
        ([record(1, 5, status="failed")], False, "it broke"),
        ([record(1, 5)], True, "stale"),
        ([record(1, 5, images=1100)], False, "over budget: 1,100 images"),
    ],
)
def test_what_does_not_count_says_why(second, stale, words):
    stale = frozenset(r.cell.id for r in second) if stale else frozenset()
    _, tuned = tuned_of([record(0, 2, forgotten=1), record(0, 5, forgotten=1), record(1, 2), *second], stale)
    assert [t.problem for t in tuned.trials] == ["", words]
    assert tuned.chosen.number == 0
    assert tuned.failed == 1


def test_trials_of_an_older_space_are_left_out():
    space = {"space": {"lr": {**LR, "high": 1.0}}}
    _, tuned = tuned_of([record(0, lr=0.2), record(1, lr=0.3, tuning=space, started="2026-02-01T00:00:00Z")])
    assert [t.number for t in tuned.trials] == [1]
    assert tuned.edges() == []


def test_a_smaller_budget_would_have_given_less():
    records = [record(0, retained=50), record(1, forgotten=40), record(2, forgotten=30), record(3, lr=1e-4)]
    board, tuned = tuned_of(records)
    assert [tuned.best_of_first(count) for count in (1, 2, 3, 4)] == [None, 40, 40, 90]
    assert tuned.edges() == ["lr"]
    choices, budget = tuning_tables(board, [tuned])
    assert choices.texts() == [["4/4", "0", "1,000", "28", "3", "90.0", "98.0", "2.00", "500", "lr"]]
    assert (budget.headers, budget.texts()) == (["1", "2", "4"], [["none", "40.0", "90.0"]])
    assert counts([tuned]) == [1, 2, 4]


def test_the_report_needs_trials(tmp_path):
    with pytest.raises(UsageError, match="no trial of tune"):
        render_tuning(Reading(tmp_path, [fake_record()], []), tmp_path / "out")


def test_a_row_with_published_settings_says_so():
    published = fake_record("alpha", settings={"steps": 1000})
    published.method["track"] = "published"
    tuned = fake_record("alpha", settings={"steps": 10})
    tuned.method["track"] = "tuned"
    (board,) = boards([published, tuned]).values()
    assert [row.label for row in board.variants] == ["Alpha", "Alpha (as published)"]
    assert "Alpha (as published)" in to_terminal(board)
    assert dict(board.setup)["Track"].startswith("as published: Alpha; tuned for this dataset: Alpha")
    (board,) = boards([fake_record()]).values()
    assert "Track" not in dict(board.setup)


def test_the_main_table_stands_once_more_without_the_classes_of_tuning():
    records = [fake_record("alpha", c, fid=float(c)) for c in (1, 2, 3)]
    for each in records:
        each.dataset["tuning_classes"] = [2]
    (board,) = boards(records).values()
    tables = {table.name: table for table in all_tables(board)}
    assert tables["summary-untuned"].texts()[0][0] == "2/2"
    assert "Forget classes 1, 3" in tables["summary-untuned"].caption
    assert "summary-untuned" not in {t.name for t in all_tables(next(iter(boards(records[1:2]).values())))}
