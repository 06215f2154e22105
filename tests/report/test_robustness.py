"""Robustness in reports: forgetting before and after attacks, beside a gold standard, and out of every other table."""

import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from tests.conftest import draw_all, fake_record, reading
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.values import Value
from unlearnbench.report.figures import drawing
from unlearnbench.report.figures.robustness import robustness
from unlearnbench.report.render import render
from unlearnbench.report.tables.controls import alarms, check_tables
from unlearnbench.report.tables.every import all_tables
from unlearnbench.report.tables.robustness import robustness_tables
from unlearnbench.report.verify import verify
from unlearnbench.report.write.latex import to_latex
from unlearnbench.report.write.markdown import to_markdown
from unlearnbench.store.records import ResultStore

GOLD = {"forgetting": True, "retention": True}
STEPS = [0, 10, 20]


def curve(*after, back=None, area=80.0):
    return {"before": after[0], "steps": STEPS, "after": list(after), "steps_until_back": back, "area": area}


def attacked(method="alpha", c=0, *, sweep=90.0, tuned=40.0, detail=None, threshold=None, ua=95.0, **fields):
    """Return a record with two attacks: a sweep, and one with a curve over steps."""
    checked = {} if threshold is None else {"boundary": threshold}
    entries = {
        "attack_sweep": {"value": sweep, "n": 50, "title": "Sweep", "shows": "robustness", **checked},
        "attack_tune": {
            "value": tuned, "n": 50, "title": "Tune", "shows": "robustness",
            "detail": detail or curve(100.0, 60.0, tuned, back=20, area=65.0),
        },
    }  # fmt: skip
    return fake_record(method, c, ua=ua, more=entries, **fields)


def board(records):
    return boards(records)["digits"]


def table(records, name="robustness"):
    return next(found for found in robustness_tables(board(records)) if found.name == name)


def numbers(values):
    return [value.number for value in values]


def test_values_by_hand():
    records = [attacked(c=0, sweep=90.0), attacked(c=1, sweep=70.0, ua=85.0), attacked("gold", 0, role="gold", ua=99.0)]
    found = table([*records, attacked("gold", 1, role="gold", ua=97.0, sweep=100.0)])
    assert found.rows == ["Gold", "Alpha"]
    assert found.flat_headers() == ["Cells", "Before UA (%) ↑", "After Sweep (%) ↑", "After Tune (%) ↑"]
    assert numbers(found.values[1]) == [None, 90.0, 80.0, 40.0]
    assert numbers(found.values[0]) == [None, 98.0, 95.0, 40.0]
    assert [row[0].word for row in found.values] == ["2/2", "2/2"]
    assert "Gold was never trained on the class: an attack that succeeds there is no evidence of " in found.caption
    assert "samples per cell UA n=100, Sweep n=50, Tune n=50" in found.caption


def test_intervals_are_of_the_attacked_cells():
    found = table([attacked(sweep=90.0)])
    low, high = found.values[0][2].interval
    assert 78 < low < 90 < high < 97  # Wilson's for 45 of 50


def test_cells_without_attacks_leave_no_gap_and_those_of_another_method_do():
    plain = [fake_record("alpha", c, ua=10.0) for c in (1, 2)]
    found = table([attacked(c=0), *plain, fake_record("beta", 0)])
    assert found.rows == ["Alpha"]
    assert (found.values[0][0].word, found.values[0][1].number, found.values[0][1].gap) == ("1/1", 95.0, "")
    assert "Forget classes 0, seed 0" in found.caption
    uneven = table([attacked(c=0), attacked(c=1), attacked("beta", 0)])
    assert [(row[0].word, row[2].gap) for row in uneven.values] == [("2/2", ""), ("1/2", " (1/2)")]


def test_the_best_share_their_mark_where_another_is_separably_worse():
    records = [attacked(m, c, sweep=s + c / 10) for m, s in (("a", 90.0), ("b", 40.0)) for c in range(8)]
    found = table(records)
    assert [row[2].best for row in found.values] == [True, False]
    assert "Bold:" in to_markdown(found)


def test_without_a_gold_standard_a_sentence_says_what_to_do():
    assert "No gold standard is among the rows" in table([attacked()]).caption
    assert "add one to --methods by name" in table([attacked()], "relearning").caption


def test_relearning_by_hand():
    never = curve(100.0, 100.0, 100.0, area=100.0)
    records = [
        attacked("a", 0), attacked("a", 1, detail=curve(100.0, 30.0, 0.0, back=10, area=35.0)),
        attacked("b", 0, detail=never), attacked("b", 1, detail=never), attacked("c", 0),
        attacked("c", 1, detail=never),
    ]  # fmt: skip
    found = table(records, "relearning")
    assert found.flat_headers() == ["Tune steps until back ↑", "Tune area (%) ↑"]
    assert numbers(found.values[0]) == [15.0, 50.0]
    assert (found.values[1][0].word, found.values[1][1].number) == ("never in 20", 100.0)
    assert (found.values[2][0].word, found.values[2][1].number) == ("never in 20", 82.5)  # never is later than all
    half = [*records[:2], attacked("c", 0)]
    assert table(half, "relearning").values[1][0] == Value(20.0, ok=1, expected=2)


