"""The suite checks itself: controls, what metrics make of them, and what a report says when one is wrong."""

import textwrap

import pytest

from tests.conftest import fake_record, reading
from tests.server import run_command
from unlearnbench.errors import UsageError
from unlearnbench.report.data.board import boards
from unlearnbench.report.render import render, validation
from unlearnbench.report.tables.controls import alarms, check_tables
from unlearnbench.report.tables.every import all_tables
from unlearnbench.report.tables.summary import summary_table
from unlearnbench.store.cell import Target
from unlearnbench.store.records import ResultStore

FORGETS, KEEPS = {"forgetting": True, "retention": False}, {"forgetting": False, "retention": True}


def control(name, truth, forgotten, kept=0.0, c=0, role="control", fid=9.0, **more):
    """Return a record of a control that two metrics with a threshold judge."""
    entries = {
        "forgotten": {"value": forgotten, "boundary": 50.0, "title": "Forgotten"},
        "kept": {"value": kept, "boundary": 0.5, "title": "Kept", "shows": "retention", "unit": "", "format": ".2f"},
    }
    return fake_record(name, c, role=role, truth=truth, more=entries, fid=fid, **more)


def sound():
    """Return records whose controls are all where they belong."""
    return [
        control("original", KEEPS, 2.0, 0.9, role="reference", fid=1.0),
        control("original", KEEPS, 0.0, 0.8, 1, "reference"),
        control("noise", FORGETS, 100.0, 0.0), control("step", KEEPS, 3.0, 0.9, fid=1.5),
        fake_record("alpha", 0), fake_record("alpha", 1),
    ]  # fmt: skip


def board(records):
    return boards(records)["digits"]


def test_controls_on_the_right_side_raise_no_alarm():
    assert alarms(board(sound())) == []


@pytest.mark.parametrize(
    ("record", "words"),
    [
        (
            control("noise", FORGETS, 12.0),
            "Noise forgets, but Forgotten (class 0, seed 0) is 12.0%, on the wrong side of 50.0%",
        ),
        (control("noise", FORGETS, 100.0, 0.7), "Noise does not retain, but Kept (class 0, seed 0) is 0.70"),
        (control("original", KEEPS, 51.0, 0.9, 3, "reference"), "Original does not forget, but Forgotten (class 3,"),
        (control("step", KEEPS, 0.0, 0.49), "Step retains, but Kept"),
    ],
)  # fmt: skip
def test_a_control_on_the_wrong_side_is_named(record, words):
    (alarm,) = alarms(board([*sound()[4:], record]))
    assert alarm.startswith(words)


def test_lower_can_be_better():
    entry = {"drift": {"value": 3.0, "boundary": 2.0, "better": "lower", "shows": "retention", "format": ".1f"}}
    bad = fake_record("step", truth=KEEPS, role="control", more=entry)
    assert len(alarms(board([bad]))) == 1
    entry["drift"]["value"] = 2.0
    assert alarms(board([fake_record("step", truth=KEEPS, role="control", more=entry)])) == []


def test_controls_are_no_rows_but_count_in_the_digest():
    with_them, without = board(sound()), board(sound()[4:])
    assert [variant.label for variant in with_them.variants] == ["Original", "Alpha"]
    assert with_them.digest != without.digest
    alone = board([control("noise", FORGETS, 100.0)])
    assert [variant.label for variant in alone.variants] == ["Noise"]
    assert list(alone.targets) == [Target((0,))]


def test_controls_are_not_ranked():
    times = {"forget": {"repeats": [1e-6, 2e-6]}}
    quick = [control("noise", FORGETS, 100.0, c=c, phases=times) for c in range(2)]
    seconds = {"a": 2.0, "b": 3.0}
    slow = [
        fake_record(m, c, rte=t, phases={"forget": {"repeats": [t, t]}}) for m, t in seconds.items() for c in range(2)
    ]
    found = board([*quick, *slow])
    assert {variant.label: rank for variant, rank in found.ranks.items()} == {"A": 1, "B": 2}


