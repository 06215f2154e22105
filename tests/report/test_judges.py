"""The judges on images of the untouched model: the table, and the note on classes that they hardly recognise."""

from dataclasses import replace

import pytest

from tests.conftest import fake_record
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.judges import LEAST_RECOGNISED
from unlearnbench.report.data.statistics import proportion_interval
from unlearnbench.report.tables.every import all_tables
from unlearnbench.report.tables.judges import judges_tables
from unlearnbench.report.write.page import page_files
from unlearnbench.store.cell import Seeds, Target


def judged(c, missed, nothing=0.0, agreed=100.0, name="original", role="reference", **fields):
    """Return a record whose judges do not recognise some percent of the images of the class."""
    more = {
        "nothing": {"value": nothing, "title": "Nothing", "better": "neither"},
        "agreement": {
            "value": 50.0, "title": "Agreement", "shows": "judging", "n": 500,
            "detail": {"forget": agreed, "retain": 0.0},
        },
    }  # fmt: skip
    made = fake_record(name, c, role=role, ua=missed, more=more, **fields)
    return replace(made, protocol={**made.protocol, "forget_samples": 100})


def board(*records):
    return boards([*records, fake_record("alpha", 0, ua=100.0)])["digits"]


def test_shares_are_those_of_the_untouched_models_own_images():
    (table,) = judges_tables(board(judged(0, 1.0), judged(1, 4.0, 3.0, 97.0)))
    assert table.rows == ["0", "1", "mean"] and table.rules == (2,)
    assert table.flat_headers() == [
        "Images", "Recognised by the judge of UA (%)", "Seen instead Nothing (%)", "Both judges Agreement (%)",
    ]  # fmt: skip
    assert [[value.number for value in row[1:]] for row in table.values] == [
        [99.0, 0.0, 100.0], [96.0, 3.0, 97.0], [97.5, 1.5, 98.5],
    ]  # fmt: skip
    assert [row[0].word for row in table.values] == ["100", "100", "200"]
    low, high = proportion_interval({(0, 0): (0.96, 100)})
    assert table.values[1][1].interval == pytest.approx((100 * low, 100 * high))
    assert "accuracy 99.0% (n=360)" in table.caption and "upper limits" in table.caption


def test_seeds_of_a_class_are_averaged_and_their_images_counted():
    (table,) = judges_tables(board(*[judged(0, missed, seed=seed) for seed, missed in enumerate((0.0, 6.0))]))
    assert (table.rows, table.values[0][0].word, table.values[0][1].number) == (["0"], "200", 97.0)


def test_a_reference_without_a_number_shows_its_word():
    (table,) = judges_tables(board(judged(0, 1.0), judged(1, 1.0, status="oom")))
    assert [value.word for value in table.values[1]] == ["-", "oom", "oom", "oom"]


@pytest.mark.parametrize("detail", [None, {}, {"forget": "all"}, {"forget": 101.0}, {"forget": None}, [1]])
def test_agreement_is_left_out_where_no_detail_says_it(detail):
    record = judged(0, 1.0)
    record.metrics["agreement"]["detail"] = detail
    (table,) = judges_tables(board(record))
    assert table.headers == ["Images", "UA (%)", "Nothing (%)"]


def test_several_untouched_models_have_rows_each():
    (table,) = judges_tables(board(judged(0, 1.0), judged(0, 2.0, name="other")))
    assert table.rows == ["Original: 0", "Other: 0"]


def test_without_an_untouched_model_there_is_no_table():
    assert not judges_tables(board())
    assert "judges" not in [table.name for table in all_tables(board())]
    assert not judges_tables(board(judged(0, 1.0, status="failed")))


@pytest.mark.parametrize(("missed", "warned"), [(100 - LEAST_RECOGNISED, False), (100 - LEAST_RECOGNISED + 1, True)])
def test_a_class_that_is_hardly_recognised_is_noted_everywhere(missed, warned):
    found = board(judged(0, 0.0), judged(1, missed))
    notes = [note for note in found.notes if "recognises fewer than 90% of the images of Original" in note]
    assert len(notes) == warned
    if warned:
        assert "class 1 (89.0%): " in notes[0] and "0 (" not in notes[0]
        assert notes[0].split(":")[0] in page_files(found, {})["report.md"].replace("\\", "")


def test_the_numbers_stay_out_of_every_other_view():
    found = board(judged(0, 40.0))
    assert found.untouched.targets == (Target((0,)),) and found.untouched.seeds == (Seeds(0, 0, 0),)
    assert not [key for key in found.every.frame()["metric"].dropna() if "/" in key]
