"""open_detector(path) -> Detector: frames in, boxes out, whatever file the network is in.

with open_detector("model.onnx") as detector:
    detections = detector([frame])[0]  # frame: uint8 [height, width, 3] BGR
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from runtime.backends.base import Backend, RawOutputs
from runtime.backends.nvidia import refuse_plan
from runtime.detections import Detections, detections_from_outputs
from runtime.errors import ArtifactError, BackendUnavailableError
from runtime.preprocess import NetworkInput, preprocess
from runtime.spec import DetectorSpec

# each module has open_backend(path, *, providers, threads); imported when a file asks for it
BACKENDS = {
    ".onnx": "runtime.backends.onnxruntime",
    ".pt": "training.backend",
    ".pth": "training.backend",
}
PLANS = (".plan", ".engine")
STAGES = ("preprocess", "infer", "postprocess")


class Detector:
    """Three steps, prepare -> infer -> finish; calling the detector takes them all. `last_times_ms` says how long."""

    def __init__(self, backend: Backend) -> None:
        self.spec: DetectorSpec = backend.spec
        self.description: str = backend.description
        self.last_times_ms: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._backend = backend

    def __call__(self, frames: Sequence[np.ndarray]) -> list[Detections]:
        """Detections of each frame (uint8 [height, width, 3] BGR, sizes may differ), in batches the backend takes.

        Raises:
            SourceError: no frame, or one of another type or shape.
            RunError: the network failed or gave what no detector may give.
        """
        self.last_times_ms = dict.fromkeys(STAGES, 0.0)
        size = self.max_batch or max(len(frames), 1)
        batches = [frames[start : start + size] for start in range(0, len(frames), size)] or [frames]
        return [found for batch in batches for found in self._detect_batch(batch)]

    def prepare(self, frames: Sequence[np.ndarray]) -> NetworkInput:
        """Step 1: what the network takes."""
        return preprocess(frames, self.spec)

    def infer(self, network_input: NetworkInput) -> RawOutputs:
        """Step 2: what the network gives, at most `max_batch` images at a time."""
        return RawOutputs(*self._backend.infer(*network_input))

    def finish(self, outputs: RawOutputs, frame_hws: Sequence[tuple[int, ...]]) -> list[Detections]:
        """Step 3: the outputs, validated, for frames of these (height, width)."""
        return detections_from_outputs(outputs, self.spec, frame_hws)

    @property
    def max_batch(self) -> int | None:
        """Images that one `infer` takes; None: any number."""
        return self._backend.max_batch

    def close(self) -> None:
        """Release the network; the detector cannot run afterwards."""
        self._backend.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _detect_batch(self, frames: Sequence[np.ndarray]) -> list[Detections]:
        marks = [time.perf_counter()]
        network_input = self.prepare(frames)
        marks.append(time.perf_counter())
        outputs = self.infer(network_input)
        marks.append(time.perf_counter())
        detections = self.finish(outputs, [frame.shape[:2] for frame in frames])
        marks.append(time.perf_counter())
        for stage, start, end in zip(STAGES, marks, marks[1:]):
            self.last_times_ms[stage] += (end - start) * 1e3
        return detections


def open_detector(
    path: str | os.PathLike[str], *, providers: list[str] | None = None, threads: int | None = None
) -> Detector:
    """Load a detector; the suffix says which library runs it.

    Args:
        path: `.onnx` (ONNX Runtime), or `.pt` / `.pth` (PyTorch, where it is installed).
        providers: ONNX Runtime's execution providers, in order of preference ("cuda", "cpu", ...); None: what is best.
        threads: CPU threads of one operator; None: the library's own choice.

    Raises:
        ArtifactError: a file that is missing, empty, truncated, foreign or of unknown suffix.
        BackendUnavailableError: the library, GPU or provider is not on this machine.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in PLANS:
        refuse_plan(path)
    if suffix not in BACKENDS:
        known = ", ".join([*BACKENDS, *PLANS])
        raise ArtifactError(f"{path} has the suffix {suffix or '(none)'}: expected a detector, one of {known}.")
    try:
        module = importlib.import_module(BACKENDS[suffix])
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f"{path} needs the Python package {error.name}, which is not installed here: "
            "`pip install -r requirements.txt`, or run `model.onnx` instead."
        ) from error
    return Detector(module.open_backend(path, providers=providers, threads=threads))
