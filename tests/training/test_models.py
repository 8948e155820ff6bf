"""Our detectors against torchvision's: the same weights give the same detections, from frame to boxes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torchvision.ops.boxes
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d

from runtime.errors import SpecError
from runtime.preprocess import preprocess
from tests.helpers import random_frame, spread_weights
from training.import_weights import TORCHVISION_NAMES
from training.losses import Targets
from training.models.anchors import base_anchors, grid_anchors, level_strides
from training.models.backbones import build_backbone
from training.models.detectors import FasterRcnn, build_detector
from training.models.specs import COCO_CLASS_NAMES, PRESETS, spec_for

# |difference| allowed: box in image px, score
BOX_TOLERANCE, SCORE_TOLERANCE = 1e-3, 1e-5

# name: what the preset is changed to and the same for torchvision, so that ResNet-50 takes seconds on one core
SMALLER = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": ({}, {}),
    "fasterrcnn_mobilenet_v3_large_fpn": ({}, {}),
    "fasterrcnn_resnet50_fpn": ({"input": {"min_size": 256, "max_size": 427}}, {"min_size": 256, "max_size": 427}),
    "fasterrcnn_resnet50_fpn_v2": (
        {"input": {"min_size": 192, "max_size": 320}, "rpn": {"post_nms_top_n": 80}},
        {"min_size": 192, "max_size": 320, "rpn_post_nms_top_n_test": 80},
    ),
}


def torchvision_detector(name: str, *, num_classes: int = 91, frozen: bool = False, **arguments) -> nn.Module:
    builder = getattr(detection, name)
    model = builder(weights=None, weights_backbone=None, num_classes=num_classes, **arguments).eval()
    if frozen:  # torchvision freezes the normalisations itself only when it downloads weights
        freeze_norms(model.backbone)
    return model


def freeze_norms(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, FrozenBatchNorm2d(child.num_features))
        else:
            freeze_norms(child)


def resize_exactly(model: nn.Module) -> None:
    """Let torchvision's resizing run in float64: in float32 its sampling positions are off by up to 1e-4 px, which
    moves boxes by more than the tolerance; runtime/preprocess.py has exact positions."""

    def to_float32(_module, _inputs, output):
        output[0].tensors = output[0].tensors.float()
        return output

    model.transform.register_forward_hook(to_float32)


def torchvision_input(frame: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(frame[:, :, ::-1].copy()).permute(2, 0, 1).to(dtype) / 255


def assert_same_detections(
    ours: tuple[Tensor, ...], theirs: list[dict[str, Tensor]], *, least: int, fraction: float = 1.0
) -> None:
    """The same set within the tolerances (or that fraction of it); neighbours in score may change places."""
    count, boxes, scores, classes = ours
    for image, expected in enumerate(theirs):
        number = int(count[image])
        assert number == len(expected["scores"]) >= least
        distance = (boxes[image, :number, None] - expected["boxes"][None]).abs().amax(dim=2)
        distance = distance.masked_fill(classes[image, :number, None] + 1 != expected["labels"][None], math.inf)
        nearest, partner = distance.min(dim=1)
        score_distance = (scores[image, :number] - expected["scores"][partner]).abs()
        same = (nearest <= BOX_TOLERANCE) & (score_distance <= SCORE_TOLERANCE)
        assert len(partner[same].unique()) == same.sum() >= fraction * number
        assert len(classes[image, :number].unique()) > 3
        assert (classes[image, number:] == -1).all()


@pytest.fixture
def exact_nms(monkeypatch):
    """torchvision's batched NMS has two methods; the one that shifts boxes by class rounds their IoU. Use the other."""
    exact = torchvision.ops.boxes._batched_nms_vanilla
    monkeypatch.setattr(torchvision.ops.boxes, "_batched_nms_coordinate_trick", exact)


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
@torch.no_grad()
def test_same_detections_as_torchvision(name, exact_nms):
    overrides, arguments = SMALLER[name]
    ours = spread_weights(build_detector(spec_for(name, **overrides)), seed=0)
    theirs = torchvision_detector(name, frozen=name != "fasterrcnn_resnet50_fpn_v2", **arguments)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    resize_exactly(theirs)
    for frame_hws in (((480, 640),), ((333, 500), (400, 300)), ((600, 450),)):
        frames = [random_frame(100 + index, *frame_hw) for index, frame_hw in enumerate(frame_hws)]
        images, im_info = map(torch.from_numpy, preprocess(frames, ours.spec))
        expected = theirs([torchvision_input(frame, torch.float64) for frame in frames])
        assert_same_detections(ours(images, im_info), expected, least=24)


