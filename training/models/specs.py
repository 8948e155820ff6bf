"""Presets: the DetectorSpecs of torchvision's four Faster R-CNNs, and of two for the conveyor: the
demo's small one, and a ResNet-50."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from runtime.errors import SpecError
from runtime.spec import (
    BOX_CLIP,
    SCHEMA_VERSION,
    AnchorSpec,
    BackboneSpec,
    BoxHeadSpec,
    DetectionSpec,
    DetectorSpec,
    InputSpec,
    OutputSpec,
    RoiPoolingSpec,
    RpnSpec,
)

# torchvision's weights know 90 foreground labels, ten of them unused and called "N/A"
COCO_CLASS_NAMES: tuple[str, ...] = tuple(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:])

RATIOS = (0.5, 1.0, 2.0)


def spec_for(name: str, class_names: Sequence[str] = COCO_CLASS_NAMES, **overrides: Any) -> DetectorSpec:
    """The preset `name` for `class_names`.

    Args:
        name: one of `PRESETS`.
        class_names: foreground classes, in the order of their labels.
        overrides: fields to change; a mapping for a part: `spec_for("conveyor", input={"min_size": 320})`.

    Raises:
        SpecError: an unknown name or field (the nearest is named), or a value that breaks the contract.
    """
    if name not in PRESETS:
        nearest = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.0)[0]
        raise SpecError(f"unknown architecture {name!r}: the nearest known one is {nearest!r}; {_known_names()}.")
    spec = PRESETS[name](name, tuple(class_names))
    return _overridden(spec, overrides)


def _known_names() -> str:
    return "choose one of " + ", ".join(PRESETS)


def _overridden(record: Any, changes: Mapping[str, Any]) -> Any:
    """A copy of the record with `changes`, mappings going into the parts of the same name."""
    names = [field.name for field in dataclasses.fields(record)]
    values = {}
    for name, value in changes.items():
        if name not in names:
            nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
            raise SpecError(f"{record.PATH} has no field {name!r}: the nearest known one is {nearest!r}; use that.")
        values[name] = _overridden(getattr(record, name), value) if isinstance(value, Mapping) else value
    return dataclasses.replace(record, **values)


def _resnet50_fpn(name: str, class_names: tuple[str, ...]) -> DetectorSpec:
    return _torchvision_spec(
        name,
        class_names,
        backbone=BackboneSpec(
            name="resnet50",
            returned_stages=(1, 2, 3, 4),
            norm="frozen_batch_norm",
            fpn_channels=256,
            fpn_norm="none",
            extra_level="pool",
        ),
        anchors=_anchors((4, 8, 16, 32, 64), ((32,), (64,), (128,), (256,), (512,)), "image_over_feature"),
        levels=(0, 1, 2, 3),
    )


def _resnet50_fpn_v2(name: str, class_names: tuple[str, ...]) -> DetectorSpec:
    spec = _resnet50_fpn(name, class_names)
    return _overridden(
        spec,
        {
            "backbone": {"norm": "batch_norm", "fpn_norm": "batch_norm"},
            "rpn": {"conv_depth": 2},
            "box_head": {"kind": "conv_fc", "conv_channels": (256, 256, 256, 256)},
        },
    )


def _mobilenet_v3_large_fpn(name: str, class_names: tuple[str, ...]) -> DetectorSpec:
    spec = _torchvision_spec(
        name,
        class_names,
        backbone=BackboneSpec(
            name="mobilenet_v3_large",
            returned_stages=(4, 5),
            norm="frozen_batch_norm",
            fpn_channels=256,
            fpn_norm="none",
            extra_level="pool",
        ),
        anchors=_anchors((32, 32, 64), ((32, 64, 128, 256, 512),) * 3, "image_over_feature"),
        levels=(0,),  # both unpooled levels have stride 32, and torchvision pools from the first of them
    )
    return _overridden(spec, {"rpn": {"score_threshold": 0.05}})


def _mobilenet_v3_large_320_fpn(name: str, class_names: tuple[str, ...]) -> DetectorSpec:
    spec = _mobilenet_v3_large_fpn(name, class_names)
    return _overridden(
        spec,
        {"input": {"min_size": 320, "max_size": 640}, "rpn": {"pre_nms_top_n": 150, "post_nms_top_n": 150}},
    )


def _conveyor(name: str, class_names: tuple[str, ...]) -> DetectorSpec:
    """Small and fast to train from random weights: parts of 36 to 130 px in a 288 x 384 network input."""
    spec = _torchvision_spec(
        name,
        class_names,
        backbone=BackboneSpec(
            name="mobilenet_v3_large",
            returned_stages=(2, 3, 4),
            norm="batch_norm",
            fpn_channels=96,
            fpn_norm="none",
            extra_level="pool",
        ),
        anchors=_anchors((8, 16, 32, 64), ((32, 45), (64, 90), (128, 180), (256, 360)), "nominal"),
        levels=(0, 1, 2),
    )
    return _overridden(
        spec,
        {
            "input": {"min_size": 288, "max_size": 384},
            "rpn": {"pre_nms_top_n": 300, "post_nms_top_n": 150},
            "roi_pooling": {"canonical_scale": 112.0},  # parts below 112 px from stride 8, larger ones from 16 and 32
            "box_head": {"representation_size": 256},
            "detection": {"max_detections": 50},
        },
    )


def _conveyor_resnet50(name: str, class_names: tuple[str, ...]) -> DetectorSpec:
    """ResNet-50-FPN at the conveyor's size: strides 8 to 64, for parts of 36 px and more nothing finer is needed."""
    spec = _conveyor(name, class_names)
    return _overridden(
        spec,
        {
            "backbone": {"name": "resnet50", "returned_stages": (2, 3, 4), "fpn_channels": 256},
            "box_head": {"representation_size": 1024},
        },
    )


