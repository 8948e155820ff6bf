"""Pruning: the channels that go are those that matter least, nothing else changes, and the spec tells what is left."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from export.to_onnx import export_onnx
from export.verify import Picture
from runtime.errors import SpecError
from runtime.spec import DetectorSpec
from tests.helpers import random_frame, spread_weights
from training.losses import RoiSample
from training.models.batch_norms import NORMS, PARTS, norm_pairs
from training.models.detectors import build_detector
from training.models.specs import spec_for
from training.models.widths import changed_widths, layer_widths, narrow
from training.prune_channels import prune_channels
from training.prune_cost import measured_costs, network_hw

CLASSES = ("cup", "plate")
SMALL = {"input": {"min_size": 96, "max_size": 128}}
NARROW_FPN = {"backbone": {"fpn_channels": 32}, "box_head": {"representation_size": 40}}
HEAD_OF_CONVOLUTIONS = {"kind": "conv_fc", "representation_size": 40, "conv_channels": (24, 16)}
# every kind of layer and of link between layers that our detectors have
CASES = {
    # depthwise convolutions, squeeze-and-excitation, FPN without norms, fully connected layers
    "mobilenet": spec_for("conveyor", CLASSES, **SMALL, **NARROW_FPN),
    # residual sums, frozen norms, norms in the FPN, two convolutions in the RPN, convolutions in the box head
    "resnet18": spec_for(
        "fasterrcnn_resnet18_fpn",
        CLASSES,
        **SMALL,
        backbone={"fpn_channels": 32, "fpn_norm": "batch_norm"},
        rpn={"conv_depth": 2},
        box_head=HEAD_OF_CONVOLUTIONS,
    ),
    # no FPN, two scores, RoI max pooling, the last stage as the box head
    "c4": spec_for("conveyor_c4", CLASSES, **SMALL),
    # no batch norms, fully connected layers behind a wide feature map
    "zfnet": spec_for("fasterrcnn_zfnet", CLASSES, **SMALL, box_head={"representation_size": 40}),
    "efficientnet": spec_for("fasterrcnn_efficientnet_b0_fpn", CLASSES, **SMALL, **NARROW_FPN),
}


def lively(spec, seed: int = 0):
    """A detector in evaluation mode in which no two channels of a layer are alike."""
    torch.manual_seed(seed)
    model = build_detector(spec).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, NORMS):
                module.weight.copy_(torch.rand(module.weight.shape) + 0.5)
                module.running_mean.copy_(torch.randn(module.running_mean.shape) * 0.1)
                module.bias.copy_(torch.randn(module.bias.shape) * 0.1)
            elif isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                module.bias.copy_(torch.randn(module.bias.shape) * 0.1)
    return model


@pytest.fixture(scope="module", params=CASES)
def case(request):
    model = lively(CASES[request.param])
    return model, prune_channels(model, ratio=0.3, importance="l2", round_to=4)


def outputs(model):
    """What the detector's layers say: the RPN's maps, and the box head's numbers for three rois."""
    generator = torch.Generator().manual_seed(2)
    images = torch.rand(1, 3, 96, 128, generator=generator)
    rois = torch.tensor([[4.0, 8.0, 60.0, 70.0], [20.0, 10.0, 120.0, 90.0], [0.0, 0.0, 30.0, 30.0]])
    zeros = torch.zeros(3, dtype=torch.int64)
    with torch.no_grad():
        features = model.backbone(images)
        objectness, deltas = model.rpn(features)
        return [*objectness, *deltas, *model.classify(features, RoiSample(rois, zeros, zeros, rois, (1.0,) * 4))]


@torch.no_grad()
def silence(model, pruned) -> int:
    """Make every channel of `model` that `pruned` lacks give zeros, found by its bias; returns how many there are."""
    layers = dict(pruned.named_modules())
    normalised = {pair.conv for pair in norm_pairs(model)}  # zeros come from the norm behind them
    count = 0
    for name, layer in model.named_modules():
        if layer in normalised or not isinstance(layer, (nn.Conv2d, nn.Linear, *NORMS)):
            continue
        gone = ~torch.isin(layer.bias, layers[name].bias)
        assert int((~gone).sum()) == len(layers[name].bias), name
        layer.weight[gone] = 0.0
        layer.bias[gone] = 0.0
        count += int(gone.sum())
    return count


