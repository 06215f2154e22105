"""Labels at the points of a chart, and the crowded part of it that needs an enlargement."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from numpy.typing import NDArray

from unlearnbench.report.figures.style import PITCH, SMALL

DIRECTIONS = ((1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 0), (-1, 1), (-1, -1))  # of a label from its point
DISTANCES = (1.5, 8.0, 16.0, 26.0, 38.0)  # points, likewise; beyond the first a line joins both
SAME = 4.0  # points between two that share a text
CROWD, TENTH = 4, 0.1  # points within this part of both axes that need an enlargement
ROOM = 0.02  # of the axes, around those points


Point = NDArray[np.float64]  # (x, y)
Boxes = NDArray[np.float64]  # (n, 4): left, low, right and high ends
Path = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Label:
    """A text for a point at (x, y), drawn as a mark of a radius in points."""

    text: str
    x: float
    y: float
    colour: str
    radius: float = 2.0


def place_labels(axes: Axes, labels: Sequence[Label], size: float = SMALL, paths: Sequence[Path] = ()) -> int:
    """Write each label at the first place around its point that overlaps no other label, point or edge.

    Earlier labels choose first, and one text is written once for points that nearly coincide. Call it once all else is
    drawn, as the places hold for the layout of then.

    Args:
        axes: of the points.
        labels: to write.
        size: in points.
        paths: of lines, which labels cover only where they find no other place.

    Returns:
        The number of labels that find no place, which are left out.
    """
    pixel = _lay_out(axes)
    places = axes.transData.transform([(label.x, label.y) for label in labels]) if labels else np.empty((0, 2))
    reach = np.array([[label.radius * pixel] for label in labels]).reshape(-1, 1)
    taken = np.hstack([places - reach, places + reach])
    lines = [_boxes(axes.transData.transform(path), pixel) for path in paths]
    missing, written = 0, dict[str, list[NDArray[np.float64]]]()
    for label, place in zip(labels, places, strict=True):
        same = written.setdefault(label.text, [])
        if any(np.hypot(*(place - other)) < SAME * pixel for other in same):
            continue
        same.append(place)
        text = axes.annotate(
            label.text, (label.x, label.y), xytext=(0, 0), textcoords="offset points", ha="center", va="center",
            fontsize=size, color=label.colour, zorder=5, path_effects=[withStroke(linewidth=1.5, foreground="white")],
        )  # fmt: skip
        text.set_in_layout(False)
        box = text.get_window_extent()
        half = np.array([box.width, box.height]) / 2
        offset = _find(place, half, label.radius, pixel, axes.bbox.extents, (np.vstack([taken, *lines]), taken))
        if offset is None:
            text.remove()
            missing += 1
            continue
        text.set_position(offset.tolist())
        centre = place + offset * pixel
        taken = np.vstack([taken, np.concatenate([centre - half, centre + half])])
        end = _nearest(offset, half / pixel)
        if np.hypot(*end) > label.radius + 2 * DISTANCES[0]:
            axes.annotate(
                "", (label.x, label.y), xytext=end, textcoords="offset points", zorder=2,
                arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0},
            ).set_in_layout(False)  # fmt: skip
    return missing


def _lay_out(axes: Axes) -> float:
    """Fix the positions of all axes of a figure, and return its pixels per point."""
    whole = axes.figure.figure
    if (engine := whole.get_layout_engine()) is not None:
        engine.execute(whole)
    return float(whole.dpi / 72)


def label_ends(axes: Axes, labels: Sequence[Label]) -> list[Annotation]:
    """Write labels to the right of a chart at the heights of their points; `spread` moves them apart."""
    return [
        axes.annotate(
            label.text, (1.0, label.y), xycoords=axes.get_yaxis_transform(), xytext=(4, 0), textcoords="offset points",
            ha="left", va="center", fontsize=SMALL, color=label.colour, annotation_clip=False,
        )
        for label in labels
    ]  # fmt: skip


def spread(axes: Axes, texts: Sequence[Annotation]) -> None:
    """Move labels on the right apart by a line at least, within the height of the chart; call it once all is drawn."""
    if not texts:
        return
    pixel = _lay_out(axes)
    heights = np.array([axes.transData.transform((0.0, text.xy[1]))[1] for text in texts])
    order, pitch = np.argsort(heights, kind="stable"), 72 * PITCH * pixel
    moved = heights[order]
    for k in range(1, len(moved)):
        moved[k] = max(moved[k], moved[k - 1] + pitch)
    moved[-1] = min(moved[-1], axes.bbox.y1)
    for k in range(len(moved) - 2, -1, -1):
        moved[k] = min(moved[k], moved[k + 1] - pitch)
    for k, height in zip(order, moved, strict=True):
        texts[k].set_position((4.0, float(height - heights[k]) / pixel))


def _find(
    place: Point, half: Point, radius: float, pixel: float, frame: Sequence[float], obstacles: Sequence[Boxes]
) -> Point | None:
    """Return the offset in points of the nearest free place of a label: free of all obstacles, or of the second.

    Args:
        place: of its point, in pixels.
        half: half of its width and height, in pixels.
        radius: of the point's mark, in points.
        pixel: pixels per point.
        frame: left, low, right and high end of the chart, in pixels.
        obstacles: boxes to avoid, most first.
    """
    left, low, right, high = frame
    for boxes in obstacles:
        for offset in _offsets(half / pixel, radius):
            centre = place + offset * pixel
            box = np.concatenate([centre - half, centre + half])
            inside = left <= box[0] and low <= box[1] and box[2] <= right and box[3] <= high
            if inside and not _overlap(box, boxes):
                return offset
    return None


def _boxes(path: NDArray[np.float64], pixel: float) -> Boxes:
    """Return small boxes along a path in pixels."""
    parts = []
    for start, end in pairwise(path):
        steps = max(2, math.ceil(float(np.hypot(*(end - start))) / (3 * pixel)))
        parts.append(start + np.linspace(0, 1, steps)[:, None] * (end - start))
    points = np.vstack([np.empty((0, 2)), *parts])
    return np.hstack([points - 0.5 * pixel, points + 0.5 * pixel])


def _offsets(half: Point, radius: float) -> Iterable[Point]:
    """Yield the offsets of a label's centre from its point, in points, nearest first."""
    for distance in DISTANCES:
        for direction in np.array(DIRECTIONS, dtype=np.float64):
            yield direction * (half + (radius + distance) / np.hypot(*direction))


