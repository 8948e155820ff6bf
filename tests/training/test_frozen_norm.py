"""Frozen batch norm: torchvision's numbers, and the maps keep their type."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import FrozenBatchNorm2d

from training.models.frozen_norm import FrozenBatchNorm


def both(channels: int = 7) -> tuple[FrozenBatchNorm, FrozenBatchNorm2d]:
    torch.manual_seed(0)
    norm = FrozenBatchNorm(channels)
    for name, low, high in (("weight", 0.5, 2), ("bias", -1, 1), ("running_mean", -1, 1), ("running_var", 0.1, 3)):
        getattr(norm, name).uniform_(low, high)
    reference = FrozenBatchNorm2d(channels)
    reference.load_state_dict(norm.state_dict())
    return norm, reference


def test_float32_is_torchvisions_to_the_bit():
    norm, reference = both()
    maps = torch.randn(2, 7, 5, 6)
    assert torch.equal(norm(maps), reference(maps))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_maps_are_rounded_once(kind):
    norm, reference = both()
    maps = torch.randn(2, 7, 5, 6).to(kind).requires_grad_()
    result = norm(maps)
    assert result.dtype == kind
    torch.testing.assert_close(result, reference(maps).to(kind))
    expected = torch.autograd.grad(reference(maps).sum(), maps)[0]
    torch.testing.assert_close(torch.autograd.grad(result.float().sum(), maps)[0], expected)
