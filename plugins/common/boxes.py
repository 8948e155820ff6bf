"""Box arithmetic of the torch ops and of training, in torchvision's order of operations so that floats are equal.

Boxes are xyxy, float32. N boxes, G groups.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import nms


def decode_boxes(deltas: Tensor, boxes: Tensor, weights: Sequence[float], clip: float) -> Tensor:
    """Move and scale `boxes` by `deltas`.

    Args:
        deltas: [N, 4] (dx, dy, dw, dh), centre shifts in units of the box's size, log scales; each times its weight.
        boxes: [N, 4].
        weights: the four weights.
        clip: cap on dw and dh before exp.

    Returns:
        [N, 4].

    Ref: Girshick et al., R-CNN (2014), appendix C; torchvision's BoxCoder.decode_single.
    """
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    centers_x, centers_y = boxes[:, 0] + 0.5 * widths, boxes[:, 1] + 0.5 * heights
    dx, dy = deltas[:, 0] / weights[0], deltas[:, 1] / weights[1]
    dw, dh = (deltas[:, 2] / weights[2]).clamp(max=clip), (deltas[:, 3] / weights[3]).clamp(max=clip)
    new_x, new_y = dx * widths + centers_x, dy * heights + centers_y
    half_w, half_h = 0.5 * (torch.exp(dw) * widths), 0.5 * (torch.exp(dh) * heights)
    return torch.stack((new_x - half_w, new_y - half_h, new_x + half_w, new_y + half_h), dim=1)


def encode_boxes(targets: Tensor, boxes: Tensor, weights: Sequence[float]) -> Tensor:
    """The deltas [N, 4] with which `decode_boxes` makes `targets` [N, 4] of `boxes` [N, 4]; sides must be positive."""
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    centers_x, centers_y = boxes[:, 0] + 0.5 * widths, boxes[:, 1] + 0.5 * heights
    target_w, target_h = targets[:, 2] - targets[:, 0], targets[:, 3] - targets[:, 1]
    target_x, target_y = targets[:, 0] + 0.5 * target_w, targets[:, 1] + 0.5 * target_h
    dx = weights[0] * (target_x - centers_x) / widths
    dy = weights[1] * (target_y - centers_y) / heights
    dw, dh = weights[2] * torch.log(target_w / widths), weights[3] * torch.log(target_h / heights)
    return torch.stack((dx, dy, dw, dh), dim=1)


def clip_boxes(boxes: Tensor, valid_hw: Tensor) -> Tensor:
    """`boxes` [N, 4] with corners moved into the area `valid_hw` (height, width), [2] or one for each, [N, 2].

    NaN stays NaN.
    """
    limits = torch.cat((valid_hw, valid_hw), dim=-1).flip(-1)  # width, height, width, height
    return torch.minimum(boxes.clamp(min=0), limits)


def large_boxes(boxes: Tensor, min_size: float) -> Tensor:
    """Which `boxes` [N, 4] have both sides >= `min_size`, bool [N]; False where a side is NaN."""
    return (boxes[:, 2] - boxes[:, 0] >= min_size) & (boxes[:, 3] - boxes[:, 1] >= min_size)


def top_by_score(scores: Tensor, count: int) -> Tensor:
    """Indices of the `count` greatest `scores` float32 [..., N], descending, equal scores by index, NaN behind all.

    torch.topk picks any of equal scores, and a stable sort of all is slow: so topk of keys that are never equal, the
    score's bits in the order of their values above, the index below. On a GPU, nothing here waits for the device.

    Returns:
        int64 [..., min(count, N)].
    """
    bits = (scores + 0.0).view(torch.int32).to(torch.int64)  # + 0.0: there is no -0.0 then
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)  # negative floats have descending bits
    ordered = torch.where(scores.isnan(), -(2**31), ordered)
    later = torch.arange(scores.shape[-1] - 1, -1, -1, device=scores.device)  # the lower index has the greater key
    return torch.topk(ordered * 2**32 + later, min(count, scores.shape[-1])).indices


def ranked_nms(boxes: Tensor, iou_threshold: float) -> Tensor:
    """Greedy NMS of `boxes` [N, 4] that stand in descending priority: ascending indices of those kept, int64.

    A box goes when its IoU with a kept one is above `iou_threshold`, taken in float32 as the other faces take it.
    """
    ranks = torch.arange(boxes.shape[0], 0, -1, device=boxes.device, dtype=torch.float32)
    return nms(boxes, ranks, float(np.float32(iou_threshold)))


def grouped_nms(boxes: Tensor, groups: Tensor, num_groups: int, iou_threshold: float) -> Tensor:
    """`ranked_nms` within each group, exactly (no coordinate offsets): ascending indices of the boxes kept, int64.

    Args:
        boxes: [N, 4] in descending priority.
        groups: int64 [N], 0 .. num_groups - 1.
    """
    by_group = torch.sort(groups, stable=True).indices  # within a group the priority stays
    sizes = torch.bincount(groups, minlength=num_groups).tolist()
    kept = []
    for members, group_boxes in zip(by_group.split(sizes), boxes[by_group].split(sizes), strict=True):
        if members.numel() == 1:
            kept.append(members)
        elif members.numel() > 1:
            kept.append(members[ranked_nms(group_boxes, iou_threshold)])
    return torch.cat(kept).sort().values if kept else by_group
