"""The plots of a parity report, drawn with matplotlib off screen, as PNG in memory."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from export.parity_boxes import BoxDifference
from export.parity_errors import SetOverlap, StageError, TensorError
from export.parity_report import PairResult, decibels, error_text
from runtime.plots import BLUE, INK, ORANGE, load_matplotlib

RED, GRID, BEYOND = "#c62f3a", "#e6e9ec", "#f9e8e9"
LOWEST_DB, HIGHEST_DB = -10.0, 150.0  # what is exact is drawn at the highest
ROW = 0.27  # inches of one stage
BINS = 40
PALE = 1.6  # the map's colours end there and errors at 1, so that black text can be read on them


def sqnr_plot(result: PairResult) -> bytes:
    """SQNR of every stage that numbers are compared in, as a PNG: alone, end to end, and where the tolerance ends."""
    rows = [one for one in result.stages if isinstance(one.alone, TensorError)]
    figure, axes = _figure(1, 1, (8.6, ROW * len(rows) + 1.4))
    axis, places = axes[0, 0], np.arange(len(rows))
    widths = [one.limit - LOWEST_DB for one in rows]
    axis.barh(places, widths, left=LOWEST_DB, height=1.0, color=BEYOND, label="beyond the tolerance")
    chained = [(_drawn(one.end_to_end), place) for place, one in zip(places, rows) if one.end_to_end is not None]
    hollow = {"s": 40, "facecolors": "white", "edgecolors": ORANGE, "linewidths": 1.6}
    axis.scatter(*zip(*chained), **hollow, label="end to end", zorder=3)
    for color, beyond, label in ((BLUE, False, "stage alone"), (RED, True, "stage alone, beyond")):
        chosen = [(_drawn(one.alone), place) for place, one in zip(places, rows) if (one.within is False) == beyond]
        if chosen:
            axis.scatter(*zip(*chosen), s=24, color=color, label=label, zorder=4)
    axis.set_yticks(places, [one.stage.title for one in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.set_xlim(LOWEST_DB, HIGHEST_DB + 4)
    ticks = range(0, int(HIGHEST_DB) + 1, 30)
    axis.set_xticks(ticks, [*map(str, ticks[:-1]), "exact"])
    axis.set_xlabel("SQNR, dB: 20 dB more are one more digit in common", color=INK)
    axis.grid(axis="x", color=GRID)
    axis.set_axisbelow(True)
    axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=4, frameon=False, fontsize=8)
    return _png(figure)


def histogram_plot(boxes: BoxDifference) -> bytes:
    """How far apart the matched final boxes are, as a PNG: IoU, and difference of scores."""
    figure, axes = _figure(1, 2, (8.6, 2.7))
    largest = max(float(np.abs(boxes.score_differences).max(initial=0.0)), 1e-6)
    panels = (
        (boxes.ious, (min(float(boxes.ious.min(initial=1.0)), 0.999), 1.0), "IoU of matched boxes"),
        (boxes.score_differences, (-largest, largest), "score of candidate - score of reference"),
    )
    for axis, (values, limits, title) in zip(axes[0], panels):
        axis.hist(np.clip(values, *limits), bins=BINS, range=limits, color=BLUE)
        axis.set_yscale("symlog", linthresh=10)
        axis.set_xlabel(title, color=INK)
        axis.grid(axis="y", color=GRID)
        axis.set_axisbelow(True)
        axis.locator_params(axis="x", nbins=5)
    axes[0, 0].set_ylabel("matched boxes", color=INK)
    return _png(figure)


def heat_map(results: Sequence[PairResult]) -> bytes:
    """Stages across, candidates down, as a PNG: each stage's own error, coloured by how far it is from its limit."""
    stages = [one.stage for one in results[0].stages]
    figure, axes = _figure(1, 1, (0.46 * len(stages) + 3.0, 0.5 * len(results) + 2.4))
    axis = axes[0, 0]
    margins = np.array([[_margin(one.alone, one.limit) for one in result.stages] for result in results])
    axis.imshow(np.ma.masked_invalid(margins), cmap="RdYlGn", vmin=-PALE, vmax=PALE, aspect="auto")
    for row, result in enumerate(results):
        for column, one in enumerate(result.stages):
            text = "" if one.alone is None else (error_text(one.alone) or "").removesuffix(" dB")
            axis.text(column, row, text, ha="center", va="center", fontsize=7, color=INK)
    axis.set_xticks(
        range(len(stages)), [stage.title for stage in stages], rotation=50, ha="right", rotation_mode="anchor"
    )
    axis.set_yticks(range(len(results)), [f"{one.candidate.name} ({one.tolerance.level})" for one in results])
    axis.set_title(f"stages alone, against {results[0].reference.name}: dB of SQNR, or boxes in common", fontsize=9)
    axis.tick_params(length=0)
    for side in ("left", "bottom"):
        axis.spines[side].set_visible(False)
    return _png(figure)


def _drawn(error: StageError | None) -> float:
    return float(np.clip(decibels(error), LOWEST_DB, HIGHEST_DB))


def _margin(error: StageError | None, limit: float) -> float:
    """From -1 (nothing in common) over 0 (at the limit) to 1 (exact); NaN where nothing was measured."""
    if error is None:
        return float("nan")
    if isinstance(error, SetOverlap):
        reached, best = error.share, 1.0
    else:
        reached, best = min(max(decibels(error), 0.0), HIGHEST_DB), HIGHEST_DB
    return (reached - limit) / (best - limit) if reached >= limit else reached / limit - 1


def _figure(rows: int, columns: int, size: tuple[float, float]) -> tuple[Any, np.ndarray]:
    """A figure without matplotlib's global state; axes come as an array [rows, columns]."""
    figure_class, canvas_class = load_matplotlib()
    figure = figure_class(figsize=size, dpi=130, layout="constrained")
    canvas_class(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flatten():
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.tick_params(colors=INK, labelsize=8)
    return figure, axes


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
