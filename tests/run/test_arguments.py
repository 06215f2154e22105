import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearnbench.errors import UsageError
from unlearnbench.run.arguments import (
    combinations,
    make_cells,
    parse_classes,
    parse_integers,
    parse_sequence,
    parse_sweeps,
    parse_targets,
    replicates,
)
from unlearnbench.store.cell import Cell, Seeds, Target


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-9", list(range(10))),
        ("3", [3]),
        ("0,3,5-7", [0, 3, 5, 6, 7]),
        (" 1 , 2 - 3 ", [1, 2, 3]),
        ("2,2,1-2", [2, 1]),
    ],
)
def test_ranges(text, expected):
    assert parse_integers(text, "class", high=9) == expected


@pytest.mark.parametrize(
    "text", ["", ",", "1,", "a", "1-", "-1", "1--2", "1.5", "0x1", "٣", "1e3", "9999999999", "1 2"]
)
def test_malformed_ranges_say_what_to_write(text):
    with pytest.raises(UsageError, match="such as 0,3,5-7"):
        parse_integers(text, "class", high=9)


def test_reversed_range_offers_the_right_one():
    with pytest.raises(UsageError, match="write 5-7"):
        parse_integers("7-5", "class", high=9)


@pytest.mark.parametrize("text", ["10", "0-10", "9-12"])
def test_classes_out_of_range_name_the_bounds(text):
    with pytest.raises(UsageError, match=r"class 1[02] does not exist: give a class from 0 to 9"):
        parse_integers(text, "class", high=9)


def test_enormous_seed_range_is_refused():
    with pytest.raises(UsageError, match="fewer than"):
        parse_integers("0-999999999", "seed")


@given(st.lists(st.integers(0, 99), min_size=1))
def test_a_printed_list_reads_back(values):
    assert parse_integers(",".join(map(str, values)), "class", high=99) == list(dict.fromkeys(values))


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused_in_one_sentence(text):
    try:
        assert all(0 <= value <= 9 for value in parse_integers(text, "class", high=9))
    except UsageError as error:
        assert "\n" not in re.sub(r"'.*'", "", str(error), flags=re.DOTALL)


def test_sweeps_collect_values_by_method_and_setting():
    assert parse_sweeps(["safemax.decay=0,1", "safemax.lr=1e-3", "sa.ema=0"]) == {
        "safemax": {"decay": ["0", "1"], "lr": ["1e-3"]},
        "sa": {"ema": ["0"]},
    }


@pytest.mark.parametrize(
    "text", ["decay=1", "safemax.decay", "safemax.=1", ".decay=1", "a.b.c=1", "safemax.decay=1,", "s.d=1,1"]
)
def test_malformed_sweeps(text):
    with pytest.raises(UsageError):
        parse_sweeps([text])


def test_a_setting_given_twice_is_refused():
    with pytest.raises(UsageError, match="twice"):
        parse_sweeps(["a.b=1", "a.b=2"])


def test_combinations_are_a_full_grid():
    assert list(combinations({"a": [1, 2], "b": [3]})) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]
    assert list(combinations({})) == [{}]


def test_cells_cover_the_grid_class_by_class():
    cells = make_cells("digits", "p", [("a", {}), ("b", {"x": 1})], [Target((0,)), Target((1,))], [Seeds(5, 5, 5)])
    assert [(cell.forget_class, cell.method) for cell in cells] == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]
    assert len({cell.id for cell in cells}) == 4


def test_one_seed_is_that_of_base_model_unlearning_and_sampling():
    assert replicates("0-1", "", "") == [(0, 0, 0), (1, 1, 1)]
    (cell,) = make_cells("d", "p", [("a", {})], [Target((0,))], replicates("3", "", ""))
    assert (cell.base_seed, cell.seed, cell.sampling_seed) == cell.seeds == (3, 3, 3)
    assert cell.seeds.label == "3"


def test_the_seeds_are_axes_of_their_own():
    assert replicates("0-1", "7", "") == [(7, 0, 0), (7, 1, 1)]
    assert replicates("0", "1,2", "5,6") == [(1, 0, 5), (1, 0, 6), (2, 0, 5), (2, 0, 6)]
    assert Seeds(7, 1, 2).label == "1 (base 7, sampling 2)"
    with pytest.raises(UsageError, match="base seed"):
        replicates("0", "x", "")


def test_seeds_of_zero_leave_a_cell_as_it_was_before_there_were_three():
    cell = Cell("d", "p", "m", {"x": 1}, 0, 0)
    assert set(cell.to_json()) == {"dataset", "protocol", "method", "settings", "forget_class", "seed"}
    other = Cell("d", "p", "m", {"x": 1}, 0, 1, 1, 2)
    assert Cell.from_json(other.to_json()) == other
    assert len({cell.id, other.id, Cell("d", "p", "m", {"x": 1}, 0, 1, 1, 1).id}) == 3


def test_cell_id_depends_on_every_part():
    parts = {"dataset": "d", "protocol": "p", "method": "m", "settings": {"x": 1}, "forget_class": 0, "seed": 0}
    changes = {"dataset": "e", "protocol": "q", "method": "n", "settings": {"x": 2}, "forget_class": 1, "seed": 1}
    ids = {Cell(**{**parts, key: value}).id for key, value in changes.items()}
    assert len(ids | {Cell(**parts).id}) == 7


