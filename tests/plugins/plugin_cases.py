"""What the TensorRT plugins are expected to be: their attributes, what they refuse, and the formats they take."""

from __future__ import annotations

import itertools
import math

import numpy as np


def f32(*numbers):
    return np.array(numbers, np.float32)


def i32(*numbers):
    return np.array(numbers, np.int32)


BOX_CLIP = f32(math.log(1000 / 16))
ANCHORS = np.arange(2 * 3 * 4, dtype=np.float32).reshape(-1, 4) * [-1, -1, 1, 1]  # two levels, three anchors per cell

# name: type, length (0: free), default or None
ATTRIBUTES = {
    "RpnProposals": {
        "base_anchors": ("float32", 0, None),
        "strides": ("int32", 0, None),
        "pre_nms_top_n": ("int32", 1, i32(1000)),
        "post_nms_top_n": ("int32", 1, i32(1000)),
        "nms_threshold": ("float32", 1, f32(0.7)),
        "score_threshold": ("float32", 1, f32(0)),
        "min_size": ("float32", 1, f32(1e-3)),
        "box_coder_weights": ("float32", 4, f32(1, 1, 1, 1)),
        "box_clip": ("float32", 1, BOX_CLIP),
    },
    "PyramidRoiAlign": {
        "spatial_scales": ("float32", 0, None),
        "output_size": ("int32", 1, None),
        "sampling_ratio": ("int32", 1, i32(2)),
        "aligned": ("int32", 1, i32(0)),
        "canonical_scale": ("float32", 1, f32(224)),
        "canonical_level": ("int32", 1, i32(4)),
    },
    "RoiMaxPool": {"output_size": ("int32", 1, None), "spatial_scale": ("float32", 1, None)},
    "BoxDetections": {
        "score_threshold": ("float32", 1, f32(0.05)),
        "nms_threshold": ("float32", 1, f32(0.5)),
        "max_detections": ("int32", 1, i32(100)),
        "min_size": ("float32", 1, f32(1e-2)),
        "box_coder_weights": ("float32", 4, f32(10, 10, 5, 5)),
        "box_clip": ("float32", 1, BOX_CLIP),
    },
}
REQUIRED = {
    "RpnProposals": {"base_anchors": ANCHORS.astype(np.float32).ravel(), "strides": i32(4, 4, 8, 9)},
    "PyramidRoiAlign": {"spatial_scales": f32(0.25, 0.125), "output_size": i32(7)},
    "RoiMaxPool": {"output_size": i32(7), "spatial_scale": f32(0.0625)},
    "BoxDetections": {},
}
# none of them the default
GIVEN = {
    "RpnProposals": {
        **REQUIRED["RpnProposals"],
        "pre_nms_top_n": i32(60),
        "post_nms_top_n": i32(40),
        "nms_threshold": f32(0.25),
        "score_threshold": f32(0.5),
        "min_size": f32(3),
        "box_coder_weights": f32(10, 11, 5, 6),
        "box_clip": f32(2.5),
    },
    "PyramidRoiAlign": {
        **REQUIRED["PyramidRoiAlign"],
        "sampling_ratio": i32(3),
        "aligned": i32(1),
        "canonical_scale": f32(56),
        "canonical_level": i32(3),
    },
    "RoiMaxPool": REQUIRED["RoiMaxPool"],
    "BoxDetections": {
        "score_threshold": f32(0.25),
        "nms_threshold": f32(0.75),
        "max_detections": i32(7),
        "min_size": f32(0),
        "box_coder_weights": f32(1, 2, 3, 4),
        "box_clip": f32(2.5),
    },
}
# op, attribute, value, what is said of it
REFUSED = [
    ("RpnProposals", "base_anchors", f32(1, 2, 3), "base_anchors has 3 numbers, expected 4 to 640"),
    (
        "RpnProposals",
        "base_anchors",
        f32(*range(12)),
        "base_anchors has 12 numbers, expected a multiple of 4 x 2",
    ),
    ("RpnProposals", "base_anchors", np.zeros(644, np.float32), "base_anchors has 644 numbers, expected 4 to 640"),
    (
        "RpnProposals",
        "base_anchors",
        np.full(24, math.nan, np.float32),
        "base_anchors[0] is nan, expected a number",
    ),
    (
        "RpnProposals",
        "base_anchors",
        np.zeros(24, np.int32),
        "base_anchors has type INT32, expected FLOAT32",
    ),
    ("RpnProposals", "strides", i32(4, 4, 8), "strides has 3 numbers, expected two, y and x, for each level"),
    ("RpnProposals", "strides", i32(*[4] * 14), "strides has 14 numbers, expected 2 to 12"),
    ("RpnProposals", "strides", i32(4, 4, 8, -1), "strides[3] is -1, expected an integer from 0 to 65536"),
    ("RpnProposals", "strides", f32(4, 4, 8, 8), "strides has type FLOAT32, expected INT32 or INT64"),
    ("RpnProposals", "pre_nms_top_n", i32(0), "pre_nms_top_n is 0, expected an integer from 1 to"),
    ("RpnProposals", "pre_nms_top_n", np.array([2**40]), "pre_nms_top_n is 1099511627776, expected an integer"),
    ("RpnProposals", "post_nms_top_n", f32(1000), "post_nms_top_n has type FLOAT32, expected INT32 or INT64"),
    ("RpnProposals", "post_nms_top_n", i32(0), "post_nms_top_n is 0, expected an integer from 1 to"),
    ("RpnProposals", "nms_threshold", f32(1.5), "nms_threshold is 1.5, expected a number from 0 to 1"),
    ("RpnProposals", "nms_threshold", i32(1), "nms_threshold has type INT32, expected FLOAT32 or FLOAT64"),
    ("RpnProposals", "score_threshold", f32(-0.5), "score_threshold is -0.5, expected a number from 0 to 1"),
    ("RpnProposals", "min_size", f32(-1), "min_size is -1, expected a number from 0 to"),
    ("RpnProposals", "box_coder_weights", f32(1, 1, 1), "box_coder_weights has 3 numbers, expected 4"),
    ("RpnProposals", "box_coder_weights", f32(1, 1, 0, 1), "box_coder_weights[2] is 0, expected a number from 1e-06"),
    ("RpnProposals", "box_clip", f32(math.inf), "box_clip is inf, expected a number from"),
    ("PyramidRoiAlign", "spatial_scales", f32(*[0.25] * 7), "spatial_scales has 7 numbers, expected 1 to 6"),
    ("PyramidRoiAlign", "spatial_scales", f32(0.25, -1), "spatial_scales[1] is -1, expected a number from"),
    ("PyramidRoiAlign", "spatial_scales", f32(0.25, 0.1), "power"),
    ("PyramidRoiAlign", "output_size", i32(0), "output_size is 0, expected an integer from 1 to"),
    ("PyramidRoiAlign", "output_size", i32(7, 7), "output_size has 2 numbers, expected 1"),
    ("PyramidRoiAlign", "sampling_ratio", i32(-1), "sampling_ratio is -1, expected an integer from 0 to"),
    ("PyramidRoiAlign", "aligned", i32(2), "aligned is 2, expected an integer from 0 to 1"),
    ("PyramidRoiAlign", "aligned", np.array(b"yes"), "aligned has type CHAR, expected INT32 or INT64"),
    ("PyramidRoiAlign", "canonical_scale", f32(0), "canonical_scale is 0, expected a number from"),
    ("PyramidRoiAlign", "canonical_level", i32(-1), "canonical_level is -1, expected an integer from 0 to"),
    ("RoiMaxPool", "output_size", i32(-7), "output_size is -7, expected an integer from 1 to"),
    ("RoiMaxPool", "spatial_scale", f32(0), "spatial_scale is 0, expected a number from"),
    ("RoiMaxPool", "spatial_scale", np.zeros(1, np.float16), "spatial_scale has type FLOAT16, expected FLOAT32 or"),
    ("BoxDetections", "score_threshold", f32(2), "score_threshold is 2, expected a number from 0 to 1"),
    ("BoxDetections", "nms_threshold", f32(math.nan), "nms_threshold is nan, expected a number from 0 to 1"),
    ("BoxDetections", "max_detections", i32(0), "max_detections is 0, expected an integer from 1 to"),
    ("BoxDetections", "min_size", f32(), "min_size has 0 numbers, expected 1"),
    ("BoxDetections", "box_coder_weights", f32(1, 1, 1, math.nan), "box_coder_weights[3] is nan, expected a number"),
    ("BoxDetections", "box_clip", f32(0), "box_clip is 0, expected a number from"),
]

