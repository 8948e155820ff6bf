"""Torch face of `edgercnn::pyramid_roi_align`: RoIAlign of each roi from the level its size asks for.

Shapes: B images, R rois per image, N rois of all images, L levels, C channels, H x W cells of a level, P pooled size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import roi_align

from plugins.pyramid_roi_align.repeatable import RepeatableRoiAlign


@torch.library.custom_op("edgercnn::pyramid_roi_align", mutates_args=())
def pyramid_roi_align(
    rois: torch.Tensor,
    features: list[torch.Tensor],
    spatial_scales: list[float],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
) -> torch.Tensor:
    """Pool every roi to P x P.

    Args:
        rois: float32 [B, R, 4], xyxy network px; one without positive width and height is padding.
        features: L x [B, C, H, W], float32 or float16; coordinates and sums are float32 either way.
        spatial_scales: L numbers, feature px per network px, powers of two, finest level first.
        output_size: P.
        sampling_ratio: samples per bin and axis; 0 takes as many as the roi has feature px in a bin.
        aligned: shift by half a feature px (RoIAlign of detectron2); False is Mask R-CNN's first.
        canonical_scale: sqrt(area) of the rois, network px, that belong to `canonical_level`.
        canonical_level: log2 of that level's stride.

    Returns:
        [B * R, C, P, P] of the features' type; zeros for padding.

    Ref: He et al., Mask R-CNN (2017), section 3; Lin et al., FPN (2017), equation 1; torchvision's MultiScaleRoIAlign.
    """
    batch, rois_per_image = rois.shape[:2]
    images = torch.arange(batch, device=rois.device).repeat_interleave(rois_per_image)
    level_rule = (spatial_scales, output_size, sampling_ratio, aligned, canonical_scale, canonical_level)
    return pool_rois(rois.reshape(-1, 4), images, features, *level_rule)


@pyramid_roi_align.register_fake
def _(rois: Tensor, features: list[Tensor], spatial_scales: list[float], output_size: int, *attributes) -> Tensor:
    channels = features[0].shape[1]
    return features[0].new_empty(rois.shape[0] * rois.shape[1], channels, output_size, output_size)


def pool_rois(
    rois: Tensor,
    images: Tensor,
    features: Sequence[Tensor],
    spatial_scales: Sequence[float],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
) -> Tensor:
    """The op on rois [N, 4] of images numbered by `images` int64 [N]: [N, C, P, P]. Differentiable, for training."""
    valid = (rois[:, 2] > rois[:, 0]) & (rois[:, 3] > rois[:, 1])
    levels = roi_levels(rois, spatial_scales, canonical_scale, canonical_level)
    levels = torch.where(valid, levels, len(features))  # padding: behind the last level
    indexed_rois = torch.cat((images[:, None].to(rois.dtype), rois), dim=1)  # [N, 5]
    order = torch.argsort(levels, stable=True)
    of_level = levels == torch.arange(len(features) + 1, device=rois.device)[:, None]  # [L + 1, N]
    *members, padding = indexed_rois[order].split(of_level.sum(dim=1).tolist())  # the one wait for the device
    ratio = sampling_ratio if sampling_ratio > 0 else -1
    pooled = [
        pool_level(feature, of_feature, output_size, scale, ratio, aligned).to(features[0].dtype)
        for feature, of_feature, scale in zip(features, members, spatial_scales, strict=True)
    ]
    pooled.append(features[0].new_zeros(len(padding), features[0].shape[1], output_size, output_size))
    return torch.cat(pooled)[torch.argsort(order)]


def pool_level(feature: Tensor, rois: Tensor, output_size: int, scale: float, ratio: int, aligned: bool) -> Tensor:
    """torchvision's RoIAlign of one level: float32 [N, C, P, P]; its gradient is repeatable where PyTorch has to be."""
    # float32, and NCHW in memory, which the kernel takes: one copy where both have to change
    plain = feature.to(torch.float32, memory_format=torch.contiguous_format)
    rule = (output_size, scale, ratio, aligned)
    if torch.are_deterministic_algorithms_enabled() and feature.is_cuda:
        result: Tensor = RepeatableRoiAlign.apply(plain, rois, *rule)
        return result
    return roi_align(plain, rois, *rule)


def roi_levels(rois: Tensor, spatial_scales: Sequence[float], canonical_scale: float, canonical_level: int) -> Tensor:
    """Index int64 [N] of the level each roi [N, 4] is pooled from: FPN's equation 1, clamped to the levels given."""
    finest, coarsest = (round(-math.log2(scale)) for scale in (spatial_scales[0], spatial_scales[-1]))
    sides = torch.sqrt((rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1]))
    levels = torch.floor(canonical_level + torch.log2(sides / canonical_scale) + 1e-6)
    return levels.nan_to_num(nan=finest).clamp(finest, coarsest).to(torch.int64) - finest
