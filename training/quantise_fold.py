"""Batch norms whose work the convolution before them takes over, while the state dict keeps its keys.

Export folds every batch norm into the convolution before it, so what INT8 rounds is the folded kernel. Fine-tuning has
to round the same numbers: here the kernel takes the norm's scale, and the norm is left with the bias alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from training.models.batch_norms import PARTS, folded, norm_eps, norm_pairs


class BiasNorm(nn.BatchNorm2d):
    """A batch norm with the statistics of an identity, always in evaluation mode; its bias alone is trained."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__(channels, eps=eps)
        assert self.weight is not None, "an affine norm has a weight"
        self.weight.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> BiasNorm:
        """Stay in evaluation mode: the statistics are none of the data's."""
        super().train(False)
        return self


def move_batch_norms_into_kernels(model: nn.Module) -> int:
    """Rewrite every (convolution, norm) pair so that the convolution's weight is the folded kernel; how many there are.

    Computed as export folds, in float64, so that folding the result gives the same kernels bit for bit. The model
    detects what it detected, in evaluation mode. Behind a BatchNorm2d the bias stays trainable; a FrozenBatchNorm2d
    has no parameters, and its bias stays as it is.
    """
    pairs = list(norm_pairs(model))
    for parent, name, conv, norm in pairs:
        kernel, bias = folded(conv, norm)
        with torch.no_grad():
            conv.weight.copy_(kernel)
            if conv.bias is not None:
                conv.bias.zero_().requires_grad_(False)
        setattr(parent, name, _with_bias_only(norm, bias))
    return len(pairs)


def _with_bias_only(norm: nn.Module, bias: Tensor) -> nn.Module:
    """A norm of the same kind and state-dict keys that only adds `bias`.

    Its variance is 1 - eps to float32's precision: 1 / sqrt(variance + eps) departs from 1 by less than half of the
    last place, so folding it again changes no kernel.
    """
    eps = norm_eps(norm)
    result = BiasNorm(len(bias), eps) if isinstance(norm, nn.BatchNorm2d) else FrozenBatchNorm2d(len(bias), eps)
    with torch.no_grad():
        for name, value in zip(PARTS, (1.0, bias, 0.0, 1.0 - eps), strict=True):
            getattr(result, name).copy_(torch.as_tensor(value))
    return result.to(bias.device)
