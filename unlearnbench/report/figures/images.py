"""Figures of samples: strips of images of each row, with the same noise in a column."""

import base64
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from numpy.typing import NDArray
from PIL import Image

from unlearnbench.report.data.array import NOT_RUN
from unlearnbench.report.data.board import Board
from unlearnbench.report.data.values import Variant, class_name
from unlearnbench.report.figures.style import (
    HIGHEST,
    LETTER,
    MOST_LETTERS,
    PAGE,
    SHORTEST,
    SMALL,
    Canvas,
    canvas,
    names_of,
    shorten,
)
from unlearnbench.store.cell import Target
from unlearnbench.store.pictures import open_png
from unlearnbench.store.records import Record

Images = list[NDArray[np.uint8]]  # square ones of one row, from left to right
FRAME = "0.55"  # grey of the frames and the hatching
MOST_STRIP_PIXELS = 2**21


IMAGE_INCHES = (0.2, 0.42)  # least and most of a picture's side


SAMPLES_PER_CLASS = 2  # images of each forget class in the overview


MOST_CLASSES_PICTURED = 10  # in the overview


def read_strip(entry: Mapping[str, object]) -> tuple[bytes, Image.Image] | None:
    """Return a record's strip of square images, as PNG and decoded; None where it is anything else."""
    try:
        content = base64.b64decode(str(entry["png"]), validate=True)
        picture = open_png(content)
    except (ValueError, KeyError):
        return None
    width, height = picture.size
    return None if width % height or width * height > MOST_STRIP_PIXELS else (content, picture)


