"""Part of the self-test: runs one detector on the demo's pictures, writes what it found and how long it took.

    python export/selftest_detect.py model.onnx found.npz --provider cpu

Arrays of the file, for F frames: counts int64 [F]; boxes float32 [N, 4] image px, scores float32 [N] and classes int32
[N] of all frames one after another; times_ms float64 [F]; about: a JSON text with description and first_ms.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from runtime.command import command_parser, run_command
from runtime.conveyor.scene import render_scene
from runtime.detections import Detections
from runtime.detector import Detector, open_detector
from runtime.files import atomic_output

SEED = 11
FRAME_HW = (480, 640)
FRAMES = 50
WARM_UP = 3


@dataclass(frozen=True, eq=False)
class Found:
    """What a run found, frame by frame; values: found (how many), median_ms, first_ms, description, precision."""

    detections: list[Detections]
    values: dict[str, Any]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = command_parser(__doc__)
    parser.add_argument("engine", help="the detector")
    parser.add_argument("found", type=Path, help="the file to write, .npz")
    parser.add_argument("--provider", action="append", help="ONNX Runtime's, in order of preference")
    parser.add_argument("--frames", type=int, default=FRAMES, help="how many pictures")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    arguments = build_parser().parse_args(argv)
    frames = [render_scene(SEED, index, FRAME_HW).frame for index in range(arguments.frames)]
    start = time.perf_counter()
    with open_detector(arguments.engine, providers=arguments.provider) as detector:
        detector([frames[0]])
        first_ms = (time.perf_counter() - start) * 1e3
        found, times_ms = _detect(detector, frames)
        about = {
            "description": detector.description,
            "first_ms": round(first_ms, 1),
            "precision": detector.spec.precision,
        }
    with atomic_output(arguments.found) as temporary:
        np.savez(
            temporary,
            counts=np.array([len(one) for one in found], np.int64),
            boxes=np.concatenate([one.boxes_xyxy for one in found]),
            scores=np.concatenate([one.scores for one in found]),
            classes=np.concatenate([one.class_ids for one in found]),
            times_ms=times_ms,
            about=np.array(json.dumps(about)),
        )
    print(
        f"{sum(map(len, found))} parts on {len(frames)} pictures, {np.median(times_ms):.2f} ms, {about['description']}"
    )
    return 0


def read_found(path: Path, class_names: Sequence[str]) -> Found:
    """The file that `main` wrote."""
    with np.load(path) as arrays:
        ends = np.cumsum(arrays["counts"])[:-1]
        boxes, scores, classes = (np.split(arrays[name], ends) for name in ("boxes", "scores", "classes"))
        rows = zip(boxes, scores, classes, strict=True)
        detections = [Detections(box, score, label, tuple(class_names)) for box, score, label in rows]
        values = json.loads(str(arrays["about"]))
        values |= {"found": int(arrays["counts"].sum()), "median_ms": float(np.median(arrays["times_ms"]))}
    return Found(detections, values)


def _detect(detector: Detector, frames: list[np.ndarray]) -> tuple[list[Detections], np.ndarray]:
    for frame in frames[:WARM_UP]:
        detector([frame])
    found, times_ms = [], np.zeros(len(frames))
    for index, frame in enumerate(frames):
        start = time.perf_counter()
        found += detector([frame])
        times_ms[index] = (time.perf_counter() - start) * 1e3
    return found, times_ms


if __name__ == "__main__":
    sys.exit(run_command(main))
