"""Which detections of two sets are the same object.

Shapes: N detections of the reference, M of the candidate, P pairs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from runtime.boxes import iou_matrix
from runtime.detections import Detections


@dataclass(frozen=True)
class Match:
    """pairs int64 [P, 2] (index in reference, in candidate); missed, extra int64: those without a partner."""

    pairs: np.ndarray
    missed: np.ndarray
    extra: np.ndarray


def match_detections(reference: Detections, candidate: Detections, *, iou_threshold: float = 0.5) -> Match:
    """Pair detections of the same class, best IoU first, each at most once; equal IoUs by the nearer score.

    Pairs below `iou_threshold` are none.
    """
    same_class = reference.class_ids[:, None] == candidate.class_ids[None, :]  # [N, M]
    iou = np.where(same_class, iou_matrix(reference.boxes_xyxy, candidate.boxes_xyxy), -1.0)
    rows, columns = np.nonzero(iou >= iou_threshold)
    distance = np.abs(reference.scores[rows] - candidate.scores[columns])
    pairs, free_rows, free_columns = [], set(range(len(reference))), set(range(len(candidate)))
    for place in np.lexsort((distance, -iou[rows, columns])):
        row, column = int(rows[place]), int(columns[place])
        if row in free_rows and column in free_columns:
            pairs.append((row, column))
            free_rows.remove(row)
            free_columns.remove(column)
    return Match(
        np.array(sorted(pairs), np.int64).reshape(-1, 2),
        np.array(sorted(free_rows), np.int64),
        np.array(sorted(free_columns), np.int64),
    )
