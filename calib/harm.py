"""What a precision does to detections: matched boxes and AP, against the FP32 detector on the same images.

Shapes: N detections of the reference, M of the candidate, P matched pairs.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto

from calib.artifact import element_types, spec_of_model
from calib.images import CalibrationImages, spread_evenly
from calib.rounding import round_like_gpu
from runtime.backends.onnxruntime import CPU, OnnxRuntimeBackend
from runtime.backends.onnxruntime_sessions import load_onnxruntime, session_options
from runtime.boxes import iou_matrix
from runtime.coco import CocoAnnotations, CocoImage
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.errors import RunError, UserError, first_line
from runtime.evaluation import detect_images, evaluate_detections
from runtime.images import read_image
from runtime.matching import match_detections

CLEAR = 0.3  # score from which a detection counts as one: below it sets differ by what nobody acts on
FOLDS = 10  # parts of the images, each left out once to learn how far AP depends on them
OBJECT = 0.5  # score from which one of FP32's detections counts as an object, where nobody has annotated any


@dataclass(frozen=True)
class Harm:
    """ap_drop: AP of FP32 minus AP, both 0 to 1. disagreement: 0 for the same detections, 1 for none in common.

    missed, extra: detections of FP32 without a partner, and those without one in FP32. iou, score_difference: means
    over the pairs; 1 and 0 if there are none.
    """

    ap: float
    ap_drop: float
    disagreement: float
    matched: int
    missed: int
    extra: int
    iou: float
    score_difference: float
    error: float = 0.0  # standard error of ap_drop: other images would give another; 0 where it was not measured

    @property
    def likely_drop(self) -> float:
        """What other images should not exceed in five cases of six."""
        return self.ap_drop + self.error


class Judge:
    """Holds the measuring images and FP32's detections on them.

    annotated: whether AP is against annotations; else against FP32's own detections, so that it is 1 for FP32.
    """

    def __init__(self, model: ModelProto, images: CocoAnnotations, *, annotated: bool, threads: int | None) -> None:
        self.threads = threads
        self.annotated = annotated
        found = self._detect(model, images, "fp32")
        self._hold(images if annotated else _with_objects(images, found), found, FOLDS)

    def _hold(self, images: CocoAnnotations, reference: list[Detections], folds: int) -> None:
        self.images, self.reference, self.folds = images, reference, folds
        self.ap = evaluate_detections(reference, images).ap
        self._fold_aps = _fold_aps(reference, images, folds)

    def fewer(self, count: int) -> Judge:
        """A judge over `count` of the images, evenly spread, which gives no standard error: quick, to rank layers."""
        chosen = spread_evenly(range(len(self.images)), count)
        if not any((~self.images.images[index].is_crowd).any() for index in chosen):
            return self
        judge = copy.copy(self)
        images = dataclasses.replace(self.images, images=tuple(self.images.images[index] for index in chosen))
        judge._hold(images, [self.reference[index] for index in chosen], 0)
        return judge

    def harm(self, model: ModelProto, title: str) -> Harm:
        """Of `model`, in whatever precision; FP16 is rounded as on a GPU."""
        if TensorProto.FLOAT16 in element_types(model.graph).values():
            model = round_like_gpu(model)
        found = self._detect(model, self.images, title)
        harm = compare(self.reference, found, self.ap, evaluate_detections(found, self.images).ap)
        drops = np.subtract(self._fold_aps, _fold_aps(found, self.images, self.folds))
        return dataclasses.replace(harm, error=jackknife_error(drops))

    def _detect(self, model: ModelProto, images: CocoAnnotations, title: str) -> list[Detections]:
        with open_model(model, self.threads) as detector:
            return detect_images(detector, images, title=title)


def jackknife_error(values: np.ndarray) -> float:
    """The standard error of a number of which `values` [G] are what leaving out one of G parts gives; 0 for G < 2.

    Ref: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 11.
    """
    if len(values) < 2:
        return 0.0
    return float(np.sqrt((len(values) - 1) / len(values) * np.square(values - values.mean()).sum()))


def _fold_aps(found: Sequence[Detections], images: CocoAnnotations, folds: int) -> np.ndarray:
    """AP without each of `folds` parts of the images; parts without which no object is left are passed over."""
    aps = []
    for part in range(min(folds, len(images))):
        kept = [index for index in range(len(images)) if index % folds != part]
        rest = dataclasses.replace(images, images=tuple(images.images[index] for index in kept))
        if any((~image.is_crowd).any() for image in rest):
            aps.append(evaluate_detections([found[index] for index in kept], rest).ap)
    return np.array(aps)


def open_model(model: ModelProto, threads: int | None = None) -> Detector:
    """A detector of a model in memory, on the CPU, past the cache of optimised models.

    Raises:
        RunError: ONNX Runtime cannot run it.
    """
    ort = load_onnxruntime()
    try:
        session = ort.InferenceSession(model.SerializeToString(), session_options(ort, threads), providers=[CPU])
    except Exception as error:  # its exceptions have no common base
        raise RunError(f"ONNX Runtime cannot run the converted model: {first_line(error)}") from error
    return Detector(OnnxRuntimeBackend(ort, session, spec_of_model(model), wanted=[CPU], asked=None))


def compare(reference: Sequence[Detections], found: Sequence[Detections], reference_ap: float, ap: float) -> Harm:
    """Both sets, image by image, their clear detections matched by class and IoU."""
    agreement, ious, differences = 0.0, [], []
    matched = missed = extra = 0
    for first, second in zip(reference, found, strict=True):
        first, second = first.above(CLEAR / 2), second.above(CLEAR / 2)  # a clear one may have a partner just below
        match = match_detections(first, second)
        pairs = [pair for pair in match.pairs if max(first.scores[pair[0]], second.scores[pair[1]]) >= CLEAR]
        for one, other in pairs:
            iou = float(iou_matrix(first.boxes_xyxy[one : one + 1], second.boxes_xyxy[other : other + 1])[0, 0])
            difference = abs(float(first.scores[one]) - float(second.scores[other]))
            agreement += iou * (1 - difference)
            ious.append(iou)
            differences.append(difference)
        matched += len(pairs)
        missed += int((first.scores[match.missed] >= CLEAR).sum())
        extra += int((second.scores[match.extra] >= CLEAR).sum())
    total = matched + (missed + extra) / 2
    return Harm(
        ap=ap,
        ap_drop=reference_ap - ap,
        disagreement=1 - agreement / total if total else 0.0,
        matched=matched,
        missed=missed,
        extra=extra,
        iou=float(np.mean(ious)) if ious else 1.0,
        score_difference=float(np.mean(differences)) if differences else 0.0,
    )


def points(ap_drop: float) -> str:
    """`-0.25`: a drop of AP of 0.0025 as what it changes, in points of 100."""
    return f"{round(-100 * ap_drop, 2) + 0.0:+.2f}"  # + 0.0: no negative zero


def with_error(harm: Harm) -> str:
    """`-0.25 ± 0.10`, or without the error where it was not measured."""
    error = f" ± {100 * harm.error:.2f}" if harm.error else ""
    return f"{points(harm.ap_drop)}{error}"


def measuring_images(images: CalibrationImages, count: int, class_names: Sequence[str]) -> tuple[CocoAnnotations, bool]:
    """Up to `count` images to measure on, evenly spread, and whether they are annotated.

    Annotated images that were not calibrated on are taken first, and calibration images where these are too few.
    """
    if images.annotations is not None:
        rest = images.rest.images if images.rest is not None else ()
        taken = spread_evenly(rest, count)
        taken += spread_evenly(images.annotations.images, count - len(taken))
        if any((~image.is_crowd).any() for image in taken):
            return dataclasses.replace(images.annotations, images=tuple(taken)), True
    listed = tuple(_plain_image(number, path) for number, path in enumerate(spread_evenly(images.paths, count), 1))
    categories = tuple(range(1, len(class_names) + 1))
    return CocoAnnotations(images.paths[0].parent, listed, tuple(class_names), categories, 0, 0), False


def _plain_image(number: int, path: object) -> CocoImage:
    height, width = read_image(path).shape[:2]  # type: ignore[arg-type]
    none = np.zeros((0, 4), np.float32)
    empty = np.zeros(0, np.int64)
    return CocoImage(number, str(path), path, height, width, none, empty, empty.astype(bool), empty.astype(np.float32))  # type: ignore[arg-type]


def _with_objects(images: CocoAnnotations, found: Sequence[Detections]) -> CocoAnnotations:
    """The images with FP32's detections as their objects.

    Raises:
        UserError: there are none.
    """
    sure = [one.above(OBJECT) for one in found]
    if sum(map(len, sure)) == 0:
        raise UserError(
            f"the FP32 detector finds nothing with a score of {OBJECT:g} or more on {len(images)} images: expected "
            "images of what it was trained on; give others with --data."
        )
    marked = [
        dataclasses.replace(
            image,
            boxes_xyxy=one.boxes_xyxy,
            class_ids=one.class_ids.astype(np.int64),
            is_crowd=np.zeros(len(one), bool),
            areas=(one.boxes_xyxy[:, 2:] - one.boxes_xyxy[:, :2]).prod(axis=1),
        )
        for image, one in zip(images.images, sure, strict=True)
    ]
    return dataclasses.replace(images, images=tuple(marked))
