"""CUDA graphs, slots, threads and clones of the TensorRT backend, over the stand-ins (tests/stand_ins)."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

from runtime.backends.base import CloneableBackend
from runtime.detector import open_detector
from runtime.errors import BackendUnavailableError, RunError, SourceError, UserError
from runtime.video.pipeline import Pipeline
from runtime.video.sources import Frame
from tests.stand_ins.scene import check_equal, frame, frames_of_all_sizes, outputs_of


def test_a_batch_is_run_plainly_then_captured_then_one_launch(machine, plan):
    with open_detector(plan) as detector:
        assert detector.description == "TensorRT 10.16.1.11, NVIDIA GeForce RTX 4090 (sm_89), fp32"
        for _ in range(10):
            detector([frame(0)])
        assert detector.description.endswith("fp32, CUDA graph")
    # two slots are taken in turn: two plain runs, two captures (which enqueue and are launched), then launches alone
    assert machine.counts["enqueues"] == 4
    assert machine.counts["graph launches"] == 8
    assert not machine.graphs
    assert not machine.executables


def test_graphs_are_bounded_and_of_one_shape(machine, plan):
    with open_detector(plan) as detector:
        for _ in range(4):
            for side in range(40, 60):  # 20 frame sizes, more than are kept
                detector([frame(0, side, 80)])
        assert len(machine.executables) <= 8
        for _ in range(4):
            detector([frame(0)])
        assert len(machine.executables) <= 8
        detector([frame(0), frame(1)])
        assert not machine.executables  # of another batch
    assert not machine.executables


def test_an_engine_that_cannot_be_captured_runs_without(machine, plan, model):
    machine.refuse_capture = True
    with open_detector(plan) as ours, open_detector(model) as theirs:
        for index in range(6):
            check_equal(outputs_of(ours, [frame(index)]), outputs_of(theirs, [frame(index)]))
        assert "without a CUDA graph (TensorRT could not run the plan (IExecutionContext" in ours.description
    assert "graph launches" not in machine.counts
    assert machine.counts["enqueues"] == 6


def test_rtx_is_asked_whether_it_can_be_captured(machine, plan):
    import tensorrt

    with open_detector(plan) as detector:
        tensorrt.IExecutionContext.is_stream_capturable = lambda self, stream: False
        for _ in range(4):
            detector([frame(0)])
        assert "TensorRT says that this engine cannot be captured" in detector.description


def test_an_old_driver_runs_without_graphs(machine, plan, monkeypatch):
    from runtime.backends import cuda_graph

    monkeypatch.setattr(cuda_graph, "driver_library", lambda: object())
    with open_detector(plan) as detector:
        for _ in range(4):
            detector([frame(0)])
        assert "without a CUDA graph (this driver has no cuStreamBeginCapture_v2)" in detector.description


# --- threads and slots


def test_one_thread_prepares_while_another_infers(machine, plan, model):
    frames = frames_of_all_sizes(60)
    with open_detector(plan) as ours, open_detector(model) as theirs:
        staged: list = []
        ready, results = threading.Semaphore(0), []

        def prepare() -> None:
            for one in frames:
                staged.append(ours.prepare([one]))
                ready.release()

        thread = threading.Thread(target=prepare)
        thread.start()
        for _ in frames:
            assert ready.acquire(timeout=20)
            results.append(ours.infer(staged.pop(0)))
        thread.join()
        for one, found in zip(frames, results, strict=True):
            check_equal(found, outputs_of(theirs, [one]))


def test_a_dropped_batch_gives_its_place_back(plan, monkeypatch):
    monkeypatch.setattr("runtime.backends.tensorrt_buffers.WAIT_S", 0.05)
    with open_detector(plan) as detector:
        for _ in range(5):
            detector.prepare([frame(0)])  # dropped at once
        first, second = detector.prepare([frame(0)]), detector.prepare([frame(1)])
        with pytest.raises(RunError, match="2 prepared batches wait to be inferred"):
            detector.prepare([frame(2)])
        first.release()
        first.release()
        third = detector.prepare([frame(2, 300, 400)])
        with pytest.raises(RunError, match="inferred or released before"):
            detector.infer(first)
        detector.infer(second)
        detector.infer(third)
        with pytest.raises(RunError, match="inferred or released before"):
            detector.infer(third)


def test_an_error_in_prepare_gives_the_place_back(plan):
    with open_detector(plan) as detector:
        for _ in range(4):
            with pytest.raises(SourceError, match="do not fit the preprocessing kernel: frame 0 is odd"):
                detector.prepare([frame(0, 50, 1313)])
            with pytest.raises(SourceError, match="float64"):
                detector.prepare([np.zeros((4, 4, 3))])
            with pytest.raises(SourceError, match="no frames"):
                detector.prepare([])
        assert len(detector([frame(0)])) == 1


class FewFrames:
    """A source for the pipeline."""

    kind = "file"

    def __init__(self, count: int) -> None:
        self.count, self.given = count, 0

    def read(self) -> Frame | None:
        if self.given >= self.count:
            return None
        self.given += 1
        return Frame(self.given - 1, 0.0, frame(self.given), "")

    def cancel(self) -> None:
        self.count = 0


def run_pipeline(detector, count: int, between=None):
    shown: list[int] = []
    pipeline = Pipeline(FewFrames(count), detector, lambda frame, found, clock: shown.append(frame.index))
    return pipeline.run(between and (lambda: between(pipeline))), shown


def test_a_pipeline_ends_whatever_ends_it(machine, plan, monkeypatch):
    """No stage may wait for a slot that nobody gives back."""
    monkeypatch.setattr("runtime.video.pipeline.LETGO_S", 10.0)
    with open_detector(plan) as detector:
        report, shown = run_pipeline(detector, 40)
        assert (report.error, shown) == (None, list(range(40)))
        for stop_at in (1, 5, 17):  # the user closes the window
            report, shown = run_pipeline(detector, 10**6, lambda one, at=stop_at: one.report.frames < at)
            assert report.error is None
            assert shown == list(range(len(shown)))
            assert len(shown) < 10**5
        machine.refuse_running = True
        report, shown = run_pipeline(detector, 40)
        assert isinstance(report.error, RunError)
        assert report.failed_stage == "infer"
        assert report.seconds < 5
        machine.refuse_running = False
        assert len(detector([frame(0)])) == 1
    del report
    gc.collect()
    assert (machine.used_bytes, machine.pinned_bytes) == (0, 0)


def test_clones_share_the_engine_and_run_in_their_own_threads(machine, plan, model):
    detector = open_detector(plan)
    before = machine.used_bytes
    clones = [detector.clone(), detector.clone()]
    assert machine.used_bytes < 3 * before
    expected = {}
    with open_detector(model) as theirs:
        for index in range(20):
            expected[index] = outputs_of(theirs, [frame(index)])
    wrong: list = []

    def run(one, start: int) -> None:
        try:
            for index in range(start, 20):
                check_equal(outputs_of(one, [frame(index)]), expected[index])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=run, args=(one, index)) for index, one in enumerate([detector, *clones])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    with pytest.raises(UserError, match="prepared by another detector"):
        clones[0].infer(detector.prepare([frame(0)]))
    detector.close()
    check_equal(outputs_of(clones[0], [frame(3)]), expected[3])
    for clone in clones:
        clone.close()
    del detector, clones, threads
    gc.collect()
    assert machine.used_bytes == 0


class NotCloneable:
    name = "abacus"

    def close(self) -> None:
        pass


def test_onnx_detectors_clone_or_say_that_they_cannot(model):
    with open_detector(model) as detector:
        if isinstance(detector._backend, CloneableBackend):
            clone = detector.clone()
            check_equal(outputs_of(clone, [frame(0)]), outputs_of(detector, [frame(0)]))
        detector._backend = NotCloneable()
        with pytest.raises(BackendUnavailableError, match="of abacus cannot be cloned: open the file a second time"):
            detector.clone()


def test_a_closed_detector_says_so(machine, plan):
    detector = open_detector(plan)
    staged = detector.prepare([frame(0)])
    detector.close()
    detector.close()
    for run in (lambda: detector.prepare([frame(0)]), lambda: detector.infer(staged), detector.clone):
        with pytest.raises(RunError, match="the detector is closed"):
            run()
    staged.release()
    gc.collect()
    assert (machine.used_bytes, machine.pinned_bytes) == (0, 0)


def test_a_detector_that_is_forgotten_frees_its_memory(machine, plan):
    detector = open_detector(plan)
    detector([frame(0)])
    assert machine.used_bytes > 0
    del detector
    gc.collect()
    assert (machine.used_bytes, machine.pinned_bytes) == (0, 0)


def test_a_clone_lives_and_dies_in_its_own_thread(machine, plan):
    """The fixture looks whether anything was destroyed without a context."""
    found: list = []

    def work(detector) -> None:
        with detector.clone() as own:
            found.extend(own([frame(0)]) for _ in range(3))

    with open_detector(plan) as detector:
        thread = threading.Thread(target=work, args=(detector,))
        thread.start()
        thread.join()
    assert len(found) == 3
