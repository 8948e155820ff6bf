"""The four ops in plain NumPy loops: slow, and meant to be obviously right. Every face of an op is compared with these.

Shapes: B images, L levels, A anchors per cell, R rois, K foreground classes, D detections, C channels, P pooled size.

The rules that torchvision leaves open are settled here:
    - RPN candidates rank by their logit; equal logits by their index in (h, w, a) order, then by level, lower first.
      Sigmoid serves the score threshold only: it saturates and rounds differently from library to library.
    - Detections rank by score; equal scores by the flat index roi * K + class, lower first.
    - A NaN score is never a candidate (it takes no place among the `pre_nms_top_n`); a NaN box is dropped.
    - Thresholds are float32, as ONNX attributes are. IoU > threshold and score > threshold are strict, RPN's is >=.
    - A roi without positive width and height is padding: it pools to zeros.
    - A NaN feature is no maximum, and a maximum begins at the least float32: torchvision's `value > maximum`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

F32 = np.float32


def rpn_proposals(
    im_info: np.ndarray,
    objectness: Sequence[np.ndarray],
    bbox_deltas: Sequence[np.ndarray],
    base_anchors: Sequence[float],
    strides: Sequence[int],
    pre_nms_top_n: int,
    post_nms_top_n: int,
    nms_threshold: float,
    score_threshold: float,
    min_size: float,
    box_coder_weights: Sequence[float],
    box_clip: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Region proposals: rois float32 [B, R, 4] xyxy network px, zero padded; num_rois int32 [B].

    im_info float32 [B, 4] = (valid height, valid width, scale y, scale x); per level objectness [B, A, H, W] and
    bbox_deltas [B, 4A, H, W]; base_anchors flat [L * A * 4]; strides flat [L * 2] (y, x).
    """
    num_images, num_anchors = objectness[0].shape[:2]
    cells = np.asarray(base_anchors, F32).reshape(len(objectness), num_anchors, 4)
    rois = np.zeros((num_images, post_nms_top_n, 4), F32)
    num_rois = np.zeros(num_images, np.int32)
    for image in range(num_images):
        survivors: list[tuple[float, np.ndarray]] = []
        for level, (logits, deltas) in enumerate(zip(objectness, bbox_deltas, strict=True)):
            width = logits.shape[3]
            logits_hwa = logits[image].astype(F32).transpose(1, 2, 0).reshape(-1)
            candidates = [i for i in range(logits_hwa.size) if not np.isnan(logits_hwa[i])]
            candidates.sort(key=lambda i: -logits_hwa[i])  # stable: equal logits stay in index order
            boxes, ranked = [], []
            for index in candidates[:pre_nms_top_n]:
                y, x, a = index // (width * num_anchors), index // num_anchors % width, index % num_anchors
                stride_y, stride_x = strides[2 * level], strides[2 * level + 1]
                anchor = cells[level, a] + np.array([x * stride_x, y * stride_y, x * stride_x, y * stride_y], F32)
                delta = deltas[image, 4 * a : 4 * a + 4, y, x].astype(F32)
                box = clip_box(decode_box(delta, anchor, box_coder_weights, box_clip), im_info[image, :2])
                if is_large(box, min_size) and sigmoid(logits_hwa[index]) >= F32(score_threshold):
                    boxes.append(box)
                    ranked.append(logits_hwa[index])
            survivors += [(ranked[i], boxes[i]) for i in greedy_nms(boxes, nms_threshold)]
        survivors.sort(key=lambda survivor: -survivor[0])  # stable: equal logits stay in level order
        survivors = survivors[:post_nms_top_n]
        num_rois[image] = len(survivors)
        for row, (_, box) in enumerate(survivors):
            rois[image, row] = box
    return rois, num_rois


