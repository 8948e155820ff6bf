"""Which batch norm belongs to which convolution, and the one convolution that does the work of both.

y = (conv(x) - mean) / sqrt(var + eps) * gamma + beta. Shapes: C output channels of the convolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

NORMS = (nn.BatchNorm2d, FrozenBatchNorm2d)
PARTS = ("weight", "bias", "running_mean", "running_var")


class NormPair(NamedTuple):
    """The norm is called `name` in `parent`; it normalises what `conv` makes."""

    parent: nn.Module
    name: str
    conv: nn.Conv2d
    norm: nn.Module


def norm_pairs(model: nn.Module) -> Iterator[NormPair]:
    """Every norm that is registered behind a convolution in the same module, as in every torchvision block."""
    for parent in list(model.modules()):
        children = list(parent.named_children())
        for (_, before), (name, norm) in zip(children, children[1:]):
            if isinstance(before, nn.Conv2d) and isinstance(norm, NORMS):
                yield NormPair(parent, name, before, norm)


def folded(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Kernel float32 [C, ...] and bias float32 [C] of the one convolution that does the work of both.

    Of a norm in evaluation mode; computed in float64.
    """
    weight, bias, mean, var = (_float64(norm, name) for name in PARTS)
    assert mean.shape == (conv.out_channels,), f"a norm of {mean.shape} behind a convolution to {conv.out_channels}"
    scale = weight * torch.rsqrt(var + norm_eps(norm))  # [C]
    before = torch.zeros_like(mean) if conv.bias is None else conv.bias.detach().double()
    kernel = conv.weight.detach().double() * scale[:, None, None, None]
    return kernel.float(), ((before - mean) * scale + bias).float()


def norm_eps(norm: nn.Module) -> float:
    """What is added to the variance."""
    return float(norm.eps)  # type: ignore[arg-type]


def _float64(norm: nn.Module, name: str) -> Tensor:
    value = getattr(norm, name)
    assert isinstance(value, Tensor), f"batch norm without {name}"
    return value.detach().double()
