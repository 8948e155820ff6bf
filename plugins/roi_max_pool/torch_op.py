"""Torch face of `edgercnn::roi_max_pool`: Fast R-CNN's RoI max pooling.

Shapes: B images, R rois per image, N rois of all images, C channels, H x W cells, P pooled size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_pool


@torch.library.custom_op("edgercnn::roi_max_pool", mutates_args=())
def roi_max_pool(rois: torch.Tensor, features: torch.Tensor, output_size: int, spatial_scale: float) -> torch.Tensor:
    """The greatest feature in each of P x P bins of every roi.

    Args:
        rois: float32 [B, R, 4], xyxy network px; one without positive width and height is padding.
        features: [B, C, H, W], float32 or float16.
        output_size: P.
        spatial_scale: feature px per network px; corners are rounded, half away from zero.

    Returns:
        [B * R, C, P, P] of the features' type; zeros for padding and for bins outside the features.

    Ref: Girshick, Fast R-CNN (2015), section 2.1; torchvision's roi_pool.
    """
    batch, rois_per_image = rois.shape[:2]
    images = torch.arange(batch, device=rois.device).repeat_interleave(rois_per_image)
    return max_pool_rois(rois.reshape(-1, 4), images, features, output_size, spatial_scale)


@roi_max_pool.register_fake
def _(rois: Tensor, features: Tensor, output_size: int, spatial_scale: float) -> Tensor:
    return features.new_empty(rois.shape[0] * rois.shape[1], features.shape[1], output_size, output_size)


def max_pool_rois(rois: Tensor, images: Tensor, features: Tensor, output_size: int, spatial_scale: float) -> Tensor:
    """The op on rois [N, 4] of images numbered by `images` int64 [N]: [N, C, P, P]. Differentiable, for training."""
    valid = (rois[:, 2] > rois[:, 0]) & (rois[:, 3] > rois[:, 1])
    members = torch.nonzero(valid).flatten()
    indexed_rois = torch.cat((images[:, None].to(rois.dtype), rois), dim=1)[members]  # [M, 5]
    pooled = features.new_zeros(rois.shape[0], features.shape[1], output_size, output_size)
    pooled[members] = roi_pool(features.float(), indexed_rois, output_size, spatial_scale).to(features.dtype)
    return pooled
