"""Are these the same detections? A verdict on two sets, with its numbers.

Two runtimes round differently, in the last digits. A box and its score may therefore differ by the tolerances; and a
detection that stands on the edge of a rule (score threshold, the last of the D rows, IoU at the NMS threshold) may be
there in one and not in the other. Such borderline ones are counted apart; any other without a partner is an error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.boxes import iou_matrix
from runtime.detections import Detections
from runtime.errors import ParityError
from runtime.matching import match_detections
from runtime.spec import DetectionSpec
from runtime.tables import format_table


@dataclass(frozen=True)
class Tolerances:
    """How far two runtimes may differ."""

    box_px: float = 0.01  # each corner, image px
    score: float = 1e-4
    iou: float = 1e-3  # around the NMS threshold: what box_px makes of a box of 20 px


@dataclass(frozen=True)
class Comparison:
    """Two sets of detections of one image, in numbers. `borderline`: without partner, but on the edge of a rule."""

    name: str
    num_reference: int
    num_candidate: int
    num_matched: int
    num_missed: int
    num_extra: int
    num_borderline: int
    largest_box_px: float
    largest_score: float


@dataclass(frozen=True)
class ParityReport:
    """Comparisons of several images under one rule."""

    comparisons: tuple[Comparison, ...]
    score_threshold: float
    tolerances: Tolerances

    @property
    def num_matched(self) -> int:
        return sum(comparison.num_matched for comparison in self.comparisons)

    def failures(self) -> list[str]:
        """What breaks the tolerances, one phrase each; empty when the sets are the same."""
        found = []
        for item in self.comparisons:
            if item.num_missed or item.num_extra:
                found.append(f"{item.name}: {item.num_missed} missed and {item.num_extra} extra detections")
            # written so that NaN fails
            if not item.largest_box_px <= self.tolerances.box_px:
                found.append(f"{item.name}: a box differs by {item.largest_box_px:.2g} px")
            if not item.largest_score <= self.tolerances.score:
                found.append(f"{item.name}: a score differs by {item.largest_score:.2g}")
        if self.num_matched == 0:
            found.append(f"no detection above a score of {self.score_threshold:.3g} to compare")
        return found

    def check(self) -> None:
        """Accept or raise.

        Raises:
            ParityError: a difference beyond the tolerances, or nothing was compared.
        """
        failures = self.failures()
        if failures:
            raise ParityError(
                f"the detections are not the same: {'; '.join(failures)} (tolerances {self.tolerances.box_px:g} px and "
                f"{self.tolerances.score:g}); report this with the weights, or use --no-verify to see the file."
            )

    def table(self) -> str:
        """One line per image."""
        counts = ("reference", "exported", "matched", "missed", "extra", "borderline")
        header = ("picture", *counts, "|Δbox| px", "|Δscore|")
        rows = [
            (
                item.name,
                item.num_reference,
                item.num_candidate,
                item.num_matched,
                item.num_missed,
                item.num_extra,
                item.num_borderline,
                f"{item.largest_box_px:.1e}",
                f"{item.largest_score:.1e}",
            )
            for item in self.comparisons
        ]
        return format_table(header, rows)


def compare_detections(
    name: str,
    reference: Detections,
    candidate: Detections,
    rule: DetectionSpec,
    tolerances: Tolerances | None = None,
) -> Comparison:
    """Match two sets that the same `rule` made of the same image."""
    tolerances = tolerances or Tolerances()
    match = match_detections(reference, candidate)
    first, second = match.pairs[:, 0], match.pairs[:, 1]
    missed = [index for index in match.missed if not _is_borderline(index, reference, candidate, rule, tolerances)]
    extra = [index for index in match.extra if not _is_borderline(index, candidate, reference, rule, tolerances)]
    box_distances = np.abs(reference.boxes_xyxy[first] - candidate.boxes_xyxy[second])
    score_distances = np.abs(reference.scores[first] - candidate.scores[second])
    return Comparison(
        name=name,
        num_reference=len(reference),
        num_candidate=len(candidate),
        num_matched=len(match.pairs),
        num_missed=len(missed),
        num_extra=len(extra),
        num_borderline=len(match.missed) + len(match.extra) - len(missed) - len(extra),
        largest_box_px=float(box_distances.max(initial=0.0)),
        largest_score=float(score_distances.max(initial=0.0)),
    )


def report_of(
    comparisons: Sequence[Comparison], rule: DetectionSpec, tolerances: Tolerances | None = None
) -> ParityReport:
    """The comparisons with the rule they were made under."""
    return ParityReport(tuple(comparisons), rule.score_threshold, tolerances or Tolerances())


def _is_borderline(index: int, own: Detections, other: Detections, rule: DetectionSpec, tolerances: Tolerances) -> bool:
    """Whether rounding alone can explain that detection `index` of `own` is not in `other`."""
    score, label = own.scores[index], own.class_ids[index]
    if score <= rule.score_threshold + tolerances.score:
        return True
    if len(other) == rule.max_detections and score <= other.scores.min() + tolerances.score:
        return True  # the other's last row went to one that is as good
    better = (other.class_ids == label) & (other.scores >= score - tolerances.score)
    overlaps = iou_matrix(own.boxes_xyxy[index : index + 1], other.boxes_xyxy[better])
    return bool((np.abs(overlaps - rule.nms_threshold) <= tolerances.iou).any())
