"""Tries ONNX Runtime, the ONNX package and the compilers, for the doctor; each in a process of its own."""

from __future__ import annotations

import importlib
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from runtime.backends.nvidia import gpu_count, gpus
from runtime.backends.tensorrt_library import TITLES
from runtime.diagnosis.children import CannotError, Values
from runtime.diagnosis.doubling_graph import LENGTH, doubling_model

KERNEL = 'extern "C" __global__ void doctor(float *value) { value[threadIdx.x] += 1.0f; }\n'
COMPILER_LIMIT_S = 45
FRAME_HW = (480, 640)
SCENE = (7, 8)  # seed and index of a picture with nine parts


def check_onnxruntime(values: Values) -> None:
    """Run a small graph on the CPU, and import what runs a detector."""
    import onnxruntime as ort

    values["version"] = ort.__version__
    values["providers"] = ort.get_available_providers()
    _run_small_graph(ort, "CPUExecutionProvider")
    importlib.import_module("runtime.detector")  # what else the ONNX path needs: NumPy and OpenCV


def check_provider(values: Values, provider: str) -> None:
    """Run a small graph with one execution provider."""
    import onnxruntime as ort

    if provider not in ort.get_available_providers():
        values["absent"] = True
        raise CannotError(f"this ONNX Runtime has no {provider}")
    if gpu_count() == 0:
        raise CannotError("this machine has no usable NVIDIA GPU")
    if hasattr(ort, "preload_dlls"):
        ort.preload_dlls()
    _run_small_graph(ort, provider)


def _run_small_graph(ort: Any, provider: str) -> None:
    """x + x, with a node whose body is a function, as in our files."""
    import numpy as np

    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(doubling_model(), sess_options=options, providers=[provider])
    if provider not in session.get_providers():
        raise CannotError(f"{provider} could not start: its CUDA or cuDNN libraries are missing or too old")
    numbers = np.arange(LENGTH, dtype=np.float32)
    (doubled,) = session.run(None, {"x": numbers})
    if not np.array_equal(doubled, 2 * numbers):
        raise CannotError(f"{provider} computed {doubled.tolist()} as twice {numbers.tolist()}")


def check_model(values: Values, path: str) -> None:
    """Run a detector on a picture of the demo's conveyor; an ONNX file on the CPU."""
    values["file"] = Path(path).name
    providers = ["cpu"] if Path(path).suffix.lower() == ".onnx" else None
    if providers is None:
        values["plan"] = _plan_text(Path(path))
        if gpu_count() == 0:
            raise CannotError("there is no GPU to run it on")
    from runtime.conveyor.scene import render_scene
    from runtime.detector import open_detector

    frame = render_scene(*SCENE, FRAME_HW).frame
    with open_detector(path, providers=providers) as detector:
        values["detector"] = detector.description
        detector([frame])
        start = time.perf_counter()
        found = detector([frame])[0]
        values["milliseconds"] = round((time.perf_counter() - start) * 1e3, 1)
    values["found"] = len(found.above(0.5))


def _plan_text(path: Path) -> str:
    """What a whole plan was built by and for, of its header and its sidecar.

    Raises:
        ArtifactError: it is no plan, cut off, or not the one that its sidecar describes.
    """
    from runtime.plan import check_plan_file, read_sidecar, sidecar_path

    record = read_sidecar(path)
    header = check_plan_file(path, record)
    if record is None:
        return f"built by {TITLES[header.flavour]} {header.version}; {sidecar_path(path).name} is not beside it"
    sms = " ".join(f"sm_{sm}" for sm in record.sms)
    return f"built by {TITLES[record.flavour]} {record.version} for {sms}, {record.precision}"


def check_onnx(values: Values) -> None:
    """The package that export, calibration and the engine builder edit files with."""
    import onnx

    values["version"] = onnx.__version__
    onnx.checker.check_model(onnx.load_from_string(doubling_model()))


def check_toolchain(values: Values) -> None:
    """Compilers and headers for plugins/build.py; compiles a kernel of one line for this machine's GPU.

    `missing` names what cannot be found or does not run ("cmake", "c++", "nvcc", "headers"), each with its sentence.
    """
    toolchain = importlib.import_module("plugins.toolchain")  # a device's installation has plugins/load.py only
    missing: dict[str, str] = {}
    for name, find in (
        ("cmake", lambda: "" if toolchain.find_tool("cmake") else None),
        ("c++", lambda: toolchain.find_cxx().version),
        ("nvcc", lambda: _found(toolchain.find_nvcc())),
        ("headers", lambda: _found(toolchain.find_tensorrt())),
    ):
        try:
            version = find()
        except toolchain.BuildError as error:
            version, missing[name] = None, str(error).rstrip(".")
        if version is None:
            missing.setdefault(name, "not found")
        values[name], values["missing"] = version, missing
    if "nvcc" not in missing:
        _compile_kernel(toolchain.find_nvcc(), values)


def _found(tool: Any) -> str | None:
    return None if tool is None else str(tool.version)


def _compile_kernel(nvcc: Any, values: Values) -> None:
    sms = [str(gpu.sm) for gpu in gpus()] or [nvcc.architectures[-1]]
    unknown = [sm for sm in sms if sm not in nvcc.architectures]
    if unknown:
        raise CannotError(
            f"nvcc {nvcc.version} does not know sm_{unknown[0]}, this GPU's", "install a newer CUDA toolkit"
        )
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "doctor.cu"
        source.write_text(KERNEL, encoding="utf-8")
        command = [str(nvcc.path), "-cubin", f"-arch=sm_{sms[0]}", "-o", str(source.with_suffix(".cubin")), str(source)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=COMPILER_LIMIT_S, check=False)
    if result.returncode != 0:
        said = (result.stderr or result.stdout).strip().splitlines()
        raise CannotError(f"nvcc {nvcc.version} cannot compile ({said[0] if said else 'no output'})")
    values["compiled_for"] = int(sms[0])
