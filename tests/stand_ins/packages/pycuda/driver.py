"""Stand-in for pycuda.driver: the part that runtime/backends/cuda_device.py uses, with pycuda's signatures."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.stand_ins.machine import CudaFailure, Memory, machine
from tests.stand_ins.machine import Stream as _MachineStream


class Error(Exception):
    pass


class MemoryError(Error):
    pass


class LogicError(Error):
    pass


class host_alloc_flags:
    PORTABLE, DEVICEMAP, WRITECOMBINED = 1, 2, 4


class event_flags:
    DEFAULT, BLOCKING_SYNC, DISABLE_TIMING = 0, 1, 2


@contextlib.contextmanager
def _errors(function: str) -> Iterator[None]:
    try:
        with machine().lock:
            yield
    except CudaFailure as error:
        kind = MemoryError if error.code == 2 else LogicError
        raise kind(f"{function} failed: {error.text}") from None


def init(flags: int = 0) -> None:
    machine().count("cuInit")


class Device:
    def __init__(self, index: int) -> None:
        assert index == 0
        assert machine().counts.get("cuInit"), "init() comes first"

    def retain_primary_context(self) -> Context:
        machine().context_thread = threading.get_ident()
        return Context()


class Context:
    def push(self) -> None:
        machine().context_stack().append(self)

    def detach(self) -> None:
        pass

    @staticmethod
    def pop() -> None:
        with _errors("m_stack::pop"):
            machine().check_context()
            machine().context_stack().pop()


def mem_get_info() -> tuple[int, int]:
    with _errors("cuMemGetInfo"):
        machine().check_context()
        return machine().total_bytes - machine().used_bytes, machine().total_bytes


class DeviceAllocation:
    def __init__(self, memory: Memory) -> None:
        self._memory = memory

    def __int__(self) -> int:
        return self._memory.address

    def free(self) -> None:
        with _errors("cuMemFree"):
            machine().free(self._memory)


def mem_alloc(nbytes: int) -> DeviceAllocation:
    with _errors("cuMemAlloc"):
        return DeviceAllocation(machine().allocate(nbytes, device=True, pinned=False))


class PagelockedHostAllocation:
    def __init__(self, nbytes: int, flags: int) -> None:
        with _errors("cuMemHostAlloc"):
            mapped = bool(flags & host_alloc_flags.DEVICEMAP)
            self._memory = machine().allocate(nbytes, device=mapped, pinned=True)
        self.__array_interface__ = self._memory.array.__array_interface__

    def get_device_pointer(self) -> int:
        assert self._memory.device, "not allocated with DEVICEMAP"
        return self._memory.address

    def free(self) -> None:
        with _errors("cuMemFreeHost"):
            machine().free(self._memory)


def pagelocked_empty(shape: int, dtype: Any, order: str = "C", mem_flags: int = 0) -> np.ndarray:
    allocation = PagelockedHostAllocation(shape * np.dtype(dtype).itemsize, mem_flags)
    return np.asarray(allocation).view(dtype) if np.dtype(dtype) != np.uint8 else np.asarray(allocation)


class Stream:
    def __init__(self, flags: int = 0) -> None:
        with _errors("cuStreamCreate"):
            machine().check_context()
            assert flags == 1, "a stream that waits for the default stream cannot be captured beside other work"
            self._stream = _MachineStream(machine(), flags)
            machine().streams[self._stream.handle] = self._stream
            weakref.finalize(self, machine().check_destruction, "a stream")

    @property
    def handle(self) -> int:
        return self._stream.handle

    def synchronize(self) -> None:
        with _errors("cuStreamSynchronize"):
            machine().check_context()
            machine().check_may_block()
            self._stream.drain()

    def wait_for_event(self, event: Event) -> None:
        with _errors("cuStreamWaitEvent"):
            machine().check_context()
            assert self._stream.capture is None, "an event from outside of a capture spoils it"
            if event._mark is not None:
                stream, position = event._mark
                self._stream.add(lambda: stream.drain(position))


class Event:
    def __init__(self, flags: int = 0) -> None:
        with _errors("cuEventCreate"):
            machine().check_context()
        weakref.finalize(self, machine().check_destruction, "an event")
        self._mark: tuple[_MachineStream, int] | None = None

    def record(self, stream: Stream) -> Event:
        with _errors("cuEventRecord"):
            machine().check_context()
            assert stream is not None, "the default stream"
            self._mark = (stream._stream, stream._stream.put)
        return self

    def synchronize(self) -> Event:
        with _errors("cuEventSynchronize"):
            machine().check_context()
            machine().check_may_block()
            if self._mark is not None:
                stream, position = self._mark
                stream.drain(position)
        return self


def memcpy_htod_async(dest: int, src: np.ndarray, stream: Stream) -> None:
    with _errors("cuMemcpyHtoDAsync"):
        machine().check_context()
        machine().check_pinned(src)
        machine().count("uploads")

        def copy() -> None:
            machine().check_pinned(src)
            machine().on_device(dest, src.nbytes)[:] = src.reshape(-1).view(np.uint8)

        stream._stream.add(copy)


def memcpy_dtoh_async(dest: np.ndarray, src: int, stream: Stream) -> None:
    with _errors("cuMemcpyDtoHAsync"):
        machine().check_context()
        machine().check_pinned(dest)
        machine().count("downloads")

        def copy() -> None:
            machine().check_pinned(dest)
            dest.reshape(-1).view(np.uint8)[:] = machine().on_device(src, dest.nbytes)

        stream._stream.add(copy)
