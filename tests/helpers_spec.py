"""A small valid DetectorSpec as plain JSON data, for tests to change."""

from __future__ import annotations

import copy
from typing import Any

from runtime.spec import BOX_CLIP

_SPEC: dict[str, Any] = {
    "schema_version": 1,
    "architecture": "conveyor",
    "class_names": ["bolt", "nut", "washer"],
    "background_index": 0,
    "input": {
        "height": 64,
        "width": 96,
        "min_size": 64,
        "max_size": 96,
        "resize": "shorter_side",
        "interpolation": "bilinear",
        "rounding": "floor",
        "pad_value": 0.0,
        "divisor": 32,
        "color_order": "rgb",
        "value_scale": 1.0 / 255.0,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    },
    "backbone": {
        "name": "mobilenet_v3_large",
        "returned_stages": [3, 4],
        "norm": "batch_norm",
        "fpn_channels": 16,
        "fpn_norm": "none",
        "extra_level": "pool",
    },
    "anchors": {
        "strides": [16, 32, 64],
        "stride_rule": "nominal",
        "sizes": [[16.0], [32.0], [64.0]],
        "aspect_ratios": [[0.5, 1.0, 2.0]] * 3,
        "order": "ratio_major",
        "rounding": "half_even",
    },
    "rpn": {
        "conv_depth": 1,
        "pre_nms_top_n": 100,
        "post_nms_top_n": 50,
        "nms_threshold": 0.7,
        "score_threshold": 0.0,
        "min_size": 0.001,
        "box_coder_weights": [1.0, 1.0, 1.0, 1.0],
        "box_clip": BOX_CLIP,
    },
    "roi_pooling": {
        "op": "pyramid_roi_align",
        "levels": [0, 1],
        "output_size": 7,
        "sampling_ratio": 2,
        "aligned": False,
        "spatial_scales": [0.0625, 0.03125],
        "canonical_scale": 224.0,
        "canonical_level": 4,
    },
    "box_head": {"kind": "two_mlp", "representation_size": 32, "conv_channels": [], "class_agnostic": False},
    "detection": {
        "score_threshold": 0.05,
        "nms_threshold": 0.5,
        "max_detections": 20,
        "min_size": 0.01,
        "box_coder_weights": [10.0, 10.0, 5.0, 5.0],
        "box_clip": BOX_CLIP,
    },
    "outputs": {
        "num_detections": "num_detections",
        "detection_boxes": "detection_boxes",
        "detection_scores": "detection_scores",
        "detection_classes": "detection_classes",
        "padding_class": -1,
        "frame": "image",
    },
    "precision": "fp32",
    "parent_digest": None,
}


def spec_mapping() -> dict[str, Any]:
    """A fresh copy of the data of a valid spec."""
    return copy.deepcopy(_SPEC)
