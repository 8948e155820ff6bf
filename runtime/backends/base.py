"""What a backend offers: the network alone, from prepared images to the four raw outputs.

A backend's module has `open_backend(path, *, providers=None, threads=None) -> Backend`; the table of suffixes is in
`runtime/detector.py`. Shapes: B images, D rows for detections.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from runtime.spec import DetectorSpec


class RawOutputs(NamedTuple):
    """The spec's four outputs; rows beyond `num_detections` are padding."""

    num_detections: np.ndarray  # int32 [B, 1]
    detection_boxes: np.ndarray  # float32 [B, D, 4] xyxy, px of the original image
    detection_scores: np.ndarray  # float32 [B, D], descending
    detection_classes: np.ndarray  # int32 [B, D], index into class_names, padding -1


class Backend(Protocol):
    """Runs the network of one artifact."""

    name: str  # "onnxruntime", "torch", ...
    description: str  # library, version and what it runs on, as it turned out to be
    spec: DetectorSpec
    max_batch: int | None  # images per call; None: any number

    def infer(
        self, images: np.ndarray, im_info: np.ndarray
    ) -> RawOutputs | tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Outputs of images float32 [B, 3, H, W] with im_info float32 [B, 4], B no more than `max_batch`."""
        ...

    def close(self) -> None:
        """Release what the library holds."""
        ...