def test_cell_survives_json():
    cell = Cell("d", "p", "m", {"x": 1.5, "y": "z"}, 3, 0)
    assert Cell.from_json(cell.to_json()).id == cell.id


ANIMALS = ("cat", "dog", "Emu", "12", "fox-terrier")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", [0]),
        ("0-2,cat", [0, 1, 2]),
        (" emu , dog ", [2, 1]),
        ("fox-terrier,3", [4, 3]),
        ("12", [3]),  # a name wins over a number
    ],
)
def test_classes_by_name_number_and_range(text, expected):
    assert parse_classes(text, ANIMALS) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cot", r"there is no class 'cot' \(did you mean cat\?\): classes are cat, dog, Emu, 12, fox-terrier"),
        ("cat,,dog", "cannot read ''"),
        ("5", "give a class from 0 to 4"),
        ("2-1", "write 1-2"),
    ],
)
def test_classes_that_do_not_exist(text, message):
    with pytest.raises(UsageError, match=message):
        parse_classes(text, ANIMALS)


@settings(deadline=None)
@given(st.lists(st.sampled_from(range(len(ANIMALS))), min_size=1))
def test_names_read_back_as_their_numbers(numbers):
    assert parse_classes(",".join(ANIMALS[k] for k in numbers), ANIMALS) == list(dict.fromkeys(numbers))


ONE_TO_TEN = tuple(str(k) for k in range(1, 11))
PADDED = ("001", "002", "003")
ODD = ("c++", "dogs, wolves", "a-b", "b", "@2", "Cat", "cat", "rock & roll")


@pytest.mark.parametrize(
    ("names", "text", "expected"),
    [
        (ONE_TO_TEN, "1-3", [0, 1, 2]),
        (ONE_TO_TEN, "1,2,3", [0, 1, 2]),
        (ONE_TO_TEN, "10", [9]),
        (ONE_TO_TEN, "@1", [1]),
        (ONE_TO_TEN, "@1-3", [1, 2, 3]),
        (ONE_TO_TEN, "@1 - @3,1", [1, 2, 3, 0]),
        (ONE_TO_TEN, "0", [0]),  # no name, so a number
        (PADDED, "001-002", [0, 1]),
        (("00", "01", "02"), "1-2", [1, 2]),  # the same by name and by number
        (("cat", "dog", "fox"), "Cat-dog,fox", [0, 1, 2]),
        (("cafe\u0301", "tea"), "caf\u00e9", [0]),
        (("caf\u00e9", "tea"), "CAFE\u0301", [0]),
        (ODD, "c++", [0]),
        (ODD, "dogs, wolves", [1]),
        (ODD, "b,dogs, wolves,c++", [3, 1, 0]),
        (ODD, "a-b", [2]),
        (ODD, "a-b-b", [2, 3]),
        (ODD, "@2", [4]),  # a name goes before all else
        (ODD, "cat", [6]),
        (ODD, "Cat", [5]),
        (ODD, "ROCK  & ROLL", [7]),
        (("A,B", "a", "b"), "a,b", [1, 2]),  # exact names before those of another case
        (("a,b", "a", "b"), "a,b", [0]),  # the longest
        (("caf\udce9", "tea"), "caf\udce9", [0]),
    ],
)  # fmt: skip
def test_names_go_before_ranges_and_ranges_of_names_before_numbers(names, text, expected):
    assert parse_classes(text, names) == expected


@pytest.mark.parametrize(
    ("names", "text", "message"),
    [
        (PADDED, "1", r"may be the one called 001 or the one with the number 1: write .* or @1 for numbers"),
        (PADDED, "3", "may be the one called 003"),
        (PADDED, "0-1", "may be the one called 001"),
        (ONE_TO_TEN, "0-9", "may be the one called 1 or"),
        (ONE_TO_TEN, "@10", "give a class from 0 to 9"),
        (ONE_TO_TEN, "3-1", "runs backwards: write 1-3"),
        (ODD, "CAT", r"may be Cat \(@5\) or cat \(@6\): write the name as it is"),
        (("a", "b-c", "a-b", "c"), "a-b-c", "ambiguous"),
        (("a", "b"), "@1@2", "cannot read '@1@2'"),
        (("a", "b"), "x" * 3000, "there is no class"),
        (tuple(f"class {k}" for k in range(1000)), "cat", "and 960 more"),
    ],
)  # fmt: skip
def test_what_may_mean_two_classes_is_refused(names, text, message):
    with pytest.raises(UsageError, match=message) as error:
        parse_classes(text, names)
    assert len(str(error.value)) < 2000


def test_joined_classes_and_sequences_follow_the_same_rule():
    assert parse_targets("c+++dogs, wolves,b", ODD) == [Target((0, 1)), Target((3,))]
    assert parse_targets("1+2", ONE_TO_TEN) == [Target((0, 1))]
    assert parse_sequence("1-2,10", ONE_TO_TEN)[-1] == Target((9,), ((0,), (1,)))


@settings(deadline=None)
@given(st.text(alphabet="ab-+,@12 ", max_size=20), st.lists(st.text(alphabet="ab-+,@12", min_size=1), min_size=1))
def test_any_text_is_read_as_classes_or_refused(text, names):
    for parse in (parse_classes, parse_targets, parse_sequence):
        try:
            parse(text, names)
        except UsageError as error:
            assert "\n" not in str(error)


def test_a_long_text_is_read_in_a_moment():
    with pytest.raises(UsageError):
        parse_classes("a-" * 60_000, ("a-b", "a"))
