"""Pictures of records, and rendered figures, within the page's limit of bytes."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.values import Variant
from unlearnbench.report.figures.images import read_strip, stream_name
from unlearnbench.store.cell import Target
from unlearnbench.store.records import Record

MOST_PICTURE_BYTES = 3_000_000  # of one page, small enough for an e-mail


@dataclass(frozen=True)
class Strip:
    """Samples in one picture, side by side."""

    picture: int  # index among the pictures of the page
    n: int


@dataclass(frozen=True)
class Pictures:
    """Samples after forgetting one target: per row, images of the forget class and of a retained one."""

    target: str
    headers: list[str]
    rows: list[tuple[str, list[Strip]]]


@dataclass(frozen=True)
class FigureImage:
    """A figure of the report, embedded in the page."""

    uri: str
    words: str


class ImageBudget:
    """Limits the bytes of pictures of a page, over all its boards."""

    def __init__(self, limit: int = MOST_PICTURE_BYTES) -> None:
        """Start with a limit of bytes of PNG."""
        self._left = limit
        self._pictures: dict[str, int] = {}

    @property
    def pictures(self) -> list[str]:
        """The addresses of the strips' pictures, each once: the original model draws the same for many targets."""
        return list(self._pictures)

    def still(self, data: bytes, words: str) -> FigureImage | None:
        """Return a figure, or None where it exceeds the limit."""
        data = _few_colours(data)
        if len(data) > self._left:
            return None
        self._left -= len(data)
        return FigureImage(_data_uri(data), words)

    def strip(self, entry: Mapping[str, Any]) -> Strip | None:
        """Return a picture of a record, or None where it cannot be read or exceeds the limit."""
        strip = read_strip(entry)
        if strip is None:
            return None
        data, picture = strip
        uri = _data_uri(data)
        if uri not in self._pictures:
            if len(data) > self._left:
                return None
            self._left -= len(data)
        return Strip(self._pictures.setdefault(uri, len(self._pictures)), picture.width // picture.height)


def _few_colours(data: bytes) -> bytes:
    """Return a PNG of drawn lines in a third of its bytes."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(data)) as figure:
        figure.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def _data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def pictures(board: Board, album: ImageBudget) -> tuple[list[Pictures], int]:
    """Return the samples per target, and the number of rows left out for size."""
    pages, left_out = [], 0
    for target in board.targets:
        rows: list[tuple[str, list[Strip]]] = []
        headers: list[str] = []
        for variant in board.variants:
            record = _pictured(board, variant, target)
            if record is None:
                continue
            streams = {stream: stream_name(board, stream, entry) for stream, entry in record.images.items()}
            strips = [album.strip(record.images[stream]) for stream in streams]
            if kept := [strip for strip in strips if strip is not None]:
                rows.append((variant.label, kept))
                headers = headers or list(streams.values())
            else:
                left_out += 1
        if rows:
            pages.append(Pictures(board.name_of(target), headers, rows))
    return pages, left_out


def _pictured(board: Board, variant: Variant, target: Target) -> Record | None:
    return next((record for record in board.numbers.sound(variant, target) if "forget" in record.images), None)
