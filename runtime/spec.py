"""DetectorSpec: every fact needed to run a set of weights, declared and never inferred.

It travels inside each artifact: `spec` in the checkpoint, `edgercnn.spec` in the ONNX metadata, `<plan>.json` beside a
plan. Boxes are xyxy. px are network px (after resizing) unless a field says image px. Aspect ratios are height / width.
L is the number of feature levels, the pooled one included; K the number of foreground classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from runtime.errors import SpecError
from runtime.precision_plan import PrecisionPlan
from runtime.schema import (
    at_least,
    check_record,
    every_positive,
    fraction,
    mapping_from_record,
    one_of,
    positive,
    record_from_mapping,
    require,
    ruled,
)

SCHEMA_VERSION = 1
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
    """The feature extractor and its FPN. `returned_stages` index torchvision's own list of stages of that network."""

    PATH: ClassVar[str] = "spec.backbone"
    name: Annotated[str, one_of("mobilenet_v3_large", "resnet50")]
    returned_stages: Ascending
    norm: Annotated[str, one_of("frozen_batch_norm", "batch_norm")]
    fpn_channels: Count
    fpn_norm: Annotated[str, one_of("none", "batch_norm")]
    extra_level: Annotated[str, one_of("pool", "none")]  # pool: one more level, the coarsest subsampled by 2

    def __post_init__(self) -> None:
        check_record(self)

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
    order: Annotated[str, one_of("ratio_major")]  # for each ratio, each size
    rounding: Annotated[str, one_of("half_even")]  # of the corners of the base anchors

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

    def __post_init__(self) -> None:
        check_record(self)


@dataclass(frozen=True)
class RoiPoolingSpec:
    """Pooling of rois from the levels (ONNX op `edgercnn.PyramidRoiAlign`; FPN, Lin et al. 2017, equation 1)."""

    PATH: ClassVar[str] = "spec.roi_pooling"
    op: Annotated[str, one_of("pyramid_roi_align")]
    levels: Ascending  # indices of feature levels
    output_size: Count
    sampling_ratio: Count
    aligned: bool
    spatial_scales: PositiveList
    canonical_scale: Positive
    canonical_level: Annotated[int, at_least(0)]

    def __post_init__(self) -> None:
        check_record(self)
        scales = self.spatial_scales
        require(len(scales) == len(self.levels), "spec.roi_pooling.spatial_scales", scales, "one number per level")
        good = all(math.log2(scale).is_integer() for scale in scales)
        good = good and all(finer == 2.0 * coarser for finer, coarser in zip(scales, scales[1:]))
        require(good, "spec.roi_pooling.spatial_scales", scales, "powers of two, each half of the one before")


@dataclass(frozen=True)
class BoxHeadSpec:
    """The per-roi network before classification and box regression."""

    PATH: ClassVar[str] = "spec.box_head"
    kind: Annotated[str, one_of("two_mlp", "conv_fc")]
    representation_size: Count
    conv_channels: tuple[Count, ...]  # () for two_mlp
    class_agnostic: bool

    def __post_init__(self) -> None:
        check_record(self)
        good = (self.kind == "conv_fc") == (len(self.conv_channels) > 0)
        require(good, "spec.box_head.conv_channels", self.conv_channels, f"what kind {self.kind!r} has: () for two_mlp")


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


@dataclass(frozen=True)
class DetectorSpec:
    """The contract between training, export, calibration and runtime. All fields but the last are required.

    Raises:
        SpecError: on construction, naming the field that is wrong.
    """

    PATH: ClassVar[str] = "spec"
    schema_version: int
    architecture: Name
    class_names: tuple[Name, ...]  # foreground only
    background_index: Annotated[int, one_of(0)]  # of the class logits; foreground class k is logit k + 1
    input: InputSpec
    backbone: BackboneSpec
    anchors: AnchorSpec
    rpn: RpnSpec
    roi_pooling: RoiPoolingSpec
    box_head: BoxHeadSpec
    detection: DetectionSpec
    outputs: OutputSpec
    # of the dense part; FP16 and INT8 stand in the graph. int8: the rest of it is FP32; mixed: INT8, FP16 and FP32
    precision: Annotated[str, one_of("fp32", "fp16", "int8", "mixed")]
    parent_digest: Annotated[str, ruled(lambda text: len(text) == 64, "a SHA-256 in hexadecimal, or null")] | None
    precision_plan: PrecisionPlan | None = None  # of a file that calib/calibrate.py wrote; left out where there is none

    def __post_init__(self) -> None:
        version = self.schema_version
        if version != SCHEMA_VERSION:
            raise SpecError(
                f"spec.schema_version is {version!r}: this EdgeRCNN reads {SCHEMA_VERSION}; export the model again."
            )
        check_record(self)
        require(len(self.class_names) > 0, "spec.class_names", self.class_names, "at least one name")
        levels = self.backbone.num_levels
        strides = self.anchors.strides
        require(len(strides) == levels, "spec.anchors.strides", strides, f"{levels} numbers, one per feature level")
        pooled = self.roi_pooling.levels
        require(max(pooled) < levels, "spec.roi_pooling.levels", pooled, f"indices below {levels}")

    @property
    def num_classes(self) -> int:
        """K: foreground classes."""
        return len(self.class_names)

    def to_json(self) -> str:
        """Canonical JSON: keys sorted, no blanks, the same text for the same facts."""
        mapping = mapping_from_record(self)
        return json.dumps(mapping, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)

    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode("utf-8")).hexdigest()

    @classmethod
    def from_json(cls, text: str) -> DetectorSpec:
        """Read what `to_json` wrote; keys may stand in any order.

        Raises:
            SpecError: not JSON, or a field that is wrong, missing or unknown.
        """
        try:
            mapping: Any = json.loads(text)
        except (TypeError, ValueError) as error:
            message = f"the spec is not JSON ({error}): expected a DetectorSpec; export the model again."
            raise SpecError(message) from error
        return record_from_mapping(cls, mapping, cls.PATH)

    def replace(self, **changes: Any) -> DetectorSpec:
        """A copy with some fields changed, checked anew."""
        return dataclasses.replace(self, **changes)