@torch.no_grad()
def test_same_detections_as_torchvision_untouched():
    """torchvision as it runs, on frames that need no resizing. Its NMS shifts boxes by up to 90 image widths, where
    float32 has 0.004 px, so that one or two of a hundred boxes may go the other way."""
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    ours = spread_weights(build_detector(spec_for(name)), seed=1)
    theirs = torchvision_detector(name)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    frames = [random_frame(7, 320, 480), random_frame(8, 320, 416)]
    images, im_info = map(torch.from_numpy, preprocess(frames, ours.spec))
    expected = theirs([torchvision_input(frame, torch.float32) for frame in frames])
    assert_same_detections(ours(images, im_info), expected, least=24, fraction=0.97)


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
@pytest.mark.parametrize("frozen", [False, True])
def test_state_dicts_load_strictly_both_ways(name, frozen):
    norm = "frozen_batch_norm" if frozen else "batch_norm"
    ours = build_detector(spec_for(name, ("a", "b"), backbone={"norm": norm}))
    theirs = torchvision_detector(name, num_classes=3)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    our_shapes = {key: value.shape for key, value in ours.state_dict().items()}
    their_shapes = {key: value.shape for key, value in theirs.state_dict().items()}
    if frozen:
        their_shapes = {key: shape for key, shape in their_shapes.items() if key in our_shapes or "tracked" not in key}
    assert our_shapes == their_shapes


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
def test_specs_hold_torchvisions_numbers(name):
    spec, theirs = spec_for(name), torchvision_detector(name)
    rpn, heads, transform = theirs.rpn, theirs.roi_heads, theirs.transform
    assert (spec.rpn.pre_nms_top_n, spec.rpn.post_nms_top_n) == (rpn.pre_nms_top_n(), rpn.post_nms_top_n())
    assert (spec.rpn.nms_threshold, spec.rpn.score_threshold) == (rpn.nms_thresh, rpn.score_thresh)
    assert (spec.rpn.min_size, spec.rpn.box_coder_weights) == (rpn.min_size, rpn.box_coder.weights)
    assert spec.rpn.box_clip == spec.detection.box_clip == rpn.box_coder.bbox_xform_clip
    assert (spec.detection.score_threshold, spec.detection.nms_threshold) == (heads.score_thresh, heads.nms_thresh)
    assert spec.detection.box_coder_weights == heads.box_coder.weights
    assert spec.detection.max_detections == heads.detections_per_img
    assert ((spec.input.min_size,), spec.input.max_size) == (transform.min_size, transform.max_size)
    assert (list(spec.input.mean), list(spec.input.std)) == (transform.image_mean, transform.image_std)
    assert spec.input.divisor == transform.size_divisible
    pool = heads.box_roi_pool
    assert (spec.roi_pooling.output_size, spec.roi_pooling.sampling_ratio) == (pool.output_size[0], pool.sampling_ratio)
    assert (spec.roi_pooling.canonical_scale, spec.roi_pooling.canonical_level) == (224, 4)


