"""Runs two artifacts stage by stage on the same pictures and measures each stage twice.

End to end: the candidate from the image on, so that errors add up. Alone: the candidate's stage on the reference's
inputs of this stage, so that the error is this stage's own. What is computed per roi (RoI features, head) is only
compared alone: two networks have two lists of rois, and row by row they are not the same objects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from export.parity_artifacts import Artifact
from export.parity_boxes import boxes_or_failure
from export.parity_data import Picture
from export.parity_errors import (
    SameDetection,
    SetOverlap,
    StageError,
    detection_overlap,
    roi_overlap,
    tensor_error,
    total,
)
from export.parity_tolerances import Tolerance
from export.stages import BOXES, HEAD, ROI_FEATURES, Stage, StageValues, run_alone, run_from_image, stages_of
from runtime.backends.base import RawOutputs
from runtime.detections import Detections, detections_from_outputs
from runtime.preprocess import preprocess
from runtime.progress import progress
from runtime.spec import DetectorSpec

SAME_BOX = 0.9  # IoU of final boxes that were made from the same logits and deltas
SCORE_MARGIN = 1e-3  # and how far their scores may be apart

Pair = tuple[StageError | None, StageError | None]  # end to end, alone


@dataclass(frozen=True)
class StageResult:
    """One stage over all pictures; None: it was not or cannot be measured."""

    stage: Stage
    end_to_end: StageError | None
    alone: StageError | None
    limit: float
    within: bool | None


def measure_stages(
    reference: Artifact, candidates: Sequence[Artifact], tolerances: Sequence[Tolerance], pictures: Sequence[Picture]
) -> list[list[StageResult]]:
    """All stages of each candidate against the reference's.

    Raises:
        SourceError: a picture cannot be read.
        RunError: a stage failed.
    """
    measured: list[dict[str, list[Pair]]] = [{} for _ in candidates]
    for picture in progress(pictures, len(pictures), "stage by stage"):
        frame = picture.read()
        given = None
        if reference.stages is not None and any(candidate.stages is not None for candidate in candidates):
            given = run_from_image(reference.stages, preprocess([frame], reference.spec))
        for candidate, found in zip(candidates, measured, strict=True):
            for key, pair in _measure_image(reference, candidate, frame, given).items():
                found.setdefault(key, []).append(pair)
    return [
        [_result(stage, found.get(stage.key, []), tolerance) for stage in stages_of(reference.spec)]
        for found, tolerance in zip(measured, tolerances, strict=True)
    ]


def _measure_image(
    reference: Artifact, candidate: Artifact, frame: np.ndarray, given: StageValues | None
) -> dict[str, Pair]:
    """Errors of one picture by stage."""
    prepared, own = (preprocess([frame], artifact.spec) for artifact in (reference, candidate))
    found: dict[str, Pair] = {}
    for key, one, other in zip(("images", "im_info"), prepared, own):
        found[key] = (tensor_error(one, other), tensor_error(one, other))  # nothing comes before it
    if given is None or candidate.stages is None:
        return found
    end_to_end, alone = run_from_image(candidate.stages, own), run_alone(candidate.stages, given)
    expected, chained, separate = (values.tensors() for values in (given, end_to_end, alone))
    per_roi = {stage.key for stage in stages_of(reference.spec) if stage.kind in (ROI_FEATURES, HEAD)}
    for key in [key for key in expected if key not in found]:
        chain_error = None if key in per_roi else tensor_error(expected[key], chained[key])
        found[key] = (chain_error, tensor_error(expected[key], separate[key]))
    proposals = [roi_overlap(given.proposals, values.proposals) for values in (end_to_end, alone)]
    found["proposals"] = (proposals[0], proposals[1])
    found["boxes"] = (None, _box_overlap(reference.spec, given.outputs, alone.outputs, frame.shape[:2]))
    return found


def _box_overlap(
    spec: DetectorSpec, expected: RawOutputs, received: RawOutputs, frame_hw: tuple[int, ...]
) -> SetOverlap:
    rule = SameDetection(SAME_BOX, SCORE_MARGIN, spec.detection.score_threshold)

    def boxes(outputs: RawOutputs) -> Detections:
        return boxes_or_failure(lambda: detections_from_outputs(outputs, spec, [frame_hw])[0], spec)[0]

    return detection_overlap(boxes(expected), boxes(received), rule)


def with_whole_networks(results: Sequence[StageResult], overlap: SetOverlap) -> tuple[StageResult, ...]:
    """The results, with what the final boxes of the whole networks have in common as their end-to-end measurement."""
    return tuple(
        dataclasses.replace(result, end_to_end=overlap) if result.stage.kind == BOXES else result for result in results
    )


def _result(stage: Stage, pairs: Sequence[Pair], tolerance: Tolerance) -> StageResult:
    end_to_end, alone = (_total([pair[column] for pair in pairs]) for column in (0, 1))
    within = None if alone is None else tolerance.holds(stage, alone)
    return StageResult(stage, end_to_end, alone, tolerance.limit(stage), within)


def _total(errors: Sequence[StageError | None]) -> StageError | None:
    measured = [error for error in errors if error is not None]
    return total(measured) if measured else None  # type: ignore[arg-type]  # all of one kind
