"""Presets: the detectors of the literature, with one feature level of stride 16 ("C4") and no FPN.

Ref: Ren et al., Faster R-CNN (2015), section 3.3; He et al., Deep Residual Learning (2016), appendix A; He et al., Mask
R-CNN (2017), section 3.
"""

from __future__ import annotations

from runtime.spec import BackboneSpec, BoxHeadSpec, DetectorSpec, RoiPoolingSpec
from training.models.presets_torchvision import Preset, anchors_at, torchvision_spec
from training.models.spec_changes import changed

STRIDE = 16
ROI_MAX_POOL, ROI_ALIGN = "roi_max_pool", "pyramid_roi_align"


def vgg16(name: str, class_names: tuple[str, ...]) -> DetectorSpec:
    """The paper's large model: VGG-16 up to conv5_3, RoI max pooling, fc6 and fc7 (Ren et al. 2015)."""
    return published_spec(
        name,
        class_names,
        backbone=c4_backbone("vgg16", stage=5, norm="frozen_batch_norm"),  # VGG-16 has none
        roi_pooling=roi_pooling_at(STRIDE, ROI_MAX_POOL, output_size=7),
        box_head=BoxHeadSpec(kind="two_mlp", representation_size=4096, conv_channels=(), class_agnostic=False),
        rpn_channels=512,
    )


def zfnet(name: str, class_names: tuple[str, ...]) -> DetectorSpec:
    """The paper's small model: ZF-Net up to conv5, 256 channels in the RPN."""
    backbone = c4_backbone("zfnet", stage=5, norm="frozen_batch_norm")  # ZF-Net has none
    spec = vgg16(name, class_names).replace(backbone=backbone)
    return changed(spec, {"rpn": {"channels": 256}})


def resnet_c4_preset(network: str) -> Preset:
    """conv1 to res4 of a ResNet as the backbone, RoI Align 14 x 14, res5 as the box head (He et al. 2016, 2017)."""

    def preset(name: str, class_names: tuple[str, ...]) -> DetectorSpec:
        return published_spec(
            name,
            class_names,
            backbone=c4_backbone(network, stage=3, norm="frozen_batch_norm"),
            roi_pooling=roi_pooling_at(STRIDE, ROI_ALIGN, output_size=14),
            box_head=res5_head(2048),
            rpn_channels=512,
        )

    return preset


def published_spec(
    name: str,
    class_names: tuple[str, ...],
    *,
    backbone: BackboneSpec,
    roi_pooling: RoiPoolingSpec,
    box_head: BoxHeadSpec,
    rpn_channels: int,
) -> DetectorSpec:
    """Section 3.3 of Ren et al. (2015): three anchor sizes and ratios, two scores each, 300 proposals in testing."""
    anchors = anchors_at((STRIDE,), ((128, 256, 512),), "nominal")
    spec = torchvision_spec(name, class_names, backbone=backbone, anchors=anchors, levels=(0,))
    return changed(
        spec.replace(roi_pooling=roi_pooling, box_head=box_head),
        {
            "input": {"min_size": 600, "max_size": 1000, "divisor": STRIDE},
            "rpn": {
                "channels": rpn_channels,
                "objectness": "softmax",
                "pre_nms_top_n": 6000,
                "post_nms_top_n": 300,
                "min_size": 16.0,
            },
            "detection": {"nms_threshold": 0.3},
        },
    )


def c4_backbone(name: str, *, stage: int, norm: str) -> BackboneSpec:
    """A network up to one of its stages, without an FPN."""
    return BackboneSpec(
        name=name, returned_stages=(stage,), norm=norm, fpn_channels=None, fpn_norm="none", extra_level="none"
    )


def res5_head(channels: int) -> BoxHeadSpec:
    """A ResNet's last stage, which makes `channels` channels, as the box head."""
    return BoxHeadSpec(kind="res5", representation_size=channels, conv_channels=(), class_agnostic=False)


def roi_pooling_at(stride: float, op: str, *, output_size: int) -> RoiPoolingSpec:
    """Pooling from the one level of a C4 detector, by RoI max pooling or by RoI Align."""
    is_align = op == ROI_ALIGN
    return RoiPoolingSpec(
        op=op,
        levels=(0,),
        output_size=output_size,
        sampling_ratio=2 if is_align else None,
        aligned=True if is_align else None,
        spatial_scales=(1.0 / stride,),
        canonical_scale=224.0 if is_align else None,  # with one level, any number will do
        canonical_level=4 if is_align else None,
    )
