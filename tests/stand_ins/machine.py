"""The GPU behind the stand-ins: memory, streams, events, graphs, contexts.

Work on a stream is done as late as CUDA may do it: when somebody waits. So a missing wait shows as wrong results. What
CUDA leaves undefined (memory that is freed, foreign or too small) is an AssertionError here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

ALIGNMENT = 512
Work = Callable[[], None]


class CudaFailure(Exception):
    """A CUresult that is not success; the packages turn it into their own errors."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code, self.text = code, text


INVALID_CONTEXT = (201, "invalid device context")
OUT_OF_MEMORY = (2, "out of memory")
CAPTURE_UNSUPPORTED = (900, "operation not permitted when stream is capturing")
CAPTURE_INVALIDATED = (901, "operation failed due to a previous error during capture")
CAPTURE_WRONG_THREAD = (908, "attempt to terminate a thread-local capture sequence from another thread")
INVALID_HANDLE = (400, "invalid resource handle")


@dataclass
class Memory:
    """One allocation. `device` says whether the GPU may use the address, `pinned` whether a copy may run beside."""

    array: np.ndarray
    device: bool
    pinned: bool
    freed: bool = False

    @property
    def address(self) -> int:
        return self.array.ctypes.data


class Stream:
    """Operations in order; those of a capture go into it instead."""

    def __init__(self, machine: Machine, flags: int) -> None:
        self.machine, self.flags = machine, flags
        self.handle = machine.new_handle()
        self.queue: list[Work] = []
        self.done = 0  # operations ever executed
        self.put = 0  # operations ever put
        self.capture: list[Work] | None = None
        self.capture_thread: int | None = None
        self.capture_valid = True

    def add(self, work: Work) -> None:
        if self.capture is not None:
            self.capture.append(work)
        else:
            self.queue.append(work)
            self.put += 1

    def drain(self, until: int | None = None) -> None:
        while self.queue and (until is None or self.done < until):
            work = self.queue.pop(0)
            work()
            self.done += 1