def test_a_pruned_detector_is_the_old_one_with_silent_channels(case):
    """Each layer lost its own channels and the ones it read from others that lost theirs, and no others."""
    model, pruned = case
    silenced = build_detector(model.spec).eval()
    silenced.load_state_dict(model.state_dict())
    assert silence(silenced, pruned) > 200
    changed = 0.0
    for one, other, before in zip(outputs(pruned), outputs(silenced), outputs(model), strict=True):
        assert one.shape == other.shape
        scale = float(other.abs().max())
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * scale)
        changed = max(changed, float((before - one).abs().max()) / scale)
    assert changed > 0.05  # so that silence makes a difference


def test_the_spec_alone_rebuilds_it_bit_for_bit(case):
    model, pruned = case
    spec = DetectorSpec.from_json(pruned.spec.to_json())
    assert spec == pruned.spec
    assert spec.parent_digest == model.spec.digest()
    rebuilt = build_detector(spec)
    rebuilt.load_state_dict(pruned.state_dict())
    for one, other in zip(outputs(pruned), outputs(rebuilt.eval()), strict=True):
        assert torch.equal(one, other)
    assert layer_widths(rebuilt) == layer_widths(pruned)
    assert set(spec.pruned_widths) <= set(layer_widths(pruned))
    assert sum(value.numel() for value in pruned.parameters()) < 0.75 * sum(v.numel() for v in model.parameters())


def test_fields_of_the_spec_tell_the_new_widths(case):
    model, pruned = case
    spec = pruned.spec
    images = torch.zeros(1, 3, 96, 128)
    features = pruned.backbone(images)
    assert {level.shape[1] for level in features} == {pruned.backbone.out_channels}
    if spec.backbone.fpn_channels is not None:
        assert spec.backbone.fpn_channels == features[0].shape[1]
    assert spec.rpn.channels == pruned.rpn.head.cls_logits.in_channels
    assert spec.box_head.representation_size == pruned.roi_heads.box_predictor.cls_score.in_features
    if spec.box_head.kind == "conv_fc":
        assert spec.box_head.conv_channels == (16, 8)  # 24 and 16 by 0.7, down to multiples of 4
    same = ("class_names", "anchors", "input", "detection", "roi_pooling", "outputs", "architecture")
    assert all(getattr(spec, name) == getattr(model.spec, name) for name in same)


@pytest.mark.parametrize(("ratio", "round_to"), [(0.25, 1), (0.5, 8)])
def test_every_layer_loses_its_share(ratio, round_to):
    model = lively(CASES["mobilenet"])
    pruned = prune_channels(model, ratio=ratio, importance="l2", round_to=round_to)
    after = {name: outputs for name, _, outputs in layer_widths(pruned)}
    kept = ("cls_logits", "rpn.head.bbox_pred", "cls_score", "box_predictor.bbox_pred")
    for name, _, before in layer_widths(model):
        left = before - int(before * ratio)
        left -= left % round_to
        expected = before if name.endswith(kept) or left == 0 else left
        assert after[name] == expected, name


def test_the_weakest_channels_go():
    model = lively(CASES["mobilenet"])
    convolution = model.rpn.head.conv[0][0]
    with torch.no_grad():
        convolution.weight[1::2] *= 100.0
    strong = convolution.bias[1::2].clone()
    pruned = prune_channels(model, ratio=0.5, importance="l2", round_to=1)
    assert torch.equal(pruned.rpn.head.conv[0][0].bias, strong)
    assert torch.equal(convolution.bias[1::2], strong)  # and the model given is as it was
    assert model.spec == CASES["mobilenet"]


