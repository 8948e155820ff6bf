"""Detections written by hand, and boxes whose overlaps are known."""

from __future__ import annotations

import numpy as np

from runtime.detections import Detections

A = (10.0, 10.0, 50.0, 50.0)
HALF_OF_A = (10.0, 10.0, 50.0, 30.0)  # IoU with A is exactly 0.5


def detections(*rows: tuple[tuple[float, ...], float, int]) -> Detections:
    """One row per detection: box xyxy, score, class id of "a", "b", "c"."""
    boxes = np.array([box for box, _, _ in rows], np.float32).reshape(-1, 4)
    scores = np.array([score for _, score, _ in rows], np.float32)
    return Detections(boxes, scores, np.array([label for _, _, label in rows], np.int32), ("a", "b", "c"))


def moved(box: tuple[float, ...], by: float) -> tuple[float, ...]:
    """The box, so many px to the right and down."""
    return tuple(side + by for side in box)
