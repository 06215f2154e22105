"""Labels at the points of a chart, and the crowded part of it that needs an enlargement."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from unlearnbench.report.figures.style import SMALL

DIRECTIONS = ((1, 0), (1, 1), (1, -1), (0, 1), (0, -1), (-1, 0), (-1, 1), (-1, -1))  # of a label from its point
DISTANCES = (1.5, 8.0, 16.0, 26.0, 38.0)  # points, likewise; beyond the first a line joins both
CROWD, TENTH = 4, 0.1  # points within this part of both axes that need an enlargement
ROOM = 0.02  # of the axes, around those points


@dataclass(frozen=True)
class Label:
    """A text for a point at (x, y), drawn as a mark of a radius in points."""

    text: str
    x: float
    y: float
    colour: str
    radius: float = 2.0


def place_labels(axes: Axes, labels: Sequence[Label], size: float = SMALL) -> int:
    """Write each label at the first place around its point that overlaps no other label, point or edge.

    Earlier labels choose first. Call it once all else is drawn, as the places hold for the layout of then.

    Returns:
        The number of labels that find no place, which are left out.
    """
    whole = axes.figure.figure
    if (engine := whole.get_layout_engine()) is not None:
        engine.execute(whole)
    pixel = whole.dpi / 72
    left, low, right, high = axes.bbox.extents
    places = axes.transData.transform([(label.x, label.y) for label in labels]) if labels else np.empty((0, 2))
    reach = np.array([[label.radius * pixel] for label in labels]).reshape(-1, 1)
    taken = np.hstack([places - reach, places + reach])
    missing = 0
    for label, place in zip(labels, places, strict=True):
        text = axes.annotate(
            label.text, (label.x, label.y), xytext=(0, 0), textcoords="offset points", ha="center", va="center",
            fontsize=size, color=label.colour, zorder=5, path_effects=[withStroke(linewidth=1.5, foreground="white")],
        )  # fmt: skip
        text.set_in_layout(False)
        box = text.get_window_extent()
        half = np.array([box.width, box.height]) / 2
        for offset in _offsets(half / pixel, label.radius):
            centre = place + offset * pixel
            corners = np.concatenate([centre - half, centre + half])
            inside = left <= corners[0] and low <= corners[1] and corners[2] <= right and corners[3] <= high
            if inside and not _overlap(corners, taken):
                break
        else:
            text.remove()
            missing += 1
            continue
        text.set_position(offset.tolist())
        taken = np.vstack([taken, corners])
        end = _nearest(offset, half / pixel)
        if np.hypot(*end) > label.radius + 2 * DISTANCES[0]:
            axes.annotate(
                "", (label.x, label.y), xytext=end, textcoords="offset points", zorder=2,
                arrowprops={"arrowstyle": "-", "color": label.colour, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 0},
            ).set_in_layout(False)  # fmt: skip
    return missing


def _offsets(half: NDArray[np.float64], radius: float) -> Iterable[NDArray[np.float64]]:
    """Yield the offsets of a label's centre from its point, in points, nearest first."""
    for distance in DISTANCES:
        for direction in np.array(DIRECTIONS, dtype=np.float64):
            yield direction * (half + (radius + distance) / np.hypot(*direction))


def _overlap(box: NDArray[np.float64], others: NDArray[np.float64]) -> bool:
    """Say whether a box (left, low, right, high) overlaps any of the others, (n, 4)."""
    return bool(((box[:2] < others[:, 2:]) & (others[:, :2] < box[2:])).all(axis=1).any())


def _nearest(offset: NDArray[np.float64], half: NDArray[np.float64]) -> tuple[float, float]:
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
