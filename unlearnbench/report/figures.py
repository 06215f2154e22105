"""Figures, each a function from a board to a matplotlib figure; one colour per variant everywhere."""

import base64
import io
from collections.abc import Mapping

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from unlearnbench.report.board import PHASES, Board, Measure, Variant
from unlearnbench.results import Record

STYLE = {
    "pdf.fonttype": 42,  # embedded TrueType, which publishers ask for
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "font.size": 9,
    "axes.titlesize": 10,
    "legend.frameon": False,
}
SAMPLES_PER_CLASS = 2  # images of each forget class in the overview


def draw_all(board: Board) -> dict[str, Figure]:
    """Return {file name: figure} of every figure the board has numbers for."""
    sns.set_theme(context="paper", style="whitegrid", rc=STYLE)
    makers = {
        "tradeoff": tradeoff,
        "heatmaps": heatmaps,
        "phases": phases,
        "samples": samples,
        "samples-all": samples_overview,
    }
    drawn = {name: make(board) for name, make in makers.items()}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def colours(board: Board) -> dict[str, tuple[float, float, float]]:
    """Return {label: RGB}, from a palette that colour-blind readers can tell apart."""
    labels = [variant.label for variant in board.variants]
    palette = "colorblind" if len(labels) <= 10 else "husl"
    return dict(zip(labels, sns.color_palette(palette, len(labels)), strict=True))


def _headline(board: Board, shows: str) -> Measure | None:
    return next((m for m in board.metrics if m.shows == shows and m.headline), None)


