"""The structs of plugins/*/kernel.h for ctypes, field by field (tests/plugins/test_kernels.py holds them)."""

from __future__ import annotations

import ctypes

MAX_LEVELS = 6
MAX_ANCHORS = 160
MAX_FRAMES = 32
TYPES = {"float32": 0, "float16": 1}
LAYOUTS = {"nchw": 0, "nhwc": 1, "nhwc8": 8, "nhwc16": 16}  # channels-last: the pitch is a multiple of the number
FORMATS = {"bgr": 0, "rgb": 1, "nv12": 2}
COLORS = {"bt601": 0, "bt709": 1}

Int, Float, Double, Pointer = ctypes.c_int32, ctypes.c_float, ctypes.c_double, ctypes.c_void_p
Levels, LevelScales = Int * MAX_LEVELS, Float * MAX_LEVELS


class RpnProposals(ctypes.Structure):
    """plugins/rpn_proposals/kernel.h."""

    _fields_ = (
        ("batch", Int),
        ("levels", Int),
        ("anchors", Int),
        ("type", Int),
        ("layout", Int),
        ("objectness_pitch", Int),
        ("deltas_pitch", Int),
        ("height", Levels),
        ("width", Levels),
        ("stride_y", Levels),
        ("stride_x", Levels),
        ("base_anchors", Float * (4 * MAX_ANCHORS)),
        ("pre_nms_top_n", Int),
        ("post_nms_top_n", Int),
        ("nms_threshold", Float),
        ("score_threshold", Float),
        ("min_size", Float),
        ("box_coder_weights", Float * 4),
        ("box_clip", Float),
    )


class BoxDetections(ctypes.Structure):
    """plugins/box_detections/kernel.h."""

    _fields_ = (
        ("batch", Int),
        ("rois", Int),
        ("classes", Int),
        ("type", Int),
        ("class_agnostic", Int),
        ("max_detections", Int),
        ("score_threshold", Float),
        ("nms_threshold", Float),
        ("min_size", Float),
        ("box_coder_weights", Float * 4),
        ("box_clip", Float),
    )


class PyramidRoiAlign(ctypes.Structure):
    """plugins/pyramid_roi_align/kernel.h."""

    _fields_ = (
        ("batch", Int),
        ("rois", Int),
        ("levels", Int),
        ("channels", Int),
        ("type", Int),
        ("layout", Int),
        ("pitch", Int),
        ("output_layout", Int),
        ("output_pitch", Int),
        ("height", Levels),
        ("width", Levels),
        ("spatial_scale", LevelScales),
        ("output_size", Int),
        ("sampling_ratio", Int),
        ("aligned", Int),
        ("canonical_scale", Float),
        ("canonical_level", Int),
    )


class RoiMaxPool(ctypes.Structure):
    """plugins/roi_max_pool/kernel.h."""

    _fields_ = (
        ("batch", Int),
        ("rois", Int),
        ("channels", Int),
        ("height", Int),
        ("width", Int),
        ("type", Int),
        ("layout", Int),
        ("pitch", Int),
        ("output_layout", Int),
        ("output_pitch", Int),
        ("output_size", Int),
        ("spatial_scale", Float),
    )


class Frame(ctypes.Structure):
    """plugins/preprocess/kernel.h."""

    _fields_ = (
        ("pixels", Pointer),
        ("chroma", Pointer),
        ("pitch", Int),
        ("chroma_pitch", Int),
        ("height", Int),
        ("width", Int),
        ("valid_height", Int),
        ("valid_width", Int),
    )


class Preprocess(ctypes.Structure):
    """plugins/preprocess/kernel.h."""

    _fields_ = (
        ("batch", Int),
        ("format", Int),
        ("color", Int),
        ("type", Int),
        ("height", Int),
        ("width", Int),
        ("value_scale", Double),
        ("mean", Double * 3),
        ("std", Double * 3),
        ("pad_value", Float),
        ("frames", Frame * MAX_FRAMES),
    )


# op: its struct, and how many pointers the launch function takes after it, workspace and stream included
OPS: dict[str, tuple[type[ctypes.Structure], int]] = {
    "rpn_proposals": (RpnProposals, 7),
    "box_detections": (BoxDetections, 11),
    "pyramid_roi_align": (PyramidRoiAlign, 5),
    "roi_max_pool": (RoiMaxPool, 5),
    "preprocess": (Preprocess, 4),
}