def _split(picture: Image.Image, most: int | None = None) -> Images:
    """Return the first square images of a strip, each (H, W, 3)."""
    pixels = np.asarray(picture)
    return np.split(pixels, pixels.shape[1] // pixels.shape[0], axis=1)[:most]


def _pictured(board: Board, variant: Variant, target: Target) -> tuple[Record, dict[str, Image.Image]] | None:
    """Return the first record with readable pictures, including those of the forget class."""
    for record in board.numbers.sound(variant, target):
        if "forget" in record.images:
            strips = {stream: read_strip(entry) for stream, entry in record.images.items()}
            read = {stream: strip[1] for stream, strip in strips.items() if strip is not None}
            if len(read) == len(strips):
                return record, read
    return None


def samples(board: Board, parent: Canvas | None = None, only: Sequence[Variant] = ()) -> Canvas | None:
    """Samples of one forget class and of one retained class, methods down; a column is one initial noise."""
    shown = only or board.variants
    for target in board.targets:
        pictured = {v: pair for v in shown if (pair := _pictured(board, v, target)) is not None}
        if pictured:
            break
    else:
        return None
    streams = [s for s in ("forget", "retain") if all(s in pictures for _, pictures in pictured.values())]
    first = next(iter(pictured.values()))[0]
    headers = [shorten(stream_name(board, stream, first.images[stream]), MOST_LETTERS // 2) for stream in streams]
    rows: list[list[Images | str]] = [
        [_split(pictured[v][1][stream]) if v in pictured else _why_none(board, v, target) for stream in streams]
        for v in shown
    ]
    return _strip_grid([variant.label for variant in shown], rows, headers, parent)


def samples_overview(board: Board, parent: Canvas | None = None, only: Sequence[Variant] = ()) -> Canvas | None:
    """The first samples of the first forget classes, methods down, forget classes across."""
    shown = only or board.variants
    pictured = {(v, t): pair for v in shown for t in board.targets if (pair := _pictured(board, v, t))}
    if not pictured:
        return None
    targets = [t for t in board.targets if any(key[1] == t for key in pictured)][:MOST_CLASSES_PICTURED]
    rows: list[list[Images | str]] = [
        [_split(pictured[v, t][1]["forget"], SAMPLES_PER_CLASS) if (v, t) in pictured else _why_none(board, v, t)
         for t in targets]
        for v in shown
    ]  # fmt: skip
    most = max(SHORTEST, int((PAGE - names_of(v.label for v in shown)[1]) / len(targets) / LETTER))
    headers = [shorten(board.name_of(target), most) for target in targets]
    return _strip_grid([v.label for v in shown], rows, headers, parent)


def _why_none(board: Board, variant: Variant, target: Target) -> str:
    """Return the words in place of pictures."""
    word = board.numbers.why_none(variant, target)
    return {NOT_RUN: "not run", "n/a": "no pictures"}.get(word, word)


def stream_name(board: Board, stream: str, entry: Mapping[str, object]) -> str:
    """Return the title of a record's pictures: the forget class or a retained one, by name."""
    number = entry.get("class", "")
    name = class_name(number, board.class_names) if isinstance(number, int) else str(number)
    return f"{'forget class' if stream == 'forget' else 'retained class'} {name}".strip()


def _strip_grid(
    labels: Sequence[str], rows: Sequence[Sequence[Images | str]], headers: Sequence[str], parent: Canvas | None = None
) -> Canvas:
    """Return a figure of labelled rows of images under headers; where there are none, a hatched place with the reason.

    Images are as large as width and height of a page allow, within IMAGE_INCHES; all rows fit the page. A column is one
    picture, since separate axes for each strip would take seconds.
    """
    known = [images for row in rows for images in row if not isinstance(images, str)]
    side, most = max(images[0].shape[0] for images in known), max(map(len, known))
    space, pitch = max(1, side // 16), side + max(1, side // 8)  # pixels between images, and from row to row
    wide = most * (side + space) - space
    names, left = names_of(labels)
    left *= (SMALL + 0.5) / 7
    least, largest = IMAGE_INCHES
    image = min((PAGE - left - 0.1 * len(headers)) * side / (wide * len(headers)), largest)
    image = max(min(image, (HIGHEST - 0.3) / len(rows) * side / pitch), least)
    shown = min(len(rows), int((HIGHEST - 0.3) / (image * pitch / side)))
    width = max(image * wide / side, LETTER * max(map(len, headers)))
    size = (left + (width + 0.1) * len(headers), 0.3 + image * pitch / side * shown)
    figure = canvas(parent, size, layout=None)
    panels = figure.subplots(1, len(headers), squeeze=False)[0]
    if parent is None:
        figure.subplots_adjust(left=left / size[0], right=0.995, bottom=0.01, top=1 - 0.2 / size[1], wspace=0.1 / width)
    for axes, header, column in zip(panels, headers, zip(*rows[:shown], strict=True), strict=True):
        _draw_column(axes, column, (side, wide, space, pitch), width)
        axes.set_title(header, fontsize=SMALL + 1, pad=2)
    panels[0].set_yticks([pitch * k + side / 2 for k in range(shown)], names[:shown], fontsize=SMALL)
    return figure


def _draw_column(axes: Axes, column: Sequence[Images | str], lengths: tuple[int, int, int, int], inches: float) -> None:
    """Draw the images of several rows as one picture, each in a frame, and a hatched place for each missing row.

    Args:
        axes: to draw on.
        column: images, or a reason, from top to bottom.
        lengths: in pixels: an image's side, a row's width, the space between images, the distance of rows.
        inches: the width of a row.
    """
    side, wide, space, pitch = lengths
    sheet = np.full(((len(column) - 1) * pitch + side, wide, 3), 255, dtype=np.uint8)
    frames, missing = [], []
    for row, images in enumerate(column):
        top = row * pitch
        if isinstance(images, str):
            missing.append(_corners(0, top, wide, side))
            if LETTER * len(images) < inches:
                axes.text(
                    wide / 2, top + side / 2, images, ha="center", va="center", fontsize=SMALL, color="0.35",
                    bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
                )  # fmt: skip
            continue
        for k, image in enumerate(images):
            height, start = image.shape[0], k * (side + space)
            sheet[top : top + height, start : start + height] = image
            frames.append(_corners(start, top, height, height))
    axes.imshow(sheet, interpolation="nearest", extent=(0, wide, len(sheet), 0))
    axes.add_collection(PolyCollection(frames, facecolors="none", edgecolors=FRAME, linewidths=0.4, clip_on=False))
    axes.add_collection(
        PolyCollection(missing, facecolors="none", edgecolors=FRAME, linewidths=0.4, hatch="////", clip_on=False)
    )
    axes.set(xticks=[], yticks=[], frame_on=False)
    axes.grid(visible=False)


def _corners(left: float, top: float, width: float, height: float) -> list[tuple[float, float]]:
    return [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]
