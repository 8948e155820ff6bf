"""The pipeline: nothing lost from files, nothing late from cameras, and whatever ends a run keeps what is done."""

from __future__ import annotations

import threading
import time

import pytest

from runtime.detections import Detections
from runtime.errors import RunError, StreamError
from runtime.video import pipeline
from runtime.video.pipeline import Pipeline, StageClock
from runtime.video.queues import BoundedQueue
from runtime.video.report import format_report
from runtime.video.sources import Frame
from tests.helpers_video import (
    FakeDetector,
    FakeSource,
    number_of,
)


def test_queue_gives_items_in_order_and_ends_when_closed():
    queue: BoundedQueue[int] = BoundedQueue("infer", 3)
    assert all(queue.put(item) for item in (1, 2, 3))
    queue.close()
    assert not queue.put(4)
    assert [queue.get() for _ in range(4)] == [1, 2, 3, None]
    stats = queue.stats()
    assert (stats.name, stats.max_depth, stats.mean_depth, stats.dropped) == ("infer", 3, 2.0, 0)


def test_full_queue_makes_its_writer_wait():
    queue: BoundedQueue[int] = BoundedQueue("infer", 1)
    queue.put(1)
    writer = threading.Thread(target=queue.put, args=(2,))
    writer.start()
    writer.join(0.05)
    assert writer.is_alive()
    assert queue.get() == 1
    writer.join(2)
    assert not writer.is_alive()
    assert queue.get() == 2


def test_queue_that_keeps_the_latest_drops_the_oldest():
    queue: BoundedQueue[int] = BoundedQueue("preprocess", 2, keep_latest=True)
    for item in range(5):
        queue.put(item)
    assert [queue.get(), queue.get()] == [3, 4]
    assert queue.stats().dropped == 3


def test_aborted_queue_frees_both_ends():
    queue: BoundedQueue[int] = BoundedQueue("infer", 1)
    queue.put(1)
    results: list[object] = []
    threads = [threading.Thread(target=lambda: results.append(queue.put(2)))]
    empty: BoundedQueue[int] = BoundedQueue("infer", 1)
    threads.append(threading.Thread(target=lambda: results.append(empty.get())))
    for thread in threads:
        thread.start()
    queue.abort()
    empty.abort()
    for thread in threads:
        thread.join(2)
    assert sorted(map(str, results)) == ["False", "None"]
    assert queue.get() is None


# --- pipeline


class Collector:
    """Output that remembers what it got."""

    def __init__(self, fail_at: int | None = None, wait_s: float = 0.0) -> None:
        self.indices: list[int] = []
        self.fail_at, self.wait_s = fail_at, wait_s

    def __call__(self, frame: Frame, detections: Detections, clock: StageClock) -> None:
        if len(self.indices) == self.fail_at:
            raise RunError("the disk is full")
        with clock.measure("encode"):
            time.sleep(self.wait_s)
        assert number_of(frame.pixels) == frame.index % 30
        assert len(detections) == 1
        self.indices.append(frame.index)


@pytest.mark.parametrize(("infer_s", "output_s"), [(0.0, 0.0), (0.004, 0.0), (0.0, 0.004)])
def test_files_never_drop_a_frame(infer_s, output_s):
    output = Collector(wait_s=output_s)
    report = Pipeline(FakeSource(40), FakeDetector(infer_s), output).run()
    assert output.indices == list(range(40))
    assert (report.frames, report.detections, report.error, report.interrupted) == (40, 40, None, False)
    assert set(report.clock.times_ms) == {"decode", "preprocess", "infer", "postprocess", "encode"}
    assert all(queue.dropped == 0 for queue in report.queues)
    assert len(report.latency_ms) == 40