@pytest.mark.parametrize("name", TORCHVISION_NAMES)
@pytest.mark.parametrize("image_hw", [(320, 448), (800, 1088), (224, 352)])
def test_anchors_equal_torchvisions(name, image_hw):
    spec = spec_for(name).anchors
    feature_hws = [(-(-image_hw[0] // stride), -(-image_hw[1] // stride)) for stride in spec.strides]
    generator = AnchorGenerator(spec.sizes, spec.aspect_ratios)
    maps = [torch.zeros(1, 1, *feature_hw) for feature_hw in feature_hws]
    expected = generator(ImageList(torch.zeros(1, 3, *image_hw), [image_hw]), maps)[0]
    anchors = grid_anchors(base_anchors(spec), level_strides(spec, image_hw, feature_hws), feature_hws)
    assert torch.equal(anchors, expected)


def test_nominal_strides_ignore_the_image():
    spec = spec_for("conveyor").anchors
    strides = level_strides(spec, (288, 384), [(36, 48), (18, 24), (9, 12), (5, 6)])
    assert strides == [(8, 8), (16, 16), (32, 32), (64, 64)]
    measured = level_strides(spec_for("fasterrcnn_resnet50_fpn").anchors, (800, 1344), [(13, 21)])
    assert measured == [(61, 64)]  # torchvision's rule: not 64


@pytest.mark.parametrize("name", PRESETS)
def test_strides_and_scales_are_those_of_the_network(name):
    """What the spec declares is what the layers do: a 256 x 320 input has 256 / stride x 320 / stride cells."""
    spec = spec_for(name, ("a",))
    backbone = build_backbone(spec.backbone).eval()
    with torch.no_grad():
        features = backbone(torch.zeros(1, 3, 256, 320))
    strides = spec.anchors.strides
    assert [feature.shape[-2:] for feature in features] == [(256 // stride, 320 // stride) for stride in strides]
    assert {feature.shape[1] for feature in features} == {backbone.out_channels}
    assert spec.backbone.fpn_channels in (None, backbone.out_channels)
    pooled = [strides[level] for level in spec.roi_pooling.levels]
    assert list(spec.roi_pooling.spatial_scales) == [1 / stride for stride in pooled]


def test_conveyor_preset_is_small():
    model = build_detector(spec_for("conveyor", ("bolt", "nut")))
    assert sum(parameter.numel() for parameter in model.parameters()) < 11_000_000
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("changes", [{}, {"box_head": {"class_agnostic": True}}, {"roi_pooling": {"aligned": True}}])
@torch.no_grad()
def test_outputs_have_fixed_shapes_and_stay_in_the_frame(changes):
    names = ("bolt", "nut", "washer")
    model = spread_weights(build_detector(spec_for("conveyor", names, **changes)), seed=2)
    frames = [random_frame(index, *frame_hw) for index, frame_hw in enumerate([(480, 640), (300, 500), (640, 480)])]
    images, im_info = map(torch.from_numpy, preprocess(frames, model.spec))
    count, boxes, scores, classes = model(images, im_info)
    assert count.shape == (3, 1)
    assert boxes.shape == (3, 50, 4)
    assert scores.shape == classes.shape == (3, 50)
    assert count.min() > 5
    assert set(classes[scores > 0].tolist()) == {0, 1, 2}
    for frame, frame_boxes in zip(frames, boxes, strict=True):
        height, width = frame.shape[:2]
        assert frame_boxes.min() >= 0
        assert frame_boxes[:, 2].max() <= width * (1 + 1e-6)
        assert frame_boxes[:, 3].max() <= height * (1 + 1e-6)


def test_every_trainable_part_learns():
    model: FasterRcnn = build_detector(spec_for("conveyor", ("a", "b")))
    images, im_info = torch.randn(2, 3, 128, 160), torch.tensor([[128.0, 160.0, 1.0, 1.0]] * 2)
    target = Targets(torch.tensor([[20.0, 20.0, 70.0, 80.0]]), torch.tensor([2]))
    sum(model.losses(images, im_info, [target, target])).backward()
    silent = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert silent == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_unknown_names_and_fields_name_the_nearest():
    with pytest.raises(SpecError, match="'fasterrcnn_resnet50_fpn'"):
        spec_for("faster_rcnn_resnet50_fpn")
    with pytest.raises(SpecError, match=r"spec\.detection has no field 'score_treshold'.*'score_threshold'"):
        spec_for("conveyor", detection={"score_treshold": 0.5})
    with pytest.raises(SpecError, match="'detection'"):
        spec_for("conveyor", detections={})
    with pytest.raises(SpecError, match=r"spec\.rpn\.nms_threshold"):
        spec_for("conveyor", rpn={"nms_threshold": 2.0})


@pytest.mark.parametrize(("name", "stages"), [("fasterrcnn_resnet50_fpn", (0, 1, 2, 3)), ("conveyor", (2, 3, 6))])
def test_stages_that_the_backbone_lacks_are_refused(name, stages):
    spec = spec_for(name, backbone={"returned_stages": stages})
    with pytest.raises(SpecError, match="returned_stages"):
        build_detector(spec)


def test_coco_names_are_torchvisions_labels():
    assert len(COCO_CLASS_NAMES) == 90
    assert (COCO_CLASS_NAMES[0], COCO_CLASS_NAMES[16], COCO_CLASS_NAMES[89]) == ("person", "cat", "toothbrush")
