"""Detectors without FPN: their parts against torchvision's own networks, the papers' equations and slow loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d

from runtime.errors import SpecError
from training.losses import Targets
from training.models.anchors import base_anchors, grid_anchors, level_strides
from training.models.detectors import build_detector
from training.models.rpn import TwoScores
from training.models.specs import spec_for
from training.models.zfnet import RESPONSE_ALPHA, RESPONSE_BETA, ResponseNorm
from training.settings import TrainSettings

PUBLISHED = ("fasterrcnn_vgg16", "fasterrcnn_zfnet", "fasterrcnn_resnet50_c4", "fasterrcnn_resnet101_c4")
NARROW = {"box_head": {"representation_size": 16}}  # of fc6 and fc7


def small(name: str, **changes):
    """The preset with narrow fully connected layers, where it has them."""
    has_fc = name.endswith(("vgg16", "zfnet"))
    return build_detector(spec_for(name, ("a", "b"), **(NARROW if has_fc else {}), **changes))


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_numbers_of_the_paper(name):
    """Section 3.3 of Ren et al. (2015): 600 x 1000 px, nine anchors at stride 16, 2k scores and 4k deltas, 300 rois."""
    spec, model = spec_for(name), small(name)
    assert (spec.input.min_size, spec.input.max_size) == (600, 1000)
    assert spec.anchors.strides == (16,)
    assert spec.anchors.per_cell == 9
    head = model.rpn.head
    hidden = 256 if name.endswith("zfnet") else 512
    assert head.conv[0][0].weight.shape == (hidden, model.backbone.out_channels, 3, 3)
    assert head.cls_logits.weight.shape == (18, hidden, 1, 1)
    assert head.bbox_pred.weight.shape == (36, hidden, 1, 1)
    assert (spec.rpn.nms_threshold, spec.rpn.post_nms_top_n) == (0.7, 300)
    assert model.roi_heads.box_predictor.cls_score.out_features == 3  # two classes and the background
    assert model.roi_heads.box_predictor.bbox_pred.out_features == 12


def test_the_paper_has_about_20000_anchors():
    """Of a 1000 x 600 image: 60 x 40 x 9 in section 3.3; areas 128², 256², 512² and ratios 1:2, 1:1, 2:1."""
    spec = spec_for("fasterrcnn_vgg16").anchors
    anchors = grid_anchors(base_anchors(spec), level_strides(spec, (608, 1008), [(38, 63)]), [(38, 63)])
    assert len(anchors) == 38 * 63 * 9 == 21546
    sides = anchors[:, 2:] - anchors[:, :2]
    areas = (sides[:, 0] * sides[:, 1]).sqrt()
    assert {round(float(area), -1) for area in areas.unique()} == {130.0, 260.0, 510.0}
    ratios = (sides[:, 1] / sides[:, 0]).numpy()
    assert set(np.round(ratios, 1).tolist()) == {0.5, 1.0, 2.0}


@pytest.mark.parametrize("name", ["fasterrcnn_resnet50_c4", "fasterrcnn_resnet101_c4"])
def test_norms_are_frozen_where_the_papers_freeze_them(name):
    model = small(name)
    norms = [module for module in model.modules() if isinstance(module, FrozenBatchNorm2d)]
    assert len(norms) == {"fasterrcnn_resnet50_c4": 53, "fasterrcnn_resnet101_c4": 104}[name]  # those of res5 included
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    learning = {key for key, _ in model.named_parameters()}
    assert not any("bn" in key or "downsample.1" in key for key in learning)


@torch.no_grad()
def test_vgg16_is_torchvisions_up_to_conv5_3():
    theirs = torchvision.models.vgg16(weights=None).eval()
    ours = small("fasterrcnn_vgg16").eval().backbone
    ours.body.load_state_dict(theirs.features[:30].state_dict(), strict=True)
    images = torch.rand(2, 3, 64, 96)
    (features,) = ours(images)
    assert features.shape == (2, 512, 4, 6)
    assert torch.equal(features, theirs.features[:30](images))


@torch.no_grad()
@pytest.mark.parametrize("depth", ["18", "50", "101"])
def test_resnet_c4_is_torchvisions_cut_in_two(depth):
    """conv1 to layer3 is the backbone, layer4 and the mean over cells the box head."""
    theirs = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    name = "conveyor_c4" if depth == "18" else f"fasterrcnn_resnet{depth}_c4"
    ours = small(name, backbone={"norm": "batch_norm"}).eval()
    state = {key: value for key, value in theirs.state_dict().items() if not key.startswith(("fc.", "layer4."))}
    ours.backbone.body.load_state_dict(state, strict=True)
    ours.roi_heads.box_head.layer4.load_state_dict(theirs.layer4.state_dict(), strict=True)
    images = torch.rand(1, 3, 64, 96)
    (features,) = ours.backbone(images)
    assert features.shape == (1, 256 if depth == "18" else 1024, 4, 6)
    pooled = theirs.avgpool(theirs.layer4(features)).flatten(1)
    torch.testing.assert_close(ours.roi_heads.box_head(features), pooled, rtol=1e-5, atol=1e-6)
    expected = theirs.fc(pooled)
    torch.testing.assert_close(theirs.fc(ours.roi_heads.box_head(features)), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs(images), expected, rtol=1e-4, atol=1e-5)


def test_two_scores_are_the_softmax_over_two_classes():
    """Probability, log loss and gradients are those of F.softmax and F.cross_entropy on 2k scores."""
    torch.manual_seed(0)
    layer = TwoScores(8, 3)
    maps = torch.randn(2, 8, 4, 5)
    scores = functional.conv2d(maps, layer.weight, layer.bias).unflatten(1, (2, 3))  # [B, 2, A, H, W]
    logits = layer(maps)
    assert logits.shape == (2, 3, 4, 5)
    torch.testing.assert_close(logits.sigmoid(), scores.softmax(dim=1)[:, 1])
    labels = torch.randint(0, 2, (2, 3, 4, 5))
    expected = functional.cross_entropy(scores, labels)
    loss = functional.binary_cross_entropy_with_logits(logits, labels.float())
    torch.testing.assert_close(loss, expected)
    wanted = torch.autograd.grad(expected, (layer.weight, layer.bias))
    torch.testing.assert_close(torch.autograd.grad(loss, (layer.weight, layer.bias)), wanted, rtol=1e-4, atol=1e-7)


def test_the_response_norm_against_a_loop():
    """Caffe's LRN with norm_region WITHIN_CHANNEL, local_size 3: cells outside count as zeros."""
    rng = np.random.default_rng(0)
    maps = rng.normal(0, 90, (2, 3, 5, 4))  # large enough that the norm does something
    expected = np.zeros_like(maps)
    for image, channel, y, x in np.ndindex(*maps.shape):
        energy = 0.0
        for row in range(max(0, y - 1), min(5, y + 2)):
            for column in range(max(0, x - 1), min(4, x + 2)):
                energy += maps[image, channel, row, column] ** 2
        scale = (1.0 + RESPONSE_ALPHA / 9 * energy) ** RESPONSE_BETA
        expected[image, channel, y, x] = maps[image, channel, y, x] / scale
    found = ResponseNorm()(torch.from_numpy(maps)).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.abs(found / maps).min() < 0.95


