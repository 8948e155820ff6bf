"""RoI Align whose gradient is the same every time, for training with PyTorch's deterministic algorithms on a GPU.

torchvision's CUDA gradient adds up with atomics, in whatever order they arrive. Where deterministic algorithms are
wanted its `roi_align` is one in PyTorch's operators, compiled by torch.compile: minutes at the first step, and adaptive
sampling takes samples at every cell of the map. Here the forward pass is torchvision's kernel, and the gradient is
scattered by `index_add_`, which PyTorch then sorts.

Shapes: N rois, C channels, B images, H x W cells, P pooled size, S samples per bin and axis, at most.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MOST_VALUES = 1 << 26  # of the gradient that are spread at once: 256 MB


class RepeatableRoiAlign(torch.autograd.Function):
    """`apply(feature, rois, output_size, spatial_scale, sampling_ratio, aligned)`, as torchvision's `roi_align`.

    feature: float32 [B, C, H, W]; rois: float32 [N, 5], image and xyxy network px; sampling_ratio: below 1 is adaptive.
    Gives float32 [N, C, P, P]; rois have no gradient.
    """

    @staticmethod
    def forward(ctx: Any, feature: Tensor, rois: Tensor, size: int, scale: float, ratio: int, aligned: bool) -> Tensor:
        """Pool."""
        ctx.save_for_backward(rois)
        ctx.rule = (tuple(feature.shape), scale, ratio, aligned)
        result: Tensor = torch.ops.torchvision.roi_align(feature, rois, scale, size, size, ratio, aligned)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of `feature`."""
        (rois,) = ctx.saved_tensors
        return feature_gradient(gradients[0], rois, *ctx.rule), None, None, None, None, None


def feature_gradient(
    gradient: Tensor, rois: Tensor, shape: tuple[int, ...], scale: float, ratio: int, aligned: bool
) -> Tensor:
    """What `gradient` [N, C, P, P] of the pooled rois is of a feature map of `shape` [B, C, H, W]."""
    batch, channels, height, width = shape
    bins = gradient.shape[-1]
    result = gradient.new_zeros(batch * height * width, channels)
    if len(rois) == 0:
        return result.new_zeros(shape)
    begins = rois[:, 1:3] * scale - (0.5 if aligned else 0.0)
    sides = rois[:, 3:5] * scale - (0.5 if aligned else 0.0) - begins
    sides = sides if aligned else sides.clamp(min=1.0)
    wanted = torch.full_like(sides, ratio) if ratio > 0 else torch.ceil(sides / bins)
    most = ratio if ratio > 0 else max(1, int(wanted.max()))  # waits for the GPU
    columns, rows = (
        _cells_of_samples(begins[:, axis], sides[:, axis] / bins, wanted[:, axis], most, bins, (width, height)[axis])
        for axis in (0, 1)
    )
    first_cell = rois[:, 0].to(torch.int64) * (height * width)
    count = wanted.prod(dim=1).clamp(min=1.0)
    entries = rows[0].shape[-1] * columns[0].shape[-1] * bins * bins  # of a roi
    for part in torch.arange(len(rois), device=rois.device).split(max(1, MOST_VALUES // (entries * channels))):
        cells = first_cell[part, None, None, None, None] + rows[0][part, :, None, :, None] * width
        cells = cells + columns[0][part, None, :, None, :]  # [n, P, P, 2S, 2S]
        weights = rows[1][part, :, None, :, None] * columns[1][part, None, :, None, :]
        weights = weights / count[part, None, None, None, None]
        values = gradient[part].permute(0, 2, 3, 1)[:, :, :, None, None] * weights[..., None]
        result.index_add_(0, cells.flatten(), values.reshape(-1, channels))
    return result.view(batch, height, width, channels).permute(0, 3, 1, 2)


def _cells_of_samples(
    begin: Tensor, bin_side: Tensor, wanted: Tensor, most: int, bins: int, cells: int
) -> tuple[Tensor, Tensor]:
    """Along one axis, the two cells that each sample of each bin lies between, and their weights, both [N, P, 2S].

    Args:
        begin, bin_side: [N], of the rois, feature px.
        wanted: [N], samples per bin, at most `most`; weights beyond are 0, as are those of samples over 1 px out of
            the map.
        cells: of the map along this axis.
    """
    number = torch.arange(bins, device=begin.device)[:, None]
    sample = torch.arange(most, device=begin.device)
    corner = begin[:, None, None] + number * bin_side[:, None, None]
    at = corner + (sample + 0.5) * bin_side[:, None, None] / wanted.clamp(min=1.0)[:, None, None]  # [N, P, S]
    counts = (at >= -1.0) & (at <= cells) & (sample < wanted[:, None, None])
    at = at.clamp(min=0.0)
    low = at.to(torch.int64).clamp(max=cells - 1)
    high = (low + 1).clamp(max=cells - 1)
    upper = torch.where(low < cells - 1, at - low, 0.0)
    weights = torch.cat((1.0 - upper, upper), dim=-1) * counts.repeat(1, 1, 2)
    return torch.cat((low, high), dim=-1), weights
