"""What one TensorRT backend holds on the GPU, and how all of it is freed in the right order."""

from __future__ import annotations

import threading
from typing import Any

from runtime.backends.cuda_device import CudaDevice, DeviceBuffer
from runtime.backends.tensorrt_buffers import CLOSED, SlotPool
from runtime.backends.tensorrt_engine import PlanEngine
from runtime.backends.tensorrt_preprocess import PreprocessKernel
from runtime.backends.tensorrt_runner import EngineRunner
from runtime.errors import RunError

FLOAT_BYTES = 4


class PlanResources:
    """Slots, streams, buffers and execution context. Knows nothing of the backend, so that it can outlive and close it.

    Raises:
        BackendUnavailableError: not enough memory.
        RunError: TensorRT gives no execution context.
    """

    def __init__(self, device: CudaDevice, engine: PlanEngine, kernel: PreprocessKernel | None) -> None:
        self.runner: EngineRunner | None = None
        self.copy_stream: Any = None
        self._device = device
        self._engine: PlanEngine | None = engine
        self._prepared: list[DeviceBuffer] = []  # images and im_info
        self._closing = threading.Lock()
        with device.active():
            self.slots = SlotPool(device)
            try:
                self.copy_stream = device.stream()
                self.runner = EngineRunner(device, engine, kernel)
                if kernel is not None:
                    images = FLOAT_BYTES * int(engine.max_images[0] * 3 * engine.max_images[2] * engine.max_images[3])
                    self._prepared.append(device.allocate(images, "the network's input"))
                    self._prepared.append(device.allocate(FLOAT_BYTES * 4 * engine.max_batch, "im_info"))
            except BaseException:
                self.close()
                raise

    @property
    def engine(self) -> PlanEngine:
        """The shared engine.

        Raises:
            RunError: the detector has been closed.
        """
        if self._engine is None:
            raise RunError(CLOSED)
        return self._engine

    def running(self) -> EngineRunner:
        """The runner.

        Raises:
            RunError: the detector has been closed.
        """
        if self.runner is None:
            raise RunError(CLOSED)
        return self.runner

    def network_input(self) -> tuple[int, int]:
        """Addresses of images and im_info that the kernel writes and the engine reads.

        One of each is enough for both slots, because batches are computed in turn.
        """
        images, im_info = self._prepared
        return images.address, im_info.address

    def close(self) -> None:
        """Free everything; a second time does nothing. Waits for a batch that is being computed.

        Nothing of pycuda's or TensorRT's may outlive the block: they are destroyed in the context that is current.
        """
        with self._closing, self._device.active():
            if self.runner is not None:
                self.runner.close()
                self.runner = None
            if self.copy_stream is not None:
                self.copy_stream.synchronize()
                self.copy_stream = None
            self.slots.close()
            for buffer in self._prepared:
                buffer.free()
            self._prepared, self._engine = [], None
