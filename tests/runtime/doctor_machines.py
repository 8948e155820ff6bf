"""Machines for the tests of the doctor: what its checks would find on them."""

from __future__ import annotations

from typing import Any

from runtime.diagnosis.children import Finding

OPS = ("RpnProposals", "PyramidRoiAlign", "RoiMaxPool", "BoxDetections")
NO_GPU = "this machine has no NVIDIA GPU"


def missing(package: str) -> Finding:
    return Finding(problem=f"the Python package {package} is not installed", missing=package)


def gpu(name: str, sm: int, *, integrated: bool = False, driver: str = "580.95.05", cuda: str = "13.0") -> Finding:
    memory = 64_000_000_000 if integrated else 24_000_000_000
    one = {"index": 0, "name": name, "sm": sm, "memory_bytes": memory, "free_bytes": memory // 2}
    return Finding({"driver": driver, "cuda": cuda, "toolkit": cuda, "gpus": [{**one, "integrated": integrated}]})


def plugin_library(tensorrt: str, *sms: int, problem: str = "", old_sources: bool = False) -> Finding:
    values: dict[str, Any] = {"path": "/opt/edgercnn/libedgercnn_plugins.so", "architectures": list(sms)}
    values |= {"tensorrt": tensorrt, "old_sources": old_sources, "symbols": ["getCreators", "setLoggerFinder"]}
    return Finding(values, problem)


def kernel_library(*sms: int, problem: str = "") -> Finding:
    values = {"path": "/opt/edgercnn/libedgercnn_kernels.so", "architectures": list(sms), "tensorrt": None}
    return Finding({**values, "old_sources": False, "symbols": ["edgercnn_preprocess"]}, problem)


def tensorrt(version: str, problem: str = "") -> Finding:
    values: dict[str, Any] = {"version": version, "has_builder": True, "runtime": True}
    return Finding(values if problem else {**values, "built_bytes": 20_000, "loaded": True}, problem)


def desktop(**changes: Finding) -> dict[str, Finding]:
    """An RTX 4090 where everything is installed and works."""
    versions = {"numpy": "2.4.6", "opencv-python": "5.0.0.93", "av": "18.1.0", "onnxruntime-gpu": "1.31.1"}
    versions |= {"torch": "2.11.0", "torchvision": "0.26.0", "onnx": "1.23.2"}
    importable = ["torch", "torchvision", "onnxscript", "pycocotools", "tqdm", "matplotlib"]
    system = {"system": "Ubuntu 24.04.3 LTS, Linux x86_64", "cpu": "AMD Ryzen 9", "cores": 16, "logical_cores": 32}
    system |= {"memory_bytes": 64e9, "free_memory_bytes": 50e9, "python": "3.12.3", "in_virtual_environment": "closed"}
    system |= {"is_clone": True, "debian": {}, "jetson": None, "cache_free_bytes": 500e9}
    system |= {"version": "0.1.0", "commit": "1a2b3c4", "cache_problem": ""}
    tools = {"cmake": "", "c++": "g++ 13", "nvcc": "13.0.88", "headers": "10.16.1", "missing": {}, "compiled_for": 89}
    providers = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    machine = {
        "system": Finding(system),
        "packages": Finding({"versions": versions, "pins": {}, "importable": importable}),
        "gpu": gpu("NVIDIA GeForce RTX 4090", 89),
        "onnxruntime": Finding({"version": "1.31.1", "providers": providers}),
        "onnxruntime_cuda": Finding(),
        "onnxruntime_tensorrt": Finding(),
        "onnx": Finding({"version": "1.23.2"}),
        "toolchain": Finding(tools),
        "kernel_library": kernel_library(89),
        "plugin_library": plugin_library("10.16.1", 89),
        "plugin_registry": Finding({"version": "10.16.1.11", "ops": list(OPS)}),
        "tensorrt": tensorrt("10.16.1.11"),
        "tensorrt_rtx": Finding({**tensorrt("1.7.1.116").values, "ahead_of_time_bytes": 133_676}),
        "tensorrt_lean": missing("tensorrt_lean"),
        "pycuda": Finding({"version": "2026.1"}),
        "opencv": Finding({"version": "5.0.0", "backends": ["FFMPEG", "V4L2"]}),
        "pyav": Finding({"version": "18.1.0", "encoders": ["libx264", "h264_nvenc"]}),
        "video": Finding({"codec": "H.264", "read": 8}),
        "window": Finding({"toolkit": "QT"}),
    }
    return {**machine, **changes}


def jetson(**changes: Finding) -> dict[str, Finding]:
    """A Jetson AGX Orin with JetPack 6.2, TensorRT 10.3, and runtime/ and plugins/ alone."""
    board = {"board": "NVIDIA Jetson AGX Orin Developer Kit", "l4t": "36.4.3", "jetpack": "6.2"}
    debian = {"nvidia-jetpack": "6.2+b77", "libnvinfer10": "10.3.0.30-1+cuda12.5", "python3-libnvinfer": "10.3.0.30"}
    system = {**desktop()["system"].values, "system": "Ubuntu 22.04.5 LTS, Linux aarch64", "python": "3.10.12"}
    system |= {"jetson": board, "debian": debian, "in_virtual_environment": "open", "is_clone": False}
    tools = {**desktop()["toolchain"].values, "nvcc": "12.6.68", "headers": "10.3.0", "compiled_for": 87}
    machine = {
        "system": Finding(system),
        "packages": Finding({"versions": {"numpy": "2.2.6"}, "pins": {}, "importable": ["tqdm"]}),
        "gpu": gpu("Orin", 87, integrated=True, driver="540.4.0", cuda="12.6"),
        "onnxruntime": Finding({"version": "1.23.2", "providers": ["CPUExecutionProvider"]}),
        "onnxruntime_cuda": Finding({"absent": True}, "this ONNX Runtime has no CUDAExecutionProvider"),
        "onnxruntime_tensorrt": Finding({"absent": True}, "this ONNX Runtime has no TensorrtExecutionProvider"),
        "onnx": missing("onnx"),
        "toolchain": Finding(tools),
        "kernel_library": kernel_library(87),
        "plugin_library": plugin_library("10.3.0", 87),
        "tensorrt": tensorrt("10.3.0"),
        "tensorrt_rtx": missing("tensorrt_rtx"),
        "opencv": Finding({"version": "4.8.0", "backends": ["FFMPEG", "GSTREAMER", "V4L2"]}),
        "pyav": missing("av"),
        "video": Finding({"codec": "MPEG-4", "read": 8}),
    }
    return {**desktop(), **machine, **changes}


def thor(**changes: Finding) -> dict[str, Finding]:
    """A Jetson Thor with JetPack 7.1 and TensorRT 10.13.3."""
    board = {"board": "NVIDIA Jetson AGX Thor Developer Kit", "l4t": "38.4", "jetpack": "7.1"}
    system = {**jetson()["system"].values, "python": "3.12.3", "jetson": board}
    machine = {
        "system": Finding(system),
        "gpu": gpu("NVIDIA Thor", 110, integrated=True),
        "kernel_library": kernel_library(110),
        "plugin_library": plugin_library("10.13.3", 75, 80, 86, 87, 89, 90, 100, 110, 120),
        "tensorrt": tensorrt("10.13.3.9"),
    }
    return {**jetson(), **machine, **changes}


def laptop(**changes: Finding) -> dict[str, Finding]:
    """No GPU; what needs none is installed."""
    no_gpu = Finding({"driver": None, "cuda": None, "toolkit": None, "gpus": []}, NO_GPU)
    unusable = Finding(problem="this machine has no usable NVIDIA GPU")
    machine = {
        "gpu": no_gpu,
        "onnxruntime_cuda": unusable,
        "onnxruntime_tensorrt": unusable,
        "plugin_library": Finding(problem="it is not built yet"),
        "plugin_registry": missing("tensorrt"),
        "tensorrt": missing("tensorrt"),
        "tensorrt_rtx": Finding({"version": "1.7.1.116", "has_builder": True, "ahead_of_time_bytes": 133_676}),
        "pycuda": missing("pycuda"),
    }
    return {**desktop(), **machine, **changes}
