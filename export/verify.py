"""Runs the written ONNX file in ONNX Runtime and the model in PyTorch on the same pictures, and compares.

Where the model itself finds too little to compare (weights that are not trained, pictures it does not know), both sides
get a lower score threshold: the same graph, one attribute changed.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import onnx

from export.metadata import write_metadata
from export.parity_detections import ParityReport, compare_detections, report_of
from export.translation import DOMAIN
from runtime.conveyor.scene import render_scene
from runtime.detections import Detections
from runtime.detector import Detector, open_detector
from runtime.errors import ParityError, SourceError
from runtime.spec import DetectorSpec
from training.backend import TorchBackend
from training.models.detectors import FasterRcnn

FEWEST = 10  # detections, over all pictures, that make a comparison
SCENES = ((7, 8, (480, 640)), (7, 9, (720, 1280)))  # seed, index, size of pictures with nine parts each


class Picture(NamedTuple):
    """A frame uint8 [height, width, 3] BGR and what to call it."""

    name: str
    frame: np.ndarray


def default_pictures() -> list[Picture]:
    """Two scenes of the demo's conveyor, of different content and size."""
    return [
        Picture(f"conveyor {size[1]}x{size[0]}", render_scene(seed, index, size).frame) for seed, index, size in SCENES
    ]


def read_pictures(paths: Sequence[str]) -> list[Picture]:
    """The user's own pictures.

    Raises:
        SourceError: a file that OpenCV cannot read.
    """
    pictures = []
    for path in paths:
        frame = cv2.imread(path, cv2.IMREAD_COLOR) if Path(path).is_file() else None
        if frame is None:
            raise SourceError(f"{path} is not a picture that can be read: expected a JPEG or PNG; correct the path.")
        pictures.append(Picture(Path(path).name, frame))
    return pictures


def verify_file(path: Path, model: FasterRcnn, spec: DetectorSpec, pictures: Sequence[Picture]) -> ParityReport:
    """Compare the detections of `path` in ONNX Runtime (on the CPU) with those of `model`.

    Args:
        spec: of the file, with its canvas.

    Raises:
        ParityError: neither finds anything, even without a score threshold.
    """
    reference = _torch_detections(model, spec, pictures)
    if sum(map(len, reference)) >= FEWEST:
        return _compare(path, spec, reference, pictures)
    spec = _with_threshold(spec, 0.0)
    reference = _torch_detections(model, spec, pictures)
    scores = np.sort(np.concatenate([found.scores for found in reference]))[::-1]
    if len(scores) == 0:
        raise ParityError(
            "nothing was verified: the model finds nothing on the pictures, even without a score threshold; "
            "check the weights, give pictures it knows with --verify-on, or use --no-verify."
        )
    # a little below the score that makes twice as many as needed, so that scores which are all alike pass too
    threshold = 0.99 * float(scores[2 * FEWEST]) if len(scores) > 2 * FEWEST else 0.0
    spec = _with_threshold(spec, threshold)
    reference = [_above(found, threshold) for found in reference]
    with tempfile.TemporaryDirectory() as folder:
        lowered = Path(folder) / "lowered.onnx"
        _write_with_threshold(path, lowered, spec)
        return _compare(lowered, spec, reference, pictures)


def _compare(
    path: Path, spec: DetectorSpec, reference: Sequence[Detections], pictures: Sequence[Picture]
) -> ParityReport:
    with open_detector(path, providers=["cpu"]) as detector:
        candidate = _raw_detections(detector, pictures)
    compared = zip(pictures, reference, candidate, strict=True)
    return report_of(
        [compare_detections(picture.name, first, second, spec.detection) for picture, first, second in compared],
        spec.detection,
    )


def _torch_detections(model: FasterRcnn, spec: DetectorSpec, pictures: Sequence[Picture]) -> list[Detections]:
    model = copy.copy(model)
    model.spec = spec  # the weights are shared
    return _raw_detections(Detector(TorchBackend(model, spec)), pictures)


def _raw_detections(detector: Detector, pictures: Sequence[Picture]) -> list[Detections]:
    """What the network gives, before the runtime clips it to the frame; the runtime's own checks are run as well."""
    found = []
    for picture in pictures:
        outputs = detector.infer(detector.prepare([picture.frame]))
        detector.finish(outputs, [picture.frame.shape[:2]])
        count = int(outputs.num_detections[0, 0])
        boxes, scores, classes = (output[0, :count] for output in outputs[1:])
        found.append(Detections(boxes, scores, classes, detector.spec.class_names))
    return found


def _above(found: Detections, threshold: float) -> Detections:
    keep = found.scores > np.float32(threshold)
    return Detections(found.boxes_xyxy[keep], found.scores[keep], found.class_ids[keep], found.class_names)


def _with_threshold(spec: DetectorSpec, threshold: float) -> DetectorSpec:
    return spec.replace(detection=dataclasses.replace(spec.detection, score_threshold=threshold))


def _write_with_threshold(source: Path, target: Path, spec: DetectorSpec) -> None:
    """A copy of the graph whose BoxDetections has the spec's score threshold, and whose metadata says so."""
    model = onnx.load(source)
    nodes = [node for node in model.graph.node if (node.domain, node.op_type) == (DOMAIN, "BoxDetections")]
    assert len(nodes) == 1, f"{len(nodes)} BoxDetections"
    attribute = next(attribute for attribute in nodes[0].attribute if attribute.name == "score_threshold")
    attribute.f = spec.detection.score_threshold
    write_metadata(model, spec)
    onnx.save(model, target)
