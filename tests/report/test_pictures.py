"""Figures of samples: each image in a frame, and a hatched place where there is none."""

import base64
import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from tests.conftest import fake_record
from unlearnbench.report.data.board import boards
from unlearnbench.report.figures.images import samples, samples_overview


def strip(*shades, side=8):
    """Return a strip of images of one shade each."""
    buffer = io.BytesIO()
    pixels = np.repeat(np.array([shades], dtype=np.uint8), side, axis=1).repeat(side, axis=0)
    Image.fromarray(pixels).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def record(method, c, *shades, **fields):
    images = {stream: {"class": c, "png": strip(*shades)} for stream in ("forget", "retain")} if shades else None
    return fake_record(method, c, images=images, **fields)


@pytest.fixture
def board():
    """Alpha has both classes, beta one, gamma failed in both, and delta kept no pictures."""
    records = [record("alpha", 0, 10, 20, 30), record("alpha", 1, 40, 50, 60), record("beta", 1, 255, 255, 255)]
    records += [record("gamma", c, status="oom") for c in (0, 1)]
    yield boards([*records, record("delta", 0)])["digits"]
    plt.close("all")


def parts(axes):
    """Return the frames' and the hatched places' corners as (left, top, right, bottom), and the words on the latter."""
    frames, missing = ([[*p.vertices.min(0), *p.vertices.max(0)] for p in c.get_paths()] for c in axes.collections)
    return frames, missing, [text.get_text() for text in axes.texts]


def test_every_image_has_a_frame_around_its_pixels(board):
    axes = samples(board).axes[0]
    frames, missing, words = parts(axes)
    sheet = axes.images[0].get_array()
    assert [shade for left, top, *_ in frames if (shade := int(sheet[int(top), int(left), 0]))] == [10, 20, 30]
    assert all(right - left == bottom - top == 8 for left, top, right, bottom in frames)
    assert axes.collections[0].get_linewidths()[0] > 0
    assert len(missing) == 3
    assert words == ["not run", "no pictures", "oom"]  # beta, delta and gamma


def test_a_row_without_any_picture_stays(board):
    figure = samples_overview(board)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["Alpha", "Beta", "Delta", "Gamma"]
    found = [parts(axes) for axes in figure.axes]
    assert [len(frames) for frames, *_ in found] == [2, 4]
    assert [words for *_, words in found] == [["not run", "no pictures", "oom"], ["not run", "oom"]]
    assert all(axes.collections[1].get_hatch() for axes in figure.axes)


def test_white_images_differ_from_missing_ones(board):
    frames, missing, _ = parts(samples_overview(board).axes[1])
    white = frames[2:]
    assert {top for _, top, *_ in white}.isdisjoint({top for _, top, *_ in missing})


def test_without_a_picture_there_is_no_figure():
    plain = boards([record("alpha", 0)])["digits"]
    assert samples(plain) is None
    assert samples_overview(plain) is None
