"""The structs of plugins/*/kernel.h, filled from shapes and attributes.

Nothing here touches data, so the same description serves NumPy arrays and the CPU library, or raw device pointers and
the CUDA library. What the numbers must be is the C side's to say (`Kernels.check`).

Shapes: B images, L levels, A anchors per cell, R rois per image, K foreground classes, C channels, P = output_size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from plugins.kernel_structs import (
    COLORS,
    FORMATS,
    LAYOUTS,
    MAX_ANCHORS,
    MAX_FRAMES,
    TYPES,
    BoxDetections,
    Double,
    Float,
    Frame,
    Levels,
    LevelScales,
    Preprocess,
    PyramidRoiAlign,
    RoiMaxPool,
    RpnProposals,
)


def describe_rpn_proposals(
    objectness_shapes: Sequence[Sequence[int]],
    base_anchors: Sequence[float],
    strides: Sequence[int],
    pre_nms_top_n: int,
    post_nms_top_n: int,
    nms_threshold: float,
    score_threshold: float,
    min_size: float,
    box_coder_weights: Sequence[float],
    box_clip: float,
    *,
    dtype: str = "float32",
    layout: str = "nchw",
) -> RpnProposals:
    """For objectness of these shapes, L x [B, A, H, W]; base_anchors flat [L * A * 4], strides flat [L * 2] (y, x)."""
    batch, anchors = objectness_shapes[0][:2]
    return RpnProposals(
        batch=batch,
        levels=len(objectness_shapes),
        anchors=anchors,
        type=_choice("dtype", dtype, TYPES),
        layout=_layout(layout),
        objectness_pitch=channel_pitch(anchors, layout),
        deltas_pitch=channel_pitch(4 * anchors, layout),
        height=_filled(Levels, [shape[2] for shape in objectness_shapes], "levels"),
        width=_filled(Levels, [shape[3] for shape in objectness_shapes], "levels"),
        stride_y=_filled(Levels, strides[0::2], "levels"),
        stride_x=_filled(Levels, strides[1::2], "levels"),
        base_anchors=_filled(Float * (4 * MAX_ANCHORS), base_anchors, "numbers of base_anchors"),
        pre_nms_top_n=pre_nms_top_n,
        post_nms_top_n=post_nms_top_n,
        nms_threshold=nms_threshold,
        score_threshold=score_threshold,
        min_size=min_size,
        box_coder_weights=_filled(Float * 4, box_coder_weights, "box_coder_weights"),
        box_clip=box_clip,
    )


def describe_box_detections(
    rois_shape: Sequence[int],
    class_logits_shape: Sequence[int],
    bbox_deltas_shape: Sequence[int],
    score_threshold: float,
    nms_threshold: float,
    max_detections: int,
    min_size: float,
    box_coder_weights: Sequence[float],
    box_clip: float,
    *,
    dtype: str = "float32",
) -> BoxDetections:
    """For rois [B, R, 4], class_logits [B * R, K + 1], bbox_deltas [B * R, 4 (K + 1)] or class-agnostic [B * R, 4]."""
    return BoxDetections(
        batch=rois_shape[0],
        rois=rois_shape[1],
        classes=class_logits_shape[1] - 1,
        type=_choice("dtype", dtype, TYPES),
        class_agnostic=int(bbox_deltas_shape[1] == 4),
        max_detections=max_detections,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        min_size=min_size,
        box_coder_weights=_filled(Float * 4, box_coder_weights, "box_coder_weights"),
        box_clip=box_clip,
    )


def describe_pyramid_roi_align(
    rois_shape: Sequence[int],
    feature_shapes: Sequence[Sequence[int]],
    spatial_scales: Sequence[float],
    output_size: int,
    sampling_ratio: int,
    aligned: bool,
    canonical_scale: float,
    canonical_level: int,
    *,
    dtype: str = "float32",
    layout: str = "nchw",
    output_layout: str = "nchw",
) -> PyramidRoiAlign:
    """For rois [B, R, 4] and features of these shapes, L x [B, C, H, W]."""
    channels = feature_shapes[0][1]
    return PyramidRoiAlign(
        batch=rois_shape[0],
        rois=rois_shape[1],
        levels=len(feature_shapes),
        channels=channels,
        type=_choice("dtype", dtype, TYPES),
        layout=_layout(layout),
        pitch=channel_pitch(channels, layout),
        output_layout=_layout(output_layout),
        output_pitch=channel_pitch(channels, output_layout),
        height=_filled(Levels, [shape[2] for shape in feature_shapes], "levels"),
        width=_filled(Levels, [shape[3] for shape in feature_shapes], "levels"),
        spatial_scale=_filled(LevelScales, spatial_scales, "levels"),
        output_size=output_size,
        sampling_ratio=sampling_ratio,
        aligned=int(aligned),
        canonical_scale=canonical_scale,
        canonical_level=canonical_level,
    )


def describe_roi_max_pool(
    rois_shape: Sequence[int],
    features_shape: Sequence[int],
    output_size: int,
    spatial_scale: float,
    *,
    dtype: str = "float32",
    layout: str = "nchw",
    output_layout: str = "nchw",
) -> RoiMaxPool:
    """For rois [B, R, 4] and features [B, C, H, W]."""
    channels = features_shape[1]
    return RoiMaxPool(
        batch=rois_shape[0],
        rois=rois_shape[1],
        channels=channels,
        height=features_shape[2],
        width=features_shape[3],
        type=_choice("dtype", dtype, TYPES),
        layout=_layout(layout),
        pitch=channel_pitch(channels, layout),
        output_layout=_layout(output_layout),
        output_pitch=channel_pitch(channels, output_layout),
        output_size=output_size,
        spatial_scale=spatial_scale,
    )


def describe_preprocess(
    frames: Sequence[Frame],
    height: int,
    width: int,
    mean: Sequence[float],
    std: Sequence[float],
    value_scale: float,
    pad_value: float,
    *,
    format: str = "bgr",
    color: str = "bt601",
    dtype: str = "float32",
) -> Preprocess:
    """For these frames, pointers and sizes filled, and a canvas of height x width; mean and std are RGB."""
    return Preprocess(
        batch=len(frames),
        format=_choice("format", format, FORMATS),
        color=_choice("color", color, COLORS),
        type=_choice("dtype", dtype, TYPES),
        height=height,
        width=width,
        value_scale=value_scale,
        pad_value=pad_value,
        mean=_filled(Double * 3, mean, "numbers of mean"),
        std=_filled(Double * 3, std, "numbers of std"),
        frames=_filled(Frame * MAX_FRAMES, frames, "frames"),
    )


def channel_pitch(channels: int, layout: str) -> int:
    """Elements per cell: 0 for nchw, else `channels` rounded up to the layout's multiple."""
    multiple = _choice("layout", layout, LAYOUTS)
    return -(-channels // multiple) * multiple if multiple else 0


def _layout(layout: str) -> int:
    return int(_choice("layout", layout, LAYOUTS) > 0)


def _choice(name: str, value: str, choices: dict[str, int]) -> int:
    if value not in choices:
        raise ValueError(f"{name} {value!r}: expected one of {', '.join(choices)}.")
    return choices[value]


def _filled(array_type: Any, values: Sequence[Any], what: str) -> Any:
    """`values` in an array of that type, the rest zero."""
    if len(values) > array_type._length_:
        raise ValueError(f"received {len(values)} {what}: the kernels take at most {array_type._length_}.")
    return array_type(*values)
