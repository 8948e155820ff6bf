"""The functions of tests/gpu/test_cuda_device.py over the stand-ins, so that they are right when a GPU comes."""

from __future__ import annotations

import dataclasses

import pytest

from runtime.backends.cuda_device import CudaDevice
from runtime.backends.tensorrt_preprocess import PreprocessKernel
from tests.gpu import test_cuda_device as on_gpu
from tests.runtime.conftest import GPU
from tests.runtime.test_preprocess import spec_with
from tests.stand_ins.kernels import KernelsLibrary


@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize(
    "check",
    [
        on_gpu.test_one_graph_launch_per_batch_in_two_slots,
        on_gpu.test_another_thread_uploads_and_allocates_during_a_capture,
        on_gpu.test_what_cannot_be_captured_leaves_the_stream_usable,
        on_gpu.test_frames_that_are_on_the_gpu,
    ],
)
def test_with_the_kernel(machine, check, integrated):
    spec = spec_with(64, 96)
    check(CudaDevice(dataclasses.replace(GPU, integrated=integrated)), PreprocessKernel(KernelsLibrary(), spec), spec)
    assert (machine.used_bytes, machine.pinned_bytes) == (0, 0)


@pytest.mark.parametrize("integrated", [False, True])
@pytest.mark.parametrize(
    "check", [on_gpu.test_bytes_come_back_as_they_went, on_gpu.test_memory_that_is_not_there_is_one_sentence]
)
def test_without_it(machine, check, integrated):
    check(CudaDevice(dataclasses.replace(GPU, integrated=integrated)))
    assert (machine.used_bytes, machine.pinned_bytes) == (0, 0)
