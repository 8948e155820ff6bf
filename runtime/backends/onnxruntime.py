"""Runs `model.onnx` with ONNX Runtime, on the GPU where one is usable, else on the CPU.

Shapes: B images, H x W the network's canvas.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.base import RawOutputs
from runtime.backends.nvidia import gpu_count
from runtime.backends.onnx_file import ADVICE, read_metadata
from runtime.errors import ArtifactError, BackendUnavailableError, RunError, SpecError
from runtime.spec import DetectorSpec

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
SHORT_NAMES = {"cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT}
INPUTS = {"images": 4, "im_info": 2}  # name: number of dimensions
FATAL = 4  # ONNX Runtime's logging level: its errors reach us as exceptions, its warnings say nothing of use here


class OnnxRuntimeBackend:
    """One InferenceSession. `description` names the providers that it really got, not those it was asked for."""

    name = "onnxruntime"

    def __init__(self, session: Any, version: str, spec: DetectorSpec, note: str = "") -> None:
        self.spec = spec
        self.providers: list[str] = session.get_providers()
        self.description = f"ONNX Runtime {version}, {' + '.join(self.providers)}{note}"
        batch = session.get_inputs()[0].shape[0]
        self.max_batch: int | None = batch if isinstance(batch, int) else None
        self._session: Any = session

    def infer(self, images: np.ndarray, im_info: np.ndarray) -> RawOutputs:
        """The four outputs of images float32 [B, 3, H, W] and im_info float32 [B, 4].

        A graph of fixed batch runs short batches too: they are filled up, and the filling is cut off again.

        Raises:
            RunError: ONNX Runtime failed.
        """
        count = len(images)
        if self.max_batch is not None and count < self.max_batch:
            images, im_info = _filled_up(images, self.max_batch), _filled_up(im_info, self.max_batch)
        try:
            outputs = self._session.run(self.spec.outputs.names, {"images": images, "im_info": im_info})
        except Exception as error:  # its exceptions have no common base
            raise RunError(f"ONNX Runtime failed on images {list(images.shape)}: {_first_line(error)}") from error
        return RawOutputs(*(output[:count] for output in outputs))

    def close(self) -> None:
        """Free the session; the backend cannot run afterwards."""
        self._session = None


def open_backend(
    path: str | os.PathLike[str], *, providers: list[str] | None = None, threads: int | None = None
) -> OnnxRuntimeBackend:
    """Load an ONNX file that `export/to_onnx.py` wrote.

    Args:
        path: the file.
        providers: in order of preference, "cuda", "cpu", "tensorrt" or ONNX Runtime's own names; None takes CUDA when
            it is usable, then the CPU.
        threads: for one operator on the CPU; None leaves it to ONNX Runtime, which takes one per physical core.

    Raises:
        ArtifactError: the file is missing, empty, truncated, foreign, or its spec does not match its digest.
        BackendUnavailableError: ONNX Runtime or a provider that was asked for is not usable on this machine.
    """
    path = Path(path)
    spec = read_spec(path)
    ort = load_onnxruntime()
    wanted = _wanted_providers(providers, ort.get_available_providers())
    session = open_session(ort, path, wanted, threads)
    _check_interface(session, spec, path)
    lost = [name for name in wanted if name not in session.get_providers()]
    if lost and providers is not None:
        raise BackendUnavailableError(
            f"{lost[0]} could not start on this machine: expected its CUDA and cuDNN libraries (see "
            "https://onnxruntime.ai/docs/execution-providers); install them, or ask for cpu."
        )
    note = f" ({' and '.join(lost)} could not start)" if lost else ""
    return OnnxRuntimeBackend(session, ort.__version__, spec, note)


def read_spec(path: str | os.PathLike[str]) -> DetectorSpec:
    """The spec inside an ONNX file, checked against its digest; needs no ONNX Runtime.

    Raises:
        ArtifactError: see `open_backend`.
    """
    metadata = read_metadata(path)
    for key in ("edgercnn.spec", "edgercnn.digest"):
        if key not in metadata:
            raise ArtifactError(f"{path} carries no {key}: it was not exported by EdgeRCNN, or was cut off; {ADVICE}.")
    try:
        spec = DetectorSpec.from_json(metadata["edgercnn.spec"])
    except SpecError as error:
        raise ArtifactError(f"{path}: {error}") from error
    if spec.digest() != metadata["edgercnn.digest"]:
        raise ArtifactError(f"{path} has a spec that does not match its digest, so one of them was edited: {ADVICE}.")
    return spec


def load_onnxruntime() -> Any:
    """The module `onnxruntime`, with its warnings off.

    Raises:
        BackendUnavailableError: it cannot be imported.
    """
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise BackendUnavailableError(
            "running an .onnx file needs ONNX Runtime, which cannot be imported here: `pip install onnxruntime` "
            "(or onnxruntime-gpu)."
        ) from error
    ort.set_default_logger_severity(FATAL)
    return ort


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


def open_session(ort: Any, path: Path, providers: list[str], threads: int | None) -> Any:
    """An InferenceSession with our settings, for any ONNX file.

    Raises:
        ArtifactError: ONNX Runtime cannot load the file.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = FATAL
    if CUDA in providers and hasattr(ort, "preload_dlls"):
        ort.preload_dlls()  # finds CUDA and cuDNN in pip's nvidia-* packages too
    try:
        return ort.InferenceSession(str(path), sess_options=options, providers=providers)
    except Exception as error:  # its exceptions have no common base
        raise ArtifactError(f"ONNX Runtime {ort.__version__} cannot load {path}: {_first_line(error)}") from error


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


def _filled_up(array: np.ndarray, batch: int) -> np.ndarray:
    """[B, ...] with its last row repeated until B is `batch`."""
    return np.concatenate([array, np.repeat(array[-1:], batch - len(array), axis=0)])


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
