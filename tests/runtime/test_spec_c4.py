"""Specs of detectors without FPN, and the fields that came with them: kept, left out where they are None, refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime.errors import SpecError
from runtime.spec import DetectorSpec
from tests.helpers_spec import spec_mapping

ALIGN_ONLY = {"sampling_ratio": None, "aligned": None, "canonical_scale": None, "canonical_level": None}


def c4_mapping() -> dict[str, Any]:
    """ResNet-18 at stride 16, two scores per anchor, RoI max pooling, res5."""
    mapping = spec_mapping()
    mapping["backbone"] |= {"name": "resnet18", "returned_stages": [3], "fpn_channels": None, "extra_level": "none"}
    mapping["anchors"] |= {"strides": [16], "sizes": [[32.0, 64.0]], "aspect_ratios": [[0.5, 1.0, 2.0]]}
    mapping["rpn"] |= {"channels": 24, "objectness": "softmax"}
    mapping["roi_pooling"] |= {"op": "roi_max_pool", "levels": [0], "spatial_scales": [0.0625], **ALIGN_ONLY}
    mapping["box_head"] |= {"kind": "res5", "representation_size": 512}
    return mapping


def spec_from(mapping: dict[str, Any]) -> DetectorSpec:
    return DetectorSpec.from_json(json.dumps(mapping))


def test_a_detector_without_fpn_goes_round():
    spec = spec_from(c4_mapping())
    assert spec.backbone.num_levels == 1
    assert spec.anchors.per_cell == 6
    assert json.loads(spec.to_json()) == c4_mapping()
    assert DetectorSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("field", ["channels", "objectness"])
def test_fields_that_came_later_are_left_out_where_they_are_none(field):
    """So that digests of older artifacts hold."""
    spec = spec_from(spec_mapping())
    assert getattr(spec.rpn, field) is None
    assert field not in json.loads(spec.to_json())["rpn"]
    with_none = spec_mapping()
    with_none["rpn"][field] = None
    assert spec_from(with_none).digest() == spec.digest() != spec_from(c4_mapping()).digest()


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101", "vgg16", "zfnet", "efficientnet_b0"])
def test_backbones(name):
    mapping = spec_mapping()
    mapping["backbone"]["name"] = name
    assert spec_from(mapping).backbone.name == name


WRONG = [  # part, changes, the words that must be in the sentence
    ("backbone", {"name": "vgg61"}, "spec.backbone.name is 'vgg61': expected one of .*'vgg16'"),
    (
        "backbone",
        {"returned_stages": [2, 3]},
        "spec.backbone.returned_stages is .*: expected one stage where",
    ),
    ("backbone", {"extra_level": "pool"}, "spec.backbone.extra_level is 'pool': expected 'none' without an FPN"),
    ("backbone", {"fpn_norm": "batch_norm"}, "spec.backbone.fpn_norm is 'batch_norm': expected 'none' without an FPN"),
    ("backbone", {"fpn_channels": 0}, "spec.backbone.fpn_channels is 0"),
    ("backbone", {"name": "vgg16"}, "spec.box_head.kind is 'res5': expected two_mlp or conv_fc: vgg16 has no res5"),
    ("anchors", {"strides": [16, 32]}, "spec.anchors"),
    ("anchors", {"order": "sizes_first"}, "spec.anchors.order is 'sizes_first': expected one of 'ratio_major', 'size_"),
    ("anchors", {"rounding": "up"}, "spec.anchors.rounding is 'up': expected one of 'half_even', 'none'"),
    ("rpn", {"channels": 0}, "spec.rpn.channels is 0: expected a number above 0"),
    ("rpn", {"objectness": "sigmoid"}, "spec.rpn.objectness is 'sigmoid': expected one of 'softmax'"),
    ("roi_pooling", {"op": "roi_pool"}, "spec.roi_pooling.op is 'roi_pool': expected one of"),
    (
        "roi_pooling",
        {"op": "pyramid_roi_align"},
        "spec.roi_pooling.sampling_ratio is None: expected what pyramid",
    ),
    ("roi_pooling", {"aligned": True}, "spec.roi_pooling.aligned is True: expected what roi_max_pool has: null"),
    (
        "roi_pooling",
        {"sampling_ratio": 2},
        "spec.roi_pooling.sampling_ratio is 2: expected what roi_max_pool has",
    ),
    ("roi_pooling", {"canonical_level": 4}, "spec.roi_pooling.canonical_level is 4"),
    ("roi_pooling", {"levels": [1]}, "spec.roi_pooling.levels is .*: expected indices below 1"),
    ("roi_pooling", {"levels": [0, 1], "spatial_scales": [0.0625, 0.03125]}, "expected one level for roi_max_pool"),
    ("roi_pooling", {"spatial_scales": [0.06]}, "spec.roi_pooling.spatial_scales .* powers of two"),
    ("box_head", {"kind": "res4"}, "spec.box_head.kind is 'res4'"),
    ("box_head", {"conv_channels": [8]}, "spec.box_head.conv_channels is .*: expected what kind 'res5' has"),
    ("box_head", {"kind": "conv_fc"}, "spec.box_head.conv_channels is .*: expected what kind 'conv_fc' has"),
]


@pytest.mark.parametrize(("part", "changes", "words"), WRONG)
def test_what_does_not_go_together_is_refused(part, changes, words):
    mapping = c4_mapping()
    mapping[part] |= changes
    with pytest.raises(SpecError, match=words):
        spec_from(mapping)