@pytest.mark.parametrize(
    ("name", "op"),
    [("fasterrcnn_zfnet", "max"), ("fasterrcnn_vgg16", "max"), ("conveyor_c4", "max"), ("conveyor_c4", "align")],
)
def test_every_trainable_part_learns(name, op):
    align = {"op": "pyramid_roi_align", "sampling_ratio": 2, "aligned": True}
    align |= {"canonical_scale": 224.0, "canonical_level": 4}
    torch.manual_seed(0)
    model = small(name, **({"roi_pooling": align} if op == "align" else {}))
    images, im_info = torch.randn(2, 3, 128, 160), torch.tensor([[128.0, 160.0, 1.0, 1.0]] * 2)
    target = Targets(torch.tensor([[20.0, 20.0, 70.0, 80.0]]), torch.tensor([2]))
    sum(model.losses(images, im_info, [target, target], TrainSettings(box_batch_per_image=16))).backward()
    silent = [key for key, parameter in model.named_parameters() if parameter.grad is None]
    assert silent == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert all(parameter.grad.abs().max() > 0 for parameter in model.backbone.parameters())


def test_a_head_that_res5_cannot_be_is_refused():
    spec = spec_for("conveyor_c4", ("a",), box_head={"representation_size": 500})
    with pytest.raises(SpecError, match="representation_size is 500: res5 of resnet18 makes 512"):
        build_detector(spec)
    with pytest.raises(SpecError, match="vgg16 has stages 1 to 5"):
        build_detector(spec_for("fasterrcnn_vgg16", ("a",), backbone={"returned_stages": (6,)}))