def tradeoff(board: Board) -> Figure | None:
    """Forgetting against retention with run time as size: a dot per forget class, a ringed dot for the mean."""
    forgetting, retention = _headline(board, "forgetting"), _headline(board, "retention")
    if forgetting is None or retention is None:
        return None
    total = next(measure for measure in board.costs if measure.key == "total")
    lines = []
    for variant in board.variants:
        for c in board.classes:
            values = [board.value(variant, c, measure).number for measure in (retention, forgetting, total)]
            if None not in values:
                lines.append([variant.label, *values])
    if not lines:
        return None
    frame = pd.DataFrame(lines, columns=["method", "x", "y", "cost"])
    mean = frame.groupby("method", sort=False, as_index=False).mean()
    palette, sizes = colours(board), (40, 420)
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    sns.scatterplot(frame, x="x", y="y", hue="method", palette=palette, s=18, alpha=0.45, legend=False, ax=axes)
    sns.scatterplot(
        mean,
        x="x",
        y="y",
        hue="method",
        palette=palette,
        size="cost",
        sizes=sizes,
        edgecolor="black",
        legend=False,
        ax=axes,
    )
    for _, row in mean.iterrows():
        handle_label = f"{row['method']} ({row['cost']:.1f} {total.unit})"
        axes.scatter([], [], color=palette[row["method"]], edgecolor="black", s=60, label=handle_label)
    axes.set_xlabel(f"{retention.header}, {retention.shows}")
    axes.set_ylabel(f"{forgetting.header}, {forgetting.shows}")
    for measure, invert in ((retention, axes.invert_xaxis), (forgetting, axes.invert_yaxis)):
        if measure.better == "lower":
            invert()  # better is always up and to the right
    axes.legend(title="RTE with priors (size)", loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_title(f"{board.title}: forgetting against retention")
    return figure


def heatmaps(board: Board) -> Figure | None:
    """One panel per metric: methods down, forget classes across; words where there is no number."""
    measures = board.metrics
    if not measures:
        return None
    rows = (len(measures) + 1) // 2
    names = max(len(variant.label) for variant in board.variants)
    height = (0.34 * len(board.variants) + 1.1) * rows
    width = 2 * (0.07 * names + 0.42 * max(4, len(board.classes))) + 1.0
    figure, grid = plt.subplots(rows, 2, figsize=(width, height), layout="constrained", squeeze=False)
    for axes, measure in zip(grid.flat, measures, strict=False):
        values = [[board.value(variant, c, measure) for c in board.classes] for variant in board.variants]
        numbers = np.array([[np.nan if v.number is None else v.number for v in row] for row in values])
        texts = [[v.word if v.number is None else f"{v.number:{measure.format}}{v.gap}" for v in row] for row in values]
        limits = {"vmin": 0, "vmax": 100} if measure.unit == "%" else {}  # a point of accuracy is no rainbow
        sns.heatmap(
            numbers, annot=np.array(texts), fmt="", cmap="viridis" if measure.better == "higher" else "viridis_r",
            xticklabels=board.classes, yticklabels=[v.label for v in board.variants], ax=axes, cbar=False,
            annot_kws={"size": 7}, linewidths=0.5, **limits,
        )  # fmt: skip
        axes.set_title(measure.header)
        axes.set_xlabel("forget class")
        axes.tick_params(axis="y", rotation=0)
    for axes in list(grid.flat)[len(measures) :]:
        axes.set_visible(False)
    return figure


def phases(board: Board) -> Figure | None:
    """Mean seconds per cell in each phase, stacked; reused priors at their original cost."""
    if not board.ok_records:
        return None
    frame = _phase_frame(board)
    names = max(len(label) for label in frame.index)
    figure, axes = plt.subplots(figsize=(5.4 + 0.07 * names, 0.4 * len(frame) + 1.5), layout="constrained")
    frame.iloc[::-1].plot.barh(stacked=True, ax=axes, color=sns.color_palette("colorblind", len(PHASES)), width=0.7)
    axes.set_xlabel("seconds per cell, mean over forget classes")
    axes.set_ylabel("")
    axes.legend(title="phase", loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes.set_title(f"{board.title}: time per phase on {board.device_name}")
    return figure


def _phase_frame(board: Board) -> pd.DataFrame:
    lines: dict[str, dict[str, float]] = {}
    for variant in board.variants:
        records = [r for c in board.classes for r in board.cell_records(variant, c) if r.cell.id in board.ok_ids]
        if records:
            lines[variant.label] = {
                phase: float(np.mean([r.cost.get(phase, {}).get("seconds", 0.0) for r in records])) for phase in PHASES
            }
    return pd.DataFrame.from_dict(lines, orient="index", columns=list(PHASES))


def _strip(entry: Mapping[str, object], most: int | None = None) -> NDArray[np.uint8]:
    """Decode a base64 PNG strip of square images to (H, W) or (H, W, 3), with a white gap between the images."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(str(entry["png"])))))
    side = pixels.shape[0]
    images = np.split(pixels, pixels.shape[1] // side, axis=1)[:most]
    gap = np.full_like(pixels[:, : max(1, side // 16)], 255)
    parts = [part for image in images for part in (gap, image)][1:]
    return np.concatenate(parts, axis=1)


def _pictured(board: Board, variant: Variant, forget_class: int) -> Record | None:
    records = board.cell_records(variant, forget_class)
    return next((record for record in records if record.cell.id in board.ok_ids and _has_strip(record)), None)


def _has_strip(record: Record) -> bool:
    """Say whether the record holds pictures that can be read."""
    try:
        return bool([_strip(entry) for entry in record.images.values()]) and "forget" in record.images
    except (OSError, ValueError):
        return False


def samples(board: Board) -> Figure | None:
    """Samples of one forget class and of one retained class, methods down; a column is one initial noise."""
    for c in board.classes:
        found = [(v, r) for v in board.variants if (r := _pictured(board, v, c)) is not None]
        if found:
            break
    else:
        return None
    streams = [name for name in ("forget", "retain") if all(name in record.images for _, record in found)]
    names = max(len(variant.label) for variant, _ in found)
    figure, grid = plt.subplots(
        len(found),
        len(streams),
        figsize=(4.2 * len(streams) + 0.07 * names, 0.56 * len(found) + 0.6),
        layout="constrained",
        squeeze=False,
    )
    for row, (variant, record) in enumerate(found):
        for column, stream in enumerate(streams):
            entry, axes = record.images[stream], grid[row][column]
            _show(axes, _strip(entry))
            if row == 0:
                axes.set_title(f"{'forget' if stream == 'forget' else 'retained'} class {entry['class']}")
            if column == 0:
                axes.set_ylabel(variant.label, rotation=0, ha="right", va="center")
    return figure


def samples_overview(board: Board) -> Figure | None:
    """The first samples of every forget class, methods down, forget classes across."""
    found = {(v, c): r for v in board.variants for c in board.classes if (r := _pictured(board, v, c)) is not None}
    if not found:
        return None
    variants = [v for v in board.variants if any(key[0] == v for key in found)]
    names = max(len(variant.label) for variant in variants)
    size = (1.05 * max(2, len(board.classes)) + 0.4 + 0.07 * names, 0.56 * len(variants) + 0.8)
    figure, grid = plt.subplots(len(variants), len(board.classes), figsize=size, layout="constrained", squeeze=False)
    for row, variant in enumerate(variants):
        for column, c in enumerate(board.classes):
            axes = grid[row][column]
            record = found.get((variant, c))
            if record is None:
                axes.set_axis_off()
            else:
                _show(axes, _strip(record.images["forget"], SAMPLES_PER_CLASS))
            if row == 0:
                axes.set_title(str(c))
            if column == 0:
                axes.set_axis_on()
                axes.set_ylabel(variant.label, rotation=0, ha="right", va="center")
    figure.suptitle("samples asked for the forget class", fontsize=10)
    return figure


def _show(axes: Axes, strip: NDArray[np.uint8]) -> None:
    axes.imshow(strip, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
