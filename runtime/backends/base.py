"""What a backend offers: the network alone, from prepared images to the four raw outputs.

A backend's module has `open_backend(path, *, providers=None, threads=None) -> Backend`, that of plans also `spec`; the
table of suffixes is in `runtime/detector.py`. Shapes: B images, D rows for detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

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
    spec: DetectorSpec
    max_batch: int | None  # images per call; None: any number

    @property
    def description(self) -> str:
        """Library, version and what it runs on, as it has turned out to be by now."""
        ...

    def infer(
        self, images: np.ndarray, im_info: np.ndarray
    ) -> RawOutputs | tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Outputs of images float32 [B, 3, H, W] with im_info float32 [B, 4], B no more than `max_batch`."""
        ...

    def close(self) -> None:
        """Release what the library holds."""
        ...


class Staged(Protocol):
    """Frames that a StagingBackend has taken in, and not yet run. One that is dropped gives its place back."""

    def release(self) -> None:
        """Give its place back; it cannot be run afterwards."""
        ...


@runtime_checkable
class StagingBackend(Protocol):
    """A backend that takes frames itself, so that it can upload a batch while it runs the one before."""

    def stage(self, frames: Sequence[Any]) -> Staged:
        """Take the frames in; waits for a free place. May be called in another thread than `infer_staged`."""
        ...

    def infer_staged(self, staged: Staged) -> RawOutputs:
        """Run them, and release them."""
        ...


@runtime_checkable
class CloneableBackend(Protocol):
    """A backend of which a second one can share the weights."""

    def clone(self) -> Backend:
        """A backend for another thread; each of the two is closed on its own."""
        ...
