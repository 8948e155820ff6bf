"""Batch normalisation folded into the convolution before it: y = (conv(x) - mean) / sqrt(var + eps) * gamma + beta.

Done on the PyTorch model, in float64, so that the exported graph has plain convolutions only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)


def fold_batch_norms(model: nn.Module) -> int:
    """Fold every batch norm of `model`, in evaluation mode, in place; returns how many there were.

    A norm is folded into the convolution registered just before it in the same module, as in every torchvision block.
    """
    folded = 0
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for (_, before), (name, norm) in zip(children, children[1:]):
            if isinstance(before, nn.Conv2d) and isinstance(norm, NORMS):
                _fold(before, norm)
                setattr(parent, name, nn.Identity())
                folded += 1
    left = [name for name, module in model.named_modules() if isinstance(module, NORMS)]
    assert not left, f"batch norms that follow no convolution: {left}"
    return folded


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    weight, bias, mean, var = (_float64(norm, name) for name in ("weight", "bias", "running_mean", "running_var"))
    assert mean.shape == (conv.out_channels,), f"a norm of {mean.shape} behind a convolution to {conv.out_channels}"
    scale = weight * torch.rsqrt(var + float(norm.eps))  # type: ignore[arg-type]  # [C]
    before = torch.zeros_like(mean) if conv.bias is None else conv.bias.double()
    conv.weight.copy_((conv.weight.double() * scale[:, None, None, None]).float())
    conv.bias = nn.Parameter(((before - mean) * scale + bias).float(), requires_grad=False)


def _float64(norm: nn.Module, name: str) -> Tensor:
    value = getattr(norm, name)
    assert isinstance(value, Tensor), f"batch norm without {name}"
    return value.double()
