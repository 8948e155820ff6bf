"""What every data set gives, and how it is mirrored.

Shapes: H, W frame sides, px; N boxes. Boxes are xyxy float32 in image px.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class Sample(NamedTuple):
    """One annotated picture.

    frame: uint8 [H,W,3] BGR. boxes_xyxy: float32 [N,4], 0 <= x1 < x2 <= W, 0 <= y1 < y2 <= H.
    labels: int64 [N], 1..K (0 is the background). is_crowd: bool [N], what training leaves out: regions with too many
    objects to tell apart, and objects that the data marks as difficult.
    image_id: the picture's id in its annotation file.
    """

    frame: np.ndarray
    boxes_xyxy: np.ndarray
    labels: np.ndarray
    is_crowd: np.ndarray
    image_id: int


def flip(sample: Sample, *, horizontal: bool, vertical: bool) -> Sample:
    """Mirrors picture and boxes: left-right if horizontal, up-down if vertical."""
    frame, boxes = sample.frame, sample.boxes_xyxy
    height, width = frame.shape[:2]
    if horizontal:
        frame = frame[:, ::-1]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
    if vertical:
        frame = frame[::-1]
        boxes = np.stack([boxes[:, 0], height - boxes[:, 3], boxes[:, 2], height - boxes[:, 1]], axis=1)
    return sample._replace(frame=np.ascontiguousarray(frame), boxes_xyxy=boxes.astype(np.float32))
