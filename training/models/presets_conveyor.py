"""Presets: small detectors for the demo's conveyor, quick to train from random weights."""

from __future__ import annotations

from runtime.spec import DetectorSpec
from training.models.presets_published import ROI_MAX_POOL, STRIDE, c4_backbone, res5_head, roi_pooling_at
from training.models.presets_torchvision import anchors_at, fpn_backbone, torchvision_spec
from training.models.spec_changes import changed


def conveyor(name: str, class_names: tuple[str, ...]) -> DetectorSpec:
    """MobileNetV3-FPN for parts of 36 to 130 px in a 288 x 384 network input."""
    spec = torchvision_spec(
        name,
        class_names,
        backbone=fpn_backbone("mobilenet_v3_large", (2, 3, 4), norm="batch_norm", channels=96),
        anchors=anchors_at((8, 16, 32, 64), ((32, 45), (64, 90), (128, 180), (256, 360)), "nominal"),
        levels=(0, 1, 2),
    )
    return changed(
        spec,
        {
            "input": {"min_size": 288, "max_size": 384},
            "rpn": {"pre_nms_top_n": 300, "post_nms_top_n": 150},
            "roi_pooling": {"canonical_scale": 112.0},  # parts below 112 px from stride 8, larger ones from 16 and 32
            "box_head": {"representation_size": 256},
            "detection": {"max_detections": 50},
        },
    )


def conveyor_resnet50(name: str, class_names: tuple[str, ...]) -> DetectorSpec:
    """ResNet-50-FPN at the conveyor's size: strides 8 to 64, for parts of 36 px and more nothing finer is needed."""
    return changed(
        conveyor(name, class_names),
        {
            "backbone": {"name": "resnet50", "returned_stages": (2, 3, 4), "fpn_channels": 256},
            "box_head": {"representation_size": 1024},
        },
    )


def conveyor_c4(name: str, class_names: tuple[str, ...]) -> DetectorSpec:
    """A small C4 detector: ResNet-18 at stride 16, RoI max pooling, its last stage as the box head."""
    spec = conveyor(name, class_names).replace(
        backbone=c4_backbone("resnet18", stage=3, norm="batch_norm"),
        anchors=anchors_at((STRIDE,), ((32, 64, 128),), "nominal"),
        roi_pooling=roi_pooling_at(STRIDE, ROI_MAX_POOL, output_size=7),
        box_head=res5_head(512),
    )
    return changed(spec, {"rpn": {"channels": 256, "objectness": "softmax", "pre_nms_top_n": 600}})
