"""Box arithmetic of the ONNX bodies, in the order of operations of the torch face (common/boxes.py).

Boxes are xyxy, float32. Leading axes (`...`) are images or levels; M rows, N columns, T boxes of one block.
"""

from __future__ import annotations

import numpy as np

from plugins.common.onnx_builder import BodyBuilder, Operand, Value

AWAY = np.array([-2, -2, -1, -1], np.float32)  # overlaps no box clipped to an image; its area is not zero


def decode_boxes(body: BodyBuilder, deltas: Value, boxes: Value, weights: Operand, clip: Operand) -> Value:
    """`boxes` [..., 4] moved and scaled by `deltas` [..., 4] of the same shape."""
    low, high = boxes.split(2, axis=-1)  # [..., 2] each, (x, y)
    shifts, scales = (deltas / weights).split(2, axis=-1)
    sizes = high - low
    centers = shifts * sizes + (low + 0.5 * sizes)
    halves = 0.5 * (body.op("Exp", scales.at_most(clip)) * sizes)
    return body.concat(centers - halves, centers + halves, axis=-1)


def clip_boxes(boxes: Value, im_info: Value, *leading: int) -> Value:
    """`boxes` [B, ..., 4] moved into the valid area of `im_info` [B, 4], viewed as [*leading, 4]; NaN stays NaN."""
    limits = im_info.gather([1, 0, 1, 0], axis=1).reshape(*leading, 4)  # (valid_w, valid_h, valid_w, valid_h)
    return boxes.at_least(0.0).at_most(limits)


def large_boxes(boxes: Value, min_size: Operand) -> Value:
    """Which `boxes` [..., 4] have both sides >= `min_size`, bool [..., 1]; False where a side is NaN."""
    low, high = boxes.split(2, axis=-1)
    width_large, height_large = ((high - low) >= min_size).split(2, axis=-1)
    return width_large & height_large


def without_padding(body: BodyBuilder, rois: Value) -> tuple[Value, Value]:
    """`rois` [N, 4] with zeros where one has no positive width and height or a NaN; and which have not, bool [N, 1]."""
    wide, high = (rois.slice(2, 4, axis=1) > rois.slice(0, 2, axis=1)).split(2, axis=1)
    real = wide & high
    return body.where(real, rois, np.float32(0)), real


class Columns:
    """Boxes [..., N, 4] made ready to stand along the columns of an overlap matrix."""

    def __init__(self, body: BodyBuilder, boxes: Value, rank: int = 3) -> None:
        corners = boxes.transpose(*range(rank - 2), rank - 1, rank - 2)  # [..., 4, N]
        self.x1, self.y1, self.x2, self.y2 = corners.split(4, axis=-2)  # [..., 1, N]
        self.area = (self.x2 - self.x1) * (self.y2 - self.y1)
        self.body = body

    def iou(self, rows: Value) -> Value:
        """IoU [..., M, N] of `rows` [..., M, 4] with the columns; negative or zero where they do not touch."""
        body = self.body
        x1, y1, x2, y2 = rows.split(4, axis=-1)  # [..., M, 1]
        area = body.op("Max", (x2 - x1) * (y2 - y1), np.float32(1e-30))  # two boxes without area do not overlap
        width = body.op("Relu", body.op("Min", x2, self.x2) - body.op("Max", x1, self.x1))
        height = body.op("Min", y2, self.y2) - body.op("Max", y1, self.y1)
        intersection = width * height
        return intersection / ((area + self.area) - intersection)


def keep_greedily(body: BodyBuilder, free: Value, suppresses: Value) -> Value:
    """Greedy NMS as a fixed point: a box stays if it is free and no box that stays suppresses it.

    From "all free ones stay", odd steps keep too few and even steps too many, and both close in on the one fixed point:
    after n steps every box whose chain of suppressors is shorter than n is right.

    Args:
        free: float32 [..., 1, T], 1 or 0.
        suppresses: float32 [..., T, T], 1 where the row's box removes the column's; strictly upper triangular.

    Returns:
        float32 [..., 1, T], 1 where the box stays.
    """

    def step(_: Value, most: Value) -> tuple[Value, Value]:
        least = body.op("Relu", free - most @ suppresses)
        most = body.op("Relu", free - least @ suppresses)
        return (most - least).reduce("Max") > 0.0, most

    return body.loop_while(step, suppresses.size(-1), free)[0]
