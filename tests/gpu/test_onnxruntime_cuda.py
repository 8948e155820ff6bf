"""What CI cannot run: ONNX Runtime's CUDA and TensorRT providers through our backend. `make test-gpu`."""

from __future__ import annotations

import importlib.util
import threading

import numpy as np
import pytest

from export.to_onnx import export_onnx
from runtime.backends.nvidia import gpu_count
from runtime.backends.onnxruntime_providers import CPU, CUDA, TENSORRT
from runtime.detector import open_detector
from training.checkpoint import load_checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(gpu_count() == 0, reason="no NVIDIA GPU with a driver on this machine"),
]


@pytest.fixture(scope="module")
def model_path(demo, tmp_path_factory):
    path = tmp_path_factory.mktemp("demo") / "model.onnx"
    export_onnx(*load_checkpoint(demo), path)
    return path


@pytest.mark.parametrize(("asked", "first"), [(["cuda", "cpu"], CUDA), (["tensorrt", "cuda", "cpu"], TENSORRT)])
def test_a_provider_detects_what_the_cpu_detects(model_path, frames, check_same, asked, first):
    if first == TENSORRT and importlib.util.find_spec("tensorrt") is None:
        pytest.skip("TensorRT is not installed")
    with open_detector(model_path, providers=["cpu"]) as cpu, open_detector(model_path, providers=asked) as gpu:
        print(gpu.description)
        backend = gpu._backend
        assert backend.providers[0] == first
        assert backend.placement.get(first, 0) > 0, "the provider took no node"
        check_same(gpu.description, cpu(frames), gpu(frames), cpu.spec.detection)
        check_same("one by one", cpu(frames), [gpu([frame])[0] for frame in frames], cpu.spec.detection)


def test_outputs_are_the_callers(model_path, frames):
    with open_detector(model_path, providers=["cuda", "cpu"]) as gpu:
        first = gpu.infer(gpu.prepare(frames[:1]))
        kept = [array.copy() for array in first]
        gpu.infer(gpu.prepare(frames[1:2]))
    for array, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_clones_run_in_threads(model_path, frames, check_same):
    with open_detector(model_path, providers=["cuda", "cpu"]) as gpu:
        reference = gpu(frames)
        found = {}
        clones = [gpu.clone() for _ in range(2)]
        threads = [
            threading.Thread(target=lambda number=number: found.update({number: clones[number](frames)}))
            for number in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(2):
            check_same(f"clone {number}", reference, found[number], gpu.spec.detection)


def test_without_a_wish_cuda_comes_before_the_cpu(model_path):
    with open_detector(model_path) as detector:
        assert detector._backend.providers == [CUDA, CPU]
