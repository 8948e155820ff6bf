"""Torch face of `edgercnn::rpn_proposals`: from the RPN's maps to region proposals.

Shapes: B images, L levels, A anchors per cell, H x W cells of a level, N = H * W * A, R = post_nms_top_n rois.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plugins.common.boxes import clip_boxes, decode_boxes, large_boxes, ranked_nms, top_by_score


@torch.library.custom_op("edgercnn::rpn_proposals", mutates_args=())
def rpn_proposals(
    im_info: torch.Tensor,
    objectness: list[torch.Tensor],
    bbox_deltas: list[torch.Tensor],
    base_anchors: list[float],
    strides: list[int],
    pre_nms_top_n: int,
    post_nms_top_n: int,
    nms_threshold: float,
    score_threshold: float,
    min_size: float,
    box_coder_weights: list[float],
    box_clip: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per level: the best anchors by logit, decoded, clipped, thinned by NMS; then the best R over all levels.

    Args:
        im_info: float32 [B, 4], (valid height, valid width, scale y, scale x); boxes are clipped to the valid area.
        objectness: L x [B, A, H, W] logits, float32 or float16.
        bbox_deltas: L x [B, 4A, H, W], the type of `objectness`.
        base_anchors: L * A * 4 numbers, level-major, xyxy around the cell's origin, network px.
        strides: L * 2 numbers, (y, x) per level, network px.
        pre_nms_top_n: candidates per level; equal logits go by their index in (h, w, a) order.
        post_nms_top_n: R; equal logits of two levels go by the level, lower first.
        nms_threshold: a box goes when its IoU with a better one of its level is above this.
        score_threshold: a box goes when its sigmoid is below this.
        min_size: a box goes when a side is below this, network px.
        box_coder_weights: of (dx, dy, dw, dh).
        box_clip: cap on dw and dh before exp.

    Returns:
        rois float32 [B, R, 4], xyxy network px, best first, zero padded; num_rois int32 [B].

    Ref: Ren et al., Faster R-CNN (2015), section 3.3; torchvision's RegionProposalNetwork.filter_proposals.
    """
    cells = torch.tensor(base_anchors, dtype=torch.float32, device=im_info.device)
    cells = cells.reshape(len(objectness), -1, 4)  # [L, A, 4]
    rois = torch.zeros(im_info.shape[0], post_nms_top_n, 4, device=im_info.device)
    num_rois = torch.zeros(im_info.shape[0], dtype=torch.int32, device=im_info.device)
    for image, valid_hw in enumerate(im_info[:, :2]):
        boxes, logits = [], []
        for level, (level_logits, level_deltas) in enumerate(zip(objectness, bbox_deltas, strict=True)):
            width = level_logits.shape[3]
            hwa_logits = level_logits[image].permute(1, 2, 0).flatten().float()  # [A, H, W] -> [N]
            best = top_by_score(hwa_logits, pre_nms_top_n)
            anchors = _anchors_at(best, cells[level], width, strides[2 * level], strides[2 * level + 1])
            deltas = _deltas_at(best, level_deltas[image], cells.shape[1])
            proposals = clip_boxes(decode_boxes(deltas, anchors, box_coder_weights, box_clip), valid_hw)
            scored = hwa_logits[best].sigmoid() >= score_threshold
            valid = torch.nonzero(scored & large_boxes(proposals, min_size)).flatten()
            kept = valid[ranked_nms(proposals[valid], nms_threshold)]
            boxes.append(proposals[kept])
            logits.append(hwa_logits[best[kept]])
        order = top_by_score(torch.cat(logits), post_nms_top_n)
        rois[image, : order.numel()] = torch.cat(boxes)[order]
        num_rois[image] = order.numel()
    return rois, num_rois


@rpn_proposals.register_fake
def _(im_info: Tensor, objectness: list[Tensor], bbox_deltas: list[Tensor], *attributes) -> tuple[Tensor, Tensor]:
    post_nms_top_n = attributes[3]
    batch = im_info.shape[0]
    return im_info.new_empty(batch, post_nms_top_n, 4), im_info.new_empty(batch, dtype=torch.int32)


def _anchors_at(index: Tensor, cells: Tensor, width: int, stride_y: int, stride_x: int) -> Tensor:
    """Anchors [M, 4], network px, at `index` [M] of (h, w, a) order; `cells` [A, 4] are those of cell (0, 0)."""
    anchor, cell = index % cells.shape[0], index // cells.shape[0]
    shift_x, shift_y = cell % width * stride_x, cell // width * stride_y
    return torch.stack((shift_x, shift_y, shift_x, shift_y), dim=1) + cells[anchor]


def _deltas_at(index: Tensor, deltas: Tensor, num_anchors: int) -> Tensor:
    """Deltas float32 [M, 4] at `index` [M] of (h, w, a) order; `deltas` [4A, H, W] are of one image and level."""
    anchor, cell = index % num_anchors, index // num_anchors
    return deltas.reshape(num_anchors, 4, -1)[anchor, :, cell].float()  # [A, 4, HW] -> [M, 4]