@pytest.mark.parametrize(
    "detail", [{"steps": STEPS}, curve(1.0, 2.0), {**curve(1.0, 2.0, 3.0), "area": "wide"}, {"levels": [1]}]
)
def test_a_curve_that_cannot_be_read_is_left_out(detail):
    assert [found.name for found in robustness_tables(board([attacked(detail=detail)]))] == ["robustness"]


def test_an_area_is_a_share_and_so_is_its_interval():
    records = [
        attacked(c=c, detail=curve(100.0, 100.0, 100.0, area=area)) for c, area in enumerate((100.0, 99.0, 20.0))
    ]
    values = table(records, "relearning").values[0]
    low, high = values[1].interval
    assert 0.0 <= low < values[1].number < high <= 100.0


def test_attacks_stay_out_of_every_other_table_and_figure():
    def others(records):
        shown = [t for t in all_tables(board(records)) if t.name not in ("robustness", "relearning")]
        return {t.name: (t.rows, t.flat_headers(), t.texts()) for t in shown}

    known = {"role": "reference", "truth": {"forgetting": False, "retention": True}}
    controls = [fake_record("original", role="reference", truth=known["truth"]), fake_record("noise", role="control",
                truth={"forgetting": True})]  # fmt: skip
    with_attacks, without = others([attacked(), *controls]), others([fake_record(ua=95.0), *controls])
    assert with_attacks == without
    assert [measure.key for measure in board([attacked()]).metrics] == ["fake_ua", "fake_fid"]


def test_no_attack_no_table_no_figure():
    plain = board([fake_record()])
    assert robustness_tables(plain) == []
    drawn = draw_all(plain)
    assert not {"robustness", "relearning"} & set(drawn)
    plt.close("all")


def test_the_figures_show_every_attack_and_the_gold_standard():
    records = [attacked(m, c, role=r) for m, r in (("alpha", "method"), ("gold", "gold")) for c in range(3)]
    figure = robustness(board(records))
    assert isinstance(figure, Figure)
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["Sweep", "Tune"]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["Gold", "Alpha"]
    shapes = [style.shape for style in board(records).styles.values()]
    dots = [line for line in panels[0].lines if line.get_marker() in shapes]
    assert sorted(float(line.get_xdata()[0]) for line in dots) == [90.0, 90.0, 95.0, 95.0]
    assert sum(line.get_markerfacecolor() == "white" for line in dots) == 2
    assert panels[0].get_xlim() == (0, 100)
    assert not any(line.get_clip_on() for line in dots)
    key = figure.legends[0]
    words = [text.get_text() for text in key.get_texts()]
    assert words == ["before the attack", "after it", "gold standard after it", "its 95 % interval"]
    assert [mark.get_markerfacecolor() for mark in key.get_lines()[:2]] == ["white", "black"]
    assert [list(line.get_xdata()) for line in panels[0].lines if line.get_linestyle() == "--"] == [[90.0, 90.0]]
    lines = draw_all(board(records))["relearning"].axes[0].lines
    assert list(lines[0].get_ydata()) == [100.0, 60.0, 40.0]
    plt.close("all")


def test_a_gold_standard_that_gives_in_is_an_alarm_and_a_method_is_not():
    fine = [attacked("gold", role="gold", truth=GOLD, threshold=50.0), attacked("alpha", sweep=3.0, threshold=50.0)]
    assert alarms(board(fine)) == []
    wrong = [attacked("gold", role="gold", truth=GOLD, threshold=50.0, sweep=20.0)]
    assert alarms(board(wrong)) == [
        "Gold forgets, but Sweep (class 0, seed 0) is 20.0%, on the wrong side of 50.0%"
    ]  # fmt: skip
    control = next(t for t in check_tables(board(wrong)) if t.name == "controls")
    assert control.values[0][-1].word == "WRONG in 1"
    reference = attacked("original", role="reference", truth={"forgetting": False}, threshold=50.0, sweep=90.0)
    assert alarms(board([reference])) == []


@pytest.mark.parametrize("ending", ["md", "tex"])
def test_the_tables_verify(tmp_path, monkeypatch, ending):
    shown = {name: drawing.FIGURES[name] for name in ("robustness", "relearning")}
    monkeypatch.setattr(drawing, "FIGURES", shown)
    store = ResultStore(tmp_path / "results")
    records = [attacked(m, c, role=r, sweep=80.0 + c) for m, r in (("a", "method"), ("g", "gold")) for c in range(3)]
    for record in [*records, fake_record("a", 4), fake_record("b", 4)]:
        store.append(record)
    render(reading(tmp_path / "results"), tmp_path / "reports")
    for name in ("robustness", "relearning"):
        path = tmp_path / "reports" / "digits" / "tables" / f"{name}.{ending}"
        verdict = verify(path, reading(tmp_path / "results"))
        assert verdict.holds, verdict.lines
        path.write_text(path.read_text().replace("81.0", "91.0").replace("65.0", "95.0"))
        assert not verify(path, reading(tmp_path / "results")).holds
    page = (tmp_path / "reports" / "digits" / "report.md").read_text()
    assert "figures/robustness.png" in page and "figures/relearning.png" in page


def test_words_survive_latex():
    never = attacked(detail=curve(100.0, 100.0, 100.0, area=100.0))
    assert "never in 20" in to_latex(table([never, attacked("b")], "relearning"))
