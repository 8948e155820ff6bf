"""What a detector found in one image, and how raw outputs become it.

Shapes: B images, D rows of the raw outputs, N detections of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.backends.base import RawOutputs
from runtime.errors import RunError
from runtime.spec import DetectorSpec

ROUNDING = 1e-3  # how far a box may reach outside, as a share of the image's longer side: float32, there and back


@dataclass(frozen=True)
class Detections:
    """Detections of one image, best first.

    boxes_xyxy: float32 [N, 4] in image px, 0 <= x1 <= x2 <= width, 0 <= y1 <= y2 <= height.
    scores: float32 [N], above 0 and at most 1.
    class_ids: int32 [N], indices into `class_names`.
    """

    boxes_xyxy: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        count = len(self.scores)
        assert self.boxes_xyxy.shape == (count, 4), self.boxes_xyxy.shape
        assert self.scores.shape == self.class_ids.shape == (count,), (self.scores.shape, self.class_ids.shape)

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.class_names[class_id] for class_id in self.class_ids]

    def scaled(self, factor_x: float, factor_y: float, offset_x: float = 0.0, offset_y: float = 0.0) -> Detections:
        """The same in a picture that was resized by these factors and then moved by these px."""
        factors = np.array([factor_x, factor_y, factor_x, factor_y], np.float32)
        offsets = np.array([offset_x, offset_y, offset_x, offset_y], np.float32)
        return Detections(self.boxes_xyxy * factors + offsets, self.scores, self.class_ids, self.class_names)

    def above(self, score: float) -> Detections:
        """Those whose score is at least `score`."""
        keep = self.scores >= np.float32(score)
        return Detections(self.boxes_xyxy[keep], self.scores[keep], self.class_ids[keep], self.class_names)


def detections_from_outputs(
    outputs: RawOutputs, spec: DetectorSpec, frame_hws: Sequence[tuple[int, ...]]
) -> list[Detections]:
    """One Detections per image; `frame_hws` are (height, width) of the original images.

    Raises:
        RunError: outputs of wrong shapes, or values no detector may give: counts out of range, boxes or scores that are
            no numbers, boxes outside the image, unknown classes.
    """
    batch, rows = len(frame_hws), spec.detection.max_detections
    expected = [(batch, 1), (batch, rows, 4), (batch, rows), (batch, rows)]
    for name, output, shape in zip(spec.outputs.names, outputs, expected, strict=True):
        if output.shape != shape:
            raise RunError(_wrong(name, f"shape {list(output.shape)}", f"{list(shape)}"))
    counts = outputs.num_detections[:, 0]
    return [
        _image_detections(int(count), boxes, scores, classes, spec, frame_hw)
        for count, boxes, scores, classes, frame_hw in zip(counts, *outputs[1:], frame_hws, strict=True)
    ]


def _image_detections(
    count: int,
    boxes: np.ndarray,
    scores: np.ndarray,
    classes: np.ndarray,
    spec: DetectorSpec,
    frame_hw: tuple[int, ...],
) -> Detections:
    names = spec.outputs
    if not 0 <= count <= len(scores):
        raise RunError(_wrong(names.num_detections, str(count), f"0 to {len(scores)}"))
    boxes, scores, classes = boxes[:count], scores[:count], classes[:count].astype(np.int32)
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise RunError(_wrong(names.detection_boxes, "values that are not finite", "numbers"))
    if count and not (scores.min() > 0 and scores.max() <= 1 + ROUNDING):
        raise RunError(_wrong(names.detection_scores, f"{scores.min():g} to {scores.max():g}", "scores from 0 to 1"))
    if count and not (classes.min() >= 0 and classes.max() < spec.num_classes):
        received = f"{classes.min()} to {classes.max()}"
        raise RunError(_wrong(names.detection_classes, received, f"0 to {spec.num_classes - 1}"))
    height, width = frame_hw
    inside = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    ordered = (inside[:, :2] <= inside[:, 2:]).all()
    if not ordered or np.abs(inside - boxes).max(initial=0) > ROUNDING * max(height, width):
        raise RunError(_wrong(names.detection_boxes, "a box outside the image", f"boxes within {width} x {height} px"))
    return Detections(inside.astype(np.float32), scores.astype(np.float32), classes, spec.class_names)


def _wrong(name: str, received: str, expected: str) -> str:
    return f"the network's output {name} has {received}: expected {expected}; export the model again."
