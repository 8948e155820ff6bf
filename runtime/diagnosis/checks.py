"""The child process of `runtime/doctor.py`: `checks.py NAME RESULT [ARGUMENT ...]` runs one check.

The checks are in machine.py, libraries.py, tensorrt.py and video.py; each takes the mapping
that it fills. Modules are imported for the check alone, so that one that is broken breaks no other.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # run by path: import from the clone's root, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import importlib

from runtime.diagnosis.children import Values, run_child

# name: (module, function)
CHECKS = {
    "system": ("machine", "check_system"),
    "packages": ("machine", "check_packages"),
    "gpu": ("machine", "check_gpu"),
    "onnxruntime": ("libraries", "check_onnxruntime"),
    "onnxruntime_cuda": ("libraries", "check_provider"),
    "onnxruntime_tensorrt": ("libraries", "check_provider"),
    "model": ("libraries", "check_model"),
    "onnx": ("libraries", "check_onnx"),
    "toolchain": ("libraries", "check_toolchain"),
    "kernel_library": ("tensorrt", "check_kernel_library"),
    "plugin_library": ("tensorrt", "check_plugin_library"),
    "tensorrt": ("tensorrt", "check_tensorrt"),
    "tensorrt_rtx": ("tensorrt", "check_tensorrt_rtx"),
    "tensorrt_lean": ("tensorrt", "check_tensorrt_lean"),
    "plugin_registry": ("tensorrt", "check_plugin_registry"),
    "pycuda": ("tensorrt", "check_pycuda"),
    "opencv": ("video", "check_opencv"),
    "pyav": ("video", "check_pyav"),
    "video": ("video", "check_video"),
    "window": ("video", "check_window"),
}
# what is handed to a check; the model's is the command line's --model
ARGUMENTS = {
    "onnxruntime_cuda": ("CUDAExecutionProvider",),
    "onnxruntime_tensorrt": ("TensorrtExecutionProvider",),
}


def main(argv: list[str]) -> int:
    """Run one check."""
    name, result, *arguments = argv
    module, function = CHECKS[name]

    def check(values: Values) -> None:
        getattr(importlib.import_module(f"runtime.diagnosis.{module}"), function)(values, *arguments)

    run_child(check, (), Path(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