def test_random_importance_follows_the_seed_and_nothing_else():
    model = lively(CASES["mobilenet"])

    def kept(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return prune_channels(model, ratio=0.5, importance="random", round_to=8).rpn.head.conv[0][0].bias

    first = kept(1)
    assert torch.equal(first, kept(1))
    assert not torch.equal(first, kept(2))


def test_a_pruned_detector_can_be_pruned_again():
    model = lively(CASES["c4"])
    once = prune_channels(model, ratio=0.3, importance="l1", round_to=4)
    twice = prune_channels(once, ratio=0.3, importance="l1", round_to=4)
    assert twice.spec.parent_digest == once.spec.digest()
    silence(once, twice)
    for one, other in zip(outputs(twice), outputs(once), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_a_pruned_detector_learns():
    pruned = prune_channels(lively(CASES["mobilenet"]), ratio=0.5, importance="l2", round_to=8).train()
    losses = pruned.losses(
        torch.rand(1, 3, 96, 128),
        torch.tensor([[96.0, 128.0, 1.0, 1.0]]),
        [(torch.tensor([[10.0, 10.0, 60.0, 70.0]]), torch.tensor([1]))],
    )
    sum(losses).backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())


def test_a_pruned_detector_exports_with_the_same_detections(tmp_path):
    model = spread_weights(build_detector(CASES["mobilenet"]), seed=1)
    pruned = spread_weights(prune_channels(model, ratio=0.3, importance="l2", round_to=8), seed=2)
    pictures = [Picture("made up", random_frame(3, 96, 128))]
    report = export_onnx(pruned, pruned.spec, tmp_path / "pruned.onnx", pictures=pictures)
    assert report.num_matched > 5


def test_costs_are_those_of_the_layers():
    model = spread_weights(build_detector(CASES["mobilenet"]), seed=1)
    pruned = prune_channels(model, ratio=0.5, importance="l2", round_to=8)
    costs = measured_costs([model, pruned])
    for one, cost in zip((model, pruned), costs, strict=True):
        macs = 0

        def count(layer, _inputs, output):
            nonlocal macs
            macs += output.numel() * layer.weight[0].numel()

        hooks = [m.register_forward_hook(count) for m in one.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        with torch.no_grad():
            one(torch.zeros(1, 3, 96, 128), torch.tensor([[96.0, 128.0, 1.0, 1.0]]))
        for hook in hooks:
            hook.remove()
        assert cost.macs == macs
        assert cost.parameters == sum(value.numel() for value in one.parameters())
        assert cost.cpu_ms > 0
    assert costs[1].macs < 0.5 * costs[0].macs


def test_costs_are_of_the_canvas_or_of_the_largest_landscape_picture():
    spec = CASES["mobilenet"].input
    assert network_hw(dataclasses.replace(spec, min_size=90, max_size=130)) == (96, 160)
    assert network_hw(dataclasses.replace(spec, height=64, width=320)) == (64, 320)


def with_widths(*widths):
    return CASES["mobilenet"].replace(pruned_widths=widths)


FIRST, DEPTHWISE = "backbone.body.0.0", "backbone.body.1.block.0.0"
BAD_WIDTHS = [  # widths, the words of the sentence
    ((), "at least one"),
    ((("b", 1, 1), ("a", 1, 1)), "alphabetical order"),
    ((("a", 1, 1), ("a", 1, 1)), "each once"),
    ((("a", 0, 1),), "a number above 0"),
    ((("a", 1),), "has 2 entries: expected 3"),
    ((("backbone.body.999", 1, 1),), "which this detector has not"),
    ((("backbone", 1, 1),), "which this detector has not"),
    (((FIRST, 3, 17),), r"has \(3, 17\) for backbone.body.0.0, built with \(3, 16\)"),
    (((DEPTHWISE, 8, 4),), r"has \(8, 4\) for"),
    ((("backbone.body.0.1", 8, 4),), r"has \(8, 4\) for"),
]


@pytest.mark.parametrize(("widths", "words"), BAD_WIDTHS)
def test_widths_that_cannot_be_are_refused(widths, words):
    with pytest.raises(SpecError, match=words):
        build_detector(with_widths(*widths))


def test_layers_get_the_widths_that_the_spec_names():
    widths = ((FIRST, 3, 8), ("backbone.body.0.1", 8, 8), (DEPTHWISE, 8, 8), ("roi_heads.box_head.fc7", 40, 24))
    torch.manual_seed(3)
    model = build_detector(with_widths(*widths))
    torch.manual_seed(3)
    wide = build_detector(CASES["mobilenet"])
    assert changed_widths(model, wide) == widths
    narrowed = dict(model.named_modules())
    assert narrowed[DEPTHWISE].groups == 8
    assert narrowed[DEPTHWISE].weight.shape == (8, 1, 3, 3)
    assert narrowed["backbone.body.0.1"].num_features == 8
    assert torch.equal(narrowed[FIRST].weight, wide.backbone.body["0"][0].weight[:8])
    assert narrowed[FIRST].weight.untyped_storage().nbytes() == 8 * 27 * 4  # nothing is kept of the rest
    assert {name for name, value in model.named_parameters()} == {name for name, _ in wide.named_parameters()}
    before = [getattr(wide.backbone.body["0"][1], name)[:8].clone() for name in PARTS]
    narrow(wide, widths)
    assert all(torch.equal(getattr(wide.backbone.body["0"][1], name), old) for name, old in zip(PARTS, before))


def test_a_spec_of_a_detector_that_was_not_pruned_says_nothing_of_it():
    assert "pruned" not in CASES["mobilenet"].to_json()
