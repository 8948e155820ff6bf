"""Boxes for the tests of matching and losses, and their overlap in plain Python."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

Box = tuple[float, float, float, float]


def whole_boxes(least: int, most: int) -> st.SearchStrategy[list[Box]]:
    """Lists of small boxes at whole px, some of them with corners below 0; ties of their IoU are frequent."""
    corner, side = st.integers(-3, 12), st.integers(1, 8)
    box = st.tuples(corner, corner, side, side).map(lambda it: (it[0], it[1], it[0] + it[2], it[1] + it[3]))
    return st.lists(box, min_size=least, max_size=most)


def boxes_of(boxes: Sequence[Box]) -> Tensor:
    """float32 [N, 4]."""
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def iou(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two xyxy boxes with an area."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    common = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return common / (sum(areas) - common)


def encoded(box: Sequence[float], roi: Sequence[float], weights: Sequence[float]) -> list[float]:
    """(tx, ty, tw, th) of Girshick et al., R-CNN (2014), appendix C, each times its weight."""
    (x, y, width, height), (roi_x, roi_y, roi_width, roi_height) = (
        ((b[0] + b[2]) / 2, (b[1] + b[3]) / 2, b[2] - b[0], b[3] - b[1]) for b in (box, roi)
    )
    sides = math.log(width / roi_width), math.log(height / roi_height)
    deltas = (x - roi_x) / roi_width, (y - roi_y) / roi_height, *sides
    return [delta * weight for delta, weight in zip(deltas, weights, strict=True)]


def moved(delta: Sequence[float], roi: Sequence[float], weights: Sequence[float]) -> Box:
    """The box that the deltas make of the roi."""
    dx, dy, dw, dh = (value / weight for value, weight in zip(delta, weights, strict=True))
    width, height = roi[2] - roi[0], roi[3] - roi[1]
    x, y = (roi[0] + roi[2]) / 2 + dx * width, (roi[1] + roi[3]) / 2 + dy * height
    half_width, half_height = width * math.exp(dw) / 2, height * math.exp(dh) / 2
    return x - half_width, y - half_height, x + half_width, y + half_height


def log_loss(logit: float, is_object: bool) -> float:
    """-log of the probability of what is true."""
    return math.log(1 + math.exp(-logit if is_object else logit))


def smooth_l1(error: float, beta: float) -> float:
    """Quadratic below beta, linear beyond."""
    return error**2 / (2 * beta) if abs(error) < beta else abs(error) - beta / 2


def giou_loss(delta: Sequence[float], roi: Sequence[float], box: Sequence[float], weights: Sequence[float]) -> float:
    """1 - (IoU - share of the smallest box around both that neither covers)."""
    one = moved(delta, roi, weights)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (one, box)]
    overlap = iou(one, box)
    union = sum(areas) / (1 + overlap)
    around = (max(one[2], box[2]) - min(one[0], box[0])) * (max(one[3], box[3]) - min(one[1], box[1]))
    return 1 - overlap + (around - union) / around
