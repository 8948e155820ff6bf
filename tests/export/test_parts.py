"""The exporter's parts: canvas, folding, translation, passes."""

from __future__ import annotations

import dataclasses
import re

import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from export.canvas import choose_canvas, fit_notes, parse_size, spec_with_canvas
from export.fold import NORMS, fold_batch_norms, fold_two_scores
from export.metadata import VERSION
from export.passes import make_resizes_static, merge_equal_initializers, remove_dead_nodes
from export.translation import OP_TYPES, schema_from_torch
from export.weights import load_weights
from runtime.errors import SpecError, UserError
from tests.test_structure import ROOT
from training.models.detectors import build_detector
from training.models.rpn import RpnHead
from training.models.specs import PRESETS, spec_for

CANVASES = {  # what a user of landscape video expects
    "conveyor": (288, 384),
    "conveyor_resnet50": (288, 384),
    "conveyor_c4": (288, 384),
    "fasterrcnn_mobilenet_v3_large_320_fpn": (320, 640),
    "fasterrcnn_mobilenet_v3_large_fpn": (800, 1344),
    "fasterrcnn_resnet50_fpn": (800, 1344),
    "fasterrcnn_resnet50_fpn_v2": (800, 1344),
    "fasterrcnn_resnet18_fpn": (800, 1344),
    "fasterrcnn_resnet101_fpn": (800, 1344),
    "fasterrcnn_efficientnet_b0_fpn": (800, 1344),
    "fasterrcnn_vgg16": (608, 1008),
    "fasterrcnn_zfnet": (608, 1008),
    "fasterrcnn_resnet50_c4": (608, 1008),
    "fasterrcnn_resnet101_c4": (608, 1008),
}


@pytest.mark.parametrize("name", PRESETS)
def test_default_canvas(name):
    spec = spec_for(name)
    assert choose_canvas(spec.input, None) == CANVASES[name]
    fixed = spec_with_canvas(spec, (320, 352))
    assert choose_canvas(fixed.input, None) == (320, 352)
    assert fixed.parent_digest == spec.digest()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("288", "expected height x width"),
        ("axb", "expected height x width"),
        ("-32x32", "expected height x width"),
        ("288x390", "the nearest are 288x384"),  # 416 is more than the model can use
        ("270x370", "the nearest are 256x352, 256x384, 288x352, 288x384"),
        ("0x384", "the nearest are 32x384"),
        ("10x10", "the nearest are 32x32"),
        ("288x416", "at most 384 px"),
        ("4096x4096", "give 384x384 or less"),
    ],
)
def test_bad_sizes(text, complaint):
    with pytest.raises(UserError, match=complaint):
        choose_canvas(spec_for("conveyor").input, parse_size(text))


@pytest.mark.parametrize("size", [(288, 384), (384, 288), (384, 384), (32, 32)])
def test_good_sizes(size):
    assert choose_canvas(spec_for("conveyor").input, parse_size(f"{size[0]}x{size[1]}")) == size


def test_the_note_on_the_canvas_names_a_better_one():
    notes = fit_notes(spec_with_canvas(spec_for("conveyor"), (288, 384)))
    assert notes == ["16:9 video fills 75% (224x384 would suit it)", "4:3 video fills 100%"]


@pytest.mark.parametrize(
    "name",
    [
        "conveyor",
        "conveyor_c4",
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
        "fasterrcnn_efficientnet_b0_fpn",
    ],
)
def test_folding_changes_nothing_but_rounding(name):
    """BatchNorm2d and FrozenBatchNorm2d, in backbone, FPN and box head."""
    torch.manual_seed(0)
    model = build_detector(spec_for(name)).eval()
    for module in model.modules():
        if isinstance(module, NORMS):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1)
            module.bias.data.normal_()
    images, pooled = torch.rand(1, 3, 64, 96), torch.rand(4, model.backbone.out_channels, 7, 7)
    with torch.no_grad():
        before = [*model.backbone(images), *model.roi_heads(pooled)]
        norms = sum(isinstance(module, NORMS) for module in model.modules())
        assert fold_batch_norms(model) == norms > 0
        after = [*model.backbone(images), *model.roi_heads(pooled)]
    assert not any(isinstance(module, NORMS) for module in model.modules())
    for expected, received in zip(before, after, strict=True):
        assert (expected - received).abs().max() < 1e-3 * expected.std()


