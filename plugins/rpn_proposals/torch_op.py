"""Torch face of `edgercnn::rpn_proposals`: from the RPN's maps to region proposals.

Shapes: B images, L levels, A anchors per cell, H x W cells of a level, N = H * W * A, M candidates of a level,
R = post_nms_top_n rois.
"""

from __future__ import annotations

import torch
from torch import Tensor

from plugins.common.boxes import clip_boxes, decode_boxes, large_boxes, ranked_nms, top_by_score
from plugins.cuda_ops import cuda_kernels, launch_rpn_proposals


def propose_by_torch(
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
    """The op `rpn_proposals` in PyTorch's operators, on any device.

    Per level: the best anchors by logit, decoded, clipped, thinned by NMS; then the best R over all levels.

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
    device = im_info.device
    cells = torch.tensor(base_anchors, dtype=torch.float32).to(device, non_blocking=True)
    candidates = []
    for level, level_cells in enumerate(cells.reshape(len(objectness), -1, 4)):  # [A, 4]
        width, (stride_y, stride_x) = objectness[level].shape[3], strides[2 * level : 2 * level + 2]
        hwa_logits = objectness[level].permute(0, 2, 3, 1).flatten(1).float()  # [B, A, H, W] -> [B, N]
        best = top_by_score(hwa_logits, pre_nms_top_n)  # [B, M]
        anchors = _anchors_at(best.flatten(), level_cells, width, stride_y, stride_x)
        deltas = _deltas_at(best, bbox_deltas[level])
        valid_hws = im_info[:, None, :2].expand(-1, best.shape[1], -1).flatten(0, 1)  # [B * M, 2]
        boxes = clip_boxes(decode_boxes(deltas, anchors, box_coder_weights, box_clip), valid_hws)
        logits = hwa_logits.gather(1, best)
        is_valid = (logits.sigmoid() >= score_threshold) & large_boxes(boxes, min_size).reshape(best.shape)
        candidates.append(_thinned(boxes.reshape(*best.shape, 4), logits, is_valid, nms_threshold))
    boxes, logits = (torch.cat(parts, dim=1) for parts in zip(*candidates, strict=True))  # [B, L * M, 4], [B, L * M]
    order = top_by_score(logits, post_nms_top_n)
    num_rois = (~logits.isnan()).sum(dim=1).clamp(max=post_nms_top_n)
    chosen = boxes.gather(1, order[:, :, None].expand(-1, -1, 4))
    is_roi = torch.arange(order.shape[1], device=device) < num_rois[:, None]
    rois = torch.zeros(im_info.shape[0], post_nms_top_n, 4, device=device)
    rois[:, : order.shape[1]] = torch.where(is_roi[:, :, None], chosen, 0.0)
    return rois, num_rois.to(torch.int32)


rpn_proposals = torch.library.custom_op("edgercnn::rpn_proposals", propose_by_torch, mutates_args=())


@rpn_proposals.register_kernel("cuda")
def _(im_info: Tensor, objectness: list[Tensor], bbox_deltas: list[Tensor], *attributes) -> tuple[Tensor, Tensor]:
    kernels = cuda_kernels()
    if kernels is None:
        return propose_by_torch(im_info, objectness, bbox_deltas, *attributes)
    return launch_rpn_proposals(kernels, im_info, objectness, bbox_deltas, *attributes)


@rpn_proposals.register_fake
def _(im_info: Tensor, objectness: list[Tensor], bbox_deltas: list[Tensor], *attributes) -> tuple[Tensor, Tensor]:
    post_nms_top_n = attributes[3]
    batch = im_info.shape[0]
    return im_info.new_empty(batch, post_nms_top_n, 4), im_info.new_empty(batch, dtype=torch.int32)


def _thinned(boxes: Tensor, logits: Tensor, is_valid: Tensor, nms_threshold: float) -> tuple[Tensor, Tensor]:
    """Candidates of one level, best first, after NMS within each image: the logits of those that went are NaN.

    Args:
        boxes: [B, M, 4].
        logits: [B, M].
        is_valid: bool [B, M]; what is not goes too, and takes no other with it.
    """
    boxes = torch.where(is_valid[:, :, None], boxes, 0.0)  # a box without area overlaps nothing
    is_kept = torch.zeros_like(is_valid)
    for image, image_boxes in enumerate(boxes):
        is_kept[image].index_fill_(0, ranked_nms(image_boxes, nms_threshold), True)
    return boxes, torch.where(is_kept & is_valid, logits, torch.nan)


def _anchors_at(index: Tensor, cells: Tensor, width: int, stride_y: int, stride_x: int) -> Tensor:
    """Anchors [M, 4], network px, at `index` [M] of (h, w, a) order; `cells` [A, 4] are those of cell (0, 0)."""
    anchor, cell = index % cells.shape[0], index // cells.shape[0]
    shift_x, shift_y = cell % width * stride_x, cell // width * stride_y
    return torch.stack((shift_x, shift_y, shift_x, shift_y), dim=1) + cells[anchor]


def _deltas_at(index: Tensor, deltas: Tensor) -> Tensor:
    """Deltas float32 [B * M, 4] at `index` [B, M] of (h, w, a) order; `deltas` [B, 4A, H, W] are of one level."""
    batch, channels, height, width = deltas.shape
    per_cell = channels // 4
    image = torch.arange(batch, device=deltas.device)[:, None]  # [B, 1]
    anchor, cell = index % per_cell, index // per_cell
    by_anchor = deltas.reshape(batch, per_cell, 4, height, width)
    return by_anchor[image, anchor, :, cell // width, cell % width].float().flatten(0, 1)  # [B, M, 4] -> [B * M, 4]
