"""COCO's detection metrics of any detector, computed by pycocotools.

COCO knows crowds, and no difficult objects: those that Pascal VOC marks so are ordinary objects here, to be found like
the others (runtime/voc_metrics.py ignores them, as VOC does).

Shapes: K classes, N detections of one image, 101 recall thresholds 0, 0.01, ..., 1.
Ref: https://cocodataset.org/#detection-eval (AP is the mean over IoU 0.50:0.05:0.95 and over the classes).
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from runtime.coco import CocoAnnotations, CocoImage
from runtime.errors import AnnotationError, BackendUnavailableError
from runtime.json_values import nan_as_none

MEASURES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar1", "ar10", "ar100")
IOU_50, IOU_75 = 0, 5  # positions in pycocotools' IoU thresholds
ALL, SMALL, MEDIUM, LARGE = range(4)  # positions in its area ranges: any, below 32², up to 96², above, in px²
AT_1, AT_10, AT_100 = range(3)  # positions in its limits of detections per image
RECALLS = np.linspace(0.0, 1.0, 101)

Record = dict[str, Any]  # one entry of a COCO results file


@dataclass(frozen=True, eq=False)
class ClassEvaluation:
    """Metrics of one class, NaN where the data has no object of it or of that size (`objects` leaves crowds out).

    ap, ap50, ap75, ap_small, ap_medium, ap_large: as in Evaluation. ar1, ar10, ar: average recall with 1, 10 and 100
    detections per image at most. best_f1: the highest F1 at IoU 0.5 that a score threshold can reach; best_score: that
    threshold.
    precision50, precision75: float64 [101], interpolated precision at RECALLS for IoU 0.5 and 0.75.
    """

    name: str
    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar: float
    objects: int
    detections: int
    best_f1: float
    best_score: float
    precision50: np.ndarray
    precision75: np.ndarray

    def to_mapping(self) -> dict[str, Any]:
        """The numbers for a JSON file; NaN becomes None, curves are left out."""
        names = [one.name for one in fields(self) if not one.name.startswith("precision")]
        return {name: nan_as_none(getattr(self, name)) for name in names}


@dataclass(frozen=True, eq=False)
class Evaluation:
    """COCO's numbers, from 0 to 1; NaN where the data has no object of that size.

    ap: mean over IoU 0.50:0.95. small: area below 32² px, large: above 96² px. ar1, ar10, ar100: average recall with as
    many detections per image at most.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    ar1: float
    ar10: float
    ar100: float
    per_class: tuple[ClassEvaluation, ...]
    images: int
    detections: int

    def to_mapping(self) -> dict[str, Any]:
        """The numbers for a JSON file; NaN becomes None."""
        mapping = {name: nan_as_none(getattr(self, name)) for name in (*MEASURES, "images", "detections")}
        return {**mapping, "per_class": [one.to_mapping() for one in self.per_class]}


def evaluate_records(records: Sequence[Record], annotations: CocoAnnotations) -> Evaluation:
    """Metrics of the entries of a COCO results file; no entry at all gives 0, not an error.

    Raises:
        AnnotationError: the annotations hold no object to be found.
        BackendUnavailableError: pycocotools is not installed.
    """
    _, cocoeval = load_pycocotools()
    check_objects(annotations)
    with contextlib.redirect_stdout(io.StringIO()):
        result = cocoeval.COCOeval(_ground_truth(annotations), _results(records, annotations), "bbox")
        result.evaluate()
        result.accumulate()
    precision, recall = (
        result.eval["precision"],
        result.eval["recall"],
    )  # [T, 101, K, 4, 3] and [T, K, 4, 3], -1: no object
    return Evaluation(
        ap=_mean(precision[..., ALL, AT_100]),
        ap50=_mean(precision[IOU_50, ..., ALL, AT_100]),
        ap75=_mean(precision[IOU_75, ..., ALL, AT_100]),
        ap_small=_mean(precision[..., SMALL, AT_100]),
        ap_medium=_mean(precision[..., MEDIUM, AT_100]),
        ap_large=_mean(precision[..., LARGE, AT_100]),
        ar1=_mean(recall[..., ALL, AT_1]),
        ar10=_mean(recall[..., ALL, AT_10]),
        ar100=_mean(recall[..., ALL, AT_100]),
        per_class=tuple(_class_evaluation(result, index, annotations) for index in range(len(annotations.class_names))),
        images=len(annotations),
        detections=len(records),
    )


def check_objects(annotations: CocoAnnotations, *, difficult: bool = True) -> None:
    """See that there is something to be found: an object that is no crowd and, unless `difficult`, not difficult.

    Raises:
        AnnotationError: there is not.
    """
    if not any((~image.is_crowd).any() for image in annotations):
        raise AnnotationError(f"{annotations.file} has no boxes: AP needs at least one annotated object.")
    if not difficult and not any((~(image.is_crowd | image.is_difficult)).any() for image in annotations):
        raise AnnotationError(
            f"all boxes of {annotations.file} are difficult or crowds: recall needs other objects too."
        )