def test_two_scores_become_the_one_layer_that_gives_their_logit():
    torch.manual_seed(0)
    head = RpnHead(channels=8, hidden_channels=6, num_anchors=3, conv_depth=1, two_scores=True)
    features = [torch.rand(2, 8, 4, 5)]
    with torch.no_grad():
        nn.init.normal_(head.cls_logits.bias)
        before = head(features)[0][0]
        assert fold_two_scores(head) == 1
        after = head(features)[0][0]
    assert type(head.cls_logits) is nn.Conv2d
    assert head.cls_logits.weight.shape == (3, 6, 1, 1)
    assert torch.equal(before, after)
    assert fold_two_scores(head) == 0


def test_folding_refuses_a_norm_without_convolution():
    with pytest.raises(AssertionError, match="follow no convolution"):
        fold_batch_norms(nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)).eval())


def test_schemas_have_the_torch_ops_attributes():
    attributes = {}
    for name, op_type in OP_TYPES.items():
        schema = schema_from_torch(getattr(torch.ops.edgercnn, name).default, op_type)
        attributes[op_type] = {key: value.type.name for key, value in schema.attributes.items()}
    assert attributes["RoiMaxPool"] == {"output_size": "INT", "spatial_scale": "FLOAT"}
    assert attributes["PyramidRoiAlign"] == {
        "spatial_scales": "FLOATS",
        "output_size": "INT",
        "sampling_ratio": "INT",
        "aligned": "INT",
        "canonical_scale": "FLOAT",
        "canonical_level": "INT",
    }
    assert attributes["RpnProposals"]["strides"] == "INTS"
    assert attributes["BoxDetections"]["max_detections"] == "INT"


def test_passes_count_what_they_change():
    model = small_graph()
    assert make_resizes_static(model) == 2
    assert [node.op_type for node in model.graph.node] == ["Shape", "Resize", "Relu", "Relu"]  # the identity went
    assert remove_dead_nodes(model) == 2  # Shape, whose sizes nobody reads, and the Relu beside the way
    assert [node.op_type for node in model.graph.node] == ["Resize", "Relu"]
    assert merge_equal_initializers(model) == 1
    scales = {item.name: numpy_helper.to_array(item).tolist() for item in model.graph.initializer}
    assert scales[model.graph.node[0].input[2]] == [1, 1, 2, 2]


def small_graph():
    """x -> Resize by 2 -> Resize by 1 -> Relu, and a Relu that nobody reads."""

    def value(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    nodes = [
        helper.make_node("Shape", ["x"], ["sizes"]),
        helper.make_node("Resize", ["x", "", "", "sizes"], ["doubled"], mode="nearest"),
        helper.make_node("Resize", ["doubled", "", "", "sizes"], ["same"], mode="nearest"),
        helper.make_node("Relu", ["same"], ["y"]),
        helper.make_node("Relu", ["x"], ["unread"]),
    ]
    shapes = [value("doubled", ["batch", 3, 8, 12]), value("same", ["batch", 3, 8, 12])]
    constants = [numpy_helper.from_array(torch.ones(2).numpy(), name) for name in ("first", "second")]
    inputs, outputs = [value("x", ["batch", 3, 4, 6])], [value("y", ["batch", 3, 8, 12])]
    return helper.make_model(helper.make_graph(nodes, "g", inputs, outputs, constants, value_info=shapes))


def test_the_version_in_the_file_is_the_packages():
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert re.findall(r'^version = "(.+)"$', project, re.MULTILINE) == [VERSION]


def test_specs_compare_by_value():
    spec = spec_for("conveyor")
    assert spec_with_canvas(spec, (288, 384)).input == dataclasses.replace(spec.input, height=288, width=384)


def test_random_weights_are_made_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path))
    model, spec = load_weights("random:conveyor")
    assert spec == spec_for("conveyor", class_names=spec.class_names)
    again, _ = load_weights("random:conveyor")
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert len(list(tmp_path.rglob("*.pt"))) == 1
    with pytest.raises(SpecError, match="unknown architecture 'conveyer': the nearest known one is 'conveyor'"):
        load_weights("random:conveyer")
