"""open_detector(path) -> Detector: frames in, boxes out, whatever file the network is in.

with open_detector("model.onnx") as detector:
    detections = detector([frame])[0]  # frame: uint8 [height, width, 3] BGR

A TensorRT plan also takes frames that are on the GPU already (`DeviceFrame`), and uploads what one thread prepares
while another thread infers.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from runtime.backends.base import Backend, CloneableBackend, RawOutputs, Staged, StagingBackend
from runtime.backends.device_frame import DeviceFrame
from runtime.detections import Detections, detections_from_outputs
from runtime.errors import ArtifactError, BackendUnavailableError, UserError
from runtime.preprocess import NetworkInput, preprocess
from runtime.spec import DetectorSpec

__all__ = ["Detector", "DeviceFrame", "open_detector"]

# each module has open_backend(path, *, providers, threads), that of plans also spec; imported when a file asks for it
BACKENDS = {
    ".onnx": "runtime.backends.onnxruntime",
    ".plan": "runtime.backends.tensorrt",
    ".engine": "runtime.backends.tensorrt",
    ".pt": "training.backend",
    ".pth": "training.backend",
}
PLANS = (".plan", ".engine")
Frames = Sequence[np.ndarray] | Sequence[DeviceFrame]
STAGES = ("preprocess", "infer", "postprocess")


class Detector:
    """Three steps, prepare -> infer -> finish; calling the detector takes them all. `last_times_ms` says how long."""

    def __init__(self, backend: Backend) -> None:
        self.spec: DetectorSpec = backend.spec
        self.last_times_ms: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._backend = backend
        self._staging = backend if isinstance(backend, StagingBackend) else None

    @property
    def description(self) -> str:
        """Library, version and what it runs on; may change with the first runs, in which CUDA graphs are made."""
        return self._backend.description

    def __call__(self, frames: Frames) -> list[Detections]:
        """Detections of each frame (uint8 [height, width, 3] BGR, sizes may differ), in batches the backend takes.

        A TensorRT plan takes DeviceFrames too.

        Raises:
            SourceError: no frame, or one of another type or shape.
            RunError: the network failed or gave what no detector may give.
        """
        self.last_times_ms = dict.fromkeys(STAGES, 0.0)
        size = self.max_batch or max(len(frames), 1)
        batches = [frames[start : start + size] for start in range(0, len(frames), size)] or [frames]
        return [found for batch in batches for found in self._detect_batch(batch)]

    def prepare(self, frames: Frames) -> NetworkInput | Staged:
        """Step 1: what the network takes, or, of a plan, a batch that is on its way to the GPU.

        A plan has two places for batches: the third `prepare` waits until the first batch is inferred or dropped.

        Raises:
            SourceError: no frame, or one of another type or shape.
        """
        if self._staging is not None:
            return self._staging.stage(frames)
        return preprocess(frames, self.spec)  # type: ignore[arg-type]  # it says what is wrong with a DeviceFrame

    def infer(self, prepared: NetworkInput | Staged) -> RawOutputs:
        """Step 2: what the network gives, at most `max_batch` images at a time."""
        if isinstance(prepared, tuple):
            return RawOutputs(*self._backend.infer(*prepared))
        assert self._staging is not None, "only a staging backend gives staged batches"
        return self._staging.infer_staged(prepared)

    def finish(self, outputs: RawOutputs, frame_hws: Sequence[tuple[int, ...]]) -> list[Detections]:
        """Step 3: the outputs, validated, for frames of these (height, width)."""
        return detections_from_outputs(outputs, self.spec, frame_hws)

    @property
    def max_batch(self) -> int | None:
        """Images that one `infer` takes; None: any number."""
        return self._backend.max_batch

    def clone(self) -> Detector:
        """A second detector for another thread, which shares the weights. Each of the two is closed on its own.

        Raises:
            BackendUnavailableError: this backend's network cannot be shared, or there is no memory for a second one.
        """
        if not isinstance(self._backend, CloneableBackend):
            raise BackendUnavailableError(
                f"a detector of {self._backend.name} cannot be cloned: open the file a second time for another thread."
            )
        return Detector(self._backend.clone())

    def close(self) -> None:
        """Release the network; the detector cannot run afterwards."""
        self._backend.close()

    def __enter__(self) -> Detector:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _detect_batch(self, frames: Frames) -> list[Detections]:
        marks = [time.perf_counter()]
        prepared = self.prepare(frames)
        marks.append(time.perf_counter())
        outputs = self.infer(prepared)
        marks.append(time.perf_counter())
        detections = self.finish(outputs, [frame.shape[:2] for frame in frames])
        marks.append(time.perf_counter())
        for stage, start, end in zip(STAGES, marks, marks[1:]):
            self.last_times_ms[stage] += (end - start) * 1e3
        return detections


def open_detector(
    path: str | os.PathLike[str],
    *,
    providers: list[str] | None = None,
    threads: int | None = None,
    spec: str | os.PathLike[str] | None = None,
) -> Detector:
    """Load a detector; the suffix says which library runs it.

    Args:
        path: `.onnx` (ONNX Runtime), `.plan` / `.engine` (TensorRT), `.pt` / `.pth` (PyTorch, where it is installed).
        providers: ONNX Runtime's execution providers, in order of preference ("cuda", "cpu", ...); None: what is best.
        threads: CPU threads of one operator; None: one per physical core that this process may use.
        spec: for a plan without its sidecar, a file with the spec: the .onnx that it was built from, or JSON.

    Raises:
        ArtifactError: a file that is missing, empty, truncated, foreign, stale or of unknown suffix.
        BackendUnavailableError: the library, GPU or provider is not on this machine, or memory is short.
        UserError: an option that this kind of file does not take.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in BACKENDS:
        raise ArtifactError(
            f"{path} has the suffix {suffix or '(none)'}: expected a detector, one of {', '.join(BACKENDS)}."
        )
    options: dict[str, Any] = {"providers": providers, "threads": threads}
    if suffix in PLANS:
        options["spec"] = spec
    elif spec is not None:
        raise UserError(f"--spec is for TensorRT plans, and {path} carries its spec: leave it out.")
    try:
        module = importlib.import_module(BACKENDS[suffix])
    except ModuleNotFoundError as error:
        raise BackendUnavailableError(
            f"{path} needs the Python package {error.name}, which is not installed here: "
            "`pip install -r requirements.txt`, or run `model.onnx` instead."
        ) from error
    return Detector(module.open_backend(path, **options))
