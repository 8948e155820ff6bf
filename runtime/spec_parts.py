"""The parts of a DetectorSpec: frozen records, one per stage of the detector. `runtime/spec.py` puts them together.

Boxes are xyxy. px are network px (after resizing) unless a field says image px. Aspect ratios are height / width. L is
the number of feature levels, the pooled one included; K the number of foreground classes. Fields whose default is None
came later: they are left out of the JSON where they are None, so that the digests of older artifacts hold.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from runtime.schema import at_least, check_record, every_positive, fraction, one_of, positive, require, ruled

BACKBONES = ("mobilenet_v3_large", "resnet18", "resnet50", "resnet101", "vgg16", "zfnet", "efficientnet_b0")
BOX_CLIP = math.log(1000.0 / 16.0)  # Fast R-CNN's cap on dw and dh before exp, in torchvision and detectron2 alike

Name = Annotated[str, ruled(lambda name: name != "", "a name")]
Count = Annotated[int, positive()]
Positive = Annotated[float, positive()]
NonNegative = Annotated[float, at_least(0)]
Fraction = Annotated[float, fraction()]
Four = Annotated[tuple[float, float, float, float], every_positive()]
PositiveList = Annotated[tuple[float, ...], every_positive()]
Ascending = Annotated[
    tuple[int, ...],
    ruled(
        lambda values: len(values) > 0 and min(values) >= 0 and all(a < b for a, b in zip(values, values[1:])),
        "ascending indices, at least one",
    ),
]
# (layer, input channels, output channels) of layers that pruning left narrower than all other fields of the spec say
PrunedWidths = Annotated[
    tuple[tuple[Name, Count, Count], ...],
    ruled(
        lambda widths: len(widths) > 0 and all(a[0] < b[0] for a, b in zip(widths, widths[1:])),
        "layers in alphabetical order, each once, at least one",
    ),
]


@dataclass(frozen=True)
class InputSpec:
    """From a frame to the network's input: torchvision's GeneralizedRCNNTransform, plus an optional fixed canvas.

    scale = min(min_size / shorter side, max_size / longer side), and, with a canvas, small enough to fit into it; sides
    are rounded down; the picture lies at the top left, the rest is `pad_value` (after normalisation).
    """

    PATH: ClassVar[str] = "spec.input"
    height: Count | None  # fixed canvas of an exported graph; None: any size
    width: Count | None
    min_size: Count
    max_size: Count
    resize: Annotated[str, one_of("shorter_side")]
    interpolation: Annotated[str, one_of("bilinear")]  # half-pixel centres, no antialiasing, in float32
    rounding: Annotated[str, one_of("floor")]
    pad_value: float
    divisor: Count  # padded sides are multiples of this
    color_order: Annotated[str, one_of("rgb")]
    value_scale: Positive  # multiplies uint8 values before mean and std
    mean: tuple[float, float, float]
    std: Annotated[tuple[float, float, float], every_positive()]

    def __post_init__(self) -> None:
        check_record(self)
        canvas = (self.height, self.width)
        require((self.height is None) == (self.width is None), "spec.input.height and width", canvas, "both or neither")
        for name in ("height", "width"):
            side = getattr(self, name)
            good = side is None or side % self.divisor == 0
            require(good, f"spec.input.{name}", side, f"a multiple of the divisor {self.divisor}")
        require(self.max_size >= self.min_size, "spec.input.max_size", self.max_size, "no less than min_size")


@dataclass(frozen=True)
class BackboneSpec:
    """The feature extractor and its FPN, or without one (C4): then it has one stage and one level.

    `returned_stages` index the stages that training/models/backbones.py lists for that network.
    """

    PATH: ClassVar[str] = "spec.backbone"
    name: Annotated[str, one_of(*BACKBONES)]
    returned_stages: Ascending
    norm: Annotated[str, one_of("frozen_batch_norm", "batch_norm")]
    fpn_channels: Count | None  # None: no FPN, the stage's own channels
    fpn_norm: Annotated[str, one_of("none", "batch_norm")]
    extra_level: Annotated[str, one_of("pool", "none")]  # pool: one more level, the coarsest subsampled by 2
    # of a ResNet's bottleneck blocks, as published and in Caffe's weights; None: in the 3 x 3 ones, as in torchvision
    stride_in_1x1: Annotated[bool, one_of(True)] | None = None

    def __post_init__(self) -> None:
        check_record(self)
        good = self.stride_in_1x1 is None or self.name in ("resnet50", "resnet101")
        require(good, "spec.backbone.stride_in_1x1", self.stride_in_1x1, f"null: {self.name} has no bottleneck blocks")
        if self.fpn_channels is None:
            stages = self.returned_stages
            require(len(stages) == 1, "spec.backbone.returned_stages", stages, "one stage where there is no FPN")
            require(self.extra_level == "none", "spec.backbone.extra_level", self.extra_level, "'none' without an FPN")
            require(self.fpn_norm == "none", "spec.backbone.fpn_norm", self.fpn_norm, "'none' without an FPN")

    @property
    def num_levels(self) -> int:
        return len(self.returned_stages) + (self.extra_level == "pool")


@dataclass(frozen=True)
class AnchorSpec:
    """RPN anchors (Ren et al. 2015, section 3.1.1), centred on each cell's origin, sides in network px."""

    PATH: ClassVar[str] = "spec.anchors"
    strides: tuple[Count, ...]  # nominal, one per level
    # image_over_feature is torchvision's rule, floor(padded side / feature side) on each axis: 800 // 13 = 61, not 64
    stride_rule: Annotated[str, one_of("nominal", "image_over_feature")]
    sizes: tuple[PositiveList, ...]  # one list per level
    aspect_ratios: tuple[PositiveList, ...]
    # ratio_major: for each ratio, each size (torchvision); size_major: for each size, each ratio (detectron2)
    order: Annotated[str, one_of("ratio_major", "size_major")]
    rounding: Annotated[str, one_of("half_even", "none")]  # of the corners of the base anchors

    def __post_init__(self) -> None:
        check_record(self)
        levels = len(self.strides)
        require(levels > 0, "spec.anchors.strides", self.strides, "one number per level")
        for name in ("sizes", "aspect_ratios"):
            lists = getattr(self, name)
            require(len(lists) == levels, f"spec.anchors.{name}", lists, f"{levels} lists, one per stride")
        counts = [len(sizes) * len(ratios) for sizes, ratios in zip(self.sizes, self.aspect_ratios, strict=True)]
        require(len(set(counts)) == 1, "spec.anchors", counts, "the same number of anchors per cell on every level")

    @property
    def per_cell(self) -> int:
        """A: anchors at each cell, the same on every level."""
        return len(self.sizes[0]) * len(self.aspect_ratios[0])


