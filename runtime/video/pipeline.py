"""Four threads and three bounded queues: decode -> preprocess -> infer -> output, each stage at work on another frame.

Files never drop a frame. Live sources drop the oldest that waits: a frame that is late is worth nothing.
A stage that ends, at the last frame or by an error, throws away what is before it and lets finish what is behind it; so
every frame that was inferred is written, whatever ends the run.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from runtime.backends.base import Staged
from runtime.detections import Detections
from runtime.detector import Detector
from runtime.preprocess import NetworkInput
from runtime.video.queues import BoundedQueue, QueueStats
from runtime.video.sources import Frame, Source

FILE_QUEUE, LIVE_QUEUE = 4, 1  # items between two stages
REMEMBERED = 100_000  # measurements kept per stage, so that a camera may run for weeks
LETGO_S = 2.0  # for a read that hangs when the run ends
Value = TypeVar("Value")
Output = Callable[[Frame, Detections, "StageClock"], None]


class StageClock:
    """Times of named steps, ms. Each name is measured by one thread only."""

    def __init__(self) -> None:
        self.times_ms: dict[str, deque[float]] = {}
        self.total_s: dict[str, float] = {}

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        self.times_ms.setdefault(name, deque(maxlen=REMEMBERED)).append(seconds * 1e3)
        self.total_s[name] = self.total_s.get(name, 0.0) + seconds


@dataclass
class RunReport:
    """What a run did. Latency is from a frame's decoding to the end of its output."""

    frames: int = 0
    detections: int = 0
    seconds: float = 0.0
    interrupted: bool = False
    error: BaseException | None = None
    failed_stage: str | None = None
    clock: StageClock = field(default_factory=StageClock)
    latency_ms: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    queues: list[QueueStats] = field(default_factory=list)

    @property
    def frames_per_second(self) -> float:
        return self.frames / self.seconds if self.seconds else 0.0

    def latency_percentile(self, percent: float) -> float:
        """ms; NaN before the first frame."""
        return float(np.percentile(self.latency_ms, percent)) if self.latency_ms else float("nan")


@dataclass(frozen=True)
class _Item(Generic[Value]):
    frame: Frame
    decoded_at: float  # time.perf_counter()
    value: Value


class Pipeline:
    """One run of a detector over a source. `output(frame, detections, clock)` is called once per frame, in order."""

    def __init__(
        self,
        source: Source,
        detector: Detector,
        output: Output,
        *,
        min_score: float = 0.0,
        max_frames: int | None = None,
    ) -> None:
        live = source.kind == "live"
        size = LIVE_QUEUE if live else FILE_QUEUE
        self.report = RunReport()
        self._source, self._detector, self._output = source, detector, output
        self._min_score, self._max_frames = min_score, max_frames
        self._max_decoded = None if live else max_frames
        self._decoded: BoundedQueue[_Item[None]] = BoundedQueue("preprocess", size, keep_latest=live)
        self._prepared: BoundedQueue[_Item[NetworkInput | Staged]] = BoundedQueue("infer", size)
        self._detected: BoundedQueue[_Item[Detections]] = BoundedQueue("output", size)
        self._done = threading.Event()

    def run(self, between: Callable[[], bool] | None = None) -> RunReport:
        """Run to the end of the source. `between` is called in this thread every few ms, False from it ends the run.

        Ctrl-C ends the run too, with `report.interrupted`. An error of a stage is in `report.error`, not raised, so
        that the caller can finish what was written.
        """
        start = time.perf_counter()
        threads = [
            self._thread("decode", self._decode, None, self._decoded),
            self._thread("preprocess", self._prepare, self._decoded, self._prepared),
            self._thread("infer", self._infer, self._prepared, self._detected),
            self._thread("output", self._finish, self._detected, None),
        ]
        while not self._done.is_set():
            try:
                if between is not None and not between():
                    self.stop()
                self._done.wait(0.01)
            except KeyboardInterrupt:
                self.report.interrupted = True
                self.stop()
        for thread in threads:
            thread.join(LETGO_S)
        self.report.seconds = time.perf_counter() - start
        self.report.queues = [queue.stats() for queue in (self._decoded, self._prepared, self._detected)]
        return self.report

    def stop(self) -> None:
        """Decode no more, throw away what is not yet with the network, and write what is."""
        self._source.cancel()
        self._decoded.abort()
        self._prepared.abort()

    def _thread(
        self,
        name: str,
        work: Callable[[], None],
        before: BoundedQueue | None,
        behind: BoundedQueue | None,
    ) -> threading.Thread:
        def body() -> None:
            try:
                work()
            except BaseException as error:  # handed to the caller of run
                if self.report.error is None:
                    self.report.error, self.report.failed_stage = error, name
            finally:
                if before is not None:
                    before.abort()
                if behind is not None:
                    behind.close()
                else:
                    self._source.cancel()
                    self._done.set()

        thread = threading.Thread(target=body, name=name, daemon=True)  # a camera's read may hang: do not wait for it
        thread.start()
        return thread

    def _decode(self) -> None:
        decoded = 0
        while self._max_decoded is None or decoded < self._max_decoded:
            with self.report.clock.measure("decode"):
                frame = self._source.read()
            if frame is None or not self._decoded.put(_Item(frame, time.perf_counter(), None)):
                return
            decoded += 1

    def _prepare(self) -> None:
        while (item := self._decoded.get()) is not None:
            with self.report.clock.measure("preprocess"):
                prepared = self._detector.prepare([item.frame.pixels])
            if not self._prepared.put(_Item(item.frame, item.decoded_at, prepared)):
                return

    def _infer(self) -> None:
        while (item := self._prepared.get()) is not None:
            with self.report.clock.measure("infer"):
                outputs = self._detector.infer(item.value)
            with self.report.clock.measure("postprocess"):
                (found,) = self._detector.finish(outputs, [item.frame.pixels.shape[:2]])
                found = found.above(self._min_score)
            if not self._detected.put(_Item(item.frame, item.decoded_at, found)):
                return

    def _finish(self) -> None:
        while (item := self._detected.get()) is not None:
            self._output(item.frame, item.value, self.report.clock)
            self.report.latency_ms.append((time.perf_counter() - item.decoded_at) * 1e3)
            self.report.frames += 1
            self.report.detections += len(item.value)
            if self.report.frames == self._max_frames:
                return
