"""RPN anchors on the host, in NumPy: the reference for what the exported graph computes.

Shapes: L levels, A anchors per cell, H x W cells of a level. Anchors are xyxy float32 in network px; aspect ratios are
height / width.
Ref: Ren et al., Faster R-CNN (2015), section 3.1.1; torchvision's AnchorGenerator (same numbers, same order).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from runtime.spec import AnchorSpec


def base_anchors(spec: AnchorSpec) -> list[np.ndarray]:
    """Anchors around the origin of a cell, float32 [A, 4] per level, in the spec's order.

    Where corners are rounded, then half to even, as torch.round and np.round do.
    """
    anchors = []
    for sizes, ratios in zip(spec.sizes, spec.aspect_ratios, strict=True):
        height_ratios = np.sqrt(np.asarray(ratios, np.float32))[:, None]
        heights = (height_ratios * np.asarray(sizes, np.float32)).reshape(-1)  # [ratios, sizes] -> [A]
        widths = (np.float32(1) / height_ratios * np.asarray(sizes, np.float32)).reshape(-1)
        cells = np.stack([-widths, -heights, widths, heights], axis=1) / np.float32(2)
        if spec.order == "size_major":
            cells = cells.reshape(len(ratios), len(sizes), 4).swapaxes(0, 1).reshape(-1, 4)
        anchors.append(np.round(cells) if spec.rounding == "half_even" else cells)
    return anchors


def level_strides(
    spec: AnchorSpec, image_hw: tuple[int, int], feature_hws: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Distance (y, x) in network px between the anchors of each level, by the spec's stride rule.

    Args:
        spec: the anchors' spec.
        image_hw: sides of the padded network input.
        feature_hws: cells (height, width) of each level.
    """
    if spec.stride_rule == "nominal":
        return [(stride, stride) for stride in spec.strides]
    return [(image_hw[0] // height, image_hw[1] // width) for height, width in feature_hws]


def grid_anchors(cells: np.ndarray, stride_yx: tuple[int, int], feature_hw: tuple[int, int]) -> np.ndarray:
    """All anchors of one level, float32 [H * W * A, 4] in (h, w, a) order; `cells` are its base anchors [A, 4]."""
    height, width = feature_hw
    shift_y, shift_x = np.meshgrid(np.arange(height) * stride_yx[0], np.arange(width) * stride_yx[1], indexing="ij")
    shifts = np.stack([shift_x, shift_y, shift_x, shift_y], axis=-1).astype(np.float32)  # [H, W, 4]
    return (shifts[:, :, None] + cells.astype(np.float32)).reshape(-1, 4)  # [H, W, A, 4] -> [H * W * A, 4]
