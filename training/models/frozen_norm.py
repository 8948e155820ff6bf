"""Frozen batch normalisation for mixed precision.

Shapes: B images, C channels, H x W cells.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d


class FrozenBatchNorm(FrozenBatchNorm2d):
    """torchvision's, to the bit in float32; float16 and bfloat16 maps stay what they are.

    torchvision's multiplies a float16 map by a float32 scale: the result is float32, twice the bytes, and is cast for
    the next convolution. One operator that computes in float32 and rounds once moves less.
    """

    def forward(self, maps: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape and type."""
        if maps.dtype == torch.float32:
            return super().forward(maps)
        statistics = (self.running_mean, self.running_var)
        return functional.batch_norm(maps, *statistics, self.weight, self.bias, training=False, eps=self.eps)
