"""The files of an evaluation: numbers, COCO results, charts, sheets of mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2

from runtime.coco import CocoAnnotations
from runtime.evaluation_report import Measured, evaluation_mapping
from runtime.files import atomic_output, write_json
from runtime.mistakes import draw_sheet, worst_images
from runtime.plots import write_precision_recall, write_voc_precision_recall

MISTAKE_SCORE = 0.5  # detections below it do not count as mistakes, and are not drawn


def write_files(
    folder: Path,
    results: Sequence[Measured],
    annotations: CocoAnnotations,
    *,
    score: float,
    charts: bool,
    worst: int,
) -> str:
    """Write everything into `folder`; gives a sentence that says what was written.

    Args:
        score: the detections scored at least so much.
        charts: precision-recall curves, with matplotlib.
        worst: how many images stand on each sheet of mistakes, 0: no sheet.

    Raises:
        OutputError: the folder cannot be written.
        SourceError: an image for a sheet is missing.
    """
    for one in results:
        name = one.run.name
        write_json(folder / f"detections-{name}.json", one.records)
        if charts:
            write_precision_recall(folder / f"precision-recall-{name}.png", one.evaluation, name)
            if any(own.objects for own in one.voc.per_class):  # not where all are difficult
                write_voc_precision_recall(folder / f"precision-recall-voc-{name}.png", one.voc, name)
        if worst:
            shown = worst_images(one.detections, annotations, count=worst, score=max(score, MISTAKE_SCORE))
            with atomic_output(folder / f"worst-{name}.png") as temporary:
                cv2.imwrite(str(temporary), draw_sheet(shown, annotations.class_names))
    write_json(folder / "evaluation.json", evaluation_mapping(results, annotations, score=score), indent=2)
    kinds = ["detections"] + (["curves"] if charts else []) + (["worst images"] if worst else [])
    return f"numbers, {', '.join(kinds)}: {folder}"
