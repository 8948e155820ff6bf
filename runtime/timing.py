"""Times several detectors in one run, in turns, and checks that they find the same.

Shapes: R rounds, F frames; times are [R, F] milliseconds from frame to boxes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from runtime.detections import Detections
from runtime.detector import STAGES, Detector
from runtime.matching import match_detections

SAME_BOX = 0.9  # IoU that makes two detections of one class the same one


class Contestant(Protocol):
    """Something that finds boxes in one frame (uint8 [height, width, 3] BGR)."""

    name: str
    description: str

    def __call__(self, frame: np.ndarray) -> Detections:
        """Detections of one frame."""
        ...


class EngineContestant:
    """A Detector of ours, with the times of its stages."""

    def __init__(self, name: str, detector: Detector) -> None:
        self.name = name
        self.description = detector.description
        self.detector = detector

    def __call__(self, frame: np.ndarray) -> Detections:
        """Detections of one frame."""
        return self.detector([frame])[0]

    @property
    def last_stages_ms(self) -> dict[str, float]:
        """Times of the last call's stages."""
        return self.detector.last_times_ms


@dataclass(frozen=True, eq=False)
class Timing:
    """times_ms: float64 [R, F]; stages_ms: stage -> float64 [R, F], empty where they are not known."""

    name: str
    description: str
    times_ms: np.ndarray
    stages_ms: dict[str, np.ndarray]

    @property
    def median_ms(self) -> float:
        return float(np.median(self.times_ms))

    @property
    def p95_ms(self) -> float:
        return float(np.percentile(self.times_ms, 95))

    @property
    def median_stages_ms(self) -> dict[str, float]:
        return {stage: float(np.median(times)) for stage, times in self.stages_ms.items()}


@dataclass(frozen=True)
class SpeedRatio:
    """`name` is `ratio` times as fast as `reference`, by their medians; low to high: half of the rounds."""

    name: str
    reference: str
    ratio: float
    low: float
    high: float


LEAST_AGREEMENT = 0.95  # share of detections in common; rounding moves a few across thresholds


@dataclass(frozen=True)
class Agreement:
    """Detections of `name` against those of `reference` on all frames; differences are those of matched pairs."""

    name: str
    reference: str
    found: int
    expected: int
    matched: int
    largest_box_px: float
    largest_score: float

    @property
    def share(self) -> float:
        """Matched detections as a share of the larger set; 1 if both are empty."""
        most = max(self.found, self.expected)
        return self.matched / most if most else 1.0


def time_in_turns(
    contestants: Sequence[Contestant], frames: Sequence[np.ndarray], rounds: int, advance: Callable[[int], object]
) -> list[Timing]:
    """Every round, each contestant runs all frames; who begins changes from round to round: drift hits all alike.

    Each turn starts with one call that is not timed: it brings the caches and threads back to this contestant.

    Args:
        advance: called with 1 after each turn.
    """
    shape = (rounds, len(frames))
    times = [np.zeros(shape) for _ in contestants]
    stages: list[dict[str, np.ndarray]] = [
        {stage: np.zeros(shape) for stage in STAGES} if isinstance(one, EngineContestant) else {} for one in contestants
    ]
    for number in range(rounds):
        for turn in range(len(contestants)):
            index = (number + turn) % len(contestants)
            contestant = contestants[index]
            contestant(frames[-1])
            for position, frame in enumerate(frames):
                start = time.perf_counter()
                contestant(frame)
                times[index][number, position] = (time.perf_counter() - start) * 1e3
                if isinstance(contestant, EngineContestant):
                    for stage, value in contestant.last_stages_ms.items():
                        stages[index][stage][number, position] = value
            advance(1)
    return [
        Timing(one.name, one.description, time_ms, stage_ms)
        for one, time_ms, stage_ms in zip(contestants, times, stages, strict=True)
    ]


def speed_ratio(timing: Timing, reference: Timing) -> SpeedRatio:
    """How many times as fast `timing` is."""
    rounds = np.median(reference.times_ms, axis=1) / np.median(timing.times_ms, axis=1)
    low, high = np.percentile(rounds, (25, 75))
    ratio = reference.median_ms / timing.median_ms
    return SpeedRatio(timing.name, reference.name, ratio, float(low), float(high))


def compare_detections(
    name: str, found: Sequence[Detections], reference: str, expected: Sequence[Detections]
) -> Agreement:
    """Match the detections of each frame: same class, IoU of at least SAME_BOX, best overlap first."""
    matched, box_px, score = 0, 0.0, 0.0
    for ours, theirs in zip(found, expected, strict=True):
        first, second = match_detections(ours, theirs, iou_threshold=SAME_BOX).pairs.T
        matched += len(first)
        box_px = max(box_px, float(np.abs(ours.boxes_xyxy[first] - theirs.boxes_xyxy[second]).max(initial=0.0)))
        score = max(score, float(np.abs(ours.scores[first] - theirs.scores[second]).max(initial=0.0)))
    counts = (sum(map(len, found)), sum(map(len, expected)))
    return Agreement(name, reference, *counts, matched, box_px, score)
