"""Small videos, frames whose number can be read back from their pixels, and a detector that needs no model."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

from runtime.detections import Detections
from runtime.video.sinks import H264Writer
from runtime.video.sources import Frame

CLASS_NAMES = ("bolt", "nut", "washer")
FPS = 25.0


def numbered_frame(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Grey, its level telling the index: 8 levels each, so that it survives H.264."""
    return np.full((height, width, 3), 8 + 8 * (index % 30), np.uint8)


def number_of(frame: np.ndarray) -> int:
    return round((float(frame.mean()) - 8) / 8)


def write_video(path: Path, frames: int = 20, height: int = 48, width: int = 64) -> Path:
    writer = H264Writer(path, (height, width), FPS)
    for index in range(frames):
        writer.write(numbered_frame(index, height, width), index / FPS)
    writer.close()
    return path


def noisy_video(path: Path, frames: int = 30) -> Path:
    """Pixels that do not compress, so that half the file is half the frames."""
    rng = np.random.default_rng(0)
    writer = H264Writer(path, (120, 160), FPS)
    for index in range(frames):
        writer.write(rng.integers(0, 256, (120, 160, 3), np.uint8), index / FPS)
    writer.close()
    return path


def decoded(path: Path) -> list[np.ndarray]:
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        ok, frame = capture.read()
        if not ok:
            return frames
        frames.append(frame)


def one_box(frame_hw: Sequence[int], score: float = 0.8) -> Detections:
    height, width = frame_hw[:2]
    boxes = np.array([[width * 0.25, height * 0.25, width * 0.75, height * 0.75]], np.float32)
    return Detections(boxes, np.array([score], np.float32), np.array([1], np.int32), CLASS_NAMES)


class FakeDetector:
    """Finds one box in every frame; `infer_s` seconds each; `fail_at` raises instead at that frame."""

    def __init__(self, infer_s: float = 0.0, fail_at: int | None = None) -> None:
        self.infer_s, self.fail_at, self.inferred = infer_s, fail_at, 0

    def prepare(self, frames: list[np.ndarray]) -> list[np.ndarray]:
        return frames

    def infer(self, frames: list[np.ndarray]) -> list[np.ndarray]:
        if self.inferred == self.fail_at:
            raise RuntimeError("the network failed")
        self.inferred += 1
        time.sleep(self.infer_s)
        return frames

    def finish(self, frames: list[np.ndarray], frame_hws: list[tuple[int, int]]) -> list[Detections]:
        return [one_box(frame_hw) for frame_hw in frame_hws]


class FakeSource:
    """`count` numbered frames (None: without end), `wait_s` apart; `fail_at` raises `error` instead."""

    name = "fake"
    fps = FPS

    def __init__(
        self,
        count: int | None,
        *,
        kind: str = "video",
        wait_s: float = 0.0,
        fail_at: int | None = None,
        error: Exception | None = None,
        on_frame: Callable[[int], None] = lambda index: None,
    ) -> None:
        self.kind, self.frame_count, self.paths = kind, count, list[Path]()
        self._wait_s, self._fail_at, self._error, self._on_frame = wait_s, fail_at, error, on_frame
        self.given, self.cancelled = 0, False

    def read(self) -> Frame | None:
        if self.given == self.frame_count or self.cancelled:
            return None
        if self.given == self._fail_at and self._error is not None:
            raise self._error
        time.sleep(self._wait_s)
        self._on_frame(self.given)
        self.given += 1
        return Frame(self.given - 1, (self.given - 1) / FPS, numbered_frame(self.given - 1))

    def cancel(self) -> None:
        self.cancelled = True

    def close(self) -> None:
        pass
