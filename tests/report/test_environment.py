"""What a report says of devices, software, code and products, where its records differ."""

from collections import Counter
from dataclasses import replace

import pytest

from tests.conftest import fake_record, stated
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.environment import counted, protocol_facts, provenance_facts
from unlearnbench.report.tables.every import all_tables
from unlearnbench.report.write.page import page_files
from unlearnbench.report.write.paper import paper


def measured(record, **provenance):
    return replace(record, provenance={**record.provenance, **provenance})


def made_of(record, **digests):
    artifacts = {name: {"key": "k", "sha256": digest} for name, digest in digests.items()}
    return replace(record, artifacts={**record.artifacts, **artifacts})


def board(records):
    return boards(records)["digits"]


@pytest.fixture
def mixed():
    """Five cells, the last ones with other software, another driver, and changes that were not committed."""
    device = {"type": "cuda", "name": "A GPU", "uuid": "1"}
    old, new = (
        {
            "packages": {"torch": torch, "numpy": "2.0"}, "git": {"commit": commit * 40, "dirty": dirty},
            "device": {**device, "driver": driver},
        }
        for torch, commit, dirty, driver in (("2.9.0", "a", False, "550.1"), ("2.10.0", "b", True, "560.2"))
    )  # fmt: skip
    records = [measured(fake_record("alpha", c), **(old if c < 3 else new)) for c in range(5)]
    records[4] = replace(records[4], protocol={**records[4].protocol, "steps": 50})
    return board(records)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([], ""),
        (["2.9"] * 3, "2.9"),
        (["2.10.0", "2.9.0", "2.9.0"], "2.9.0 (2 cells), 2.10.0 (1)"),
        (["b", "a"], "a (1 cell), b (1)"),
        ([str(k) for k in range(7)], "0 (1 cell), 1 (1), 2 (1), 3 (1), 4 (1), 2 more"),
    ],
)
def test_what_differs_is_counted(values, words):
    assert counted(values) == counted(reversed(values)) == words


def test_the_steps_of_base_models_that_the_clock_ended_are_facts():
    records = [fake_record(forget_class=c) for c in range(3)]
    made = [{"key": "k", "sha256": "s", "steps": steps} for steps in (12345, 12345, 999)]
    timed = [replace(record, artifacts={"base": base}) for record, base in zip(records, made, strict=True)]
    assert dict(provenance_facts(timed, "d"))["base model steps"] == "12,345 (2 cells), 999 (1)"
    assert "base model steps" not in dict(provenance_facts(records, "d"))


def test_the_setup_says_what_differs(mixed):
    assert "driver 550.1 (3 cells), 560.2 (2), torch 2.9.0 (3 cells), 2.10.0 (2)" in stated(mixed)
    assert "DDIM, 25 steps, eta 0.0, guidance w 0.5, reference training images (4 cells), DDIM, 50" in stated(mixed)


def test_page_appendix_and_paper_say_what_differs(mixed, tmp_path):
    facts = dict(provenance_facts(mixed.records, mixed.digest))
    assert facts["packages torch"] == "2.9.0 (3 cells), 2.10.0 (2)" and facts["packages numpy"] == "2.0"
    assert facts["device driver"] == "550.1 (3 cells), 560.2 (2)" and facts["git dirty"] == "False (3 cells), True (2)"
    assert facts["git commit"] == f"{'a' * 40} (3 cells), {'b' * 40} (2)"
    assert "started utc" not in facts
    assert dict(protocol_facts(mixed.records))["steps"] == "25 (4 cells), 50 (1)"
    assert "DDIM, 25 steps, eta 0.0, guidance w 0.5" in dict(mixed.setup)["Protocol"]
    text = page_files(mixed, {})["report.md"]
    assert "- packages torch: 2.9.0 (3 cells), 2.10.0 (2)" in text
    latex = paper(mixed, all_tables(mixed), {}, {}).replace("\\-", "")
    assert "torch 2.9.0 (3 cells), 2.10.0 (2)" in latex
    assert f"{'a' * 12} (3 cells), {'b' * 12} (2); 2 of 5 cells with changes that were not committed" in latex


def test_an_installation_without_a_checkout_has_no_commit():
    facts = dict(provenance_facts([measured(fake_record(), git=None)], "d"))
    assert not any(name.startswith("git") for name in facts)


@pytest.mark.parametrize(
    ("name", "words"),
    [("base", "base models of seed 0"), ("judge", "judges"), ("rejecting", "rejecting judges"),
     ("second", "second judges"), ("extractor", "feature extractors")],
)  # fmt: skip
def test_other_products_in_one_table_are_named(name, words):
    records = [made_of(fake_record("alpha", c), **{name: ("x" if c else "y") * 64}) for c in range(3)]
    notes = [note for note in board(records).notes if "different" in note]
    assert notes == [
        f"these records rest on different {words}, SHA-256 {'x' * 12} (2 cells), {'y' * 12} (1): compare rows with care"
    ]
    assert not any("different" in note for note in board(records[1:]).notes)


def test_each_seed_has_a_base_model_of_its_own():
    records = [made_of(fake_record("alpha", c, seed=s), base=str(s) * 64) for c in range(2) for s in range(2)]
    assert not any("different" in note for note in board(records).notes)


def test_stale_records_mix_nothing():
    old = made_of(fake_record("alpha", 0, source_hash="old"), base="y" * 64)
    fresh = [made_of(fake_record("alpha", c), base="x" * 64) for c in (1, 2)]
    found = boards([old, *fresh], {old.cell.id})
    assert not any("different" in note for note in found["digits"].notes)


def test_facts_of_many_records_are_read_once(monkeypatch):
    seen = Counter()
    monkeypatch.setattr("unlearnbench.report.data.environment._flat", lambda facts, above="": seen.update(["x"]) or [])
    provenance_facts([fake_record("alpha", c, started=f"2026-01-0{c + 1}T00:00:00Z") for c in range(5)], "d")
    assert seen["x"] == 1
