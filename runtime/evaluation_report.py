"""What runtime/evaluate.py prints: one table of all artifacts, one of AP per class."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.coco import CocoAnnotations
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.metrics import MEASURES, Evaluation, Record
from runtime.tables import format_table

HEADINGS = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large", "AR 1", "AR 10", "AR 100")  # of MEASURES


@dataclass(frozen=True, eq=False)
class Measured:
    """One artifact's results; `name` is unique and fit for a file name."""

    artifact: Path
    name: str
    detector: Detector
    detections: list[Detections]
    records: list[Record]
    evaluation: Evaluation


def report(results: Sequence[Measured], annotations: CocoAnnotations) -> str:
    """What the command prints: the data, AP of all artifacts, AP per class."""
    classes = len(annotations.class_names)
    objects = sum(one.objects for one in results[0].evaluation.per_class)
    lines = [f"{len(annotations)} images, {objects} objects of {classes} classes: {annotations.file}"]
    if annotations.clipped or annotations.dropped:
        lines.append(f"({annotations.clipped} boxes reached out of their image, {annotations.dropped} had no area)")
    lines += [f"{one.name}: {one.detector.description}" for one in results]
    return "\n".join([*lines, "", summary_table(results), "", class_table(results)])


def summary_table(results: Sequence[Measured]) -> str:
    """One row per artifact; with several, the difference of AP to the first."""
    several = len(results) > 1
    rows = [
        [one.name, *(_number(getattr(one.evaluation, name)) for name in MEASURES)]
        + ([_difference(one.evaluation.ap, results[0].evaluation.ap) if index else None] if several else [])
        for index, one in enumerate(results)
    ]
    return format_table(["artifact", *HEADINGS] + (["AP difference"] if several else []), rows)


def class_table(results: Sequence[Measured]) -> str:
    """One row per class: AP of one artifact with its best operating point, or of several with differences."""
    first, *others = results
    header = ["class", "objects"]
    if not others:
        header += ["AP", "AP50", "AP75", "AR 100", "best F1", "at score"]
        rows = [
            [one.name, one.objects]
            + [_number(value) for value in (one.ap, one.ap50, one.ap75, one.ar, one.best_f1, one.best_score)]
            for one in first.evaluation.per_class
        ]
        return format_table(header, rows)
    for result in results:
        header += [f"AP {result.name}"] + (["difference"] if result is not first else [])
    rows = []
    for index, one in enumerate(first.evaluation.per_class):
        row: list[Any] = [one.name, one.objects, _number(one.ap)]
        for other in others:
            ap = other.evaluation.per_class[index].ap
            row += [_number(ap), _difference(ap, one.ap)]
        rows.append(row)
    return format_table(header, rows)


def _number(value: float) -> str | None:
    return None if math.isnan(value) else f"{value:.3f}"


def _difference(value: float, reference: float) -> str | None:
    return None if math.isnan(value - reference) else f"{value - reference:+.4f}"
