"""Staleness: what makes a record stale, and that nothing else does."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests.conftest import fake_record
from unlearnbench.datasets import load_dataset
from unlearnbench.plugins.registry import Registry
from unlearnbench.run import stale
from unlearnbench.run.execution import Execution
from unlearnbench.run.stale import current_dataset, is_stale, rests_on, stale_ids
from unlearnbench.store.revisions import REVISIONS

EVERY = dict.fromkeys(REVISIONS, 1)
CELL, ATTACK = {"base", "judges", "unlearning", "sampler", "measuring"}, {"attacks"}


def of_digits(**fields):
    record = fake_record(**fields)
    return replace(record, cell=replace(record.cell, protocol="digits-dpm12"))


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
    bases = {**digits._PROFILE.bases, "unet": replace(digits._PROFILE.bases["unet"], steps=7)}
    monkeypatch.setattr(digits, "_PROFILE", replace(digits._PROFILE, bases=bases))
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
    assert current_dataset({**load_dataset("digits").to_json(), "kind": "gone"}, "digits-dpm12") is None
    assert not stale_ids([replace(fake_record(), dataset={"digest": "d"})], {})


class TestPartsOfACell:
    """What runs again of a good record with an attack, a metric and kept weights."""

    DATASET = load_dataset("digits")

    @pytest.fixture
    def asked(self, tmp_path):
        entry = {"cost": {"seconds": 1.0, "memory_bytes": {}}, "source_hash": "a1"}
        record = fake_record(source_hash="m1", more={"hit": {**entry, "value": 50.0}})
        record = replace(record, artifacts={**record.artifacts, "unlearned": {"key": "k" * 64, "sha256": "s"}})
        facts = {"digest": self.DATASET.digest, "panel": self.DATASET.judges_digest}
        record = replace(record, dataset={**record.dataset, **facts}, revisions=EVERY)
        (tmp_path / "unlearned" / ("k" * 24)).mkdir(parents=True)

        def ask(metrics="fake_ua,hit", sources=None, rerun="missing", **changes):
            specs = [SimpleNamespace(name=name, is_apart=name in ("hit", "miss")) for name in metrics.split(",")]
            return stale.needed(
                replace(record, **changes), Execution(tmp_path, rerun=rerun), sources=sources or {}, metrics=specs,
                device=record.device_model, dataset=self.DATASET,
            )  # fmt: skip

        return ask

    @pytest.mark.parametrize(
        ("metrics", "sources", "expected"),
        [
            ("fake_ua,hit", {}, None),
            ("fake_ua", {"metric:hit": "a2"}, None),
            ("fake_ua,hit", {"metric:hit": "a2"}, stale.Needed(False, ("hit",))),
            ("fake_ua,hit,miss", {}, stale.Needed(False, ("miss",))),
            ("fake_ua,hit", {"metric:fake_ua": "x2"}, stale.Needed(True, (), keeps=True)),
            ("fake_ua,other,hit", {}, stale.Needed(True, (), keeps=True)),
            ("fake_ua,hit", {"method:alpha": "m2"}, stale.Needed(True, ("hit",))),
        ],
    )
    def test_a_changed_source(self, asked, metrics, sources, expected):
        assert asked(metrics, sources) == expected

    def test_a_changed_judge_attacks_again(self, asked):
        other = {**fake_record().dataset, "digest": self.DATASET.digest, "panel": "other"}
        assert asked(dataset=other) == stale.Needed(True, ("hit",))

    @pytest.mark.parametrize(
        ("part", "expected"),
        [("attacks", stale.Needed(False, ("hit",))), ("judges", stale.Needed(True, ("hit",)))],
    )
    def test_a_raised_revision(self, asked, monkeypatch, part, expected):
        raised(monkeypatch, part)
        assert asked() == expected

    def test_weights_that_are_gone_are_made_for_an_attack(self, asked, tmp_path):
        (tmp_path / "unlearned" / ("k" * 24)).rmdir()
        assert asked("fake_ua,hit,miss") == stale.Needed(True, ("miss",), keeps=True)

    def test_always_is_afresh(self, asked):
        assert asked(rerun="always") == stale.Needed(True, ("hit",), afresh=True)
