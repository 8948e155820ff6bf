"""Linear layers folded into one, so that the exported graph has plain convolutions only.

Batch normalisation goes into the convolution before it, two scores per anchor become their difference.
"""

from __future__ import annotations

import torch
from torch import nn

from training.models.batch_norms import NORMS, folded, norm_pairs
from training.models.rpn import TwoScores


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


@torch.no_grad()
def fold_two_scores(model: nn.Module) -> int:
    """Replace every TwoScores by the one 1 x 1 convolution that gives its logit; returns how many there were."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, TwoScores)
    ]
    for parent, name, scores in found:
        kernel, bias = scores.difference()  # [A, C, 1, 1], [A]
        plain = nn.Conv2d(scores.in_channels, len(bias), kernel_size=1)
        plain.weight.copy_(kernel)
        plain.bias = nn.Parameter(bias.clone(), requires_grad=False)
        setattr(parent, name, plain)
    return len(found)
