"""pycuda on an NVIDIA GPU as the TensorRT backend uses it: memory, streams, events, graphs of the preprocessing kernel.

TensorRT is not needed: the network's place is taken by the download of what it would get. `make test-gpu`, with pycuda.
tests/runtime/test_cuda_device.py runs the same functions over the stand-ins.
"""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest

from plugins.build import build
from plugins.load import load_kernels
from runtime.backends import nvidia
from runtime.backends.cuda_device import CudaDevice, TransferBuffer
from runtime.backends.cuda_graph import GraphError, capture_graph
from runtime.backends.device_frame import DeviceFrame
from runtime.backends.tensorrt_buffers import SlotPool
from runtime.backends.tensorrt_preprocess import PreprocessKernel
from runtime.errors import BackendUnavailableError
from runtime.preprocess import NetworkInput, canvas_size, network_size, preprocess
from tests.plugins.test_preprocess_kernel import opencv_tolerance
from tests.runtime.test_preprocess import noise, spec_with

SIZES = [(480, 640), (101, 77), (64, 96)]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(nvidia.gpu_count() == 0, reason="no NVIDIA GPU with a driver on this machine"),
]


@pytest.fixture(scope="module", params=["own memory", "mapped memory"])
def device(request):
    """Mapped pinned memory works on any GPU; on an integrated one it is all there is."""
    pytest.importorskip("pycuda.driver", reason="pycuda is not installed: `pip install pycuda` where nvcc is")
    gpu = nvidia.gpus()[0]
    return CudaDevice(dataclasses.replace(gpu, integrated=gpu.integrated or request.param == "mapped memory"))


@pytest.fixture(scope="module")
def spec():
    return spec_with(64, 96)


@pytest.fixture(scope="module")
def kernel(spec):
    return PreprocessKernel(load_kernels(build("cuda")), spec)


class Bench:
    """What a plan's backend has, but for the plan."""

    def __init__(self, device, kernel, spec, sizes):
        batch = len(sizes)
        self.device, self.kernel, self.spec = device, kernel, spec
        self.canvas = canvas_size([network_size(size, spec) for size in sizes], spec)
        self.image_bytes, self.info_bytes = batch * 3 * self.canvas[0] * self.canvas[1] * 4, batch * 16
        self.copies, self.compute = device.stream(), device.stream()
        self.finished = device.event()
        self.slots = SlotPool(device)
        self.images = TransferBuffer(device, self.image_bytes, "images")
        self.im_info = TransferBuffer(device, self.info_bytes, "im_info")

    def describe(self, slot, frames):
        return self.kernel.describe(slot.place_frames(frames, self.copies), self.canvas)

    def enqueue(self, ops):
        self.kernel.launch(ops, self.images.address, self.im_info.address, self.compute)
        self.images.download(self.image_bytes, self.compute)
        self.im_info.download(self.info_bytes, self.compute)

    def read(self):
        self.finished.record(self.compute)
        self.finished.synchronize()
        images = self.images.host.view(np.float32).reshape(-1, 3, *self.canvas)
        return NetworkInput(images.copy(), self.im_info.host.view(np.float32).reshape(-1, 4).copy())

    def close(self):
        self.slots.close()
        self.images.free()
        self.im_info.free()


def check_equal(ours, frames, spec):
    theirs = preprocess(frames, spec)
    np.testing.assert_array_equal(ours.im_info, theirs.im_info)
    np.testing.assert_allclose(ours.images, theirs.images, rtol=0, atol=opencv_tolerance(frames, spec))


def test_bytes_come_back_as_they_went(device):
    data = np.random.default_rng(0).integers(0, 256, 1_000_003, np.uint8)
    with device.active():
        stream = device.stream()
        buffer = TransferBuffer(device, data.nbytes, "a buffer")
        assert buffer.address % 256 == 0
        buffer.host[:] = data
        buffer.upload(data.nbytes, stream)
        stream.synchronize()
        if not device.gpu.integrated:
            buffer.host[:] = 0
        buffer.download(data.nbytes, stream)
        stream.synchronize()
        np.testing.assert_array_equal(buffer.host, data)
        buffer.free()