def _overlap(box: NDArray[np.float64], others: Boxes) -> bool:
    """Say whether a box (left, low, right, high) overlaps any of the others, (n, 4)."""
    return bool(((box[:2] < others[:, 2:]) & (others[:, :2] < box[2:])).all(axis=1).any())


def _nearest(offset: Point, half: Point) -> tuple[float, float]:
    """Return the point of a label's box that is nearest to the labelled point, as an offset from it."""
    x, y = np.sign(offset) * np.maximum(np.abs(offset) - half, 0.0)
    return float(x), float(y)


def crowded(
    axes: Axes, points: Sequence[tuple[float, float]]
) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Return the limits of both axes around the fullest part of a chart; None where no part needs an enlargement.

    Args:
        axes: of the chart, with its limits set.
        points: (x, y) of the marks.
    """
    there = axes.transAxes.inverted().transform(axes.transData.transform(points))
    windows = [
        near for x in there[:, 0] for y in there[:, 1]
        if (near := ((there >= (x, y)) & (there <= (x + TENTH, y + TENTH))).all(axis=1)).sum() >= CROWD
    ]  # fmt: skip
    if not windows:
        return None
    near = there[max(windows, key=lambda window: int(window.sum()))]
    corners = np.clip([near.min(axis=0) - ROOM, near.max(axis=0) + ROOM], 0.0, 1.0)
    (x0, y0), (x1, y1) = axes.transData.inverted().transform(axes.transAxes.transform(corners))
    return (float(x0), float(x1)), (float(y0), float(y1))
