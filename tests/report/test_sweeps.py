"""Figures of ablations: what is drawn are the records' numbers."""

import io
import itertools
import statistics
from dataclasses import replace

import numpy as np
import pytest
from matplotlib import pyplot as plt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from tests.conftest import draw_all, fake_record, reading
from tests.report.test_report import board, images, store
from tests.report.test_robustness import attacked
from unlearnbench.report.data.curves import loss_curve, mean_curves
from unlearnbench.report.data.sweeps import find_sweeps, spell
from unlearnbench.report.figures import drawing
from unlearnbench.report.figures.drawing import FIGURE_WORDS
from unlearnbench.report.figures.heatmaps import heatmaps
from unlearnbench.report.figures.style import HIGHEST, PAGE
from unlearnbench.report.figures.sweep import frame, sweep
from unlearnbench.report.figures.timesteps import timesteps
from unlearnbench.report.render import render

X = (0, 1, 10, 50)


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


def numbers(x, target, c):
    """Return the made-up (FID, UA) of a cell."""
    return 4.0 + x / 10 + 2 * (target == "b") + c, 80.0 - x / 2 + 5 * (target == "b") - 3 * c


def cell(x, target="a", c=0, method="alpha", changed=None, **fields):
    fid, ua = numbers(x, target, c)
    settings = {"x": x, "target": target, "steps": 10}
    changed = {"x": x, "target": target} if changed is None else changed
    return fake_record(method, c, fid=fid, ua=ua, settings=settings, overrides=changed, **fields)


def crossed(classes=(0, 1)):
    return [cell(x, target, c) for x in X for target in "ba" for c in classes]


def original(fid=3.0, ua=1.0, c=0):
    return fake_record("original", c, role="reference", fid=fid, ua=ua)


def panel(figure, name, index=0):
    return [axes for axes in figure.axes if axes.get_label() == name][index]


def marked(axes):
    """Return the labels, without the thin lines to their points."""
    return [text for text in axes.texts if text.get_text()]


