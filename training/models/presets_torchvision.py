"""Presets: torchvision's four Faster R-CNNs, and its FPN detector around other backbones.

`torchvision_spec` holds torchvision's defaults; the presets of the literature and of the conveyor begin with it, too.
"""

from __future__ import annotations

from collections.abc import Callable

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
from training.models.spec_changes import changed

Preset = Callable[[str, tuple[str, ...]], DetectorSpec]  # name, class names

RATIOS = (0.5, 1.0, 2.0)  # height / width
FIVE_LEVELS = (4, 8, 16, 32, 64)  # strides
ONE_SIZE_EACH = ((32,), (64,), (128,), (256,), (512,))  # Lin et al., FPN (2017), section 4.1


def fpn_preset(network: str, stages: tuple[int, ...]) -> Preset:
    """torchvision's ResNet-50-FPN detector with `network`, whose `stages` have the strides 4, 8, 16 and 32."""

    def preset(name: str, class_names: tuple[str, ...]) -> DetectorSpec:
        return torchvision_spec(
            name,
            class_names,
            backbone=fpn_backbone(network, stages, norm="frozen_batch_norm", channels=256),
            anchors=anchors_at(FIVE_LEVELS, ONE_SIZE_EACH, "image_over_feature"),
            levels=(0, 1, 2, 3),
        )

    return preset


resnet50_fpn = fpn_preset("resnet50", (1, 2, 3, 4))


def resnet50_fpn_v2(name: str, class_names: tuple[str, ...]) -> DetectorSpec:
    """torchvision's improved one: batch norm that trains, two RPN convolutions, four in the box head."""
    return changed(
        resnet50_fpn(name, class_names),
        {
            "backbone": {"norm": "batch_norm", "fpn_norm": "batch_norm"},
            "rpn": {"conv_depth": 2},
            "box_head": {"kind": "conv_fc", "conv_channels": (256, 256, 256, 256)},
        },
    )


def mobilenet_v3_large_fpn(name: str, class_names: tuple[str, ...]) -> DetectorSpec:
    """torchvision's small one: two stages of stride 32, five anchor sizes on every level."""
    spec = torchvision_spec(
        name,
        class_names,
        backbone=fpn_backbone("mobilenet_v3_large", (4, 5), norm="frozen_batch_norm", channels=256),
        anchors=anchors_at((32, 32, 64), ((32, 64, 128, 256, 512),) * 3, "image_over_feature"),
        levels=(0,),  # both unpooled levels have stride 32, and torchvision pools from the first of them
    )
    return changed(spec, {"rpn": {"score_threshold": 0.05}})


def mobilenet_v3_large_320_fpn(name: str, class_names: tuple[str, ...]) -> DetectorSpec:
    """The same for small images."""
    return changed(
        mobilenet_v3_large_fpn(name, class_names),
        {"input": {"min_size": 320, "max_size": 640}, "rpn": {"pre_nms_top_n": 150, "post_nms_top_n": 150}},
    )


def torchvision_spec(
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


def fpn_backbone(name: str, stages: tuple[int, ...], *, norm: str, channels: int) -> BackboneSpec:
    """A network's `stages` merged by an FPN, and one level more, the coarsest subsampled."""
    return BackboneSpec(
        name=name, returned_stages=stages, norm=norm, fpn_channels=channels, fpn_norm="none", extra_level="pool"
    )


def anchors_at(strides: tuple[int, ...], sizes: tuple[tuple[float, ...], ...], stride_rule: str) -> AnchorSpec:
    """Anchors of `sizes`, one list per level, each in three aspect ratios."""
    return AnchorSpec(
        strides=strides,
        stride_rule=stride_rule,
        sizes=sizes,
        aspect_ratios=(RATIOS,) * len(strides),
        order="ratio_major",
        rounding="half_even",
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