@dataclass(frozen=True)
class RpnSpec:
    """Region proposals at test time (ONNX op `edgercnn.RpnProposals`)."""

    PATH: ClassVar[str] = "spec.rpn"
    conv_depth: Count
    pre_nms_top_n: Count  # per level
    post_nms_top_n: Count  # per image: R
    nms_threshold: Fraction  # IoU above it suppresses
    score_threshold: Fraction  # sigmoid(objectness) below it is dropped
    min_size: NonNegative  # network px
    box_coder_weights: Four
    box_clip: Positive
    channels: Count | None = None  # of the 3 x 3 convolutions; None: those of the features
    # softmax: two scores per anchor, background's and object's, as published; None: one logit
    objectness: Annotated[str, one_of("softmax")] | None = None

    def __post_init__(self) -> None:
        check_record(self)


@dataclass(frozen=True)
class RoiPoolingSpec:
    """Pooling of rois from the levels.

    pyramid_roi_align: ONNX op `edgercnn.PyramidRoiAlign` (He et al. 2017; FPN, Lin et al. 2017, equation 1).
    roi_max_pool: ONNX op `edgercnn.RoiMaxPool` (Girshick 2015), of one level; the fields of RoI Align are then None.
    """

    PATH: ClassVar[str] = "spec.roi_pooling"
    op: Annotated[str, one_of("pyramid_roi_align", "roi_max_pool")]
    levels: Ascending  # indices of feature levels
    output_size: Count
    sampling_ratio: Annotated[int, at_least(0)] | None  # 0: as many as the roi has feature px in a bin
    aligned: bool | None
    spatial_scales: PositiveList
    canonical_scale: Positive | None
    canonical_level: Annotated[int, at_least(0)] | None

    def __post_init__(self) -> None:
        check_record(self)
        scales = self.spatial_scales
        is_align = self.op == "pyramid_roi_align"
        for name in ("sampling_ratio", "aligned", "canonical_scale", "canonical_level"):
            value = getattr(self, name)
            require(
                (value is not None) == is_align,
                f"spec.roi_pooling.{name}",
                value,
                f"what {self.op} has: null for roi_max_pool, a value for pyramid_roi_align",
            )
        require(is_align or len(scales) == 1, "spec.roi_pooling.levels", self.levels, "one level for roi_max_pool")
        require(len(scales) == len(self.levels), "spec.roi_pooling.spatial_scales", scales, "one number per level")
        good = all(math.log2(scale).is_integer() for scale in scales)
        good = good and all(finer == 2.0 * coarser for finer, coarser in zip(scales, scales[1:]))
        require(good, "spec.roi_pooling.spatial_scales", scales, "powers of two, each half of the one before")


