"""How far each stage may be from the reference's, by the lower of two artifacts' precisions. All limits stand here.

Stages are judged alone: the candidate's stage on the reference's inputs of this stage. What a precision costs is
measured in docs/parity.md; a broken stage has 0 to 20 dB.
"""

from __future__ import annotations

from dataclasses import dataclass

from export.parity_errors import SameDetection, SetOverlap, StageError
from export.stages import BACKBONE, BOXES, FPN, HEAD, PREPROCESSING, PROPOSALS, ROI_FEATURES, RPN, Stage
from runtime.spec import DetectorSpec

LEVELS = ("fp32", "fp16", "int8")

# kind of stage: at least, in fp32, fp16, int8. dB of SQNR; of PROPOSALS and BOXES the share that both sets have
STAGE_LIMITS: dict[str, tuple[float, float, float]] = {
    PREPROCESSING: (
        100.0,
        100.0,
        100.0,
    ),  # float32 code, the same in all; a mean that is 0.001 off: 47
    BACKBONE: (90.0, 40.0, 10.0),  # measured, the lowest: 124, 59, 12
    FPN: (90.0, 40.0, 15.0),  # 133, 70, 28
    RPN: (90.0, 40.0, 20.0),  # 136, 74, 46
    PROPOSALS: (0.99, 0.99, 0.99),  # float32 in every file: only ties may fall another way
    ROI_FEATURES: (90.0, 40.0, 40.0),  # 144, 72, exact: INT8 files pool FP32 or FP16 features
    HEAD: (90.0, 40.0, 15.0),  # 134, 77, 40
    BOXES: (0.99, 0.99, 0.99),  # as PROPOSALS
}

# of whole networks, from the image to final boxes: share of final boxes that both have, by the rule of `same_detection`
BOXES_IN_COMMON = (0.99, 0.97, 0.90)
LARGEST_AP_LOSS = (0.001, 0.003, 0.01)  # AP from 0 to 1, on the images given; few images measure it coarsely
SCORE_MARGIN = (0.01, 0.05, 0.25)  # how far scores may move; boxes nearer to the score threshold do not count
SAME_OBJECT = 0.5  # IoU that makes two final boxes of one class the same object


@dataclass(frozen=True)
class Tolerance:
    """The limits of one pair of artifacts."""

    level: str

    def limit(self, stage: Stage) -> float:
        """dB of SQNR or share of boxes that `stage` must reach."""
        return STAGE_LIMITS[stage.kind][self._column]

    def holds(self, stage: Stage, error: StageError) -> bool:
        """Whether the error of `stage`, alone, is within its limit; NaN is not."""
        reached = error.share if isinstance(error, SetOverlap) else error.sqnr_db
        return reached >= self.limit(stage)

    @property
    def boxes_in_common(self) -> float:
        return BOXES_IN_COMMON[self._column]

    @property
    def ap_loss(self) -> float:
        return LARGEST_AP_LOSS[self._column]

    def same_detection(self, spec: DetectorSpec) -> SameDetection:
        """When two final boxes of whole networks are the same."""
        return SameDetection(SAME_OBJECT, SCORE_MARGIN[self._column], spec.detection.score_threshold)

    @property
    def _column(self) -> int:
        return LEVELS.index(self.level)


def tolerance_for(asked: str, reference: DetectorSpec, candidate: DetectorSpec) -> Tolerance:
    """The tolerance `asked` for, one of LEVELS; "auto" takes the lower precision of the two, and mixed for int8."""
    if asked != "auto":
        return Tolerance(asked)
    precisions = ["int8" if spec.precision == "mixed" else spec.precision for spec in (reference, candidate)]
    return Tolerance(max(precisions, key=LEVELS.index))