def test_live_sources_drop_to_the_latest():
    output = Collector()
    source = FakeSource(60, kind="live", wait_s=0.002)
    report = Pipeline(source, FakeDetector(infer_s=0.02), output).run()
    assert source.given == 60
    assert output.indices == sorted(output.indices)
    assert output.indices[-1] == 59  # the newest frame is never the one dropped
    assert report.queues[0].dropped == 60 - len(output.indices) > 20
    assert report.latency_percentile(95) < 600  # a few frames; the whole backlog would be 1.2 s


def test_stages_work_at_the_same_time():
    decoded_third = threading.Event()
    source = FakeSource(3, on_frame=lambda index: decoded_third.set() if index == 2 else None)
    waited: list[bool] = []
    Pipeline(source, FakeDetector(), lambda *frame: waited.append(decoded_third.wait(10))).run()
    assert waited == [True, True, True]  # the third was decoded while the first was being written


@pytest.mark.parametrize("kind", ["video", "live"])
def test_max_frames(kind):
    output = Collector()
    source = FakeSource(None, kind=kind)
    report = Pipeline(source, FakeDetector(), output, max_frames=7).run()
    assert report.frames == len(output.indices) == 7
    assert kind == "live" or source.given == 7


def test_a_source_that_breaks_keeps_what_was_decoded():
    output = Collector()
    source = FakeSource(30, fail_at=12, error=StreamError("cut off"))
    report = Pipeline(source, FakeDetector(infer_s=0.002), output).run()
    assert output.indices == list(range(12))
    assert isinstance(report.error, StreamError)
    assert report.failed_stage == "decode"


def test_a_network_that_fails_keeps_what_was_inferred():
    output = Collector(wait_s=0.002)
    report = Pipeline(FakeSource(None), FakeDetector(fail_at=9), output).run()
    assert output.indices == list(range(9))
    assert (str(report.error), report.failed_stage) == ("the network failed", "infer")


def test_an_output_that_fails_ends_the_run():
    source = FakeSource(None)
    report = Pipeline(source, FakeDetector(), Collector(fail_at=5)).run()
    assert (str(report.error), report.failed_stage) == ("the disk is full", "output")
    assert source.cancelled


def test_interrupt_keeps_what_was_inferred():
    calls = 0

    def between() -> bool:
        nonlocal calls
        calls += 1
        if calls == 10:
            raise KeyboardInterrupt
        return True

    output = Collector()
    report = Pipeline(FakeSource(None), FakeDetector(infer_s=0.005), output).run(between)
    assert report.interrupted
    assert output.indices == list(range(report.frames))
    assert report.frames > 0
    assert report.error is None


def test_between_can_end_the_run():
    report = Pipeline(FakeSource(None), FakeDetector(infer_s=0.002), Collector()).run(lambda: False)
    assert not report.interrupted
    assert report.error is None


def test_a_read_that_hangs_does_not_hold_the_run(monkeypatch):
    monkeypatch.setattr(pipeline, "LETGO_S", 0.2)
    hang = threading.Event()
    source = FakeSource(None, kind="live", on_frame=lambda index: hang.wait(20) if index == 3 else None)
    start = time.perf_counter()
    stop_at = start + 0.3
    report = Pipeline(source, FakeDetector(), Collector()).run(lambda: time.perf_counter() < stop_at)
    hang.set()
    assert time.perf_counter() - start < 5
    assert 1 <= report.frames <= 3


def test_min_score_drops_detections():
    output_counts: list[int] = []
    Pipeline(
        FakeSource(3), FakeDetector(), lambda frame, found, clock: output_counts.append(len(found)), min_score=0.9
    ).run()
    assert output_counts == [0, 0, 0]


def test_report_has_every_number():
    report = Pipeline(FakeSource(8), FakeDetector(infer_s=0.001), Collector()).run()
    text = format_report(report)
    for part in ("8 frames", "frames/s", "p50", "p95", "p99", "decode", "preprocess", "infer", "postprocess", "encode"):
        assert part in text
    assert "mean depth" in text
    assert "dropped" in text
