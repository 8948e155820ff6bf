"""Charts beside the numbers: curves of precision and recall, benchmark bars, and what other charts begin and end with.

Drawn with matplotlib, off screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from runtime.errors import BackendUnavailableError
from runtime.files import atomic_output
from runtime.metrics import RECALLS, ClassEvaluation, Evaluation
from runtime.recall import ProposalRecall
from runtime.voc_metrics import ELEVEN_RECALLS, VocClassEvaluation, VocEvaluation

BLUE, ORANGE, GREY, INK = "#1f6fb4", "#e07b00", "#b9c0c7", "#33383d"
CURVES = (BLUE, ORANGE, "#2a8f5b", "#9a4fb0", "#b03a48")  # one colour per artifact
STYLES = ("-", (0, (4, 1.5)), ":")
MAX_PANELS = 24  # more classes: those with the lowest AP are shown


def write_precision_recall(path: Path, evaluation: Evaluation, title: str) -> None:
    """A PNG with one panel per class, COCO's curves at IoU 0.5 and 0.75 and its best operating point.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
        OutputError: the path cannot be written.
    """
    heading = f"{title}: AP {evaluation.ap:.3f}, AP50 {evaluation.ap50:.3f}, AP75 {evaluation.ap75:.3f}"
    classes = [one for one in evaluation.per_class if one.objects > 0]
    _write_panels(path, heading, classes, _draw_class)


def write_voc_precision_recall(path: Path, evaluation: VocEvaluation, title: str) -> None:
    """A PNG with one panel per class: precision as measured, as VOC 2010 makes it monotone, at VOC 2007's recalls.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
        OutputError: the path cannot be written.
    """
    means = f"VOC mAP {evaluation.map:.3f}, VOC07 mAP {evaluation.map07:.3f}"
    classes = [one for one in evaluation.per_class if one.objects > 0]
    assert classes, "no class has an object that is not difficult"
    _write_panels(path, f"{title}: {means} at IoU {evaluation.iou_threshold:g}", classes, _draw_voc_class)


def write_recall(
    path: Path, results: Mapping[str, ProposalRecall], ious: Sequence[float], counts: Sequence[int]
) -> None:
    """A PNG with two panels: recall over the number of proposals at `ious`, and over the IoU with `counts` proposals.

    Args:
        results: by the names for the legend; `ious` and `counts` are among those measured.

    Raises:
        BackendUnavailableError: matplotlib is not installed.
        OutputError: the path cannot be written.
    """
    figure, grid = subplots(1, 2, (9.6, 4.4), share_x=False)
    by_count, by_iou = grid[0]
    ticks: set[int] = set()
    for index, (color, (name, one)) in enumerate(zip(cycle(CURVES), results.items())):
        ticks |= set(one.counts)
        line = {"color": color, "linewidth": max(1.0, 3.0 - 0.9 * index)}  # equal curves show as one inside the other
        for style, iou in zip(cycle(STYLES), ious):
            values = one.recall[:, one.ious.index(iou)]
            by_count.plot(
                one.counts, values, linestyle=style, marker="o", markersize=3, label=f"{name}, {iou:g}", **line
            )
        for style, count in zip(cycle(STYLES), counts):
            row = one.counts.index(count)
            label = f"{name}, {count}: AR {one.average[row]:.3f}"
            by_iou.plot(one.ious, one.recall[row], linestyle=style, label=label, **line)
    by_count.set_xscale("log")
    by_count.set_xticks(sorted(ticks), [str(count) for count in sorted(ticks)])
    by_count.minorticks_off()
    by_count.set(xlabel="proposals per image", ylabel="recall", ylim=(0, 1.02))
    by_iou.set(xlabel="IoU threshold")
    for panel, title in ((by_count, "artifact, IoU threshold"), (by_iou, "artifact, proposals per image")):
        panel.grid(color="#e6e9ec")
        panel.legend(title=title, title_fontsize=7, fontsize=7, frameon=False)
    save_figure(figure, path)


def write_bars(path: Path, title: str, rows: Sequence[dict[str, Any]]) -> None:
    """A PNG with one horizontal bar per contestant: median, split into stages where known, and a whisker to p95.

    Args:
        rows: each `name`, `median_ms`, `p95_ms`, `label` (text at the bar's end) and `stages_ms` (name: ms, or empty).

    Raises:
        BackendUnavailableError: matplotlib is not installed.
        OutputError: the path cannot be written.
    """
    figure, grid = subplots(1, 1, (9.0, 0.62 * len(rows) + 1.7))
    axis = grid[0, 0]
    shades = {"preprocess": "#8fc1e8", "infer": BLUE, "postprocess": "#12395c"}
    shown: set[str] = set()
    for position, row in enumerate(rows):
        stages = row["stages_ms"]
        if stages:
            scale, left = row["median_ms"] / sum(stages.values()), 0.0  # medians of stages need not add up exactly
            for stage, value in stages.items():
                label = None if stage in shown else stage
                axis.barh(position, value * scale, left=left, color=shades[stage], height=0.62, label=label)
                shown.add(stage)
                left += value * scale
        else:
            axis.barh(position, row["median_ms"], color=GREY, height=0.62)
        axis.plot([row["median_ms"], row["p95_ms"]], [position, position], color=INK, linewidth=1.2, marker="|")
        place = {"xy": (row["p95_ms"], position), "xytext": (6, 0), "textcoords": "offset points", "va": "center"}
        axis.annotate(row["label"], **place, color=INK, fontsize=9)
    axis.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axis.invert_yaxis()
    axis.set_xlim(0, max(row["p95_ms"] for row in rows) * 1.45)  # room for the labels
    axis.set_xlabel("ms per image, median; the line reaches to the 95th percentile", color=INK)
    axis.grid(axis="x", color="#e6e9ec")
    axis.set_axisbelow(True)
    axis.set_title(title, loc="left", fontsize=10)
    if shown:
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False, fontsize=9)
    save_figure(figure, path)


def load_matplotlib() -> tuple[Any, Any]:
    """matplotlib's Figure and its off-screen canvas.

    Raises:
        BackendUnavailableError: they cannot be imported.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BackendUnavailableError(
            "drawing charts needs matplotlib, which cannot be imported here: `pip install matplotlib`, "
            "or give --no-charts for the numbers alone."
        ) from error
    return Figure, FigureCanvasAgg


def _draw_class(panel: Any, one: ClassEvaluation) -> None:
    panel.plot(RECALLS, one.precision50, color=BLUE, linewidth=1.8, label="IoU 0.5")
    panel.plot(RECALLS, one.precision75, color=ORANGE, linewidth=1.8, linestyle=(0, (4, 1.5)), label="IoU 0.75")
    if one.best_f1 > 0:
        text = f"best F1 at IoU 0.5: {one.best_f1:.2f}\nwith scores from {one.best_score:.2f}"
        panel.text(0.05, 0.07, text, fontsize=8, color=INK)
    _title_class(panel, one)


def _draw_voc_class(panel: Any, one: VocClassEvaluation) -> None:
    monotone = np.maximum.accumulate(one.precision[::-1])[::-1]
    panel.plot(one.recall, one.precision, color=GREY, linewidth=1.0, label="as measured")
    edges = np.append(0.0, one.recall), np.append(monotone[:1] if len(monotone) else 0.0, monotone)
    panel.step(*edges, where="pre", color=BLUE, linewidth=1.8, label="2010 and later")
    eleven = [monotone[one.recall >= least].max(initial=0.0) for least in ELEVEN_RECALLS]
    panel.plot(ELEVEN_RECALLS, eleven, color=ORANGE, linestyle="", marker="o", markersize=4, label="2007")
    _title_class(panel, one)


def _title_class(panel: Any, one: ClassEvaluation | VocClassEvaluation) -> None:
    panel.set_title(f"{one.name}   AP {one.ap:.3f}   {one.objects} objects", fontsize=9, loc="left", color=INK)
    panel.set(xlim=(0, 1.02), ylim=(0, 1.04))
    panel.grid(color="#e6e9ec")


def _write_panels(path: Path, title: str, classes: Sequence[Any], draw: Callable[[Any, Any], None]) -> None:
    """A PNG with the precision-recall panels of up to MAX_PANELS classes, those of lowest AP, drawn by `draw`."""
    if len(classes) > MAX_PANELS:
        classes = sorted(classes, key=lambda one: one.ap)[:MAX_PANELS]
        title += f", the {MAX_PANELS} classes of lowest AP"
    columns = min(len(classes), 3 if len(classes) <= 9 else 6)
    rows = math.ceil(len(classes) / columns)
    figure, grid = subplots(rows, columns, (3.0 * columns + 0.4, 2.5 * rows + 1.1))
    panels = grid.flatten().tolist()
    for panel, one in zip(panels, classes):
        draw(panel, one)
    for panel in panels[len(classes) :]:
        panel.set_visible(False)
    for panel in grid[:, 0]:
        panel.set_ylabel("precision", color=INK)
    for column in range(columns):
        lowest = max(row for row in range(rows) if row * columns + column < len(classes))
        grid[lowest, column].set_xlabel("recall", color=INK)
    figure.suptitle(title)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, path)


def subplots(rows: int, columns: int, size: tuple[float, float], *, share_x: bool = True) -> tuple[Any, np.ndarray]:
    """A figure with rows x columns axes, without matplotlib's global state; axes come as an array [rows, columns]."""
    figure_class, canvas_class = load_matplotlib()
    figure = figure_class(figsize=size, dpi=130, layout="constrained")
    canvas_class(figure)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share_x, sharey=True)
    for axis in axes.flatten():
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.tick_params(colors=INK, labelsize=8)
    return figure, axes


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_output(path) as temporary:
        figure.savefig(temporary)
