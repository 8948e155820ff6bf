"""RPN anchors from the AnchorSpec.

Shapes: L levels, A anchors per cell, H x W cells of a level. Anchors are xyxy float32 in network px.
Ref: Ren et al., Faster R-CNN (2015), section 3.1.1; torchvision's AnchorGenerator (same numbers, same order).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from runtime.spec import AnchorSpec


def base_anchors(spec: AnchorSpec) -> list[Tensor]:
    """Anchors around the origin of a cell, float32 [A, 4] per level, in the spec's order and rounded as it says."""
    anchors = []
    for sizes, ratios in zip(spec.sizes, spec.aspect_ratios, strict=True):
        height_ratios = torch.sqrt(torch.tensor(ratios))
        heights = (height_ratios[:, None] * torch.tensor(sizes)).flatten()  # [ratios, sizes] -> [A]
        widths = ((1 / height_ratios)[:, None] * torch.tensor(sizes)).flatten()
        cells = torch.stack((-widths, -heights, widths, heights), dim=1) / 2
        if spec.order == "size_major":
            cells = cells.unflatten(0, (len(ratios), len(sizes))).transpose(0, 1).flatten(0, 1)
        anchors.append(cells.round() if spec.rounding == "half_even" else cells)
    return anchors


def level_strides(
    spec: AnchorSpec, image_hw: tuple[int, int], feature_hws: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Distance (y, x) between anchors of each level, network px, by the spec's stride rule.

    Args:
        image_hw: the padded network input.
        feature_hws: cells (height, width) of each level.
    """
    if spec.stride_rule == "nominal":
        return [(stride, stride) for stride in spec.strides]
    return [(image_hw[0] // height, image_hw[1] // width) for height, width in feature_hws]


def grid_anchors(
    cells: Sequence[Tensor], strides: Sequence[tuple[int, int]], feature_hws: Sequence[tuple[int, int]]
) -> Tensor:
    """All anchors of all levels [sum of H * W * A, 4], level by level in (h, w, a) order; `cells` are base anchors."""
    levels = []
    for cell, (stride_y, stride_x), (height, width) in zip(cells, strides, feature_hws, strict=True):
        shift_y = torch.arange(height, device=cell.device) * stride_y
        shift_x = torch.arange(width, device=cell.device) * stride_x
        grid_y, grid_x = torch.meshgrid(shift_y, shift_x, indexing="ij")
        shifts = torch.stack((grid_x, grid_y, grid_x, grid_y), dim=-1)  # [H, W, 4]
        levels.append((shifts[:, :, None] + cell).reshape(-1, 4))  # [H, W, A, 4] -> [HWA, 4]
    return torch.cat(levels)
