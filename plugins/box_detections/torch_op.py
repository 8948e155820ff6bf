"""Torch face of `edgercnn::box_detections`: from class logits and box deltas to detections.

Shapes: B images, R rois per image, K foreground classes, D = max_detections, M candidates of one image.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plugins.common.boxes import clip_boxes, decode_boxes, grouped_nms, large_boxes


@torch.library.custom_op("edgercnn::box_detections", mutates_args=())
def box_detections(
    rois: torch.Tensor,
    num_rois: torch.Tensor,
    class_logits: torch.Tensor,
    bbox_deltas: torch.Tensor,
    im_info: torch.Tensor,
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
    min_size: float,
    box_coder_weights: list[float],
    box_clip: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Softmax, decode, clip, thresholds, NMS within each class, the best D, boxes in the frame of the image.

    Args:
        rois: float32 [B, R, 4], xyxy network px.
        num_rois: int32 [B], how many of them are not padding.
        class_logits: [B * R, K + 1], background first, float32 or float16.
        bbox_deltas: [B * R, 4 (K + 1)], or [B * R, 4] when one box serves all classes.
        im_info: float32 [B, 4], (valid height, valid width, scale y, scale x).
        score_threshold: a score must be above this.
        nms_threshold: a box goes when its IoU with a better one of its class is above this.
        max_detections: D; equal scores go by the flat index roi * K + class, lower first.
        min_size: a box goes when a side is below this, network px.
        box_coder_weights: of (dx, dy, dw, dh).
        box_clip: cap on dw and dh before exp.

    Returns:
        num_detections int32 [B, 1]; detection_boxes float32 [B, D, 4], xyxy image px; detection_scores float32 [B, D],
        descending; detection_classes int32 [B, D], 0 .. K - 1. Unused rows: box 0, score 0, class -1.

    Ref: Girshick, Fast R-CNN (2015), section 3; torchvision's RoIHeads.postprocess_detections.
    """
    batch, rois_per_image = rois.shape[:2]
    num_logits = class_logits.shape[1]
    scores = class_logits.float().softmax(dim=1).reshape(batch, rois_per_image, num_logits)
    groups = bbox_deltas.shape[1] // 4  # K + 1, or 1
    deltas = bbox_deltas.float().reshape(batch, rois_per_image, groups, 4)
    num_detections = torch.zeros(batch, 1, dtype=torch.int32, device=rois.device)
    boxes_out = torch.zeros(batch, max_detections, 4, device=rois.device)
    scores_out = torch.zeros(batch, max_detections, device=rois.device)
    classes_out = torch.full((batch, max_detections), -1, dtype=torch.int32, device=rois.device)
    for image, count in enumerate(num_rois.tolist()):
        foreground = scores[image, :count, 1:]  # [count, K]
        roi, label = torch.nonzero(foreground > score_threshold).unbind(dim=1)  # [M] each, in flat index order
        delta = deltas[image, roi, 0 if deltas.shape[2] == 1 else label + 1]  # [M, 4]
        boxes = clip_boxes(decode_boxes(delta, rois[image, roi], box_coder_weights, box_clip), im_info[image, :2])
        valid = torch.nonzero(large_boxes(boxes, min_size)).flatten()
        order = valid[torch.sort(foreground[roi[valid], label[valid]], descending=True, stable=True).indices]
        kept = order[grouped_nms(boxes[order], label[order], num_logits - 1, nms_threshold)[:max_detections]]
        num_detections[image] = kept.numel()
        boxes_out[image, : kept.numel()] = boxes[kept] / im_info[image, 2:].flip(0).repeat(2)
        scores_out[image, : kept.numel()] = foreground[roi[kept], label[kept]]
        classes_out[image, : kept.numel()] = label[kept].to(torch.int32)
    return num_detections, boxes_out, scores_out, classes_out


@box_detections.register_fake
def _(
    rois: Tensor,
    num_rois: Tensor,
    class_logits: Tensor,
    bbox_deltas: Tensor,
    im_info: Tensor,
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
    *attributes,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = rois.shape[0]
    return (
        rois.new_empty(batch, 1, dtype=torch.int32),
        rois.new_empty(batch, max_detections, 4),
        rois.new_empty(batch, max_detections),
        rois.new_empty(batch, max_detections, dtype=torch.int32),
    )
