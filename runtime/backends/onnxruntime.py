"""Runs `model.onnx` with ONNX Runtime, on the GPU where one is usable, else on the CPU.

Shapes: B images, H x W the network's canvas.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.base import RawOutputs
from runtime.backends.nvidia import gpu_count
from runtime.backends.onnx_file import ADVICE, read_metadata, spec_of_metadata
from runtime.backends.onnxruntime_buffers import SessionBuffers, output_shapes
from runtime.backends.onnxruntime_providers import (
    CPU,
    CUDA,
    ON_GPU,
    SHORT_NAMES,
    TENSORRT,
    check_tensorrt_takes,
    describe_providers,
    placement,
)
from runtime.backends.onnxruntime_sessions import (
    digest_in_background,
    load_onnxruntime,
    open_on_cpu,
    open_on_gpu,
    open_session,
)
from runtime.errors import ArtifactError, BackendUnavailableError, RunError, first_line
from runtime.spec import DetectorSpec

__all__ = ["CPU", "OnnxRuntimeBackend", "load_onnxruntime", "open_backend", "open_session", "read_spec"]
INPUTS = {"images": 4, "im_info": 2}  # name: number of dimensions
TYPES: dict[Any, str] = {np.int32: "tensor(int32)", np.float32: "tensor(float)"}


class OnnxRuntimeBackend:
    """One InferenceSession with this backend's own buffers.

    asked: the providers the caller named, None if he left it to us. wanted: ONNX Runtime's names of those that should
    have started. providers: those that did. placement: nodes per provider, empty where ONNX Runtime does not tell.
    """

    name = "onnxruntime"

    def __init__(
        self,
        ort: Any,
        session: Any,
        spec: DetectorSpec,
        *,
        wanted: list[str],
        asked: list[str] | None,
        origin: str = "",
    ) -> None:
        self.spec, self.asked, self.wanted, self.origin = spec, asked, wanted, origin
        self.providers: list[str] = session.get_providers()
        self.placement = placement(session)
        self.threads: int = session.get_session_options().intra_op_num_threads
        batch = session.get_inputs()[0].shape[0]
        self.max_batch: int | None = batch if isinstance(batch, int) else None
        self._ort, self._session = ort, session
        self._buffers: SessionBuffers | None = SessionBuffers(ort, session, spec, self.providers[0] in ON_GPU)
        self._one_at_a_time = threading.Lock()  # the buffers are one thread's; `clone` gives another thread its own

    @property
    def description(self) -> str:
        """Version, threads, where the model came from, and the providers it really got, with those that fell away."""
        parts = [f"ONNX Runtime {self._ort.__version__}", f"{self.threads} threads", self.origin]
        parts.append(describe_providers(self.wanted, self.providers, self.placement))
        return ", ".join(part for part in parts if part)

    def infer(self, images: np.ndarray, im_info: np.ndarray) -> RawOutputs:
        """The four outputs of images float32 [B, 3, H, W] and im_info float32 [B, 4].

        A graph of fixed batch runs short batches too: they are filled up, and the filling is cut off again.

        Raises:
            RunError: ONNX Runtime failed, or the backend is closed.
        """
        count = len(images)
        if self.max_batch is not None and count < self.max_batch:
            images, im_info = _filled_up(images, self.max_batch), _filled_up(im_info, self.max_batch)
        with self._one_at_a_time:
            if self._buffers is None:
                raise RunError("this detector is closed: open it again.")
            try:
                outputs = self._buffers.run(images, im_info)
            except Exception as error:  # its exceptions have no common base
                raise RunError(f"ONNX Runtime failed on images {list(images.shape)}: {first_line(error)}") from error
        return RawOutputs(*(output[:count] for output in outputs))

    def clone(self) -> OnnxRuntimeBackend:
        """A backend for another thread: the same session, other buffers."""
        if self._session is None:
            raise RunError("this detector is closed: open it again.")
        return OnnxRuntimeBackend(
            self._ort, self._session, self.spec, wanted=self.wanted, asked=self.asked, origin=self.origin
        )

    def close(self) -> None:
        """Free the session; the backend cannot run afterwards."""
        with self._one_at_a_time:
            self._session = self._buffers = None


def open_backend(
    path: str | os.PathLike[str], *, providers: list[str] | None = None, threads: int | None = None
) -> OnnxRuntimeBackend:
    """Load an ONNX file that `export/to_onnx.py` wrote.

    Args:
        path: the file.
        providers: in order of preference, "cuda", "cpu", "tensorrt" or ONNX Runtime's own names; None takes CUDA when
            it is usable, then the CPU.
        threads: for one operator on the CPU; None takes one per physical core that this process may use.

    Raises:
        ArtifactError: the file is missing, empty, truncated, foreign, or its spec does not match its digest.
        BackendUnavailableError: ONNX Runtime or a provider that was asked for is not usable on this machine.
        UserError: EDGERCNN_ORT_CACHE has a wrong value.
    """
    path = Path(path)
    spec = read_spec(path)
    digest = digest_in_background(path)
    ort = load_onnxruntime()
    wanted = _wanted_providers(providers, ort.get_available_providers())
    if TENSORRT in wanted:
        check_tensorrt_takes(spec, path)
    if set(wanted) & set(ON_GPU):
        opened = open_on_gpu(ort, path, wanted, threads)
    else:
        opened = open_on_cpu(ort, path, wanted, threads, digest)
    _check_interface(opened.session, spec, path)
    lost = [name for name in wanted if name not in opened.session.get_providers()]
    if lost and providers is not None:
        raise BackendUnavailableError(
            f"{lost[0]} could not start on this machine: expected its CUDA and cuDNN libraries (see "
            "https://onnxruntime.ai/docs/execution-providers); install them, or ask for cpu."
        )
    return OnnxRuntimeBackend(ort, opened.session, spec, wanted=wanted, asked=providers, origin=opened.origin)


def read_spec(path: str | os.PathLike[str]) -> DetectorSpec:
    """The spec inside an ONNX file, checked against its digest; needs no ONNX Runtime.

    Raises:
        ArtifactError: see `open_backend`.
    """
    return spec_of_metadata(read_metadata(path), str(path))


def _wanted_providers(asked: list[str] | None, available: list[str]) -> list[str]:
    """ONNX Runtime's names, in order of preference, of providers that should start here."""
    usable = [name for name in available if name not in (CUDA, TENSORRT) or gpu_count() > 0]
    if asked is None:
        return [name for name in (CUDA, CPU) if name in usable]
    wanted = [SHORT_NAMES.get(name.lower(), name) for name in asked]
    for name in wanted:
        if name not in usable:
            reason = "this machine has no usable NVIDIA GPU" if name in available else "this ONNX Runtime lacks it"
            raise BackendUnavailableError(f"{name} is not available ({reason}): choose from {', '.join(usable)}.")
    return wanted