@dataclass(frozen=True)
class BoxHeadSpec:
    """The per-roi network before classification and box regression.

    two_mlp: fc6 and fc7. conv_fc: 3 x 3 convolutions and one fully connected layer. res5: the last stage of a ResNet
    and its mean over all cells, as in C4 (He et al. 2016); `representation_size` is that stage's number of channels.
    """

    PATH: ClassVar[str] = "spec.box_head"
    kind: Annotated[str, one_of("two_mlp", "conv_fc", "res5")]
    representation_size: Count
    conv_channels: tuple[Count, ...]  # () but for conv_fc
    class_agnostic: bool

    def __post_init__(self) -> None:
        check_record(self)
        good = (self.kind == "conv_fc") == (len(self.conv_channels) > 0)
        require(
            good, "spec.box_head.conv_channels", self.conv_channels, f"what kind {self.kind!r} has: () but for conv_fc"
        )


@dataclass(frozen=True)
class DetectionSpec:
    """From class scores and box deltas to detections (ONNX op `edgercnn.BoxDetections`)."""

    PATH: ClassVar[str] = "spec.detection"
    score_threshold: Fraction  # a score must be above it
    nms_threshold: Fraction
    max_detections: Count  # D
    min_size: NonNegative  # network px
    box_coder_weights: Four
    box_clip: Positive

    def __post_init__(self) -> None:
        check_record(self)


@dataclass(frozen=True)
class OutputSpec:
    """Names of the four fixed-size outputs; unused rows are zero boxes and scores with class `padding_class`."""

    PATH: ClassVar[str] = "spec.outputs"
    num_detections: Name  # int32 [B, 1]
    detection_boxes: Name  # float32 [B, D, 4] xyxy
    detection_scores: Name  # float32 [B, D]
    detection_classes: Name  # int32 [B, D], index into class_names
    padding_class: Annotated[int, one_of(-1)]
    frame: Annotated[str, one_of("image")]  # boxes are in px of the original image

    def __post_init__(self) -> None:
        check_record(self)
        require(len(set(self.names)) == 4, "spec.outputs", self.names, "four different names")

    @property
    def names(self) -> tuple[str, str, str, str]:
        return (self.num_detections, self.detection_boxes, self.detection_scores, self.detection_classes)
