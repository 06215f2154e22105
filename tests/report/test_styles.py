"""One look for a method in every report, and marks for the rows that share it."""

from hypothesis import given
from hypothesis import strategies as st

from unlearnbench.plugins.registry import Registry
from unlearnbench.report.data.styles import COLOURS, MARKS, REFERENCES, styles_of
from unlearnbench.report.data.values import Variant
from unlearnbench.report.html import SHAPES


def row(method, settings="", role="method"):
    return Variant(method, settings, f"{method} {settings}".strip(), role)


BUILT_IN = sorted(spec.name for spec in Registry().select_methods("all") if spec.role == "method")


def test_every_built_in_method_has_a_style_that_no_other_one_has():
    styles = list(styles_of(map(row, BUILT_IN)).values())
    assert len(set(styles)) == len(BUILT_IN)
    assert all(sum(style.colour == colour for style in styles) <= 3 for colour in COLOURS)


@given(st.lists(st.sampled_from(BUILT_IN), unique=True, min_size=1))
def test_a_method_looks_the_same_whatever_other_rows_there_are(names):
    together = styles_of(map(row, names))
    assert all(together[name] == styles_of([row(name)])[name] for name in names)


def test_names_that_give_one_style_differ_as_long_as_there_are_styles():
    found = styles_of(row(f"method {k}") for k in range(40))
    assert len(set(found.values())) == 40
    assert len(set(styles_of(row(f"method {k}") for k in range(41)).values())) == 40  # two of them look alike


def test_rows_of_one_method_share_its_colour_and_differ_by_their_mark():
    rows = [row("safemax"), *[row("safemax", f"x={k}") for k in range(8)], row("erasediff"), row("sa")]
    found = styles_of(rows)
    own = styles_of([row("safemax")])["safemax"]
    styles = [found[variant.label] for variant in rows[:9]]
    assert styles[0] == own
    assert {style.colour for style in styles} == {own.colour}
    assert len({style.shape for style in styles}) == 9
    assert len(set(found.values())) == len(rows)


def test_more_rows_than_marks_repeat_them_evenly():
    found = styles_of(row("safemax", f"x={k}") for k in range(30))
    counts = [sum(style.shape == mark for style in found.values()) for mark in MARKS]
    assert counts == [3] * len(MARKS)


def test_references_are_grey_and_the_page_can_draw_every_mark():
    found = styles_of([row("original", role="reference"), row("retrain", role="gold")])
    assert not {style.colour for style in found.values()} & set(COLOURS)
    assert set(SHAPES) == {*MARKS, *(shape for _, shape in REFERENCES.values())}
