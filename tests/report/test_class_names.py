"""Classes are called by their names wherever a reader meets them."""

import base64
import io
import itertools
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from tests.conftest import draw_all, fake_record, stated
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.values import target_name
from unlearnbench.report.figures.style import LONGEST, class_ticks
from unlearnbench.report.html import page
from unlearnbench.report.tables.controls import alarms
from unlearnbench.report.tables.every import all_tables
from unlearnbench.store.cell import Target

PETS = ("cat", "dog", "bird")
MANY = tuple(f"the {k}th of many kinds" for k in range(100))


def strip():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 64), dtype=np.uint8)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def record(method, c, names, **more):
    n = len(names)
    confusion = np.eye(n, n + 1, dtype=int).tolist()
    images = {"forget": {"class": c, "png": strip()}, "retain": {"class": (c + 1) % n, "png": strip()}}
    made = fake_record(
        method, c, images=images, more={"seen": {"value": 1.0, "detail": {"confusion": confusion}}}, **more
    )
    return replace(made, dataset={**made.dataset, "class_names": list(names)})


def board(names, classes=range(3)):
    return boards([record(m, c, names) for m in ("alpha", "beta") for c in classes])["digits"]


@pytest.fixture
def drawn(request):
    figures = draw_all(board(*request.param))
    for figure in figures.values():
        figure.canvas.draw()
    yield figures
    plt.close("all")


def ticks(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (Target((0,)), "cat"),
        (Target((0, 2)), "cat+bird"),
        (Target((2,), ((0,), (1,))), "bird after cat, dog"),
        (Target((7,)), "7"),
    ],
)
def test_a_target_is_called_by_its_classes(target, name):
    assert target_name(target, PETS) == name
    assert target_name(target, ()) == target.label == target_name(target, [str(k) for k in range(9)])


@pytest.mark.parametrize("drawn", [(PETS,)], indirect=True)
def test_figures_have_names(drawn):
    assert ticks(drawn["heatmaps"].axes[0].xaxis) == list(PETS)
    panels = drawn["confusion"].axes
    assert ticks(panels[0].yaxis) == list(PETS) and [*PETS, "x"] in [ticks(axes.xaxis) for axes in panels]
    titles = [axes.get_title() for axes in drawn["samples"].axes]
    assert titles == ["forget class cat", "retained class dog"]
    assert [axes.get_title() for axes in drawn["samples-all"].axes] == list(PETS)


@pytest.mark.parametrize(
    "drawn", [(MANY, range(100)), (("a name that nobody can read at once " * 3,) * 4,)], indirect=True
)
def test_many_and_long_names_neither_overlap_nor_stick_out(drawn):
    for name in ("heatmaps", "confusion"):
        figure = drawn[name]
        renderer = figure.canvas.get_renderer()
        for axes in figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                labels = [label for label in axis.get_ticklabels() if label.get_text() and label.get_visible()]
                assert all(len(label.get_text()) <= LONGEST or axis is axes.yaxis for label in labels)
                boxes = [label.get_window_extent(renderer) for label in labels]
                assert all(figure.bbox.padded(1).contains(*corner) for box in boxes for corner in box.corners())
                starts = sorted((box.x0, box.x1) if axis is axes.xaxis else (box.y0, box.y1) for box in boxes)
                assert all(a[1] <= b[0] + 1 for a, b in itertools.pairwise(starts))


def test_numbers_stay_level_and_names_are_upright_where_they_find_no_room():
    assert not class_ticks([str(k) for k in range(10)], 2).upright
    assert (
        class_ticks([str(k) for k in range(100)], 2).step > 1
        and not class_ticks([str(k) for k in range(100)], 2).upright
    )
    assert not class_ticks(PETS, 2).upright
    long = class_ticks(MANY, 5)
    assert long.upright and long.space > 0.5 and 5 / (len(MANY) / long.step) >= 0.08


def test_page_tables_and_alarms_have_names():
    weak = record("original", 0, PETS, role="reference", truth={"forgetting": False})
    weak.metrics["fake_ua"]["boundary"] = 50.0
    found = boards([*[record("alpha", c, PETS) for c in range(3)], weak])["digits"]
    assert "UA (class cat, seed 0)" in alarms(found)[0]
    captions = [table.caption for table in all_tables(found) if "Dataset:" in table.caption]
    assert all("forget classes cat" in caption for caption in captions)
    efficiency = next(table for table in all_tables(found) if table.name == "efficiency")
    assert efficiency.rows[:3] == ["0 cat", "1 dog", "2 bird"]  # numbers too: options take both
    assert "cat, dog, bird; 1 seed" in (html := page({"pets": found}, []))
    for text in ("Alpha, class dog:", ">cat</", "retained class dog", "after forgetting bird"):
        assert text in html


def test_many_classes_are_counted_in_captions():
    assert "Forget classes 0-99" in stated(board(MANY, range(100)))
