"""What works on a machine, and why not: rules over what the doctor's checks found. No check is run here.

Each use has a function from Facts to a Verdict. A reason is one clause; a command is what the user types next.
"""

from __future__ import annotations

from collections.abc import Callable

from runtime.diagnosis.facts import (
    CACHE_COMMAND,
    EXPECTED,
    NO,
    WORKS,
    Facts,
    Obstacle,
    Verdict,
    need,
    need_gpu,
    tried_model,
)
from runtime.diagnosis.plans import build_plan, build_rtx_plan, run_plan
from runtime.diagnosis.versions import torch_pair_fits


def verdicts(facts: Facts) -> list[Verdict]:
    """One for each use, in the order of USES."""
    found = []
    for use, (title, rule) in USES.items():
        try:
            state, reason = rule(facts)
        except Obstacle as obstacle:
            found.append(Verdict(use, title, NO, obstacle.reason, obstacle.command))
        else:
            found.append(Verdict(use, title, state, reason))
    return found


def _onnx_on_cpu(facts: Facts) -> tuple[str, str]:
    runtime = facts["onnxruntime"]
    need(runtime, "ONNX Runtime", "pip install onnxruntime")
    model = tried_model(facts, (".onnx",), "python export/to_onnx.py")
    return WORKS, f"ONNX Runtime {runtime.get('version')} ran a small graph" + (f"; {model}" if model else "")


def _onnx_on_gpu(facts: Facts) -> tuple[str, str]:
    runtime, cuda = facts["onnxruntime"], facts["onnxruntime_cuda"]
    need_gpu(facts)
    need(runtime, "ONNX Runtime", "pip install onnxruntime-gpu")
    if cuda.works:
        return WORKS, f"ONNX Runtime {runtime.get('version')} ran a small graph with CUDAExecutionProvider"
    if cuda.get("absent"):
        if {"onnxruntime", "onnxruntime-gpu"} <= facts.versions.keys():
            command = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"
            raise Obstacle("onnxruntime is installed over onnxruntime-gpu and hides its CUDA provider", command)
        command = "pip uninstall -y onnxruntime && pip install onnxruntime-gpu"
        if facts.jetson:
            command = "install NVIDIA's onnxruntime-gpu wheel for this JetPack (docs/runtime.md, On a Jetson)"
        raise Obstacle(f"this ONNX Runtime {runtime.get('version')} was built without CUDA", command)
    raise Obstacle(cuda.problem, cuda.mend or "pip install 'onnxruntime-gpu[cuda,cudnn]'")


def _build_plugins(facts: Facts) -> tuple[str, str]:
    tools = facts["toolchain"]
    if tools.missing == "plugins":
        raise Obstacle("the sources are not here, only a clone of EdgeRCNN has them")
    missing = tools.get("missing", {})
    installs = {
        "cmake": "pip install cmake",
        "c++": "sudo apt-get install g++",
        "nvcc": "pip install 'cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]==13.0.2'",
        "headers": "sudo apt-get install libnvinfer-headers-dev (NVIDIA's repository), or set TENSORRT_INCLUDE",
    }
    names = {"cmake": "CMake", "c++": "a C++ compiler", "nvcc": "nvcc", "headers": "TensorRT's headers"}
    for name, command in installs.items():
        if name in missing and name != "headers":
            why = "" if missing[name] == "not found" else f" ({missing[name]})"
            raise Obstacle(f"{names[name]} is missing{why}", command)
    need(tools, "the compilers", "")
    kernels = f"nvcc {tools.get('nvcc')} compiled a kernel for sm_{tools.get('compiled_for')}"
    if problem := facts["system"].get("cache_problem"):
        raise Obstacle(f"{kernels}, but {problem}", CACHE_COMMAND)
    if "headers" in missing:
        raise Obstacle(
            f"{kernels}, but TensorRT's headers are missing: kernels can be built, plugins not", installs["headers"]
        )
    return WORKS, f"{kernels}; TensorRT's headers are {tools.get('headers')}"


def _export(facts: Facts) -> tuple[str, str]:
    reason = _need_torch(facts)
    need(facts["onnx"], "the package onnx", "pip install -r requirements.txt")
    if "onnxscript" not in facts["packages"].get("importable", ()):
        raise Obstacle("the Python package onnxscript is not installed", "pip install -r requirements.txt")
    return EXPECTED, f"{reason} and onnx {facts['onnx'].get('version')} are here"


def _train(facts: Facts) -> tuple[str, str]:
    reason = _need_torch(facts)
    for name in ("pycocotools", "matplotlib", "tqdm"):
        if name not in facts["packages"].get("importable", ()):
            raise Obstacle(f"the Python package {name} is not installed", "pip install -r requirements.txt")
    return EXPECTED, f"{reason} are here" + ("" if facts.gpus else "; on the CPU, which takes long")


def _read_video(facts: Facts) -> tuple[str, str]:
    video = facts["video"]
    need(video, "OpenCV", "pip install opencv-python")
    backends = " and ".join(name for name in facts["opencv"].get("backends", ()) if name != "V4L2") or "no FFmpeg"
    return WORKS, f"OpenCV {facts['opencv'].get('version')} ({backends}) read {video.get('read')} of 8 frames"


def _write_video(facts: Facts) -> tuple[str, str]:
    video = facts["video"]
    if "write_problem" in video.values:
        raise Obstacle(str(video.get("write_problem")), "pip install av")
    if "codec" not in video.values:
        need(video, "OpenCV", "pip install opencv-python")
    if video.get("codec") != "H.264":
        return WORKS, f"{video.get('codec')}, which few browsers play: `pip install av` gives H.264"
    return WORKS, f"PyAV {facts['pyav'].get('version')} wrote 8 frames as H.264"


def _show_windows(facts: Facts) -> tuple[str, str]:
    window = facts["window"]
    headless = "opencv-python-headless" in facts.versions
    install = "pip uninstall -y opencv-python-headless && pip install opencv-python"
    need(window, "OpenCV", install if headless else "run it on a desktop, or leave --show out and look at the MP4")
    return WORKS, "OpenCV opened a window"


USES: dict[str, tuple[str, Callable[[Facts], tuple[str, str]]]] = {
    "onnx": ("run .onnx on the CPU", _onnx_on_cpu),
    "onnx-gpu": ("run .onnx on the GPU", _onnx_on_gpu),
    "plan": ("run .plan", run_plan),
    "build": ("build TensorRT plans", build_plan),
    "rtx": ("build RTX plans for other GPUs", build_rtx_plan),
    "plugins": ("build kernels and plugins", _build_plugins),
    "export": ("export", _export),
    "train": ("train", _train),
    "read-video": ("read video", _read_video),
    "write-video": ("write MP4", _write_video),
    "window": ("show windows", _show_windows),
}


def _need_torch(facts: Facts) -> str:
    install = "pip install -r requirements.txt"
    if facts["system"].get("is_clone") is False:
        raise Obstacle("this is a device's installation: only a clone of EdgeRCNN has training and export")
    need(facts["packages"], "the packages", install)
    for name in ("torch", "torchvision"):
        if name not in facts["packages"].get("importable", ()):
            raise Obstacle(f"the Python package {name} is not installed", install)
    torch, torchvision = facts.versions.get("torch", ""), facts.versions.get("torchvision", "")
    if not torch_pair_fits(torch, torchvision):
        raise Obstacle(f"torch {torch} and torchvision {torchvision} do not belong together", install)
    return f"torch {torch}, torchvision {torchvision}"
