"""One contestant in a process of its own: `python -m runtime.benchmark_child JSON`, started by benchmark_start.py.

Prints two lines: `detected` when the first frame's boxes are there, then a JSON object with the time from opening on,
and the memory after AFTER further frames.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from runtime.backends.onnxruntime import CPU, load_onnxruntime, open_session
from runtime.benchmark_setup import load_peers, open_engine
from runtime.command import run_command
from runtime.detections import Detections
from runtime.hardware import resident_mb
from runtime.spec import DetectorSpec

AFTER = 2  # frames after the first, before memory is read: the network's buffers have their size by then
DETECTED = "detected"


def main(argv: list[str] | None = None) -> int:
    """Open the contestant of the JSON in the first argument, detect, report."""
    what = json.loads((sys.argv[1:] if argv is None else argv)[0])
    cv2.setNumThreads(what["threads"])
    frame = np.load(what["frame"])
    begin = time.perf_counter()
    contestant = _open(what)
    detections = contestant(frame)
    opened_ms = (time.perf_counter() - begin) * 1e3
    print(DETECTED, flush=True)
    for _ in range(AFTER):
        contestant(frame)
    memory = resident_mb()
    now, most = memory if memory else (None, None)
    print(json.dumps({"opened_ms": opened_ms, "detections": len(detections), "resident_mb": now, "peak_mb": most}))
    return 0


def _open(what: dict) -> Callable[[np.ndarray], Detections]:
    """The contestant; the library that it needs is imported here, within the measured time."""
    if what["kind"] == "engine":
        detector = open_engine(Path(what["path"]), what["providers"], what["threads"])
        return lambda frame: detector([frame])[0]
    if what["kind"] == "onnx":
        return _open_torchvision_onnx(what)
    contestant: Callable[[np.ndarray], Detections] = load_peers().open_saved(what)
    return contestant


def _open_torchvision_onnx(what: dict) -> Callable[[np.ndarray], Detections]:
    """torchvision's export without PyTorch, which it does not need: image RGB [3, H, W] from 0 to 1, labels from 1."""
    session = open_session(load_onnxruntime(), Path(what["path"]), [CPU], what["threads"])
    names = DetectorSpec.from_json(what["spec"]).class_names

    def detect(frame: np.ndarray) -> Detections:
        image = np.ascontiguousarray(frame[:, :, ::-1].transpose(2, 0, 1), np.float32) / np.float32(255)
        boxes, labels, scores = session.run(["boxes", "labels", "scores"], {"image": image})
        return Detections(boxes, scores, labels.astype(np.int32) - 1, names)

    return detect


if __name__ == "__main__":
    sys.exit(run_command(main))
