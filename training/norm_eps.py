"""Weights that were trained with another epsilon in their batch normalisations than ours have."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.models.batch_norms import NORMS, norm_eps


@torch.no_grad()
def fold_norm_eps(module: nn.Module, trained_eps: float) -> None:
    """Rescale the normalisations in `module` so that with their own epsilon they do what they did with `trained_eps`.

    In evaluation mode one is x * s + (bias - mean * s), s = weight / sqrt(variance + eps): only s changes.
    """
    for norm in module.modules():
        if isinstance(norm, NORMS):
            variance, weight = norm.running_var, norm.weight
            assert isinstance(variance, Tensor), "batch norm without a variance"
            factor = torch.sqrt((variance.double() + norm_eps(norm)) / (variance.double() + trained_eps))
            weight.copy_(weight * factor)
