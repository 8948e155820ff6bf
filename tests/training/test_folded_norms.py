"""Frozen batch norms folded into convolutions: the same losses and gradients, and nothing left behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.models.resnet import Bottleneck, resnet50
from torchvision.ops import FrozenBatchNorm2d

from training.models.backbones import build_backbone
from training.models.folded_norms import FoldedNorms
from training.models.specs import PRESETS, spec_for

WITHOUT_NORMS = ("fasterrcnn_vgg16", "fasterrcnn_zfnet")
FROZEN = [name for name in PRESETS if spec_for(name).backbone.norm == "frozen_batch_norm" and name not in WITHOUT_NORMS]


def with_statistics(model: nn.Module) -> nn.Module:
    """Every frozen norm does something of its own, and keeps activations in range."""
    torch.manual_seed(0)
    for norm in model.modules():
        if isinstance(norm, FrozenBatchNorm2d):
            norm.weight.uniform_(0.3, 0.6)
            norm.running_var.uniform_(0.5, 2.0)
            norm.running_mean.normal_(0, 0.2)
            norm.bias.normal_(0, 0.2)
    return model


def outputs_and_gradients(network: nn.Module, images: torch.Tensor) -> list[torch.Tensor]:
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    outputs = [level.double() for level in network(images)]
    weights = [torch.linspace(-1, 1, level.numel()).view(level.shape).to(level) for level in outputs]
    total = sum((level * weight).sum() for level, weight in zip(outputs, weights, strict=True))
    gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    return [*outputs, *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("name", FROZEN)
def test_every_preset_computes_and_learns_the_same(name):
    network = with_statistics(build_backbone(spec_for(name).backbone)).double().eval()  # no drop path
    images = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    expected = outputs_and_gradients(network, images)
    folding = FoldedNorms(network)
    assert len(folding.pairs) == sum(isinstance(module, FrozenBatchNorm2d) for module in network.modules())
    with folding.active():
        found = outputs_and_gradients(network, images)
    assert len(found) == len(expected) > 30
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9 * float(other.detach().abs().max()))


def test_norms_do_nothing_while_folded_and_convolutions_give_their_maps():
    block = with_statistics(Bottleneck(8, 2, norm_layer=FrozenBatchNorm2d))
    maps = torch.randn(2, 8, 5, 6)
    expected = block.bn1(block.conv1(maps))
    with FoldedNorms(block).active():
        torch.testing.assert_close(block.conv1(maps), expected)
        assert block.bn1(expected) is expected
    assert not torch.allclose(block.conv1(maps), expected)


def test_afterwards_all_is_as_before_even_after_an_error():
    network = with_statistics(resnet50(norm_layer=FrozenBatchNorm2d))
    state = copy.deepcopy(network.state_dict())
    with pytest.raises(KeyboardInterrupt), FoldedNorms(network).active():
        raise KeyboardInterrupt
    assert not any("forward" in vars(module) for module in network.modules())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_statistics_loaded_later_count():
    block = Bottleneck(8, 2, norm_layer=FrozenBatchNorm2d)
    folding, maps = FoldedNorms(block), torch.randn(2, 8, 5, 6)
    with_statistics(block)
    expected = block(maps)
    with folding.active():
        torch.testing.assert_close(block(maps), expected)


def test_what_is_no_plain_pair_stays():
    class Rounding(nn.Conv2d):
        pass

    biased, live, rounding = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, bias=False), Rounding(4, 4, 1, bias=False)
    frozen, batch = FrozenBatchNorm2d(4), nn.BatchNorm2d(4)
    network = nn.Sequential(biased, frozen, live, batch, rounding, FrozenBatchNorm2d(4))
    assert not FoldedNorms(network).pairs
    with FoldedNorms(network).active():
        assert not any("forward" in vars(module) for module in network.modules())


def test_maps_keep_the_type_of_mixed_precision():
    block = with_statistics(Bottleneck(8, 2, norm_layer=FrozenBatchNorm2d))
    maps = torch.randn(2, 8, 5, 6)
    types = []
    block.relu.register_forward_pre_hook(lambda module, inputs: types.append(inputs[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16), FoldedNorms(block).active():
        found = block(maps.bfloat16())
    assert set(types) == {torch.bfloat16}
    torch.testing.assert_close(found.float(), block(maps), rtol=0.05, atol=0.05)


def test_one_module_is_not_folded_twice_at_a_time():
    block = Bottleneck(8, 2, norm_layer=FrozenBatchNorm2d)
    outer = FoldedNorms(block)
    with outer.active():
        with pytest.raises(AssertionError, match="folded already"), FoldedNorms(block).active():
            pass
        assert "forward" in vars(block.conv1)