def test_one_graph_launch_per_batch_in_two_slots(device, kernel, spec):
    """The backend's loop: plain, captured, launched; the frames change under the graph."""
    with device.active():
        bench = Bench(device, kernel, spec, SIZES)
        graphs = {}
        for turn in range(12):
            frames = [noise(*size, seed=10 * turn + index) for index, size in enumerate(SIZES)]
            with bench.slots.taken() as slot:
                ops = bench.describe(slot, frames)
                bench.compute.wait_for_event(slot.uploaded)
                if turn < 2:
                    bench.enqueue(ops)
                else:
                    key = bytes(ops[0])
                    if key not in graphs:
                        graphs[key] = capture_graph(bench.compute, lambda ops=ops: bench.enqueue(ops))
                    graphs[key].launch(bench.compute)
                check_equal(bench.read(), frames, spec)
            bench.slots.give_back(slot)
        assert len(graphs) == 2  # one per slot
        for graph in graphs.values():
            graph.close()
        bench.close()


def test_another_thread_uploads_and_allocates_during_a_capture(device, kernel, spec):
    with device.active():
        bench = Bench(device, kernel, spec, SIZES[:1])
        frames = [noise(*SIZES[0])]
        with bench.slots.taken() as slot:
            ops = bench.describe(slot, frames)
        bench.compute.wait_for_event(slot.uploaded)
        bench.enqueue(ops)
        bench.read()
        wrong = []

        def other():
            try:
                with device.active():
                    stream, buffer = device.stream(), TransferBuffer(device, 1 << 20, "a buffer of another thread")
                    buffer.upload(1 << 20, stream)
                    stream.synchronize()
                    buffer.free()
                    del stream, buffer  # pycuda destroys them where their context is current, or not at all
            except BaseException as error:
                wrong.append(error)

        def work():
            thread = threading.Thread(target=other)
            bench.enqueue(ops)
            thread.start()
            thread.join()

        graph = capture_graph(bench.compute, work)
        assert not wrong
        bench.images.host[:] = 0
        graph.launch(bench.compute)
        check_equal(bench.read(), frames, spec)
        graph.close()
        bench.slots.give_back(slot)
        bench.close()


def test_what_cannot_be_captured_leaves_the_stream_usable(device, kernel, spec):
    with device.active():
        bench = Bench(device, kernel, spec, SIZES[1:2])
        frames = [noise(*SIZES[1])]
        with bench.slots.taken() as slot:
            ops = bench.describe(slot, frames)
        bench.compute.wait_for_event(slot.uploaded)
        with pytest.raises(GraphError):
            capture_graph(bench.compute, bench.compute.synchronize)
        with pytest.raises(GraphError, match="division"):
            capture_graph(bench.compute, lambda: 1 // 0)
        bench.enqueue(ops)
        check_equal(bench.read(), frames, spec)
        bench.slots.give_back(slot)
        bench.close()


def test_frames_that_are_on_the_gpu(device, kernel, spec):
    frame = noise(*SIZES[0])
    with device.active():
        bench = Bench(device, kernel, spec, SIZES[:1])
        pitch = 2048
        rows = np.zeros((frame.shape[0], pitch), np.uint8)
        rows[:, : 3 * frame.shape[1]] = frame.reshape(frame.shape[0], -1)
        memory = TransferBuffer(device, rows.nbytes, "a frame")
        memory.host[:] = rows.reshape(-1)
        memory.upload(rows.nbytes, bench.compute)
        ops = kernel.describe([DeviceFrame(memory.address, *frame.shape[:2], pitch)], bench.canvas)
        bench.enqueue(ops)
        check_equal(bench.read(), [frame], spec)
        memory.free()
        bench.close()


def test_memory_that_is_not_there_is_one_sentence(device):
    with device.active():
        with pytest.raises(BackendUnavailableError, match=r"is out of memory: a dream needs .* MB are free"):
            device.allocate(1 << 46, "a dream")
        device.allocate(1 << 20, "what is there").free()


def test_pytorch_works_on_in_the_same_thread(device):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("this PyTorch finds no CUDA: it is a CPU build, or newer than the driver")
    before = torch.ones(3, device="cuda")
    with device.active():
        buffer = device.allocate(1 << 20, "a buffer")
        assert (before + 1).sum().item() == 6
        buffer.free()
    assert (before + 2).sum().item() == 9
