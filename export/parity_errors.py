"""How far what one stage gives is from what it should give: numbers one by one, and sets of boxes.

Both are sums, so that several images are measured as one: `a + b` is the error of the images of both.
Shapes: N boxes of the reference, M of the candidate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.boxes import iou_matrix
from runtime.detections import Detections
from runtime.matching import match_detections

SAME_ROI = 0.9  # IoU that makes two proposals the same


@dataclass(frozen=True)
class TensorError:
    """The candidate's numbers b against the reference's a.

    count: how many. largest: max |a - b|. The rest are sums: signal a², other b², product ab, noise (a - b)².
    """

    count: int
    largest: float
    signal: float
    other: float
    product: float
    noise: float

    def __add__(self, more: TensorError) -> TensorError:
        sums = ("count", "signal", "other", "product", "noise")
        largest = float(np.maximum(self.largest, more.largest))  # NaN stays NaN
        return TensorError(largest=largest, **{name: getattr(self, name) + getattr(more, name) for name in sums})

    @property
    def rms(self) -> float:
        """Root of the mean of (a - b)²."""
        return math.sqrt(self.noise / self.count) if self.count else 0.0

    @property
    def sqnr_db(self) -> float:
        """10 log10(sum a² / sum (a - b)²), signal to quantisation noise; infinite where nothing differs."""
        if not math.isfinite(self.noise):
            return math.nan
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    @property
    def cosine(self) -> float:
        """Of the angle between a and b; 1 where both are zero."""
        if self.signal == 0 or self.other == 0:
            return 1.0 if self.signal == self.other else 0.0
        return self.product / math.sqrt(self.signal) / math.sqrt(self.other)


@dataclass(frozen=True)
class SetOverlap:
    """Two sets of boxes: how many there are in each, and how many of them the other set has too."""

    num_reference: int
    num_candidate: int
    found_reference: int
    found_candidate: int

    def __add__(self, more: SetOverlap) -> SetOverlap:
        names = ("num_reference", "num_candidate", "found_reference", "found_candidate")
        return SetOverlap(*(getattr(self, name) + getattr(more, name) for name in names))

    @property
    def share_reference(self) -> float:
        """Share of the reference's boxes that the candidate has; 1 if there are none."""
        return self.found_reference / self.num_reference if self.num_reference else 1.0

    @property
    def share_candidate(self) -> float:
        """Share of the candidate's boxes that the reference has; 1 if there are none."""
        return self.found_candidate / self.num_candidate if self.num_candidate else 1.0

    @property
    def share(self) -> float:
        """The smaller of the two."""
        return min(self.share_reference, self.share_candidate)


StageError = TensorError | SetOverlap


def tensor_error(reference: np.ndarray, candidate: np.ndarray) -> TensorError:
    """The error of one image; both arrays have one shape."""
    assert reference.shape == candidate.shape, (reference.shape, candidate.shape)
    a, b = (array.astype(np.float64).ravel() for array in (reference, candidate))
    with np.errstate(invalid="ignore", over="ignore"):
        difference = a - b
        return TensorError(
            count=a.size,
            largest=float(np.abs(difference).max(initial=0.0)),
            signal=_dot(a, a),
            other=_dot(b, b),
            product=_dot(a, b),
            noise=_dot(difference, difference),
        )


def _dot(a: np.ndarray, b: np.ndarray) -> float:
    """Not a @ b: BLAS would take several threads for it, which costs more than it saves."""
    return float(np.einsum("i,i->", a, b))


def roi_overlap(reference: np.ndarray, candidate: np.ndarray) -> SetOverlap:
    """Of two sets of proposals [N, 4] and [M, 4]: a box is found if the other set has one with IoU of SAME_ROI."""
    same = iou_matrix(reference, candidate) >= SAME_ROI  # [N, M]
    return SetOverlap(len(reference), len(candidate), int(same.any(axis=1).sum()), int(same.any(axis=0).sum()))


@dataclass(frozen=True)
class SameDetection:
    """When two detections of one class are the same: from this IoU on, with scores no farther apart than the margin.

    Those count that score more than the margin above `score_threshold`: of the others, rounding may have dropped one.
    """

    iou_threshold: float
    score_margin: float
    score_threshold: float

    @property
    def score_from(self) -> float:
        """The score from which on a detection counts."""
        return self.score_threshold + self.score_margin


def detections_alone(
    reference: Detections, candidate: Detections, rule: SameDetection
) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the detections that count and that the other set does not have: of the reference, of the candidate."""
    match = match_detections(reference, candidate, iou_threshold=rule.iou_threshold)
    first, second = match.pairs.T
    moved = np.abs(reference.scores[first] - candidate.scores[second]) > np.float32(rule.score_margin)
    lost = np.concatenate([match.missed, first[moved]]), np.concatenate([match.extra, second[moved]])
    counted = [
        np.sort(indices[found.scores[indices] >= np.float32(rule.score_from)])
        for indices, found in zip(lost, (reference, candidate), strict=True)
    ]
    return counted[0], counted[1]


def detection_overlap(reference: Detections, candidate: Detections, rule: SameDetection) -> SetOverlap:
    """Of two sets of detections, those that count."""
    lost = [len(indices) for indices in detections_alone(reference, candidate, rule)]
    totals = [int((found.scores >= np.float32(rule.score_from)).sum()) for found in (reference, candidate)]
    return SetOverlap(totals[0], totals[1], totals[0] - lost[0], totals[1] - lost[1])


def total(errors: Sequence[TensorError] | Sequence[SetOverlap]) -> StageError:
    """The error of all images together; there is at least one."""
    result = errors[0]
    for error in errors[1:]:
        result = result + error  # type: ignore[operator]  # both are of one kind
    return result