def test_the_table_of_controls():
    (table, _) = check_tables(board(sound()))
    assert table.rows == ["Original", "Noise", "Step"]
    assert table.texts()[0] == ["2", "does not forget, retains", "1.0", "0.85", "as known"]
    wrong = check_tables(board([*sound(), control("noise", FORGETS, 0.0, c=1)]))[0]
    assert wrong.texts()[1] == ["2", "forgets, does not retain", "50.0", "0.00", "WRONG in 1"]


def test_validation_is_the_area_under_the_curve_of_known_cells():
    (_, table) = check_tables(board(sound()))
    found = {row: [text[1], *text[2:]] for row, text in zip(table.rows, table.texts(), strict=True)}
    assert found["Forgotten (%) ↑"] == ["1.000", "1", "3"]
    assert found["UA (%) ↑"] == ["0.500", "1", "3"]  # the same for all of them
    assert found["FID ↓"] == ["0.833", "3", "1"]  # 1.0, 1.5 and a tie beat 9.0


def test_records_without_controls_have_no_such_tables(tmp_path):
    plain = board([fake_record("alpha", c) for c in range(2)])
    assert check_tables(plain) == []
    assert not {"controls", "validation"} & {table.name for table in all_tables(plain)}
    ResultStore(tmp_path).append(fake_record())
    with pytest.raises(UsageError, match="--controls"):
        validation(reading(tmp_path))


def test_the_report_opens_with_a_red_banner_when_a_control_is_wrong(tmp_path):
    for record in [*sound(), control("noise", FORGETS, 0.0, c=1)]:
        ResultStore(tmp_path / "results").append(record)
    rendering = render(reading(tmp_path / "results"), tmp_path / "out")
    lines = rendering.pages[0].read_text().splitlines()
    assert lines[2:4] == [
        "> [!CAUTION]",
        "> **Sanity checks failed: do not use these numbers until the cause is known.**",
    ]
    assert "> - Noise forgets, but Forgotten" in lines[4]
    (alarm,) = rendering.alarms["digits", "protocol-1"]
    assert alarm.startswith("Digits: Noise forgets")


def test_a_sound_report_has_no_banner(tmp_path):
    for record in sound():
        ResultStore(tmp_path / "results").append(record)
    rendering = render(reading(tmp_path / "results"), tmp_path / "out")
    assert rendering.alarms == {}
    assert "CAUTION" not in rendering.pages[0].read_text()


def test_a_metric_without_a_value_anywhere_has_no_column_and_says_why(tmp_path):
    nothing = {"value": None, "n": 0, "reason": "too few samples", "title": "Wide"}
    records = [fake_record("alpha", c, more={"wide": nothing}) for c in range(2)]
    found = board(records)
    assert "Wide is not shown: too few samples" in found.notes
    assert not any("Wide" in header for header in summary_table(found).headers)
    some = board([*records, fake_record("beta", 0, more={"wide": {**nothing, "value": 1.0, "n": 5}})])
    assert "wide" in {measure.key for measure in some.metrics}


CONFUSED = """
from unlearnbench import Score, metric


@metric(title="Always", unit="%", better="higher", aspect="forgetting", threshold=50.0)
def always(cell):
    return Score(100.0, 1)
"""


def test_a_run_whose_metric_cannot_tell_the_controls_ends_with_1(tmp_path, cache):
    """Where no metric has a threshold, as in test_run's TestOneRun, no control is added and none is checked."""
    (tmp_path / "always.py").write_text(textwrap.dedent(CONFUSED))
    command = ("run", "--methods", "original", "--classes", "4", "--plugin", "always.py", "--metrics", "always")
    status, output = run_command(tmp_path, *command)
    assert status == 1, output
    assert "Sanity checks failed" in output
    assert "Original does not forget, but Always (class 4, seed 0) is 100" in output
    assert "[!CAUTION]" in (tmp_path / "reports" / "digits" / "report.md").read_text()
