"""What this machine has of NVIDIA's, found without importing any of it: some libraries complain without a GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import sys
from functools import lru_cache
from pathlib import Path

from runtime.errors import ArtifactError, BackendUnavailableError


@lru_cache(maxsize=1)
def gpu_count() -> int:
    """NVIDIA GPUs that the driver offers; 0 where there is no driver."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


def refuse_plan(path: Path) -> None:
    """Say what keeps a TensorRT plan from running here.

    Raises:
        ArtifactError: the file is missing or empty.
        BackendUnavailableError: otherwise, always: this version runs no plans.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist: expected a TensorRT plan; `model.onnx` runs here as it is.")
    if path.stat().st_size == 0:
        raise ArtifactError(
            f"{path} is empty: expected a TensorRT plan; build it again, or run `model.onnx` meanwhile."
        )
    missing = [
        f"the Python package {name}" for name in ("tensorrt", "pycuda") if importlib.util.find_spec(name) is None
    ]
    missing += [] if gpu_count() else ["an NVIDIA GPU with its driver"]
    if missing:
        raise BackendUnavailableError(
            f"{path} is a TensorRT plan and this machine lacks {_listed(missing)}: on a machine with an NVIDIA GPU run "
            "`pip install -r requirements-tensorrt.txt` (on a Jetson, JetPack carries TensorRT), or run `model.onnx`, "
            "which works here."
        )
    raise BackendUnavailableError(
        f"{path} is a TensorRT plan; TensorRT, pycuda and a GPU are all here, but this version of EdgeRCNN does "
        "not run plans yet: run `model.onnx` meanwhile."
    )


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]
