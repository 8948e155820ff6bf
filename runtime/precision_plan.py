"""PrecisionPlan: what each layer of a calibrated detector computes in; a part of the DetectorSpec."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from runtime.schema import at_least, check_record, one_of, require, ruled

Layer = Annotated[str, ruled(lambda name: name != "", "a name")]


@dataclass(frozen=True)
class PrecisionPlan:
    """What each layer with weights computes in, as `calib/calibrate.py` decided.

    flavour: "tensorrt" has symmetric INT8; "cpu" has unsigned activations and INT32 biases, for ONNX Runtime on x86.
    int8, fp16, fp32: names of nodes, Conv and Gemm.
    """

    PATH: ClassVar[str] = "spec.precision_plan"
    flavour: Annotated[str, one_of("tensorrt", "cpu")]
    method: Annotated[str, one_of("entropy", "percentile", "mse", "minmax", "learned")]  # how ranges were found
    images: Annotated[int, at_least(1)]  # that ranges were measured on
    images_digest: Annotated[str, ruled(lambda text: len(text) == 64, "a SHA-256 in hexadecimal")]
    int8: tuple[Layer, ...]
    fp16: tuple[Layer, ...]
    fp32: tuple[Layer, ...]

    def __post_init__(self) -> None:
        check_record(self)
        names = [*self.int8, *self.fp16, *self.fp32]
        twice = [name for name in names if names.count(name) > 1]
        require(not twice, "spec.precision_plan", twice, "each layer in one precision")
