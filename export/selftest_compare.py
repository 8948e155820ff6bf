"""Part of the self-test: is what a runtime detects the reference's, and does a plan run as it should?

The reference is the ONNX file in ONNX Runtime on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from export.parity_detections import Tolerances, compare_detections, report_of
from export.selftest_detect import Found
from runtime.detections import Detections
from runtime.matching import match_detections
from runtime.spec import DetectionSpec

# as the description of a detector has them (runtime/backends/tensorrt.py)
WITH_GRAPH, WITHOUT_GRAPH, PREPARED_ON_CPU = "CUDA graph", "without a CUDA graph", "frames prepared on the CPU"


@dataclass(frozen=True)
class Limits:
    """How far detections may be from the reference's, and which share of them may be farther or without a partner."""

    tolerances: Tolerances
    others_share: float
    is_estimate: bool = False

    def text(self) -> str:
        """For the report."""
        share = f" but for {self.others_share:.0%}" if self.others_share else ""
        estimate = " (estimate)" if self.is_estimate else ""
        return f"{self.tolerances.box_px:g} px, {self.tolerances.score:g}{share}{estimate}"


# By precision of the file that runs. FP16's as docs/calibration.md found them on the CPU: about one detection in a
# hundred moves by more, because of two proposals that are alike NMS keeps the other one.
LIMITS = {
    "fp32": Limits(Tolerances(box_px=0.01, score=1e-3), 0.0),
    "fp16": Limits(Tolerances(box_px=0.5, score=0.01, iou=0.02), 0.03),
}
# A GPU sums in another order (Winograd, split-K), so that near-ties in NMS and top-k may go the other way in FP32 too.
# Not measured yet; iou is what 0.05 px make of a box of 20 px.
LIMITS_ON_GPU = {**LIMITS, "fp32": Limits(Tolerances(box_px=0.05, score=1e-3, iou=5e-3), 0.01, is_estimate=True)}


def compare_found(
    reference: Found, found: Found, rule: DetectionSpec, limits: Limits
) -> tuple[dict[str, Any], list[str]]:
    """(numbers for the report, what breaks the limits); what is the same is export/parity_detections.py's to say."""
    pairs = list(zip(reference.detections, found.detections, strict=True))
    comparisons = [
        compare_detections(f"picture {index}", *pair, rule, limits.tolerances) for index, pair in enumerate(pairs)
    ]
    matched, missed, extra, borderline = (
        sum(getattr(one, name) for one in comparisons)
        for name in ("num_matched", "num_missed", "num_extra", "num_borderline")
    )
    apart = sum(_pairs_apart(*pair, limits.tolerances) for pair in pairs)
    values = {**found.values, "matched": matched, "missed": missed, "extra": extra, "borderline": borderline}
    values |= {"apart": apart, "outside": missed + extra + apart, "limits": limits.text()}
    values["expected"] = sum(map(len, reference.detections))
    values["box_px"] = float(np.max([one.largest_box_px for one in comparisons]))  # np.max keeps NaN
    values["score"] = float(np.max([one.largest_score for one in comparisons]))
    if matched and values["outside"] <= limits.others_share * values["expected"]:
        return values, []
    return values, report_of(comparisons, rule, limits.tolerances).failures()


def differences(values: dict[str, Any]) -> str:
    """`2 of 450 outside 0.05 px, 0.001 but for 1%; largest differences 0.3 px, 0.0004`, of those numbers."""
    counts = f"{values['outside']} of {values['expected']} outside {values['limits']}"
    return f"{counts}; largest differences {values['box_px']:.2g} px, {values['score']:.2g}"


def graph_use(description: str) -> str:
    """`CUDA graph`, or `without a CUDA graph (reason)`, of the description of a detector that has run a plan."""
    if WITHOUT_GRAPH in description:
        return description[description.index(WITHOUT_GRAPH) :].split(f", {PREPARED_ON_CPU}")[0]
    return WITH_GRAPH if f", {WITH_GRAPH}" in description else f"{WITHOUT_GRAPH} (it gives no reason)"


def cpu_preparation(description: str) -> str:
    """`frames prepared on the CPU (reason)` of that description; "" if the GPU prepares them."""
    return description[description.index(PREPARED_ON_CPU) :] if PREPARED_ON_CPU in description else ""


def _pairs_apart(reference: Detections, found: Detections, tolerances: Tolerances) -> int:
    """How many detections have a partner that is farther off than the tolerances."""
    first, second = match_detections(reference, found).pairs.T
    box_px = np.abs(reference.boxes_xyxy[first] - found.boxes_xyxy[second]).max(axis=1, initial=0.0)
    score = np.abs(reference.scores[first] - found.scores[second])
    within = (box_px <= tolerances.box_px) & (score <= tolerances.score)  # NaN is not
    return int((~within).sum())
