"""Batch normalisation folded into the convolution before it, so that the exported graph has plain convolutions only."""

from __future__ import annotations

import torch
from torch import nn

from training.models.batch_norms import NORMS, folded, norm_pairs


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> int:
    """Fold every batch norm of `model`, in evaluation mode, in place; returns how many there were."""
    pairs = list(norm_pairs(model))
    for parent, name, conv, norm in pairs:
        kernel, bias = folded(conv, norm)
        conv.weight.copy_(kernel)
        conv.bias = nn.Parameter(bias, requires_grad=False)
        setattr(parent, name, nn.Identity())
    left = [name for name, module in model.named_modules() if isinstance(module, NORMS)]
    assert not left, f"batch norms that follow no convolution: {left}"
    return len(pairs)
