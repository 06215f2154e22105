"""Staleness: what makes a record stale, and that nothing else does."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.conftest import fake_record
from unlearnbench.datasets import load_dataset
from unlearnbench.plugins.registry import Registry
from unlearnbench.run import stale
from unlearnbench.run.stale import current_dataset, is_stale, rests_on, stale_ids
from unlearnbench.store.revisions import REVISIONS

EVERY = dict.fromkeys(REVISIONS, 1)
CELL, ATTACK = {"base", "judges", "unlearning", "sampler", "measuring"}, {"attacks"}


def of_digits(**fields):
    record = fake_record(**fields)
    return replace(record, cell=replace(record.cell, protocol="digits-ddim25"))


def raised(monkeypatch, part):
    monkeypatch.setattr(stale, "REVISIONS", {**REVISIONS, part: REVISIONS[part] + 1})


@pytest.mark.parametrize(
    ("sources", "found"),
    [
        ({"method:alpha": "m1", "metric:fake_fid": "x1"}, False),
        ({"method:alpha": "m2"}, True),
        ({"metric:fake_ua": "other"}, True),
        ({"method:beta": "other", "metric:more": "other"}, False),
        ({}, False),
    ],
)
def test_a_changed_source(sources, found):
    assert is_stale(fake_record(source_hash="m1"), sources, None) is found


def test_a_changed_recipe():
    record, dataset = of_digits(), load_dataset("digits")
    assert not is_stale(record, {}, (dataset.digest, dataset.judges_digest))
    assert is_stale(record, {}, ("other", dataset.judges_digest))
    assert is_stale(record, {}, (dataset.digest, "other"))
    assert not stale_ids([record], {})


def test_records_of_a_recipe_that_changed_are_named_and_no_others(monkeypatch):
    from unlearnbench.datasets import digits

    record = of_digits()
    other = replace(of_digits(method="beta"), dataset={"digest": "of a dataset that nobody knows"})
    monkeypatch.setattr(digits, "_PROFILE", replace(digits._PROFILE, base=replace(digits._PROFILE.base, steps=7)))
    assert stale_ids([record, other], {}) == {record.cell.id}


@pytest.mark.parametrize("part", REVISIONS)
def test_a_raised_revision_makes_exactly_those_stale_that_rest_on_it(part, monkeypatch):
    records = [
        replace(fake_record(method), revisions=dict.fromkeys(parts, 1))
        for method, parts in (("cell", CELL), ("attacked", CELL | ATTACK), ("untouched", CELL - {"unlearning"}))
    ]
    assert not stale_ids(records, {})
    raised(monkeypatch, part)
    assert stale_ids(records, {}) == {record.cell.id for record in records if part in record.revisions}


def test_records_of_before_there_were_revisions_rest_on_the_first_ones(monkeypatch):
    assert not fake_record().revisions and not stale_ids([fake_record()], {})
    raised(monkeypatch, "sampler")
    assert stale_ids([fake_record()], {})


def test_a_part_of_a_later_version_is_not_judged():
    assert not stale_ids([replace(fake_record(), revisions={"a part of tomorrow": 3})], {})


@pytest.mark.parametrize(
    ("method", "metrics", "changes", "parts"),
    [
        ("safemax", "ua", {}, CELL),
        ("safemax", "all,attacks", {}, CELL | ATTACK),
        ("safemax", "equal", {}, CELL | ATTACK),
        ("original", "ua", {}, CELL - {"unlearning"}),
        ("safemax", "ua", {"checkpoint": "folder"}, CELL - {"base"}),
    ],
)
def test_what_a_cell_rests_on(method, metrics, changes, parts):
    registry, dataset = Registry(), replace(load_dataset("digits"), **changes)
    assert rests_on(registry.method(method), registry.select_metrics(metrics), dataset).keys() == parts


def test_a_cell_whose_metrics_look_at_nothing_rests_on_no_judge():
    spec = SimpleNamespace(needs=("forget_samples", "cell"), is_apart=False)
    assert "judges" not in rests_on(SimpleNamespace(role="method"), [spec], load_dataset("digits"))


def test_what_nobody_knows_is_not_judged():
    assert current_dataset({}, "p") is None
    assert current_dataset({**load_dataset("digits").to_json(), "kind": "gone"}, "digits-ddim25") is None
    assert not stale_ids([replace(fake_record(), dataset={"digest": "d"})], {})
