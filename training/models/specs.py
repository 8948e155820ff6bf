"""`spec_for`: a DetectorSpec by the name of its architecture. The presets themselves stand in presets_*.py."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from runtime.errors import SpecError
from runtime.spec import DetectorSpec
from training.models import presets_conveyor, presets_published, presets_torchvision
from training.models.presets_torchvision import Preset
from training.models.spec_changes import changed

# torchvision's weights know 90 foreground labels, ten of them unused and called "N/A"
COCO_CLASS_NAMES: tuple[str, ...] = tuple(FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:])

PRESETS: dict[str, Preset] = {
    "fasterrcnn_resnet50_fpn": presets_torchvision.resnet50_fpn,
    "fasterrcnn_resnet50_fpn_v2": presets_torchvision.resnet50_fpn_v2,
    "fasterrcnn_mobilenet_v3_large_fpn": presets_torchvision.mobilenet_v3_large_fpn,
    "fasterrcnn_mobilenet_v3_large_320_fpn": presets_torchvision.mobilenet_v3_large_320_fpn,
    "fasterrcnn_resnet18_fpn": presets_torchvision.fpn_preset("resnet18", (1, 2, 3, 4)),
    "fasterrcnn_resnet101_fpn": presets_torchvision.fpn_preset("resnet101", (1, 2, 3, 4)),
    "fasterrcnn_efficientnet_b0_fpn": presets_torchvision.fpn_preset("efficientnet_b0", (2, 3, 5, 7)),
    "fasterrcnn_vgg16": presets_published.vgg16,
    "fasterrcnn_zfnet": presets_published.zfnet,
    "fasterrcnn_resnet50_c4": presets_published.resnet_c4_preset("resnet50"),
    "fasterrcnn_resnet101_c4": presets_published.resnet_c4_preset("resnet101"),
    "conveyor": presets_conveyor.conveyor,
    "conveyor_resnet50": presets_conveyor.conveyor_resnet50,
    "conveyor_c4": presets_conveyor.conveyor_c4,
}


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
        known = ", ".join(PRESETS)
        raise SpecError(f"unknown architecture {name!r}: the nearest known one is {nearest!r}; choose one of {known}.")
    return changed(PRESETS[name](name, tuple(class_names)), overrides)
