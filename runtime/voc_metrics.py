"""Pascal VOC's mean average precision of any detector, as VOCevaldet.m and VOCap.m of the development kit define it.

Detections of a class are taken by descending score. The object that a detection overlaps most decides, taken or not:
below the IoU threshold the detection is wrong; a difficult object makes it neither right nor wrong; an object found
before makes it wrong (a duplicate); else it is right. Objects marked as crowds, which VOC does not know, count as
difficult. Boxes are continuous coordinates, without the kit's +1: a box that the kit writes as the pixels x1 to x2,
counted from 1 and both inside, is x1 - 1 to x2 here, and IoUs are the same.

Shapes: K classes, N detections of one class, M objects of one class in one image, C detections that are right or wrong.
Ref: Everingham et al., The PASCAL Visual Object Classes Challenge: A Retrospective (2015), section 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.boxes import iou_matrix
from runtime.coco import CocoAnnotations, CocoImage
from runtime.json_values import nan_as_none
from runtime.metrics import Record

ELEVEN_RECALLS = np.arange(11) / 10  # the float64 nearest to each tenth, as a recall of 3/10 is


@dataclass(frozen=True, eq=False)
class VocClassEvaluation:
    """One class; ap and ap07 are NaN where the data has no object of it.

    ap: area under the monotone curve (2010 and later). ap07: mean over eleven recalls (2007 to 2009).
    objects: those to be found; difficult: those that are ignored. detections: all of the class.
    recall, precision: float64 [C], after each detection that is right or wrong, best score first.
    """

    name: str
    ap: float
    ap07: float
    objects: int
    difficult: int
    detections: int
    recall: np.ndarray
    precision: np.ndarray

    def to_mapping(self) -> dict[str, Any]:
        """The numbers for a JSON file; NaN becomes None, curves are left out."""
        names = ("name", "ap", "ap07", "objects", "difficult", "detections")
        return {name: nan_as_none(getattr(self, name)) for name in names}


@dataclass(frozen=True, eq=False)
class VocEvaluation:
    """VOC's numbers, from 0 to 1: means over the classes with objects, NaN where there is none."""

    iou_threshold: float
    map: float
    map07: float
    per_class: tuple[VocClassEvaluation, ...]

    def to_mapping(self) -> dict[str, Any]:
        """The numbers for a JSON file; NaN becomes None."""
        mapping = {name: nan_as_none(getattr(self, name)) for name in ("iou_threshold", "map", "map07")}
        return {**mapping, "per_class": [one.to_mapping() for one in self.per_class]}


def evaluate_voc(
    records: Sequence[Record], annotations: CocoAnnotations, *, iou_threshold: float = 0.5
) -> VocEvaluation:
    """VOC's metrics of the entries of a COCO results file; equal scores go by the order of images, then of entries."""
    assert 0.0 < iou_threshold <= 1.0, iou_threshold
    grouped: dict[tuple[int, int], list[Record]] = {}
    for one in records:
        grouped.setdefault((one["category_id"], one["image_id"]), []).append(one)
    per_class = tuple(
        _evaluate_class(index, grouped, annotations, iou_threshold) for index in range(_count(annotations))
    )
    return VocEvaluation(
        iou_threshold,
        map=_mean([one.ap for one in per_class]),
        map07=_mean([one.ap07 for one in per_class]),
        per_class=per_class,
    )


def average_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """Area under the curve, precision made monotone from the right: VOC 2010 and later."""
    recalls = np.concatenate([[0.0], recall])
    monotone = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recalls) * monotone))


def eleven_point_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """Mean over the recalls 0, 0.1, ..., 1 of the best precision at that recall or a higher one: VOC 2007 to 2009."""
    return float(np.mean([precision[recall >= least].max(initial=0.0) for least in ELEVEN_RECALLS]))


def _evaluate_class(
    index: int, grouped: dict[tuple[int, int], list[Record]], annotations: CocoAnnotations, iou_threshold: float
) -> VocClassEvaluation:
    """Class `index`; an object is known by a number of its own, counted through all images."""
    category = annotations.category_ids[index]
    scores: list[np.ndarray] = [np.zeros(0)]
    best_objects, best_ious = [np.zeros(0, np.int64)], [np.zeros(0)]
    ignored: list[np.ndarray] = [np.zeros(0, bool)]
    first = 0
    for image in annotations:
        mine = image.class_ids == index  # the image's objects; M are True
        found = grouped.get((category, image.image_id), [])
        if found:
            scores.append(np.array([one["score"] for one in found], np.float64))
            best, ious = _best_overlaps(found, image, mine)
            best_objects.append(best + first)
            best_ious.append(ious)
        ignored.append((image.is_difficult | image.is_crowd)[mine])
        first += int(mine.sum())
    difficult = np.concatenate(ignored)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    ious, objects = np.concatenate(best_ious)[order], np.concatenate(best_objects)[order]
    right, wrong = _judge(np.where(ious >= iou_threshold, objects, -1), difficult)
    return _class_evaluation(annotations.class_names[index], right, wrong, difficult)


def _best_overlaps(found: Sequence[Record], image: CocoImage, mine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each detection the object it overlaps most, int64 [N] from 0 to M - 1, and that IoU, float64 [N]."""
    if not mine.any():
        return np.zeros(len(found), np.int64), np.zeros(len(found))
    boxes = np.array([one["bbox"] for one in found], np.float64)  # [N, 4] x, y, width, height
    boxes[:, 2:] += boxes[:, :2]
    ious = iou_matrix(boxes, image.boxes_xyxy[mine], np.float64)  # [N, M]
    return ious.argmax(axis=1), ious.max(axis=1)


def _judge(objects: np.ndarray, difficult: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Right and wrong, bool [N] each, for detections in descending score whose objects these are (-1: none)."""
    matched = objects >= 0
    ignored = np.zeros(len(objects), bool)
    ignored[matched] = difficult[objects[matched]]
    firsts = np.zeros(len(objects), bool)
    firsts[np.unique(objects, return_index=True)[1]] = True
    right = matched & firsts & ~ignored
    return right, ~right & ~ignored


def _class_evaluation(name: str, right: np.ndarray, wrong: np.ndarray, difficult: np.ndarray) -> VocClassEvaluation:
    """The numbers of one class from its judged detections, best score first."""
    counted = right | wrong
    hits, misses = np.cumsum(right[counted]), np.cumsum(wrong[counted])
    objects = int((~difficult).sum())
    recall = hits / objects if objects else np.full(len(hits), np.nan)
    precision = hits / (hits + misses)
    return VocClassEvaluation(
        name=name,
        ap=average_precision(recall, precision) if objects else math.nan,
        ap07=eleven_point_precision(recall, precision) if objects else math.nan,
        objects=objects,
        difficult=int(difficult.sum()),
        detections=len(right),
        recall=recall,
        precision=precision,
    )


def _count(annotations: CocoAnnotations) -> int:
    return len(annotations.class_names)


def _mean(values: Sequence[float]) -> float:
    """Mean of what is not NaN; NaN if nothing is left."""
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else math.nan
