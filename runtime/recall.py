"""Recall of region proposals: which share of the objects the first N proposals of an image cover.

An object is covered by at most one proposal, and the other way round: of all pairs of a proposal and an object of the
image the one of highest IoU is taken, both are put aside, and so on. At a threshold those objects count whose pair has
this IoU or more. Classes play no part; crowds and difficult objects are left out.

Shapes: I images, P proposals and G objects of one image, N numbers of proposals, T IoU thresholds.
Ref: Hosang et al., What makes for effective detection proposals? (2015); Ren et al., Faster R-CNN (2015), figure 2.
AR is COCO's, the mean over IoU 0.50:0.05:0.95 (Hosang's is an integral over 0.5 to 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.boxes import iou_matrix
from runtime.coco import CocoAnnotations, CocoImage
from runtime.metrics import check_objects
from runtime.tables import format_table

COUNTS = (1, 3, 10, 30, 100, 300, 1000, 2000)
IOUS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


@dataclass(frozen=True, eq=False)
class ProposalRecall:
    """Recall float64 [N, T] with the first `counts[n]` proposals of each image at the IoU threshold `ious[t]`."""

    counts: tuple[int, ...]
    ious: tuple[float, ...]
    recall: np.ndarray
    images: int
    objects: int
    proposals: int

    @property
    def average(self) -> np.ndarray:
        """AR at each number of proposals, float64 [N]: the mean over the thresholds."""
        means: np.ndarray = self.recall.mean(axis=1)
        return means

    def at(self, count: int, iou: float) -> float:
        """Recall with `count` proposals at the threshold `iou`, both among those measured."""
        return float(self.recall[self.counts.index(count), self.ious.index(iou)])

    def to_mapping(self) -> dict[str, Any]:
        """The numbers for a JSON file."""
        return {
            "images": self.images,
            "objects": self.objects,
            "proposals": self.proposals,
            "counts": list(self.counts),
            "ious": list(self.ious),
            "recall": self.recall.tolist(),
            "average_recall": self.average.tolist(),
        }


def proposal_recall(
    proposals: Sequence[np.ndarray],
    annotations: CocoAnnotations,
    *,
    counts: Sequence[int] = COUNTS,
    ious: Sequence[float] = IOUS,
) -> ProposalRecall:
    """Recall of proposals, one item per image of `annotations`.

    Args:
        proposals: I x float [P, 4] xyxy image px, best first; P may differ and may be 0.
        counts: numbers of proposals, at least 1 each; images with fewer give all they have.
        ious: thresholds.

    Raises:
        AnnotationError: the annotations hold no object that counts.
    """
    check_objects(annotations, difficult=False)
    covered = [
        np.stack([best_pairs(boxes[:count], _objects(image)) for count in counts])  # [N, G]
        for boxes, image in zip(proposals, annotations.images, strict=True)
    ]
    overlaps = np.concatenate(covered, axis=1)  # [N, objects of all images]
    recall = np.stack([(overlaps >= iou).mean(axis=1) for iou in ious], axis=1)
    return ProposalRecall(
        counts=tuple(counts),
        ious=tuple(ious),
        recall=recall,
        images=len(annotations),
        objects=overlaps.shape[1],
        proposals=sum(len(boxes) for boxes in proposals),
    )


def best_pairs(proposals: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """The IoU of the proposal that each object [G, 4] is paired with, float64 [G]; 0: none is left for it."""
    ious = iou_matrix(objects, proposals, np.float64)  # [G, P]
    covered = np.zeros(len(objects))
    for _ in range(min(ious.shape)):
        row, column = np.unravel_index(int(ious.argmax()), ious.shape)
        covered[row] = max(ious[row, column], 0.0)
        ious[row, :] = ious[:, column] = -1.0
    return covered


def recall_table(results: dict[str, ProposalRecall], ious: Sequence[float] = (0.5, 0.7)) -> str:
    """One row per name and number of proposals: recall at `ious`, and AR."""
    rows = [
        [name if count == one.counts[0] else "", count]
        + [f"{one.at(count, iou):.3f}" for iou in ious]
        + [f"{average:.3f}"]
        for name, one in results.items()
        for count, average in zip(one.counts, one.average)
    ]
    return format_table(["artifact", "proposals", *(f"recall at IoU {iou:g}" for iou in ious), "AR"], rows)


def _objects(image: CocoImage) -> np.ndarray:
    return image.boxes_xyxy[~(image.is_crowd | image.is_difficult)]
