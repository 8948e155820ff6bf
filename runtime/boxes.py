"""Box arithmetic on the host, in NumPy float32: the reference for what the exported graph computes.

Boxes are xyxy [N, 4]; deltas are (dx, dy, dw, dh) [N, 4]. Frames and units are the caller's.
Ref: Girshick et al., R-CNN (2014), appendix C (deltas); torchvision.ops.boxes and BoxCoder (the same numbers).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime.spec import BOX_CLIP


def decode_boxes(
    deltas: np.ndarray, boxes: np.ndarray, weights: Sequence[float], box_clip: float = BOX_CLIP
) -> np.ndarray:
    """Move and scale `boxes` by `deltas` / `weights`; dw and dh are capped at `box_clip` before exp. float32 [N, 4]."""
    boxes = boxes.astype(np.float32)
    sides = boxes[:, 2:] - boxes[:, :2]  # [N, 2] width, height
    centers = boxes[:, :2] + np.float32(0.5) * sides
    scaled = deltas.astype(np.float32) / np.asarray(weights, np.float32)
    new_centers = scaled[:, :2] * sides + centers
    half = np.float32(0.5) * np.exp(np.minimum(scaled[:, 2:], np.float32(box_clip))) * sides
    return np.concatenate([new_centers - half, new_centers + half], axis=1)


def encode_boxes(targets: np.ndarray, boxes: np.ndarray, weights: Sequence[float]) -> np.ndarray:
    """The deltas float32 [N, 4] with which `decode_boxes` makes `targets` of `boxes`; both need sides above 0."""
    targets, boxes = targets.astype(np.float32), boxes.astype(np.float32)
    sides, target_sides = boxes[:, 2:] - boxes[:, :2], targets[:, 2:] - targets[:, :2]
    centers = boxes[:, :2] + np.float32(0.5) * sides
    target_centers = targets[:, :2] + np.float32(0.5) * target_sides
    deltas = np.concatenate([(target_centers - centers) / sides, np.log(target_sides / sides)], axis=1)
    return deltas * np.asarray(weights, np.float32)


def clip_boxes(boxes: np.ndarray, image_hw: tuple[float, float]) -> np.ndarray:
    """Boxes with their corners moved into [0, width] x [0, height]; NaN stays NaN."""
    height, width = image_hw
    return np.clip(boxes, np.float32(0), np.array([width, height, width, height], np.float32))


def large_enough(boxes: np.ndarray, min_size: float) -> np.ndarray:
    """bool [N]: both sides are at least `min_size`; False for NaN."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= np.float32(min_size)).all(axis=1)


def box_areas(boxes: np.ndarray) -> np.ndarray:
    """Areas [N], in px squared."""
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def iou_matrix(boxes_a: np.ndarray, boxes_b: np.ndarray, dtype: type[np.floating] = np.float32) -> np.ndarray:
    """Intersection over union, `dtype` [Na, Nb]; 0 where neither box has an area (torchvision gives NaN)."""
    boxes_a, boxes_b = boxes_a.astype(dtype), boxes_b.astype(dtype)
    top_left = np.maximum(boxes_a[:, None, :2], boxes_b[None, :, :2])
    bottom_right = np.minimum(boxes_a[:, None, 2:], boxes_b[None, :, 2:])
    intersection = np.clip(bottom_right - top_left, 0, None).prod(axis=2)  # [Na, Nb]
    union = box_areas(boxes_a)[:, None] + box_areas(boxes_b)[None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(union), where=union > 0)


def nms(boxes: np.ndarray, scores: np.ndarray, iou_threshold: float) -> np.ndarray:
    """Greedy non-maximum suppression: indices of the boxes kept, int64, in descending score.

    A box falls when its IoU with a kept one is above (not at) the threshold. Equal scores rank by index, lowest first;
    boxes whose score is NaN are dropped.
    """
    order = np.argsort(-scores, kind="stable")  # NaN sorts last
    order = order[~np.isnan(scores[order])]
    kept = []
    while order.size:
        best, rest = order[0], order[1:]
        kept.append(best)
        overlaps = iou_matrix(boxes[best : best + 1], boxes[rest])[0]
        order = rest[~(overlaps > np.float32(iou_threshold))]
    return np.array(kept, np.int64)


def nms_per_class(boxes: np.ndarray, scores: np.ndarray, class_ids: np.ndarray, iou_threshold: float) -> np.ndarray:
    """`nms` within each class: indices kept, int64, in descending score over all classes, ties by index."""
    kept = []
    for class_id in np.unique(class_ids):
        members = np.flatnonzero(class_ids == class_id)
        kept.append(members[nms(boxes[members], scores[members], iou_threshold)])
    merged = np.sort(np.concatenate(kept)) if kept else np.zeros(0, np.int64)
    return merged[np.argsort(-scores[merged], kind="stable")]
