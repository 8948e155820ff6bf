"""Where batches wait for the engine: two slots, so that one is filled and uploaded while the other is computed.

Shapes: B images, H x W the network's canvas.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from runtime.backends.cuda_device import CudaDevice, TransferBuffer
from runtime.backends.device_frame import DeviceFrame
from runtime.errors import RunError

SLOTS = 2
CLOSED = "the detector is closed: open it again to run it."
WAIT_S = 600.0  # for a slot; a batch takes milliseconds, but TensorRT-RTX compiles its kernels in the first one
ALIGNMENT = 256  # of each frame in a slot: whole memory transactions
GROWTH = 1.25  # so that a folder of images of mixed sizes does not allocate for each


class Slot:
    """One place. Its buffers are made when they are first needed, and made larger when they must be."""

    def __init__(self, device: CudaDevice) -> None:
        self.uploaded: Any = device.event()  # after what `place_*` has put on the copy stream
        self._device = device
        self._buffers: dict[str, TransferBuffer] = {}

    def place_frames(self, frames: Sequence[np.ndarray], stream: Any) -> list[DeviceFrame]:
        """Copy BGR frames into pinned memory and start their upload."""
        self.uploaded.synchronize()  # of a batch that was dropped, the upload may still be under way
        offsets, total = [], 0
        for frame in frames:
            offsets.append(total)
            total += -(-frame.nbytes // ALIGNMENT) * ALIGNMENT
        buffer = self._buffer("frames", total, GROWTH)
        for frame, offset in zip(frames, offsets):
            np.copyto(buffer.host[offset : offset + frame.nbytes].reshape(frame.shape), frame)
        buffer.upload(total, stream)
        self.uploaded.record(stream)
        return [
            DeviceFrame(buffer.address + offset, frame.shape[0], frame.shape[1], 3 * frame.shape[1])
            for frame, offset in zip(frames, offsets)
        ]

    def place_images(self, images: np.ndarray, im_info: np.ndarray, batch: int, stream: Any) -> tuple[int, int]:
        """Copy prepared images, the last one repeated up to `batch`, and start their upload; returns both addresses."""
        self.uploaded.synchronize()
        addresses = []
        for name, array in (("images", images), ("im_info", im_info)):
            buffer = self._buffer(name, batch * array[0].nbytes, 1.0)
            rows = buffer.host[: batch * array[0].nbytes].view(np.float32).reshape(batch, *array.shape[1:])
            rows[: len(array)] = array
            rows[len(array) :] = array[-1]
            buffer.upload(rows.nbytes, stream)
            addresses.append(buffer.address)
        self.uploaded.record(stream)
        return addresses[0], addresses[1]

    def free(self) -> None:
        """Free all buffers; the streams must have finished with them."""
        self.uploaded.synchronize()
        for buffer in self._buffers.values():
            buffer.free()
        self._buffers.clear()
        self.uploaded = None

    def _buffer(self, name: str, nbytes: int, growth: float) -> TransferBuffer:
        buffer = self._buffers.get(name)
        if buffer is not None and buffer.nbytes >= nbytes:
            return buffer
        if buffer is not None:
            del self._buffers[name]
            buffer.free()
            nbytes = int(nbytes * growth)
        self._buffers[name] = TransferBuffer(self._device, nbytes, f"the buffer for {name}")
        return self._buffers[name]


class SlotPool:
    """Hands slots out, each to one batch at a time."""

    def __init__(self, device: CudaDevice) -> None:
        self._device = device
        self._free = [Slot(device) for _ in range(SLOTS)]
        self._changed = threading.Condition()
        self._closed = False

    def take(self) -> Slot:
        """A free slot, waiting for one.

        Raises:
            RunError: none came free within a minute, or the detector was closed meanwhile.
        """
        with self._changed:
            in_time = self._changed.wait_for(lambda: self._closed or self._free, WAIT_S)
            if self._closed:
                raise RunError(CLOSED)
            if not in_time:
                raise RunError(
                    f"no place for another batch in {WAIT_S:g} s: {SLOTS} prepared batches wait to be inferred; infer "
                    "them, or call release() on them."
                )
            return self._free.pop(0)

    @contextlib.contextmanager
    def taken(self) -> Iterator[Slot]:
        """A free slot, with the device active; given back if the block raises, else by who gets it.

        Raises:
            RunError: see `take`.
        """
        slot = self.take()
        try:
            with self._device.active():
                yield slot
        except BaseException:
            self.give_back(slot)
            raise

    def give_back(self, slot: Slot) -> None:
        """It may be filled again."""
        with self._changed:
            if not self._closed:
                self._free.append(slot)
                self._changed.notify()
                return
        with self._device.active():
            slot.free()

    def close(self) -> None:
        """Free the slots, those in use as soon as they are given back, and turn away who waits for one."""
        with self._changed:
            self._closed = True
            idle, self._free = self._free, []
            self._changed.notify_all()
        for slot in idle:
            slot.free()


class StagedBatch:
    """A batch in a slot, described for the engine. Dropping it without running it gives the slot back."""

    def __init__(
        self,
        pool: SlotPool,
        slot: Slot,
        *,
        count: int,
        shape: tuple[int, int, int, int],
        addresses: tuple[int, int],
        ops: Sequence[Any] = (),
        uploads: bool = True,
    ) -> None:
        self.count = count  # frames given; the batch may be filled up beyond them
        self.shape = shape  # of the images, [B, 3, H, W]
        self.addresses = addresses  # of images and im_info
        self.ops = ops  # parameters of the preprocessing kernel, which writes there; none: they are uploaded there
        self.uploaded = slot.uploaded if uploads else None  # the event to wait for
        self._pool = pool
        self._slot: Slot | None = slot

    @property
    def key(self) -> Hashable:
        """Equal for batches that one graph can run: same shape, same addresses, same parameters."""
        return self.shape, self.addresses, tuple(bytes(op) for op in self.ops)

    @property
    def is_released(self) -> bool:
        """It has been run, or given up."""
        return self._slot is None

    def is_of(self, pool: SlotPool) -> bool:
        """Whether its slot belongs to that pool."""
        return self._pool is pool

    def release(self) -> None:
        """Give the slot back; a second time does nothing."""
        slot, self._slot = self._slot, None
        self.uploaded = None  # the event is the slot's, which destroys it in its context
        if slot is not None:
            self._pool.give_back(slot)

    def __del__(self) -> None:
        self.release()
