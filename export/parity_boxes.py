"""Final boxes of whole networks, from the image on: what both found, how far apart, and AP of both.

Shapes: P pairs of detections, one of the reference and one of the candidate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from export.parity_artifacts import Artifact
from export.parity_data import ParityData
from export.parity_errors import SameDetection, SetOverlap, detection_overlap
from runtime.boxes import iou_matrix
from runtime.detections import Detections
from runtime.errors import RunError
from runtime.evaluation import evaluate_detections
from runtime.matching import match_detections
from runtime.progress import progress
from runtime.spec import DetectorSpec


@dataclass(frozen=True, eq=False)
class Found:
    """What one artifact found in all pictures. failures: what it said where it could not give boxes (none there)."""

    detections: list[Detections]
    failures: list[str]
    ap: float | None


@dataclass(frozen=True, eq=False)
class ImageDifference:
    """One picture. missed, extra: detections that count and that the other artifact does not have."""

    index: int
    overlap: SetOverlap
    ious: np.ndarray
    score_differences: np.ndarray

    @property
    def missed(self) -> int:
        return self.overlap.num_reference - self.overlap.found_reference

    @property
    def extra(self) -> int:
        return self.overlap.num_candidate - self.overlap.found_candidate

    @property
    def size(self) -> tuple[int, float]:
        """To order pictures by."""
        moved = 1.0 - float(self.ious.min(initial=1.0)) + float(np.abs(self.score_differences).max(initial=0.0))
        return self.missed + self.extra, moved


@dataclass(frozen=True, eq=False)
class BoxDifference:
    """All pictures together; `rule` says which detections are the same, and which count.

    ious, score_differences: float [P], of the pairs of which one detection counts; candidate's score - reference's.
    aps: AP (0 to 1) of reference and candidate, None without annotations.
    """

    rule: SameDetection
    overlap: SetOverlap
    images: tuple[ImageDifference, ...]
    ious: np.ndarray
    score_differences: np.ndarray
    aps: tuple[float, float] | None
    failures: tuple[str, ...]

    @property
    def ap_loss(self) -> float | None:
        """How much lower the candidate's AP is."""
        return None if self.aps is None else self.aps[0] - self.aps[1]


def detect_all(artifact: Artifact, data: ParityData) -> Found:
    """Run the whole network over all pictures.

    Raises:
        SourceError: a picture cannot be read.
    """
    detections, failures = [], []
    for picture in progress(data.pictures, len(data.pictures), artifact.name):
        frame = picture.read()
        found, failure = boxes_or_failure(partial(_detect, artifact, frame), artifact.spec)
        detections.append(found)
        failures += [f"{picture.name}: {failure}"] if failure else []
    ap = None if data.annotations is None else evaluate_detections(detections, data.annotations).ap
    return Found(detections, failures, ap)


def boxes_or_failure(detect: Callable[[], Detections], spec: DetectorSpec) -> tuple[Detections, str]:
    """The boxes, or none and what was wrong: a network that gives NaN is what parity has to report, not to die of."""
    try:
        return detect(), ""
    except RunError as error:
        empty = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
        return Detections(*empty, spec.class_names), str(error)


def compare_boxes(reference: Found, candidate: Found, rule: SameDetection) -> BoxDifference:
    """Match the detections of each picture."""
    pairs = zip(reference.detections, candidate.detections, strict=True)
    images = tuple(_compare_image(index, *pair, rule) for index, pair in enumerate(pairs))
    overlap = SetOverlap(0, 0, 0, 0)
    for image in images:
        overlap = overlap + image.overlap
    aps = None if reference.ap is None or candidate.ap is None else (reference.ap, candidate.ap)
    return BoxDifference(
        rule,
        overlap,
        images,
        np.concatenate([image.ious for image in images]),
        np.concatenate([image.score_differences for image in images]),
        aps,
        tuple(candidate.failures),
    )


def most_different(difference: BoxDifference, count: int) -> list[ImageDifference]:
    """The `count` pictures with the most missed and extra detections, then with the largest changes."""
    return sorted(difference.images, key=lambda image: image.size, reverse=True)[:count]


def _detect(artifact: Artifact, frame: np.ndarray) -> Detections:
    return artifact.detector([frame])[0]


def _compare_image(index: int, reference: Detections, candidate: Detections, rule: SameDetection) -> ImageDifference:
    first, second = match_detections(reference, candidate, iou_threshold=rule.iou_threshold).pairs.T
    counted = np.maximum(reference.scores[first], candidate.scores[second]) >= np.float32(rule.score_from)
    first, second = first[counted], second[counted]
    ious = iou_matrix(reference.boxes_xyxy, candidate.boxes_xyxy)[first, second]
    differences = candidate.scores[second] - reference.scores[first]
    return ImageDifference(index, detection_overlap(reference, candidate, rule), ious, differences)
