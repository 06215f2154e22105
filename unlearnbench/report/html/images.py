"""Pictures: those that records carry, and figures drawn beside the page, as far as there is room for them."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlearnbench.report.data.board import Board
from unlearnbench.report.data.values import Variant
from unlearnbench.report.figures.images import read_strip, stream_name
from unlearnbench.store.cell import Target
from unlearnbench.store.records import Record

MOST_PICTURE_BYTES = 3_000_000  # of one page, so that it can be sent by mail


@dataclass(frozen=True)
class Strip:
    """Samples in one picture, side by side."""

    uri: str  # data:image/png;base64,...
    n: int
    words: str


@dataclass(frozen=True)
class Pictures:
    """Samples after forgetting one target: a row each, images of the forget class and of a retained one."""

    target: str
    headers: list[str]
    rows: list[tuple[str, list[Strip]]]


@dataclass(frozen=True)
class FigureImage:
    """A figure that was drawn beside the page."""

    uri: str
    words: str


class ImageBudget:
    """Decides which pictures the page has room for, over all its boards."""

    def __init__(self, room: int = MOST_PICTURE_BYTES) -> None:
        """Start with room for so many bytes of PNG."""
        self._room = room

    def still(self, data: bytes, words: str) -> FigureImage | None:
        """Return a figure, or None where there is no room left."""
        if len(data) > self._room:
            return None
        self._room -= len(data)
        return FigureImage(_data_uri(data), words)

    def strip(self, entry: Mapping[str, Any], words: str) -> Strip | None:
        """Return a picture of a record, or None where it cannot be read or there is no room left."""
        found = read_strip(entry)
        if found is None or len(found[0]) > self._room:
            return None
        data, picture = found
        self._room -= len(data)
        n = picture.width // picture.height
        return Strip(_data_uri(data), n, f"{n} {words}")


def _data_uri(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def pictures(board: Board, album: ImageBudget) -> tuple[list[Pictures], int]:
    """Return the samples per target, and how many rows of them found no room."""
    found, left_out = [], 0
    for target in board.targets:
        rows: list[tuple[str, list[Strip]]] = []
        headers: list[str] = []
        for variant in board.variants:
            record = _pictured(board, variant, target)
            if record is None:
                continue
            streams = {stream: stream_name(board, stream, entry) for stream, entry in record.images.items()}
            after = f"of {variant.label}, after forgetting {board.name_of(target)}"
            strips = [
                album.strip(record.images[stream], f"samples asked for the {name} {after}")
                for stream, name in streams.items()
            ]
            if kept := [strip for strip in strips if strip is not None]:
                rows.append((variant.label, kept))
                headers = headers or list(streams.values())
            else:
                left_out += 1
        if rows:
            found.append(Pictures(board.name_of(target), headers, rows))
    return found, left_out


def _pictured(board: Board, variant: Variant, target: Target) -> Record | None:
    records = board.cell_records(variant, target)
    return next((r for r in records if r.cell.id in board.ok_ids and "forget" in r.images), None)