# how maps may lie: type, layout
MAPS = [("float32", "nchw"), ("float32", "nhwc"), ("float16", "nchw"), ("float16", "nhwc8"), ("float16", "nhwc16")]
POOLED = [
    (dtype, layout, output)
    for (dtype, layout), output in itertools.product(MAPS, ("nchw", "nhwc", "nhwc8", "nhwc16"))
    if output in ("nchw", layout)
]
LINEAR, COUNT = ("float32", "nchw"), ("int32", "nchw")
# op: all (type, layout) of its inputs and then its outputs that it takes; two levels
FORMATS_TAKEN = {
    "RpnProposals": {(LINEAR, *[a_map] * 4, LINEAR, COUNT) for a_map in MAPS},
    "PyramidRoiAlign": {(LINEAR, *[(dtype, layout)] * 2, (dtype, output)) for dtype, layout, output in POOLED},
    "RoiMaxPool": {(LINEAR, (dtype, layout), (dtype, output)) for dtype, layout, output in POOLED},
    "BoxDetections": {
        (LINEAR, COUNT, table, table, LINEAR, COUNT, LINEAR, LINEAR, COUNT)
        for table in (("float32", "nchw"), ("float16", "nchw"))
    },
}
NUM_INPUTS = {"RpnProposals": 5, "PyramidRoiAlign": 3, "RoiMaxPool": 2, "BoxDetections": 5}