def _check_interface(session: Any, spec: DetectorSpec, path: Path) -> None:
    """Inputs and outputs are those of an EdgeRCNN detector."""
    inputs = {value.name: (value.type, len(value.shape)) for value in session.get_inputs()}
    expected = {name: ("tensor(float)", rank) for name, rank in INPUTS.items()}
    if inputs != expected:
        raise ArtifactError(f"{path} takes {', '.join(inputs)}: expected images and im_info, both float32; {ADVICE}.")
    outputs = [value.name for value in session.get_outputs()]
    missing = [name for name in spec.outputs.names if name not in outputs]
    if missing:
        raise ArtifactError(f"{path} has no output {missing[0]}, which its spec names; {ADVICE}.")
    found = {value.name: (value.type, value.shape) for value in session.get_outputs()}
    for name, (shape, dtype) in zip(spec.outputs.names, output_shapes("B", spec.detection.max_detections)):
        kind, actual = found[name]
        if kind != TYPES[dtype] or len(actual) != len(shape) or list(actual[1:]) != list(shape[1:]):
            raise ArtifactError(
                f"{path} has {name} as {kind} {actual}, expected {TYPES[dtype]} {list(shape)} by its spec; {ADVICE}."
            )


def _filled_up(array: np.ndarray, batch: int) -> np.ndarray:
    """[B, ...] with its last row repeated until B is `batch`."""
    return np.concatenate([array, np.repeat(array[-1:], batch - len(array), axis=0)])