def lines(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


class TestSweep:
    def test_the_trajectory_is_the_records_means_in_the_order_of_the_value(self):
        drawn = lines(panel(sweep(board(crossed())), "both"))
        assert list(drawn) == ["a", "b"]
        for target in "ab":
            expected = [np.mean([numbers(x, target, c) for c in (0, 1)], axis=0) for x in X]
            np.testing.assert_allclose(drawn[target].get_xydata(), expected)

    def test_every_point_bears_its_value(self):
        texts = marked(panel(sweep(board(crossed())), "both"))
        assert [text.get_text() for text in texts] == ["0", "1", "10", "50"] * 2
        np.testing.assert_allclose(texts[1].xy, np.mean([numbers(1, "a", c) for c in (0, 1)], axis=0))

    def test_points_that_coincide_bear_their_value_once(self):
        same = [replace_fid(cell(x, target), 5.0 + x) for x in X for target in "ab"]
        for record in same:
            record.metrics["fake_ua"]["value"] = 50.0
        figure = sweep(board(same))
        assert [text.get_text() for text in marked(panel(figure, "both"))] == ["0", "1", "10", "50"]
        assert len(lines(panel(figure, "both"))) == 2

    def test_lines_bear_the_values_they_differ_by_and_the_heading_the_settings(self):
        figure = sweep(board(crossed()))
        for name in ("forgetting", "retention"):
            axes = panel(figure, name)
            ends = {line.get_color(): line.get_ydata()[-1] for line in axes.lines}
            labels = {text.get_text(): (text.get_color(), text.xy[1]) for text in marked(axes)}
            assert labels == dict(zip("ab", ends.items(), strict=True))
        assert panel(figure, "forgetting").get_title() == "Alpha: x\nlines: target"
        assert not figure.legends

    def test_labels_at_the_lines_ends_keep_a_line_apart(self):
        figure = sweep(
            board([*crossed(), original(4.0, 80.0), fake_record("noise", role="reference", fid=4.1, ua=79.9)])
        )
        for name in ("forgetting", "retention"):
            boxes = sorted((t.get_window_extent() for t in marked(panel(figure, name))), key=lambda box: box.y0)
            assert len(boxes) == 4
            assert all(upper.y0 - lower.y0 > 0.8 * lower.height for lower, upper in itertools.pairwise(boxes))
            assert not [box for box in boxes if box.x0 < panel(figure, name).bbox.x1]

    def test_one_line_has_the_look_of_its_method(self):
        b = board([cell(x) for x in X])
        (line,) = panel(sweep(b), "forgetting").lines
        own = b.styles[b.variants[0].label]
        assert (line.get_color(), line.get_marker()) == (own.colour, own.shape)
        assert not marked(panel(sweep(b), "forgetting"))

    def test_a_single_value_of_a_setting_is_no_line_of_it(self):
        records = [*crossed(), fake_record("alpha", settings={"x": 1, "target": "c", "steps": 10})]
        (one,) = find_sweeps(board(records))
        assert ([line.label for line in one.lines], one.others) == (["a", "b"], ("target",))

    def test_of_many_lines_some_are_labelled_and_the_heading_says_so(self):
        records = [
            fake_record(settings={"x": x, "y": y}, overrides={"x": x, "y": y}, fid=x + y, ua=50.0 + y)
            for x in (1, 2)
            for y in range(20)
        ]
        axes = panel(sweep(board(records)), "forgetting", 0)
        assert axes.get_title() == "Alpha: x\nlines: y; 14 of 20 labelled"
        assert len(axes.lines) == 20
        assert len(marked(axes)) == 14

    def test_each_metric_stands_over_the_values_at_equal_distances(self):
        figure = sweep(board(crossed()))
        for name, index in (("retention", 0), ("forgetting", 1)):
            axes = panel(figure, name)
            assert list(axes.get_xticks()) == [0, 1, 2, 3]
            drawn = [line.get_xydata() for line in axes.lines]
            for target, points in zip("ab", drawn, strict=True):
                heights = [statistics.fmean(numbers(x, target, c)[index] for c in (0, 1)) for x in X]
                np.testing.assert_allclose(points, np.column_stack([range(4), heights]))
        below = panel(figure, "retention")
        assert [tick.get_text() for tick in below.get_xticklabels()] == ["0", "1", "10", "50"]
        assert below.get_xlabel() == "x"

    def test_each_class_is_a_faint_line(self):
        axes = panel(sweep(board([cell(x, c=c) for x in X for c in range(3)])), "retention")
        (faint,) = axes.collections
        drawn = [segment[:, 1].tolist() for segment in faint.get_segments()]
        assert drawn == [[numbers(x, "a", c)[0] for x in X] for c in range(3)]
        assert faint.get_alpha() < 0.5

    def test_one_class_is_not_drawn_twice(self):
        figure = sweep(board([cell(x) for x in X]))
        assert not [axes.collections for axes in figure.axes if axes.collections]

    def test_seeds_are_averaged(self):
        records = [replace_fid(cell(x, seed=s), 5.0 + s) for x in (0, 1) for s in (0, 1)]
        points = lines(panel(sweep(board(records)), "both"))["Alpha"].get_xdata()
        assert list(points) == [5.5, 5.5]

    def test_the_default_is_one_of_the_values(self):
        records = [cell(0, changed={"x": 0}), cell(1, changed={}), cell(10, changed={"x": 10})]
        (one,) = find_sweeps(board(records))
        assert one.lines[0].values == (0, 1, 10)
        assert [text.get_text() for text in marked(panel(sweep(board(records)), "both"))] == ["0", "1", "10"]

    def test_a_default_and_one_other_value_are_a_sweep(self):
        assert find_sweeps(board([cell(1, changed={}), cell(10, changed={"x": 10})]))[0].values == [1, 10]

    def test_two_numeric_settings_have_panels_each(self):
        records = [
            fake_record(settings={"x": x, "lr": lr}, overrides={"x": x, "lr": lr}, fid=x + 1000 * lr, ua=50.0 + x)
            for x in (2, 10)
            for lr in (1e-4, 2.5e-4, 1e-3)
        ]
        by_name = {one.setting: one for one in find_sweeps(board(records))}
        assert [line.label for line in by_name["x"].lines] == ["0.0001", "0.00025", "0.001"]
        assert [line.label for line in by_name["lr"].lines] == ["2", "10"]
        figure = sweep(board(records))
        np.testing.assert_allclose(lines(panel(figure, "both", 0))["10"].get_xdata(), [10.1, 10.25, 11.0])
        np.testing.assert_allclose(lines(panel(figure, "both", 1))["0.001"].get_ydata(), [52, 60])

    @pytest.mark.parametrize(
        "records",
        [
            [cell(1, changed={}), fake_record("beta")],
            [cell(1, target, changed={"target": target}) for target in "ab"],
            [cell(x, target) for x, target in ((0, "a"), (1, "b"))],
            [cell(x, method=method, changed={"x": x}) for x, method in ((0, "alpha"), (1, "beta"))],
            [cell(0), cell(1, status="failed")],
        ],
        ids=["no settings", "words only", "never one setting alone", "one value each", "one value left"],
    )
    def test_nothing_swept_nothing_drawn(self, records):
        assert sweep(board(records)) is None
        assert "sweep" not in draw_all(board(records))

    def test_without_a_headline_metric_nothing_is_drawn(self):
        records = crossed()
        for record in records:
            del record.metrics["fake_ua"]
        assert sweep(board(records)) is None

    def test_failed_cells_are_left_out_and_counted(self):
        records = [cell(x, c=c, status="oom" if (x, c) == (10, 1) else "ok") for x in (0, 10) for c in (0, 1)]
        axes = panel(sweep(board(records)), "both")
        assert [text.get_text() for text in marked(axes)] == ["10 (1/2)", "0"]
        assert tuple(lines(axes)["Alpha"].get_xydata()[1]) == numbers(10, "a", 0)

    def test_a_value_that_only_failed_is_no_point(self):
        records = [cell(x, status="failed" if x == 1 else "ok") for x in X]
        assert [text.get_text() for text in marked(panel(sweep(board(records)), "both"))] == ["0", "10", "50"]

    def test_stale_cells_are_left_out(self):
        records = [cell(x, source_hash="old" if x == 50 else "new") for x in X]
        axes = panel(sweep(board(records, {"method:alpha": "new"})), "both")
        assert [text.get_text() for text in marked(axes)] == ["0", "1", "10"]

    def test_references_are_black_over_the_classes_of_the_sweep(self):
        references = [original(3.5, 79.0), original(5.5, 81.0, c=1), original(99.0, 99.0, c=2)]
        figure = sweep(board([*crossed(), *references]))
        cross = lines(panel(figure, "both"))["Original"]
        assert (cross.get_color(), cross.get_marker()) == ("black", "x")
        assert tuple(cross.get_xydata()[0]) == (4.5, 80.0)
        assert panel(figure, "forgetting").get_title().endswith("2 of 3 classes")
        for name, number, text in (("forgetting", 80.0, "Original 80.0"), ("retention", 4.5, "Original 4.50")):
            level = panel(figure, name).lines[-1]
            assert (level.get_color(), level.get_linestyle(), set(level.get_ydata())) == ("black", "--", {number})
            assert text in [label.get_text() for label in marked(panel(figure, name))]

    def test_a_reference_far_off_stands_at_the_edge_and_moves_no_frame(self):
        near = panel(sweep(board(crossed())), "both")
        figure = sweep(board([*crossed(), original(fid=400.0, ua=80.0)]))
        far = panel(figure, "both")
        assert far.get_xlim() == near.get_xlim()
        cross = lines(far)["Original"]
        assert cross.get_xdata()[0] == max(far.get_xlim())
        assert "Original ←" in [text.get_text() for text in marked(far)]
        texts = [text.get_text() for name in ("forgetting", "retention") for text in marked(panel(figure, name))]
        assert {"Original 80.0 (1/2)", "Original 400.00 (1/2) ↓"} <= set(texts)

    def test_better_is_up_and_right(self):
        figure = sweep(board(crossed()))
        assert panel(figure, "both").xaxis.get_inverted()
        assert panel(figure, "retention").yaxis.get_inverted()
        assert not panel(figure, "both").yaxis.get_inverted()
        assert not panel(figure, "forgetting").yaxis.get_inverted()

    def test_numbers_over_decades_stand_on_a_logarithmic_axis(self):
        records = [replace_fid(cell(x), 5.0 * (x + 1)) for x in X]
        figure = sweep(board(records))
        assert panel(figure, "both").get_xscale() == panel(figure, "retention").get_yscale() == "log"
        low, high = sorted(panel(figure, "both").get_xlim())
        assert low < 5.0
        assert high > 255.0
        assert panel(figure, "both").get_yscale() == "linear"


def replace_fid(record, value):
    return replace(record, metrics={**record.metrics, "fake_fid": {**record.metrics["fake_fid"], "value": value}})


def test_a_frame_holds_all_numbers_and_near_others():
    low, high = frame([10.0, 20.0], [24.0, 26.0])
    assert low < 10.0 < 20.0 < 24.0 < high < 26.0
    low, high = frame([10.0, 1000.0], [5000.0, 0.0], log=True)
    assert 0.0 < low < 10.0
    assert high > 5000.0
    low, high = frame([0.0], [])
    assert low < 0.0 < high


def test_values_are_spelt_short_and_apart():
    assert [spell(v) for v in (10.0, 0.00025, 1234567, True, "b")] == ["10", "0.00025", "1234567", "True", "b"]


EDGES = list(range(0, 1001, 100))


def loss(forget=0.5, retain=0.2):
    return {"edges": EDGES, "forget": [forget] * 9 + [forget / 2], "retain": [retain] * 10, "n": 64}


def lossy(method="alpha", c=0, entry=None, **fields):
    return replace(fake_record(method, c, **fields), timestep_loss=loss() if entry is None else entry)


def legend_words(figure):
    return [text.get_text() for text in figure.axes[0].figure.legends[0].get_texts()]


class TestTimesteps:
    def test_lines_are_the_records_means_at_the_bins_centres(self):
        entries = [loss(0.2, 0.1), loss(0.4, 0.3), loss(0.9, 0.5)]
        records = [lossy(c=c, seed=s, entry=e) for (c, s), e in zip([(0, 0), (0, 1), (1, 0)], entries, strict=True)]
        b = board(records)
        left, right = timesteps(b).axes
        forget, retain = lines(left)["Alpha"], lines(right)["Alpha"]
        assert legend_words(left.figure) == ["Alpha (3/4)"]
        assert list(forget.get_xdata()) == [50, 150, 250, 350, 450, 550, 650, 750, 850, 950]
        np.testing.assert_allclose(forget.get_ydata(), [0.6] * 9 + [0.3])  # ((0.2 + 0.4) / 2 + 0.9) / 2
        np.testing.assert_allclose(retain.get_ydata(), [0.35] * 10)
        assert (forget.get_color(), forget.get_marker()) == (b.styles["Alpha"].colour, b.styles["Alpha"].shape)

    def test_predicting_zero_is_a_grey_line_at_one(self):
        for axes in timesteps(board([lossy()])).axes:
            assert [set(line.get_ydata()) for line in axes.lines if line.get_color() == "grey"] == [{1.0}]
        assert "predicting zero" in [text.get_text() for text in axes.texts]

    def test_references_are_black_and_broken(self):
        records = [lossy("original", role="reference", entry=loss(0.05)), lossy()]
        drawn = lines(timesteps(board(records)).axes[0])
        assert (drawn["Original"].get_color(), drawn["Original"].get_linestyle()) == ("black", "--")
        assert drawn["Original"].get_ydata()[0] == 0.05
        assert drawn["Alpha"].get_color() != "black"

    @pytest.mark.parametrize(("lowest", "scale"), [(0.5, "linear"), (0.05, "log"), (0.0, "linear")])
    def test_a_decade_makes_both_panels_logarithmic(self, lowest, scale):
        assert {axes.get_yscale() for axes in timesteps(board([lossy(entry=loss(retain=lowest))])).axes} == {scale}

    def test_records_without_it_draw_nothing(self):
        assert timesteps(board([fake_record()])) is None
        assert "timesteps" not in draw_all(board([fake_record()]))

    def test_records_without_it_are_no_line_among_others(self):
        assert list(lines(timesteps(board([lossy(), fake_record("beta")])).axes[0])) == ["Alpha"]

    @pytest.mark.parametrize(
        "entry",
        [
            {"edges": EDGES},
            {**loss(), "forget": [0.5] * 9},
            {**loss(), "forget": ["much"] * 10},
            {**loss(), "retain": [None] * 10},
            {**loss(), "edges": EDGES[::-1]},
            {**loss(), "edges": 3},
            {"edges": [0], "forget": [], "retain": []},
            {**loss(), "forget": [10**400] * 10},
            [1, 2],
        ],
    )
    def test_what_cannot_be_drawn_is_left_out(self, entry):
        assert loss_curve(lossy(entry=entry)) is None
        assert timesteps(board([lossy(entry=entry)])) is None

    def test_a_bin_without_a_number_is_a_gap(self):
        entry = {**loss(), "forget": [None, *[0.5] * 9]}
        drawn = lines(timesteps(board([lossy(entry=entry)])).axes[0])["Alpha"].get_ydata()
        assert np.isnan(drawn[0])
        assert list(drawn[1:]) == [0.5] * 9

    def test_other_bins_than_the_newest_are_not_averaged_in(self):
        coarse = {"edges": [0, 500, 1000], "forget": [0.9, 0.9], "retain": [0.9, 0.9]}
        records = [lossy(c=0, entry=coarse, started="2025-01-01"), lossy(c=1, started="2026-01-01")]
        ((curve, count),) = mean_curves(board(records).numbers).values()
        assert (count, curve.forget[0]) == (1, 0.5)

    def test_failed_and_stale_cells_are_left_out(self):
        records = [
            lossy(c=0, source_hash="new"), lossy(c=1, source_hash="old", entry=loss(0.9)),
            lossy(c=2, source_hash="new", status="failed", entry=loss(0.9)),
        ]  # fmt: skip
        figure = timesteps(board(records, {"method:alpha": "new"}))
        assert lines(figure.axes[0])["Alpha"].get_ydata()[0] == 0.5
        assert legend_words(figure) == ["Alpha (1/3)"]

    def test_many_variants_have_panels_by_method(self):
        swept = [lossy(settings={"x": x}, overrides={"x": x}) for x in range(15)]
        others = [lossy("beta"), lossy("gamma"), lossy("original", role="reference")]
        axes = timesteps(board([*swept, *others])).axes
        assert [list(lines(one)) for one in axes[::2]] == [
            ["Original", "Beta", "Gamma"],
            ["Original", *[f"Alpha (x={x})" for x in range(15)]],
        ]
        assert len(timesteps(board([*swept[:8], *others])).axes) == 2

    def test_lines_of_one_method_go_from_light_to_dark_and_the_key_names_it_once(self):
        figure = timesteps(board([lossy(settings={"x": x}, overrides={"x": x}) for x in range(4)]))
        colours = [to_rgb(line.get_color()) for line in lines(figure.axes[0]).values()]
        assert [sum(colour) for colour in colours] == sorted((sum(c) for c in colours), reverse=True)
        assert len(set(colours)) == 4
        assert legend_words(figure) == ["x=0", "x=1", "x=2", "x=3"]
        assert figure.axes[0].figure.legends[0].get_title().get_text() == "Alpha"


def everything():
    """Return records of 21 variants with long labels, pictures and losses."""
    confusion = {"detail": {"confusion": [[60, 30, 10], [0, 90, 10]]}, "shows": "retention"}
    counts = {"class": 10, "other": 70, "noise": 5, "blank": 0, "unrecognised": 15}
    beta = fake_record("beta", more={"kept": confusion, "became": {"detail": {"instead": counts}}})
    path = {"a": [0.0, 1.0], "forget": [0.0, 90.0], "retain": [99.0, 97.0], "at": 1.0, "level": 95.0}
    records = [original(), fake_record("noise", role="reference", fid=400.0, ua=90.0), beta]
    for decay in X:
        for normalise in (False, True):
            for target in ("independent", "trajectory"):
                settings = {"decay": decay, "normalise_psi": normalise, "target": target}
                ua = 99.0 - decay / 2
                records.append(
                    fake_record(
                        title="A$x^$B",
                        settings=settings,
                        overrides=settings,
                        fid=9.0 - decay / 10,
                        ua=ua,
                        more={"equal": {"detail": path}},
                    )
                )
    return [replace(record, timestep_loss=loss(), images=images(0)) for record in [*records, attacked("gamma")]]


@pytest.fixture(scope="module")
def drawn():
    figures = draw_all(board(everything()))
    yield figures
    plt.close("all")


def test_nothing_sticks_out_of_the_smallest_figures():
    for figure in draw_all(board([replace(fake_record("a"), images=images(0))])).values():
        check_inside(figure)


@pytest.mark.parametrize("name", FIGURE_WORDS)
def test_nothing_sticks_out_of_a_figure_with_many_long_labels(drawn, name):
    check_inside(drawn[name])


def check_inside(figure):
    canvas = FigureCanvasAgg(figure)  # closed figures have no canvas of their own
    canvas.draw()
    everywhere = figure.get_tightbbox(canvas.get_renderer())  # inches
    assert everywhere.xmin > -0.02
    assert everywhere.ymin > -0.02
    assert everywhere.xmax < figure.get_size_inches()[0] + 0.02
    assert everywhere.ymax < figure.get_size_inches()[1] + 0.02


@pytest.mark.parametrize("name", FIGURE_WORDS)
def test_every_figure_fits_a_page_with_words_of_six_to_nine_points(drawn, name):
    width, height = drawn[name].get_size_inches()
    assert width <= PAGE + 0.01
    assert height <= HIGHEST + 0.01
    sizes = {text.get_fontsize() for text in drawn[name].findobj(Text) if text.get_text() and text.get_visible()}
    assert 5.5 <= min(sizes) <= max(sizes) <= 9


def test_heat_maps_show_the_headline_metrics_that_a_page_holds():
    more = {f"m{k:02}": {"title": f"Metric {k}", "headline": k % 2 == 0} for k in range(20)}
    shown = board([fake_record(f"row-{k}", c, more=more) for k in range(14) for c in range(3)])
    titles = [axes.get_title() for axes in heatmaps(shown, None).axes if axes.get_visible()]
    assert len(titles) > 4
    assert titles == [measure.header for measure in shown.headlines][: len(titles)]


@pytest.mark.parametrize("name", ["samples", "samples-all"])
def test_pictures_are_large_enough_to_see(drawn, name):
    FigureCanvasAgg(drawn[name]).draw()
    heights = [axes.get_window_extent().height / drawn[name].dpi for axes in drawn[name].axes]
    assert min(heights) / len(board(everything()).variants) > 0.28  # inches of one row


def test_the_trade_off_marks_each_row_by_its_look(drawn):
    styles = board(everything()).styles
    axes, figure = drawn["tradeoff"].axes[0], drawn["tradeoff"]
    marks = {dots.get_label(): to_hex(dots.get_facecolor()[0]) for dots in axes.collections if dots.get_offsets().size}
    assert {label: style.colour for label, style in styles.items()}.items() <= marks.items()
    assert {"Noise", "Original", "Beta"} <= {text.get_text() for one in figure.axes for text in one.texts}
    assert figure.legends[0].get_title().get_text() == "A$x^$B"
    assert figure.legends[0].get_texts()[0].get_text() == "1: decay=0, normalise_psi=False, target=independent"


def test_more_rows_than_a_page_holds_are_left_to_the_tables():
    records = [replace(fake_record(title=f"Row {k}", settings={"k": k}), images=images(0)) for k in range(70)]
    for name, figure in draw_all(board(records)).items():
        assert figure.get_size_inches()[1] <= HIGHEST + 0.01, name
        check_inside(figure)
        if name == "tradeoff":
            assert any("without a label" in text.get_text() for axes in figure.axes for text in axes.texts)


def test_the_page_shows_the_figures_that_exist(tmp_path, monkeypatch):
    picture = io.BytesIO()
    Image.new("RGB", (2, 2)).save(picture, "PNG")
    monkeypatch.setattr(Figure, "savefig", lambda figure, file, **how: file.write(picture.getvalue()))  # others look
    full = render(reading(store(tmp_path / "a", everything())), tmp_path / "out-a").pages[0]
    bare = render(reading(store(tmp_path / "b", [fake_record()])), tmp_path / "out-b").pages[0]
    for name, words in FIGURE_WORDS.items():
        assert f"(figures/{name}.png)\n\n{words}" in full.read_text()
        assert (full.parent / "figures" / f"{name}.png").exists()
    for name in ("sweep", "timesteps"):
        assert FIGURE_WORDS[name] not in bare.read_text()
        assert not (bare.parent / "figures" / f"{name}.png").exists()


def test_sweeps_and_timesteps_are_the_same_bytes_in_any_order(tmp_path, monkeypatch):
    monkeypatch.setattr(drawing, "FIGURES", {name: drawing.FIGURES[name] for name in ("sweep", "timesteps")})
    records = [replace(record, timestep_loss=loss()) for record in [*crossed(), original()]]
    for name, order in (("a", records), ("b", records[::-1])):
        render(reading(store(tmp_path / name, order)), tmp_path / f"out-{name}")
    for name in ("sweep", "timesteps"):
        for ending in ("png", "pdf"):
            paths = [tmp_path / f"out-{k}" / "digits" / "figures" / f"{name}.{ending}" for k in "ab"]
            assert paths[0].read_bytes() == paths[1].read_bytes()
