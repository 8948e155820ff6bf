"""runtime/benchmark_start.py: contestants in processes of their own; no time is judged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from runtime import benchmark_child, benchmark_setup, benchmark_start
from runtime.benchmark_start import Entry, measure_starts
from runtime.conveyor.scene import render_scene
from runtime.errors import RunError
from runtime.timing import compare_detections

CHECKPOINT = str(Path(__file__).resolve().parents[2] / "assets" / "conveyor.pt")


def test_a_child_that_fails_is_named(tmp_path):
    entry = Entry("broken", {"kind": "engine", "path": str(tmp_path / "none.onnx"), "providers": None})
    with pytest.raises(RunError, match=r"broken failed in a process of its own: .*none\.onnx does not exist"):
        measure_starts([entry], np.zeros((48, 64, 3), np.uint8), 1, 1, lambda _: None)


def test_starts_are_medians_without_the_first(monkeypatch):
    order, times = [], iter([9000.0, 9000.0, 300.0, 30.0, 100.0, 10.0, 200.0, 20.0])

    def start(entry, what):
        order.append(entry.name)
        assert what["threads"] == 3
        return {"process_ms": next(times), "opened_ms": 1.0, "resident_mb": 5.0, "peak_mb": None}

    monkeypatch.setattr(benchmark_start, "_start", start)
    advanced = []
    starts = measure_starts([Entry("a", {}), Entry("b", {})], np.zeros((4, 4, 3), np.uint8), 3, 3, advanced.append)
    assert order == ["a", "b"] * 4
    assert sum(advanced) == 8
    assert [(one.name, one.process_ms, one.open_ms, one.resident_mb, one.peak_mb, one.runs) for one in starts] == [
        ("a", 200.0, 1.0, 5.0, None, 3),
        ("b", 20.0, 1.0, 5.0, None, 3),
    ]


def test_torchvision_in_a_process_of_its_own(tmp_path):
    """Its export without PyTorch, the eager model whole; both find what they find here."""
    peers = benchmark_setup.load_peers()
    ours, spec = peers.open_checkpoint(CHECKPOINT)
    model, frame = peers.torchvision_detector(ours), render_scene(0, 0).frame
    peers.export_torchvision(model, frame.shape[:2], tmp_path / "tv.onnx")
    np.save(tmp_path / "frame.npy", frame)
    for contestant in (peers.TorchvisionEager(model, spec), peers.TorchvisionOnnx(tmp_path / "tv.onnx", spec, 1)):
        what = peers.save_for_child(contestant, tmp_path)
        found = benchmark_child._open({**what, "threads": 1})(frame)
        result = compare_detections("child", [found], "here", [contestant(frame)])
        assert result.found == result.matched == result.expected > 0
