"""What the doctor says of machines: each row is one, and what must be said of it. Findings are made up, rules not."""

from __future__ import annotations

import dataclasses

import pytest

from runtime.diagnosis.children import Finding
from runtime.diagnosis.facts import EXPECTED, NO, WORKS, Facts
from runtime.diagnosis.report import COLUMNS, format_report, report_mapping
from runtime.diagnosis.verdicts import USES, verdicts
from tests.runtime.doctor_machines import (
    NO_GPU,
    desktop,
    gpu,
    jetson,
    kernel_library,
    laptop,
    missing,
    plugin_library,
    tensorrt,
    thor,
)

ALL_WORKS = dict.fromkeys(USES, WORKS) | {"export": EXPECTED, "train": EXPECTED}


def changed(machine: dict[str, Finding], name: str, **values: object) -> dict[str, Finding]:
    """The machine with other values in one finding."""
    finding = machine[name]
    return {**machine, name: dataclasses.replace(finding, values={**finding.values, **values})}


def states(machine: dict[str, Finding]) -> dict[str, str]:
    return {verdict.use: verdict.state for verdict in verdicts(Facts(machine))}


# machine: the states of all its uses that differ from "everything works"
MACHINES = {
    "desktop with everything": (desktop(), {}),
    # an ONNX Runtime for the CPU, no package onnx, no RTX for Jetsons, no clone
    "Orin, JetPack 6.2": (jetson(), dict.fromkeys(("onnx-gpu", "build", "rtx", "export", "train"), NO)),
    "Thor, JetPack 7.1": (thor(), dict.fromkeys(("onnx-gpu", "build", "rtx", "export", "train"), NO)),
    "laptop without a GPU": (laptop(), dict.fromkeys(("onnx-gpu", "plan", "build"), NO)),
    "nothing could be checked": ({}, dict.fromkeys(USES, NO)),
}


@pytest.mark.parametrize("name", MACHINES)
def test_states_of_a_machine(name):
    machine, differing = MACHINES[name]
    assert states(machine) == {**ALL_WORKS, **differing}


