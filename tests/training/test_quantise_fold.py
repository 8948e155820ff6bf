"""Batch norms moved into the kernels: the same detections, the same keys, the kernels that export will round."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from export.fold import fold_batch_norms
from runtime.conveyor.scene import render_scene
from runtime.preprocess import preprocess
from tests.helpers import random_frame, spread_weights
from training.checkpoint import load_checkpoint
from training.models.detectors import build_detector
from training.models.specs import spec_for
from training.quantise import DEMO_WEIGHTS
from training.quantise_fold import move_batch_norms_into_kernels

SMALL = {"input": {"min_size": 96, "max_size": 128}}


def random_block(norm: nn.Module, bias: bool) -> nn.Sequential:
    torch.manual_seed(5)
    block = nn.Sequential(nn.Conv2d(3, 6, 3, bias=bias), norm, nn.ReLU())
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(norm, name).data.copy_(torch.randn(6) if name != "running_var" else torch.rand(6) + 1e-3)
    return block.eval()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d(6, eps=1e-3), nn.BatchNorm2d(6), FrozenBatchNorm2d(6, eps=1e-5)])
def test_export_folds_the_result_to_the_same_kernels_bit_for_bit(norm, bias):
    block = random_block(copy.deepcopy(norm), bias)
    exported = copy.deepcopy(block)
    fold_batch_norms(exported)
    moved = copy.deepcopy(block)
    assert move_batch_norms_into_kernels(moved) == 1
    assert torch.equal(moved[0].weight, exported[0].weight)
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(moved(images), block(images), rtol=1e-4, atol=1e-5)
    fold_batch_norms(moved)
    assert torch.equal(moved[0].weight, exported[0].weight)
    assert torch.equal(moved[0].bias, exported[0].bias)


NARROW = {"backbone": {"fpn_channels": 16}}  # quick
ONE_CONVOLUTION = {"conv_channels": (16,), "representation_size": 16}
DETECTORS = [  # architecture, changes to it, norms: of the body, the FPN, the box head
    ("conveyor", {}, 39),
    ("fasterrcnn_resnet50_fpn", {**NARROW, "box_head": {"representation_size": 16}}, 53),
    ("fasterrcnn_resnet50_fpn_v2", {**NARROW, "box_head": ONE_CONVOLUTION}, 53 + 8 + 1),
]


@pytest.mark.parametrize(("architecture", "changes", "number"), DETECTORS)
def test_a_detector_keeps_its_keys_and_computes_the_same(architecture, changes, number):
    model = spread_weights(build_detector(spec_for(architecture, **SMALL, **changes)), seed=1)
    images, _ = map(torch.from_numpy, preprocess([random_frame(4, 96, 128)], model.spec))
    state = model.state_dict()

    def outputs() -> list[torch.Tensor]:
        features = model.backbone(images)
        pooled = torch.nn.functional.adaptive_avg_pool2d(features[0], 7)
        return [*features, *model.rpn(features)[0], *model.roi_heads(pooled)]

    with torch.no_grad():
        expected = outputs()
        assert move_batch_norms_into_kernels(model) == number
        got = outputs()
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in state.items()
    }
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_the_demo_finds_what_it_found():
    model, spec = load_checkpoint(DEMO_WEIGHTS)
    inputs = tuple(map(torch.from_numpy, preprocess([render_scene(3, 1, (480, 640)).frame], spec)))
    with torch.no_grad():
        number, *expected = model(*inputs)
        move_batch_norms_into_kernels(model)
        again, *got = model(*inputs)
    assert int(number) > 3
    assert torch.equal(number, again)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_norms_stay_in_evaluation_mode_and_train_their_bias_alone():
    block = random_block(nn.BatchNorm2d(6), bias=True)
    move_batch_norms_into_kernels(block)
    block.train()
    assert not block[1].training
    images = torch.randn(2, 3, 8, 8)
    state = {name: value.clone() for name, value in block.state_dict().items()}
    block(images).sum().backward()
    assert all(torch.equal(value, state[name]) for name, value in block.state_dict().items())  # no running statistics
    trained = [name for name, parameter in block.named_parameters() if parameter.requires_grad]
    assert trained == ["0.weight", "1.bias"]  # one bias a channel: the convolution's own is zero for good
    assert block[1].bias.grad.abs().max() > 0
