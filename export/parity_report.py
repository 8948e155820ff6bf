"""The verdict on a pair of artifacts, as text for a terminal and as numbers for a JSON file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from export.parity_artifacts import Artifact
from export.parity_boxes import BoxDifference
from export.parity_errors import SetOverlap, StageError, TensorError
from export.parity_stages import StageResult
from export.parity_tolerances import Tolerance
from runtime.tables import format_table

COLUMNS = ("stage", "SQNR", "RMS", "largest", "cosine", "end to end", "limit", "")
DEPARTS = "<- departs"


@dataclass(frozen=True, eq=False)
class PairResult:
    """A candidate against a reference, within a tolerance or not."""

    reference: Artifact
    candidate: Artifact
    tolerance: Tolerance
    stages: tuple[StageResult, ...]
    boxes: BoxDifference

    @property
    def first_departure(self) -> StageResult | None:
        """The first stage whose own error is beyond its limit."""
        return next((result for result in self.stages if result.within is False), None)

    @property
    def weakest(self) -> StageResult | None:
        """Of the stages that numbers are compared in, the one with the lowest SQNR of its own."""
        numbers = [result for result in self.stages if isinstance(result.alone, TensorError)]
        return min(numbers, key=lambda result: decibels(result.alone), default=None)

    def failures(self) -> list[str]:
        """What is beyond the tolerance, a phrase each; the first departing stage first."""
        found = []
        first = self.first_departure
        if first is not None:
            later = sum(result.within is False for result in self.stages) - 1
            more = f" (and {later} more)" if later else ""
            found.append(
                f"the first stage that departs is {first.stage.title}{more}: alone it reaches "
                f"{error_text(first.alone)} where {self.tolerance.level} asks for {limit_text(first)}"
            )
        return found + self._box_failures()

    def sentence(self) -> str:
        """The verdict."""
        failures = self.failures()
        if failures:
            added = "" if self.first_departure or not self._stages_seen else "no stage departs alone, but "
            return f"{self.candidate.name} departs from {self.reference.name}: {added}{'; '.join(failures)}."
        seen = "" if self._stages_seen else " (stages inside a plan cannot be seen)"
        return (
            f"{self.candidate.name} is within the {self.tolerance.level} tolerance of {self.reference.name} in every "
            f"stage{seen}, and has {self.boxes.overlap.share:.1%} of the final boxes in common with it."
        )

    @property
    def _stages_seen(self) -> bool:
        return self.reference.stages is not None and self.candidate.stages is not None

    def _box_failures(self) -> list[str]:
        boxes, found = self.boxes, []
        if boxes.failures:
            found.append(f"it failed on {len(boxes.failures)} pictures, first {boxes.failures[0].rstrip('.')}")
        if boxes.overlap.num_reference == 0:
            found.append(
                f"nothing was compared, because {self.reference.name} finds no object that scores "
                f"{boxes.rule.score_from:.2f} or more in these pictures; give pictures it knows with --data"
            )
        if boxes.overlap.share < self.tolerance.boxes_in_common:
            missed = boxes.overlap.num_reference - boxes.overlap.found_reference
            extra = boxes.overlap.num_candidate - boxes.overlap.found_candidate
            found.append(
                f"of {boxes.overlap.num_reference} final boxes {missed} are missed and {extra} are extra, which is "
                f"{boxes.overlap.share:.1%} in common where {self.tolerance.level} asks for "
                f"{self.tolerance.boxes_in_common:.0%}"
            )
        if boxes.ap_loss is not None and not boxes.ap_loss <= self.tolerance.ap_loss:
            found.append(
                f"AP falls by {boxes.ap_loss:.4f} where {self.tolerance.level} allows {self.tolerance.ap_loss:g}"
            )
        return found


def pair_text(result: PairResult) -> str:
    """Tables of one pair, and the verdict under them."""
    notes = [f"{one.name}: {one.note}" for one in (result.reference, result.candidate) if one.note]
    title = f"{result.candidate.name} against {result.reference.name}, tolerance {result.tolerance.level}"
    return "\n".join([title, *notes, "", stage_table(result), "", box_table(result), "", result.sentence()])


def stage_table(result: PairResult) -> str:
    """One row per stage; error columns are those of the stage alone."""
    rows = []
    first = result.first_departure
    for one in result.stages:
        rms, largest, cosine = stage_details(one.alone)
        mark = DEPARTS if one is first else "beyond" if one.within is False else "" if one.within else "not seen"
        cells = (error_text(one.alone), rms, largest, cosine, error_text(one.end_to_end), limit_text(one), mark)
        rows.append((one.stage.title, *cells))
    return format_table(COLUMNS, rows)


def box_table(result: PairResult) -> str:
    """Final boxes of all pictures, in one row."""
    boxes = result.boxes
    ious, scores = boxes.ious, np.abs(boxes.score_differences)
    header = ["pictures", "reference", "candidate", "missed", "extra", "mean IoU", "lowest", "mean |Δscore|", "largest"]
    row: list[object] = [
        len(boxes.images),
        boxes.overlap.num_reference,
        boxes.overlap.num_candidate,
        boxes.overlap.num_reference - boxes.overlap.found_reference,
        boxes.overlap.num_candidate - boxes.overlap.found_candidate,
        *([f"{ious.mean():.4f}", f"{ious.min():.4f}"] if len(ious) else [None] * 2),
        *([f"{scores.mean():.1e}", f"{scores.max():.1e}"] if len(scores) else [None] * 2),
    ]
    if boxes.aps is not None:
        header += ["AP reference", "AP candidate"]
        row += [f"{ap:.4f}" for ap in boxes.aps]
    return format_table(header, [row], text_columns=0)


def matrix_text(results: Sequence[PairResult]) -> str:
    """One row per candidate."""
    rows = [
        (
            result.candidate.name,
            result.candidate.spec.precision,
            result.tolerance.level,
            _title(result.first_departure),
            _title(result.weakest),
            error_text(result.weakest.alone) if result.weakest else None,
            f"{result.boxes.overlap.share:.1%}",
            None if result.boxes.aps is None else f"{result.boxes.aps[1]:.4f}",
            "departs" if result.failures() else "within",
        )
        for result in results
    ]
    texts = ("candidate", "precision", "tolerance", "first departure", "weakest")
    header = (*texts, "SQNR", "same boxes", "AP", "verdict")
    first = results[0]
    ap = "" if first.boxes.aps is None else f", AP {first.boxes.aps[0]:.4f}"
    return f"all against {first.reference.name}{ap}\n\n{format_table(header, rows, text_columns=len(texts))}"


def pair_mapping(result: PairResult) -> dict[str, Any]:
    """The numbers for a JSON file; a number that is none or infinite becomes None."""
    first = result.first_departure
    boxes = result.boxes
    return {
        "reference": _artifact_mapping(result.reference),
        "candidate": _artifact_mapping(result.candidate),
        "tolerance": result.tolerance.level,
        "within": not result.failures(),
        "verdict": result.sentence(),
        "first_departure": None if first is None else first.stage.key,
        "stages": [
            {
                "stage": one.stage.key,
                "title": one.stage.title,
                "kind": one.stage.kind,
                "alone": _error_mapping(one.alone),
                "end_to_end": _error_mapping(one.end_to_end),
                "limit": one.limit,
                "within": one.within,
            }
            for one in result.stages
        ],
        "boxes": {
            "pictures": len(boxes.images),
            "score_from": boxes.rule.score_from,
            **(_error_mapping(boxes.overlap) or {}),
            "mean_iou": _number(boxes.ious.mean()) if len(boxes.ious) else None,
            "lowest_iou": _number(boxes.ious.min()) if len(boxes.ious) else None,
            "largest_score_difference": _number(np.abs(boxes.score_differences).max(initial=0.0)),
            "failures": list(boxes.failures),
        },
        "ap": None if boxes.aps is None else {"reference": _number(boxes.aps[0]), "candidate": _number(boxes.aps[1])},
    }


def error_text(error: StageError | None) -> str | None:
    """Its one number: dB of SQNR, or the share of boxes that both sets have."""
    if error is None:
        return None
    if isinstance(error, SetOverlap):
        return f"{error.share:.1%}"
    if math.isnan(error.sqnr_db):
        return "not finite"
    return "exact" if error.sqnr_db == math.inf else f"{error.sqnr_db:.1f} dB"


def decibels(error: StageError | None) -> float:
    """SQNR that can be ordered and drawn: values that are no numbers are worse than any."""
    assert isinstance(error, TensorError), "a set of boxes has no SQNR"
    return -math.inf if math.isnan(error.sqnr_db) else error.sqnr_db


def limit_text(result: StageResult) -> str:
    """What `error_text` has to reach."""
    return f"{result.limit:.0%}" if result.limit <= 1 else f"{result.limit:.0f} dB"


def stage_details(error: StageError | None) -> tuple[str | None, str | None, str | None]:
    """RMS, largest difference and cosine."""
    if not isinstance(error, TensorError):
        return None, None, None
    return f"{error.rms:.1e}", f"{error.largest:.1e}", f"{error.cosine:.6f}"


def _title(result: StageResult | None) -> str:
    return "-" if result is None else result.stage.title


def _artifact_mapping(artifact: Artifact) -> dict[str, Any]:
    spec = artifact.spec
    return {
        "path": str(artifact.path),
        "precision": spec.precision,
        "canvas": [spec.input.height, spec.input.width],
        "description": artifact.detector.description,
        "note": artifact.note,
    }


def _error_mapping(error: StageError | None) -> dict[str, Any] | None:
    if error is None:
        return None
    if isinstance(error, SetOverlap):
        names = ("num_reference", "num_candidate", "found_reference", "found_candidate", "share")
        return {name: getattr(error, name) for name in names}
    names = ("count", "largest", "rms", "sqnr_db", "cosine")
    return {"exact": error.noise == 0, **{name: _number(getattr(error, name)) for name in names}}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