def box_detections(
    rois: np.ndarray,
    num_rois: np.ndarray,
    class_logits: np.ndarray,
    bbox_deltas: np.ndarray,
    im_info: np.ndarray,
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
    min_size: float,
    box_coder_weights: Sequence[float],
    box_clip: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Detections: count int32 [B, 1], boxes float32 [B, D, 4] image px, scores [B, D], classes int32 [B, D] (or -1).

    rois float32 [B, R, 4] network px; class_logits [B * R, K + 1], background first; bbox_deltas [B * R, 4 (K + 1)] or,
    class-agnostic, [B * R, 4].
    """
    num_images, rois_per_image = rois.shape[:2]
    num_classes = class_logits.shape[1] - 1
    agnostic = bbox_deltas.shape[1] == 4
    counts = np.zeros((num_images, 1), np.int32)
    boxes_out = np.zeros((num_images, max_detections, 4), F32)
    scores_out = np.zeros((num_images, max_detections), F32)
    classes_out = np.full((num_images, max_detections), -1, np.int32)
    for image in range(num_images):
        candidates: list[tuple[np.float32, int, np.ndarray]] = []  # in flat index order roi * K + class
        for roi in range(num_rois[image]):
            row = image * rois_per_image + roi
            scores = softmax(class_logits[row].astype(F32))
            for label in range(1, num_classes + 1):
                if not scores[label] > F32(score_threshold):
                    continue
                delta = bbox_deltas[row] if agnostic else bbox_deltas[row, 4 * label : 4 * label + 4]
                box = decode_box(delta.astype(F32), rois[image, roi], box_coder_weights, box_clip)
                box = clip_box(box, im_info[image, :2])
                if is_large(box, min_size):
                    candidates.append((scores[label], label - 1, box))
        candidates.sort(key=lambda candidate: -candidate[0])
        kept: list[int] = []
        for class_index in range(num_classes):
            members = [i for i, candidate in enumerate(candidates) if candidate[1] == class_index]
            kept += [members[i] for i in greedy_nms([candidates[i][2] for i in members], nms_threshold)]
        kept = sorted(kept)[:max_detections]
        counts[image, 0] = len(kept)
        scale_y, scale_x = im_info[image, 2:]
        for row, index in enumerate(kept):
            scores_out[image, row], classes_out[image, row], box = candidates[index]
            boxes_out[image, row] = box / np.array([scale_x, scale_y, scale_x, scale_y], F32)
    return counts, boxes_out, scores_out, classes_out


def pyramid_roi_align(
    rois: np.ndarray,
    features: Sequence[np.ndarray],
    spatial_scales: Sequence[float],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
) -> np.ndarray:
    """RoIAlign of each roi from the pyramid level its size asks for: [B * R, C, P, P] of the features' dtype.

    Ref: He et al., Mask R-CNN (RoIAlign); Lin et al., Feature Pyramid Networks, equation 1 (the level).
    """
    num_images, rois_per_image = rois.shape[:2]
    channels = features[0].shape[1]
    out = np.zeros((num_images * rois_per_image, channels, output_size, output_size), features[0].dtype)
    for row, roi in enumerate(rois.reshape(-1, 4)):
        x1, y1, x2, y2 = roi
        if not (x2 > x1 and y2 > y1):
            continue
        level = _pyramid_level(roi, spatial_scales, canonical_scale, canonical_level)
        feature = features[level][row // rois_per_image].astype(F32)  # [C, H, W]
        pooled = _roi_align_one(feature, roi, spatial_scales[level], output_size, sampling_ratio, aligned)
        out[row] = pooled.astype(out.dtype)
    return out


def roi_max_pool(rois: np.ndarray, features: np.ndarray, output_size: int, spatial_scale: float) -> np.ndarray:
    """Fast R-CNN's RoI max pooling: [B * R, C, P, P] of the features' dtype; an empty bin is zero.

    Ref: Girshick, Fast R-CNN; corners round half away from zero, the far corner included.
    """
    num_images, rois_per_image = rois.shape[:2]
    _, channels, height, width = features.shape
    out = np.zeros((num_images * rois_per_image, channels, output_size, output_size), features.dtype)
    for row, roi in enumerate(rois.reshape(-1, 4)):
        if not (roi[2] > roi[0] and roi[3] > roi[1]):
            continue
        left, top, right, bottom = (_round_half_away(F32(side) * F32(spatial_scale)) for side in roi)
        bin_h = F32(max(bottom - top + 1, 1)) / F32(output_size)
        bin_w = F32(max(right - left + 1, 1)) / F32(output_size)
        for py in range(output_size):
            for px in range(output_size):
                y0 = min(max(int(np.floor(F32(py) * bin_h)) + top, 0), height)
                y1 = min(max(int(np.ceil(F32(py + 1) * bin_h)) + top, 0), height)
                x0 = min(max(int(np.floor(F32(px) * bin_w)) + left, 0), width)
                x1 = min(max(int(np.ceil(F32(px + 1) * bin_w)) + left, 0), width)
                if y1 > y0 and x1 > x0:
                    cells = features[row // rois_per_image, :, y0:y1, x0:x1].astype(F32)
                    with np.errstate(over="ignore"):  # the least float32 is -inf in float16
                        out[row, :, py, px] = np.fmax.reduce(cells, axis=(1, 2), initial=np.finfo(F32).min)
    return out


def decode_box(delta: np.ndarray, box: np.ndarray, weights: Sequence[float], clip: float) -> np.ndarray:
    """The box that `delta` (dx, dy, dw, dh) makes of `box` (xyxy), float32. Ref: Girshick et al., R-CNN, appendix C."""
    width, height = box[2] - box[0], box[3] - box[1]
    center_x, center_y = box[0] + F32(0.5) * width, box[1] + F32(0.5) * height
    with np.errstate(over="ignore", invalid="ignore"):
        dx, dy, dw, dh = delta.astype(F32) / np.asarray(weights, F32)
        new_x, new_y = dx * width + center_x, dy * height + center_y
        new_w = np.exp(np.minimum(dw, F32(clip))) * width
        new_h = np.exp(np.minimum(dh, F32(clip))) * height
        half_w, half_h = F32(0.5) * new_w, F32(0.5) * new_h
        return np.array([new_x - half_w, new_y - half_h, new_x + half_w, new_y + half_h], F32)


def clip_box(box: np.ndarray, valid_hw: np.ndarray) -> np.ndarray:
    """`box` with its corners moved into the valid area (height, width); NaN stays NaN."""
    height, width = valid_hw
    return np.minimum(np.maximum(box, F32(0)), np.array([width, height, width, height], F32))


def is_large(box: np.ndarray, min_size: float) -> bool:
    """Whether both sides of `box` are at least `min_size`; False for NaN."""
    return bool(box[2] - box[0] >= F32(min_size) and box[3] - box[1] >= F32(min_size))


def greedy_nms(boxes: Sequence[np.ndarray], threshold: float) -> list[int]:
    """Indices of the boxes kept, best first: `boxes` stand in that order, and IoU > threshold with a kept one drops."""
    kept: list[int] = []
    for index, box in enumerate(boxes):
        if not any(iou(boxes[other], box) > F32(threshold) for other in kept):
            kept.append(index)
    return kept


def iou(a: np.ndarray, b: np.ndarray) -> np.float32:
    """Intersection over union of two xyxy boxes in float32; NaN for two boxes without area."""
    width = max(min(a[2], b[2]) - max(a[0], b[0]), F32(0))
    height = max(min(a[3], b[3]) - max(a[1], b[1]), F32(0))
    inter = width * height
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
    with np.errstate(invalid="ignore", divide="ignore"):
        return F32(inter) / F32(union)


def sigmoid(logit: np.float32) -> np.float32:
    """1 / (1 + exp(-logit)) in float32."""
    with np.errstate(over="ignore"):
        return F32(1) / (F32(1) + np.exp(-F32(logit)))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis in float32; NaN anywhere makes the row NaN."""
    with np.errstate(invalid="ignore"):
        exponents = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return exponents / exponents.sum(axis=-1, keepdims=True)


def _pyramid_level(roi: np.ndarray, scales: Sequence[float], canonical_scale: float, canonical_level: int) -> int:
    k_min, k_max = (int(-np.log2(F32(scale))) for scale in (scales[0], scales[-1]))
    side = np.sqrt((roi[2] - roi[0]) * (roi[3] - roi[1]))
    level = np.floor(F32(canonical_level) + np.log2(side / F32(canonical_scale)) + F32(1e-6))
    return int(min(max(level, k_min), k_max)) - k_min


def _roi_align_one(
    feature: np.ndarray, roi: np.ndarray, scale: float, output_size: int, sampling_ratio: int, aligned: bool
) -> np.ndarray:
    offset = F32(0.5 if aligned else 0.0)
    left, top, right, bottom = roi.astype(F32) * F32(scale) - offset
    roi_w, roi_h = right - left, bottom - top
    if not aligned:
        roi_w, roi_h = max(roi_w, F32(1)), max(roi_h, F32(1))
    bin_h, bin_w = roi_h / F32(output_size), roi_w / F32(output_size)
    samples_y = sampling_ratio if sampling_ratio > 0 else int(np.ceil(roi_h / output_size))
    samples_x = sampling_ratio if sampling_ratio > 0 else int(np.ceil(roi_w / output_size))
    out = np.zeros((feature.shape[0], output_size, output_size), F32)
    for py in range(output_size):
        for px in range(output_size):
            for sy in range(samples_y):
                y = top + F32(py) * bin_h + F32(sy + 0.5) * bin_h / F32(samples_y)
                for sx in range(samples_x):
                    x = left + F32(px) * bin_w + F32(sx + 0.5) * bin_w / F32(samples_x)
                    out[:, py, px] += _bilinear(feature, y, x)
    return out / F32(max(samples_y * samples_x, 1))


def _bilinear(feature: np.ndarray, y: np.float32, x: np.float32) -> np.ndarray:
    """The feature [C] at (y, x); zero beyond one cell outside, the border value up to there."""
    _, height, width = feature.shape
    if y < -1 or y > height or x < -1 or x > width:
        return np.zeros(feature.shape[0], F32)
    y, x = max(y, F32(0)), max(x, F32(0))
    y_low, x_low = min(int(y), height - 1), min(int(x), width - 1)
    y_high, x_high = min(y_low + 1, height - 1), min(x_low + 1, width - 1)
    ly = F32(0) if y_low == height - 1 else y - F32(y_low)
    lx = F32(0) if x_low == width - 1 else x - F32(x_low)
    hy, hx = F32(1) - ly, F32(1) - lx
    return (
        hy * hx * feature[:, y_low, x_low]
        + hy * lx * feature[:, y_low, x_high]
        + ly * hx * feature[:, y_high, x_low]
        + ly * lx * feature[:, y_high, x_high]
    )


def _round_half_away(value: np.float32) -> int:
    magnitude = int(np.floor(abs(float(value)) + 0.5))  # in float64: 0.49999997 + 0.5 is 1 in float32
    return magnitude if value >= 0 else -magnitude