# (machine, use, state, part of the reason, part of the command)
VERDICTS = {
    "Orin runs plans": (jetson(), "plan", WORKS, "TensorRT 10.3.0 built and loaded a small plan", ""),
    "Thor runs plans of 10.13.3": (thor(), "plan", WORKS, "TensorRT 10.13.3.9", ""),
    "10.13.3 knows no Orin": (jetson(tensorrt=tensorrt("10.13.3.9")), "plan", NO, "no kernels for sm_87", "10.16.1"),
    "a TensorRT that is too old": (jetson(tensorrt=tensorrt("8.5.2")), "plan", NO, "older than 10.3", "JetPack 6.1"),
    "Orin builds when onnx is there": (jetson(onnx=missing("onnx")), "build", NO, "onnx is not", "pip install onnx"),
    "Orin needs NVIDIA's wheel": (jetson(), "onnx-gpu", NO, "without CUDA", "NVIDIA's onnxruntime-gpu wheel"),
    "closed environment on a Jetson": (
        changed(jetson(tensorrt=missing("tensorrt")), "system", in_virtual_environment="closed"),
        *("plan", NO, "does not see JetPack's TensorRT", "--system-site-packages"),
    ),
    "another Python than JetPack's": (
        changed(jetson(tensorrt=missing("tensorrt")), "system", python="3.12.1"),
        *("plan", NO, "is for Python 3.10, this is 3.12", "python3.10"),
    ),
    "a Jetson without TensorRT": (
        changed(jetson(tensorrt=missing("tensorrt")), "system", debian={}),
        *("plan", NO, "not installed", "apt-get install nvidia-jetpack"),
    ),
    "a Jetson without the bindings": (
        jetson(tensorrt=missing("tensorrt")),
        *("plan", NO, "bindings are not installed", "python3-libnvinfer"),
    ),
    "driver, no TensorRT": (
        desktop(tensorrt=missing("tensorrt"), tensorrt_rtx=missing("tensorrt_rtx")),
        *("plan", NO, "tensorrt is not installed", "requirements-tensorrt.txt"),
    ),
    "TensorRT-RTX alone runs its own plans": (
        desktop(tensorrt=missing("tensorrt")),
        *("plan", WORKS, "plans of TensorRT-RTX only", ""),
    ),
    "TensorRT-RTX alone builds no others": (
        desktop(tensorrt=missing("tensorrt")),
        *("build", NO, "tensorrt is not installed", "requirements-tensorrt.txt"),
    ),
    "TensorRT-RTX does not know data centres": (
        desktop(gpu=gpu("NVIDIA H200", 90), tensorrt=missing("tensorrt")),
        *("plan", NO, "no kernels for sm_90", "requirements-tensorrt.txt"),
    ),
    "TensorRT aborts": (
        desktop(tensorrt=Finding({"version": "10.16.1"}, "it crashed (SIGABRT)"), tensorrt_rtx=missing("tensorrt_rtx")),
        *("plan", NO, "TensorRT: it crashed (SIGABRT)", "requirements-tensorrt.txt"),
    ),
    "TensorRT without its builder": (
        desktop(tensorrt=tensorrt("10.16.1", "no builder resources"), tensorrt_rtx=missing("tensorrt_rtx")),
        *("plan", EXPECTED, "starts, but built no plan to try it with (no builder resources)", ""),
    ),
    "TensorRT without its builder builds nothing": (
        desktop(tensorrt=tensorrt("10.16.1", "no builder resources")),
        *("build", NO, "no builder resources", "requirements-tensorrt.txt"),
    ),
    "TensorRT that does not take its own plan": (
        desktop(
            tensorrt=Finding({**tensorrt("10.16.1", "x").values, "built_bytes": 9}, "cannot load the plan"),
            tensorrt_rtx=missing("tensorrt_rtx"),
        ),
        *("plan", NO, "cannot load the plan", "requirements-tensorrt.txt"),
    ),
    "a plan that was tried": (
        desktop(model=Finding({"file": "fp16.plan", "found": 9, "milliseconds": 2.5}), pycuda=missing("pycuda")),
        *("plan", WORKS, "fp16.plan found 9 parts", ""),
    ),
    "a stale plan that was tried": (
        desktop(model=Finding({"file": "fp16.plan"}, "fp16.plan was built by TensorRT 10.3.0")),
        *("plan", NO, "was built by TensorRT 10.3.0", "python export/build_engine.py"),
    ),
    "no pycuda": (desktop(pycuda=missing("pycuda")), "plan", NO, "pycuda is not installed", "pip install pycuda"),
    "no pycuda, but plans can be built": (desktop(pycuda=missing("pycuda")), "build", WORKS, "10.16.1.11", ""),
    "plugin library for another SM": (
        desktop(plugin_library=plugin_library("10.16.1", 110, 120)),
        *("plan", NO, "built for sm_110 sm_120, this GPU is sm_89", "--architectures 89"),
    ),
    "plugin library of old sources": (
        desktop(plugin_library=plugin_library("10.16.1", 89, old_sources=True)),
        *("build", NO, "other sources", "python plugins/build.py --kind plugins"),
    ),
    "plugin library for another TensorRT": (
        desktop(plugin_library=plugin_library("11.1.0", 89, problem="there is none for TensorRT 10.16.1.11")),
        *("plan", NO, "none for TensorRT 10.16.1.11", "python plugins/build.py --kind plugins"),
    ),
    "plugin library that TensorRT refuses": (
        desktop(plugin_registry=Finding(problem="libedgercnn_plugins.so could not be opened")),
        *("plan", NO, "could not be opened", "python plugins/build.py"),
    ),
    "plugin library not built, and no place for one": (
        changed(desktop(plugin_library=Finding(problem="not built yet")), "system", cache_problem="no cache"),
        *("plan", NO, "the plugin library: not built yet; no cache", "export EDGERCNN_CACHE"),
    ),
    "plugin library not built": (
        desktop(plugin_library=Finding(problem="it is not built yet")),
        *("plan", NO, "not built", "python plugins/build.py"),
    ),
    "ONNX Runtime without CUDA": (
        desktop(onnxruntime_cuda=Finding({"absent": True}, "this ONNX Runtime has no CUDAExecutionProvider")),
        *("onnx-gpu", NO, "was built without CUDA", "pip install onnxruntime-gpu"),
    ),
    "ONNX Runtime for the CPU over the other": (
        changed(
            desktop(onnxruntime_cuda=Finding({"absent": True}, "this ONNX Runtime has no CUDAExecutionProvider")),
            *("packages",),
            versions={"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"},
        ),
        *("onnx-gpu", NO, "installed over onnxruntime-gpu", "pip uninstall -y onnxruntime onnxruntime-gpu"),
    ),
    "CUDA libraries missing": (
        desktop(onnxruntime_cuda=Finding(problem="CUDAExecutionProvider could not start")),
        *("onnx-gpu", NO, "could not start", "[cuda,cudnn]"),
    ),
    "no ONNX Runtime": (
        desktop(onnxruntime=missing("onnxruntime")),
        "onnx",
        NO,
        "not installed",
        "pip install onnxrun",
    ),
    "no OpenCV": (desktop(onnxruntime=missing("cv2")), "onnx", NO, "cv2 is not", "pip install opencv-python"),
    "a broken model": (
        desktop(model=Finding({"file": "model.onnx"}, "model.onnx is cut off after 9 bytes")),
        *("onnx", NO, "cut off", "python export/to_onnx.py"),
    ),
    "a model that runs": (
        desktop(model=Finding({"file": "model.onnx", "found": 9, "milliseconds": 31.5})),
        *("onnx", WORKS, "model.onnx found 9 parts in a drawn picture, 31.5 ms", ""),
    ),
    "no GPU": (laptop(), "plan", NO, NO_GPU, ""),
    "RTX plans without a GPU": (laptop(), "rtx", WORKS, "built a small plan for sm_86", ""),
    "no TensorRT-RTX": (laptop(tensorrt_rtx=missing("tensorrt_rtx")), "rtx", NO, "not", "pip install tensorrt-rtx"),
    "RTX fails on the GPU only": (
        desktop(tensorrt_rtx=Finding({"version": "1.7", "ahead_of_time_bytes": 9}, "cannot load the plan")),
        *("rtx", WORKS, "for which it needs no GPU", ""),
    ),
    "no cache": (
        changed(desktop(), "system", cache_problem="EDGERCNN_CACHE is no folder"),
        *("plugins", NO, "compiled a kernel for sm_89, but EDGERCNN_CACHE is no folder", "export EDGERCNN_CACHE"),
    ),
    "no headers": (
        changed(desktop(), "toolchain", missing={"headers": "not found"}),
        *("plugins", NO, "kernels can be built, plugins not", "libnvinfer-headers-dev"),
    ),
    "no nvcc": (
        changed(desktop(), "toolchain", missing={"nvcc": "not found", "headers": "not found"}),
        *("plugins", NO, "nvcc is missing", "pip install 'cuda-toolkit[nvcc"),
    ),
    "no sources": (desktop(toolchain=missing("plugins")), "plugins", NO, "only a clone", ""),
    "nvcc that cannot compile": (
        desktop(toolchain=Finding({"missing": {}}, "nvcc 13.0 cannot compile (no cudart)")),
        *("plugins", NO, "cannot compile", ""),
    ),
    "torch of another torchvision": (
        changed(desktop(), "packages", versions={"torch": "2.11.0", "torchvision": "0.20.1"}),
        *("export", NO, "do not belong together", "requirements.txt"),
    ),
    "no torch": (changed(desktop(), "packages", importable=[]), "train", NO, "torch is not", "requirements.txt"),
    "OpenCV's own encoder": (desktop(video=Finding({"codec": "MPEG-4", "read": 8})), "write-video", WORKS, "few", ""),
    "no encoder": (
        desktop(video=Finding({"write_problem": "cannot encode", "read": 8})),
        *("write-video", NO, "cannot encode", "pip install av"),
    ),
    "no encoder, but reading works": (
        desktop(video=Finding({"write_problem": "cannot encode", "read": 8})),
        *("read-video", WORKS, "read 8 of 8", ""),
    ),
    "headless OpenCV": (
        changed(desktop(window=Finding(problem="no windows")), "packages", versions={"opencv-python-headless": "5"}),
        *("window", NO, "no windows", "pip uninstall -y opencv-python-headless"),
    ),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdict(name):
    machine, use, state, reason, command = VERDICTS[name]
    verdict = next(one for one in verdicts(Facts(machine)) if one.use == use)
    assert verdict.state == state, verdict
    assert reason in verdict.reason
    assert command in verdict.command if command else not verdict.command


WARNINGS = {
    "no cache": (changed(desktop(), "system", cache_problem="EDGERCNN_CACHE is no folder"), "set EDGERCNN_CACHE to"),
    "a driver older than nvcc": (
        desktop(gpu=gpu("RTX 4090", 89, cuda="12.4")),
        "nvcc 13.0.88 is newer than the driver",
    ),
    "two OpenCVs": (
        changed(desktop(), "packages", versions={"opencv-python": "5", "opencv-python-headless": "5"}),
        "overwrite each other",
    ),
    "other versions": (changed(desktop(), "packages", pins={"numpy": "2.2.6"}), "numpy 2.4.6 (2.2.6)"),
    "JetPack 5": (
        changed(jetson(), "system", jetson={"board": "Orin", "l4t": "35.4.1", "jetpack": "5.1.2"}),
        "JetPack 5.1.2 has TensorRT 8",
    ),
    "little memory": (changed(desktop(), "system", free_memory_bytes=3e8), "0.3 GB of memory"),
    "no kernels": (
        desktop(kernel_library=Finding(problem="it is not built yet")),
        "preprocessing on the CPU (it is not built yet): python plugins/build.py --kind cuda",
    ),
    "kernels for other GPUs": (desktop(kernel_library=kernel_library(110, 120)), "(it was built for other GPUs)"),
    "an old Python": (changed(desktop(), "system", python="3.9.2"), "Python 3.9 is older"),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_warning(name):
    machine, expected = WARNINGS[name]
    notes = report_mapping(machine, [])["notes"]
    assert [note for note in notes if expected in note], notes


@pytest.mark.parametrize("machine", [desktop(), jetson(), thor(), laptop()])
def test_a_machine_without_flaws_has_no_notes(machine):
    assert report_mapping(machine, [])["notes"] == []


def test_checks_out_of_time_claim_nothing():
    """Neither that something is missing nor that it should be installed: what helps is more time."""
    mend = "python runtime/doctor.py --timeout 240"
    late = Finding(problem="it gave no answer within 120 s", mend=mend, timed_out=True)
    machine = dict.fromkeys(desktop(), late)
    found = verdicts(Facts(machine))
    assert {(verdict.state, verdict.command) for verdict in found} == {(NO, mend)}
    text = format_report(Facts(machine), found)
    for claim in ("not installed", "install", "none", "not a Jetson", "not found", "build.py"):
        assert claim not in text, claim


def test_report_names_the_version():
    assert report_mapping(desktop(), [])["version"] == "0.1.0, commit 1a2b3c4"
    text = format_report(Facts(desktop()), verdicts(Facts(desktop())))
    assert text.startswith("EdgeRCNN     0.1.0, commit 1a2b3c4\n")


@pytest.mark.parametrize("name", MACHINES)
def test_report_fits_the_terminal(name):
    machine = MACHINES[name][0]
    found = verdicts(Facts(machine))
    text = format_report(Facts(machine), found)
    too_long = [line for line in text.splitlines() if len(line) > COLUMNS and not line.lstrip().startswith("->")]
    assert not too_long
    assert "\033" not in text
    assert all(verdict.title in text for verdict in found)
    assert all(f"-> {verdict.command}" in text for verdict in found if verdict.command)
    colored = format_report(Facts(machine), found, colors=True)
    assert "\033[33mno\033[0m" in colored or NO not in states(machine).values()