def _anchors(strides: tuple[int, ...], sizes: tuple[tuple[float, ...], ...], stride_rule: str) -> AnchorSpec:
    return AnchorSpec(
        strides=strides,
        stride_rule=stride_rule,
        sizes=sizes,
        aspect_ratios=(RATIOS,) * len(strides),
        order="ratio_major",
        rounding="half_even",
    )


def _torchvision_spec(
    name: str, class_names: tuple[str, ...], *, backbone: BackboneSpec, anchors: AnchorSpec, levels: tuple[int, ...]
) -> DetectorSpec:
    """torchvision's defaults around the given parts; `levels` are those that rois are pooled from."""
    return DetectorSpec(
        schema_version=SCHEMA_VERSION,
        architecture=name,
        class_names=class_names,
        background_index=0,
        input=_imagenet_input(min_size=800, max_size=1333),
        backbone=backbone,
        anchors=anchors,
        rpn=RpnSpec(
            conv_depth=1,
            pre_nms_top_n=1000,
            post_nms_top_n=1000,
            nms_threshold=0.7,
            score_threshold=0.0,
            min_size=1e-3,
            box_coder_weights=(1.0, 1.0, 1.0, 1.0),
            box_clip=BOX_CLIP,
        ),
        roi_pooling=RoiPoolingSpec(
            op="pyramid_roi_align",
            levels=levels,
            output_size=7,
            sampling_ratio=2,
            aligned=False,
            spatial_scales=tuple(1.0 / anchors.strides[level] for level in levels),
            canonical_scale=224.0,
            canonical_level=4,
        ),
        box_head=BoxHeadSpec(kind="two_mlp", representation_size=1024, conv_channels=(), class_agnostic=False),
        detection=DetectionSpec(
            score_threshold=0.05,
            nms_threshold=0.5,
            max_detections=100,
            min_size=1e-2,
            box_coder_weights=(10.0, 10.0, 5.0, 5.0),
            box_clip=BOX_CLIP,
        ),
        outputs=OutputSpec(
            num_detections="num_detections",
            detection_boxes="detection_boxes",
            detection_scores="detection_scores",
            detection_classes="detection_classes",
            padding_class=-1,
            frame="image",
        ),
        precision="fp32",
        parent_digest=None,
    )


def _imagenet_input(*, min_size: int, max_size: int) -> InputSpec:
    return InputSpec(
        height=None,
        width=None,
        min_size=min_size,
        max_size=max_size,
        resize="shorter_side",
        interpolation="bilinear",
        rounding="floor",
        pad_value=0.0,
        divisor=32,
        color_order="rgb",
        value_scale=1.0 / 255.0,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


PRESETS: dict[str, Callable[[str, tuple[str, ...]], DetectorSpec]] = {
    "fasterrcnn_resnet50_fpn": _resnet50_fpn,
    "fasterrcnn_resnet50_fpn_v2": _resnet50_fpn_v2,
    "fasterrcnn_mobilenet_v3_large_fpn": _mobilenet_v3_large_fpn,
    "fasterrcnn_mobilenet_v3_large_320_fpn": _mobilenet_v3_large_320_fpn,
    "conveyor": _conveyor,
    "conveyor_resnet50": _conveyor_resnet50,
}
