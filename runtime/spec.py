"""DetectorSpec: every fact needed to run a set of weights, declared and never inferred.

It travels inside each artifact: `spec` in the checkpoint, `edgercnn.spec` in the ONNX metadata, `<plan>.json` beside a
plan. What its parts mean stands in `runtime/spec_parts.py`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from runtime.errors import SpecError
from runtime.precision_plan import PrecisionPlan
from runtime.schema import check_record, mapping_from_record, one_of, record_from_mapping, require, ruled
from runtime.spec_parts import (
    BOX_CLIP,
    AnchorSpec,
    BackboneSpec,
    BoxHeadSpec,
    DetectionSpec,
    InputSpec,
    Name,
    OutputSpec,
    PrunedWidths,
    RoiPoolingSpec,
    RpnSpec,
)

__all__ = [
    "BOX_CLIP",
    "SCHEMA_VERSION",
    "AnchorSpec",
    "BackboneSpec",
    "BoxHeadSpec",
    "DetectionSpec",
    "DetectorSpec",
    "InputSpec",
    "OutputSpec",
    "RoiPoolingSpec",
    "RpnSpec",
]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class DetectorSpec:
    """The contract between training, export, calibration and runtime. All fields but the last two are required.

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
    pruned_widths: PrunedWidths | None = None  # of a model that training/prune.py narrowed

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
        good = self.box_head.kind != "res5" or self.backbone.name.startswith("resnet")
        require(good, "spec.box_head.kind", self.box_head.kind, f"two_mlp or conv_fc: {self.backbone.name} has no res5")

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