def load_pycocotools() -> tuple[Any, Any]:
    """The modules pycocotools.coco and pycocotools.cocoeval.

    Raises:
        BackendUnavailableError: they cannot be imported.
    """
    try:
        from pycocotools import coco, cocoeval
    except ImportError as error:
        raise BackendUnavailableError(
            "measuring AP needs pycocotools, which cannot be imported here: `pip install pycocotools`, "
            "or evaluate on a workstation."
        ) from error
    return coco, cocoeval


def _class_evaluation(result: Any, index: int, annotations: CocoAnnotations) -> ClassEvaluation:
    """Metrics of class `index` out of a finished COCOeval."""
    by_size = result.eval["precision"][:, :, index, :, AT_100]  # [T, 101, 4]
    precision, recall = by_size[..., ALL], result.eval["recall"][:, index, ALL]  # [T, 101] and [T, 3]
    category = annotations.category_ids[index]
    best_f1, best_score = _best_operating_point(result, index)
    return ClassEvaluation(
        name=annotations.class_names[index],
        ap=_mean(precision),
        ap50=_mean(precision[IOU_50]),
        ap75=_mean(precision[IOU_75]),
        ap_small=_mean(by_size[..., SMALL]),
        ap_medium=_mean(by_size[..., MEDIUM]),
        ap_large=_mean(by_size[..., LARGE]),
        ar1=_mean(recall[:, AT_1]),
        ar10=_mean(recall[:, AT_10]),
        ar=_mean(recall[:, AT_100]),
        objects=sum(int(((image.class_ids == index) & ~image.is_crowd).sum()) for image in annotations),
        detections=sum(one["category_id"] == category for one in result.cocoDt.dataset["annotations"]),
        best_f1=best_f1,
        best_score=best_score,
        precision50=np.where(precision[IOU_50] < 0, np.nan, precision[IOU_50]),
        precision75=np.where(precision[IOU_75] < 0, np.nan, precision[IOU_75]),
    )


def _best_operating_point(result: Any, index: int) -> tuple[float, float]:
    """(highest F1 at IoU 0.5 over all score thresholds, that threshold); NaN without objects or detections."""
    images = len(result.params.imgIds)
    first = index * len(result.params.areaRng) * images  # order of evalImgs: class, area range, image
    matches = [one for one in result.evalImgs[first : first + images] if one is not None]
    objects = sum(int(np.count_nonzero(np.asarray(one["gtIgnore"]) == 0)) for one in matches)
    if not matches or objects == 0:
        return math.nan, math.nan
    scores = np.concatenate([one["dtScores"] for one in matches])
    counted = np.concatenate([~np.asarray(one["dtIgnore"][IOU_50], bool) for one in matches])
    correct = np.concatenate([np.asarray(one["dtMatches"][IOU_50]) > 0 for one in matches]) & counted
    if len(scores) == 0:
        return 0.0, math.nan
    order = np.argsort(-scores, kind="stable")
    scores, found, shown = scores[order], np.cumsum(correct[order]), np.cumsum(counted[order])
    f1 = 2.0 * found / (objects + shown)
    last_of_its_score = np.append(scores[1:] < scores[:-1], True)  # a threshold cannot part equal scores
    best = int(np.argmax(np.where(last_of_its_score, f1, -1.0)))
    return float(f1[best]), float(scores[best])


def _ground_truth(annotations: CocoAnnotations) -> Any:
    """A pycocotools COCO of the annotations as they were checked."""
    entries = [
        {
            "image_id": image.image_id,
            "category_id": annotations.category_ids[class_id],
            "bbox": _xywh(box),
            "area": float(area),
            "iscrowd": int(crowd),
        }
        for image in annotations
        for box, class_id, crowd, area in zip(image.boxes_xyxy, image.class_ids, image.is_crowd, image.areas)
    ]
    return _coco(annotations.images, entries, annotations)


def _results(records: Sequence[Record], annotations: CocoAnnotations) -> Any:
    """A pycocotools COCO of detections; its own loadRes fails where there are none."""
    entries = [{**one, "area": one["bbox"][2] * one["bbox"][3], "iscrowd": 0} for one in records]
    return _coco(annotations.images, entries, annotations)


def _coco(images: Sequence[CocoImage], entries: list[Record], annotations: CocoAnnotations) -> Any:
    coco, _ = load_pycocotools()
    names = zip(annotations.category_ids, annotations.class_names, strict=True)
    index = coco.COCO()
    index.dataset = {
        "images": [{"id": image.image_id, "height": image.height, "width": image.width} for image in images],
        "categories": [{"id": category, "name": name} for category, name in names],
        "annotations": [{**entry, "id": number} for number, entry in enumerate(entries, start=1)],  # 0 means "no match"
    }
    index.createIndex()
    return index


def _xywh(box: np.ndarray) -> list[float]:
    x1, y1, x2, y2 = (float(value) for value in box)
    return [x1, y1, x2 - x1, y2 - y1]


def _mean(values: np.ndarray) -> float:
    """Mean of what is not -1, pycocotools' mark for "no object"; NaN if nothing is left."""
    present = values[values > -1]
    return float(present.mean()) if present.size else math.nan
