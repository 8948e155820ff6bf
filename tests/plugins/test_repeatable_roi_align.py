"""The repeatable gradient of RoI Align against torchvision's, on the CPU; tests/gpu has it on a GPU."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import roi_align

from plugins.pyramid_roi_align import repeatable
from plugins.pyramid_roi_align.repeatable import RepeatableRoiAlign


def rois_everywhere(count: int, side: float, seed: int = 0) -> torch.Tensor:
    """[count, 5] of two images; some reach out of a map of `side` px, some are tiny, some as large as the map."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 1.4 * side - 0.2 * side
    sizes = torch.rand(count, 2, generator=generator) ** 3 * side + 0.01
    images = torch.randint(0, 2, (count, 1), generator=generator)
    return torch.cat((images, corners, corners + sizes), dim=1)


def gradients(rule, feature, rois, weights) -> tuple[torch.Tensor, torch.Tensor]:
    feature = feature.clone().requires_grad_()
    pooled = rule(feature, rois)
    (pooled * weights).sum().backward()
    return pooled.detach(), feature.grad


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("ratio", [2, 1, 3, -1])
@pytest.mark.parametrize("size", [7, 2])
def test_output_and_gradient_are_torchvisions(aligned, ratio, size, monkeypatch):
    monkeypatch.setattr(repeatable, "MOST_VALUES", 5000)  # a few rois at a time
    feature, rois = torch.randn(2, 5, 20, 31), rois_everywhere(60, 100.0)
    weights = torch.randn(60, 5, size, size)
    rule = (size, 0.25, ratio, aligned)
    expected = gradients(lambda *inputs: roi_align(*inputs, *rule), feature, rois, weights)
    found = gradients(lambda *inputs: RepeatableRoiAlign.apply(*inputs, *rule), feature, rois, weights)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-4, atol=1e-4)
    assert (found[1] != 0).float().mean() > 0.1


def test_no_rois_have_no_gradient():
    feature = torch.randn(1, 3, 4, 4, requires_grad=True)
    pooled = RepeatableRoiAlign.apply(feature, torch.zeros(0, 5), 7, 0.25, 2, False)
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()
    assert torch.equal(feature.grad, torch.zeros(1, 3, 4, 4))