@dataclass
class Machine:
    """One GPU. Set the fields to make it fail."""

    total_bytes: int = 1 << 30
    pinned_limit: int = 1 << 30
    used_bytes: int = 0
    pinned_bytes: int = 0
    refuse_capture: bool = False  # TensorRT synchronises within enqueue, as some layers do
    refuse_running: bool = False
    memories: list[Memory] = field(default_factory=list)
    streams: dict[int, Stream] = field(default_factory=dict)
    graphs: dict[int, list[Work]] = field(default_factory=dict)
    executables: dict[int, list[Work]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.RLock)
    contexts: Any = field(default_factory=threading.local)
    next_handle: int = 0x1000
    context_thread: int | None = None  # that retained the primary context
    leaked: list[str] = field(default_factory=list)  # what pycuda could not destroy, and warned of

    def new_handle(self) -> int:
        self.next_handle += 16
        return self.next_handle

    def count(self, name: str) -> None:
        self.counts[name] = self.counts.get(name, 0) + 1

    # --- contexts

    def context_stack(self) -> list[Any]:
        if not hasattr(self.contexts, "stack"):
            self.contexts.stack = []
        stack: list[Any] = self.contexts.stack
        return stack

    def check_context(self) -> None:
        if not self.context_stack():
            raise CudaFailure(*INVALID_CONTEXT)

    def check_destruction(self, what: str) -> None:
        """pycuda makes an object's context current to destroy it, but only in the thread that retained the context."""
        if not self.context_stack() and threading.get_ident() != self.context_thread:
            self.leaked.append(what)

    # --- capture

    def check_may_block(self) -> None:
        """Allocations, frees and waits end a capture of the same thread."""
        for stream in self.streams.values():
            if stream.capture is not None and stream.capture_thread == threading.get_ident():
                stream.capture_valid = False
                raise CudaFailure(*CAPTURE_UNSUPPORTED)

    def stream(self, handle: int) -> Stream:
        assert handle, "the default stream cannot be captured and waits for everybody"
        if handle not in self.streams:
            raise CudaFailure(*INVALID_HANDLE)
        return self.streams[handle]

    # --- memory

    def allocate(self, nbytes: int, *, device: bool, pinned: bool) -> Memory:
        self.check_context()
        self.check_may_block()
        assert nbytes > 0, "CUDA refuses allocations of 0 bytes"
        if not pinned and self.used_bytes + nbytes > self.total_bytes:
            raise CudaFailure(*OUT_OF_MEMORY)
        if pinned and self.pinned_bytes + nbytes > self.pinned_limit:
            raise CudaFailure(*OUT_OF_MEMORY)
        raw = np.full(nbytes + ALIGNMENT, 0xDD, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        memory = Memory(raw[start : start + nbytes], device, pinned)
        self.memories.append(memory)
        if pinned:
            self.pinned_bytes += nbytes
        else:
            self.used_bytes += nbytes
        return memory

    def free(self, memory: Memory) -> None:
        self.check_context()
        self.check_may_block()
        self.discard(memory)

    def discard(self, memory: Memory) -> None:
        """Free what an object held that is going away: TensorRT needs no context for that."""
        assert not memory.freed, "freed twice"
        memory.freed = True
        memory.array[:] = 0xEE
        if memory.pinned:
            self.pinned_bytes -= memory.array.nbytes
        else:
            self.used_bytes -= memory.array.nbytes

    def on_device(self, address: int, nbytes: int) -> np.ndarray:
        """The bytes behind a device pointer."""
        for memory in reversed(self.memories):
            offset = address - memory.address
            if 0 <= offset < memory.array.nbytes and memory.device:
                assert not memory.freed, f"{address:#x} has been freed"
                assert offset + nbytes <= memory.array.nbytes, f"{nbytes} bytes at {address:#x} run over the end"
                return memory.array[offset : offset + nbytes]
        raise AssertionError(f"{address:#x} is no address of the GPU's")

    def check_pinned(self, array: np.ndarray) -> None:
        assert array.flags["C_CONTIGUOUS"], "copies want contiguous memory"
        for memory in self.memories:
            offset = array.ctypes.data - memory.address
            if memory.pinned and offset >= 0 and offset + array.nbytes <= memory.array.nbytes:
                assert not memory.freed, "the pinned memory has been freed"
                return
        raise AssertionError("a copy from or to pageable memory is not asynchronous")


class DriverLibrary:
    """libcuda, as far as runtime/backends/cuda_graph.py calls it. Arguments are those that ctypes would take."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def cuStreamBeginCapture_v2(self, handle: int, mode: int) -> int:
        if not self.machine.context_stack():
            return INVALID_CONTEXT[0]
        assert mode == 1, "only a thread-local capture leaves the other threads alone"
        stream = self.machine.streams.get(handle)
        if stream is None or stream.capture is not None:
            return CAPTURE_UNSUPPORTED[0]
        stream.capture, stream.capture_thread, stream.capture_valid = [], threading.get_ident(), True
        return 0

    def cuStreamEndCapture(self, handle: int, graph: Any) -> int:
        stream = self.machine.streams[handle]
        if stream.capture_thread != threading.get_ident():
            return CAPTURE_WRONG_THREAD[0]
        captured, stream.capture = stream.capture, None
        if not stream.capture_valid or captured is None:
            return CAPTURE_INVALIDATED[0]
        graph._obj.value = self.machine.new_handle()
        self.machine.graphs[graph._obj.value] = captured
        return 0

    def cuGraphInstantiateWithFlags(self, executable: Any, graph: Any, flags: int) -> int:
        if graph.value not in self.machine.graphs:
            return INVALID_HANDLE[0]
        executable._obj.value = self.machine.new_handle()
        self.machine.executables[executable._obj.value] = list(self.machine.graphs[graph.value])
        return 0

    def cuGraphLaunch(self, executable: Any, handle: int) -> int:
        if not self.machine.context_stack():
            return INVALID_CONTEXT[0]
        if executable.value not in self.machine.executables:
            return INVALID_HANDLE[0]
        if self.machine.refuse_running:
            return 700
        self.machine.count("graph launches")
        for work in self.machine.executables[executable.value]:
            self.machine.stream(handle).add(work)
        return 0

    def cuGraphDestroy(self, graph: Any) -> int:
        return 0 if self.machine.graphs.pop(graph.value, None) is not None else INVALID_HANDLE[0]

    def cuGraphExecDestroy(self, executable: Any) -> int:
        return 0 if self.machine.executables.pop(executable.value, None) is not None else INVALID_HANDLE[0]

    def cuGetErrorString(self, status: int, text: Any) -> int:
        texts = dict((CAPTURE_UNSUPPORTED, CAPTURE_INVALIDATED, INVALID_HANDLE))
        text._obj.value = texts.get(status, "another error").encode()
        return 0


_current: list[Machine] = []


def machine() -> Machine:
    """The machine of the running test."""
    return _current[-1]


def install(new: Machine) -> None:
    _current[:] = [new]
