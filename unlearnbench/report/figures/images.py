"""Figures of samples: strips of images of each row, with the same noise in a column."""

import base64
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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


def _strip(picture: Image.Image, most: int | None = None) -> NDArray[np.uint8]:
    """Return a strip of square images as (H, W, 3), with a white gap between the images."""
    pixels = np.asarray(picture)
    side = pixels.shape[0]
    images = np.split(pixels, pixels.shape[1] // side, axis=1)[:most]
    gap = np.full_like(pixels[:, : max(1, side // 16)], 255)
    parts = [part for image in images for part in (gap, image)][1:]
    return np.concatenate(parts, axis=1)


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
        pictured = [(v, *pair) for v in shown if (pair := _pictured(board, v, target)) is not None]
        if pictured:
            break
    else:
        return None
    streams = [name for name in ("forget", "retain") if all(name in pictures for *_, pictures in pictured)]
    strips = [[_strip(pictures[stream]) for stream in streams] for *_, pictures in pictured]
    entries = [(stream, pictured[0][1].images[stream]) for stream in streams]
    headers = [shorten(stream_name(board, stream, entry), MOST_LETTERS // 2) for stream, entry in entries]
    return _strip_grid([variant.label for variant, *_ in pictured], strips, headers, parent)


def samples_overview(board: Board, parent: Canvas | None = None, only: Sequence[Variant] = ()) -> Canvas | None:
    """The first samples of the first forget classes, methods down, forget classes across."""
    shown = only or board.variants
    pictured = {(v, t): pair for v in shown for t in board.targets if (pair := _pictured(board, v, t))}
    if not pictured:
        return None
    variants = [v for v in shown if any(key[0] == v for key in pictured)]
    targets = [t for t in board.targets if any(key[1] == t for key in pictured)][:MOST_CLASSES_PICTURED]
    strips = [
        [_strip(pictured[v, t][1]["forget"], SAMPLES_PER_CLASS) if (v, t) in pictured else None for t in targets]
        for v in variants
    ]
    most = max(SHORTEST, int((PAGE - names_of(v.label for v in variants)[1]) / len(targets) / LETTER))
    headers = [shorten(board.name_of(target), most) for target in targets]
    return _strip_grid([v.label for v in variants], strips, headers, parent)


def stream_name(board: Board, stream: str, entry: Mapping[str, object]) -> str:
    """Return the title of a record's pictures: the forget class or a retained one, by name."""
    number = entry.get("class", "")
    name = class_name(number, board.class_names) if isinstance(number, int) else str(number)
    return f"{'forget class' if stream == 'forget' else 'retained class'} {name}".strip()


def _strip_grid(
    labels: Sequence[str], strips: Sequence[Sequence[NDArray[np.uint8] | None]], headers: Sequence[str],
    parent: Canvas | None = None,
) -> Canvas:  # fmt: skip
    """Return a figure of labelled rows of strips under headers; None leaves a place empty.

    Images are as large as width and height of a page allow, within IMAGE_INCHES; all rows fit the page. A column is one
    picture, since separate axes for each strip would take seconds.
    """
    shapes = [strip.shape for row in strips for strip in row if strip is not None]
    side, wide = max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)
    gap = max(1, side // 8)  # pixels between rows
    names, left = names_of(labels)
    least, most = IMAGE_INCHES
    image = min((PAGE - left - 0.1 * len(headers)) * side / (wide * len(headers)), most)
    image = max(min(image, (HIGHEST - 0.3) / len(strips) * side / (side + gap)), least)
    pitch = image * (side + gap) / side
    rows = min(len(strips), int((HIGHEST - 0.3) / pitch))
    width = max(image * wide / side, LETTER * max(map(len, headers)))
    size = (left + (width + 0.1) * len(headers), 0.3 + pitch * rows)
    figure = canvas(parent, size, layout=None)
    panels = figure.subplots(1, len(headers), squeeze=False)[0]
    if parent is None:
        figure.subplots_adjust(left=left / size[0], right=0.995, bottom=0.01, top=1 - 0.2 / size[1], wspace=0.1 / width)
    for axes, header, column in zip(panels, headers, zip(*strips[:rows], strict=True), strict=True):
        axes.imshow(_stack(column, side, wide, gap), interpolation="nearest")
        axes.set_title(header, fontsize=SMALL + 1, pad=2)
        axes.set(xticks=[], yticks=[], frame_on=False)
        axes.grid(visible=False)
    panels[0].set_yticks([(side + gap) * k + side / 2 for k in range(rows)], names[:rows], fontsize=SMALL + 1)
    return figure


def _stack(strips: Sequence[NDArray[np.uint8] | None], side: int, wide: int, gap: int) -> NDArray[np.uint8]:
    """Return one picture of strips below each other, white where there is none."""
    sheet = np.full((len(strips) * (side + gap) - gap, wide, 3), 255, dtype=np.uint8)
    for k, strip in enumerate(strips):
        if strip is not None:
            top = k * (side + gap)
            sheet[top : top + strip.shape[0], : strip.shape[1]] = strip
    return sheet
