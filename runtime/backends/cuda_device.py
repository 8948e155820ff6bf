"""One GPU by way of pycuda, as little of it as a detector needs. The only importer of pycuda.

CUDA works on the context that is current in the calling thread, and a detector is prepared in one thread and run in
another. So everything here is called inside `with device.active():`, which also turns pycuda's errors into ours.

The context is the device's primary one, which TensorRT, our kernels and PyTorch use too. It is retained once and kept
until the process ends: pycuda leaves a released primary context current, which then fails whoever comes next.
"""

from __future__ import annotations

import contextlib
import importlib
import weakref
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from runtime.backends.nvidia import Gpu
from runtime.errors import BackendUnavailableError, RunError

NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the default stream, which cannot be captured


class DeviceBuffer:
    """Memory on the GPU. `address` is aligned to 256 bytes, as TensorRT wants it."""

    def __init__(self, allocation: Any, nbytes: int) -> None:
        self.address = int(allocation)
        self.nbytes = nbytes
        self._allocation: Any = allocation

    def free(self) -> None:
        """Give it back, at once. Nothing on the GPU may be using it."""
        if self._allocation is not None:
            self._allocation.free()
            self._allocation, self.address = None, 0


class TransferBuffer:
    """Pinned host memory, and where the GPU has the same bytes.

    On a GPU of its own that is device memory, and `upload` and `download` put a copy on a stream. On an integrated GPU,
    which shares the CPU's memory, it is the pinned memory itself, mapped: there is nothing to copy.
    """

    def __init__(self, device: CudaDevice, nbytes: int, what: str) -> None:
        self.nbytes = nbytes
        self._device = device
        self._pinned: Any = device.pinned_array(nbytes, what)
        self._memory: DeviceBuffer | None = None
        if device.gpu.integrated:
            self.address = int(self._pinned.base.get_device_pointer())
        else:
            try:
                self._memory = device.allocate(nbytes, what)
            except Exception:
                self._pinned.base.free()
                raise
            self.address = self._memory.address

    @property
    def host(self) -> np.ndarray:
        """uint8 [nbytes], the pinned memory itself."""
        assert self._pinned is not None, "the buffer has been freed"
        pinned: np.ndarray = self._pinned
        return pinned

    def upload(self, nbytes: int, stream: Any) -> None:
        """Bring the first `nbytes` to the GPU when `stream` gets there; the host side must stay as it is until then."""
        if self._memory is not None:
            self._device.driver.memcpy_htod_async(self.address, self.host[:nbytes], stream)

    def download(self, nbytes: int, stream: Any) -> None:
        """Bring the first `nbytes` to the host when `stream` gets there."""
        if self._memory is not None:
            self._device.driver.memcpy_dtoh_async(self.host[:nbytes], self.address, stream)

    def free(self) -> None:
        """Give both sides back, at once. Nothing on the GPU may be using them."""
        if self._memory is not None:
            self._memory.free()
            self._memory = None
        if self._pinned is not None:
            self._pinned.base.free()
            self._pinned, self.address = None, 0


class CudaDevice:
    """Memory, streams and events of one GPU.

    Raises:
        BackendUnavailableError: pycuda cannot be imported, or the GPU gives no context.
    """

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.driver, self._context = _primary_context(gpu.index)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make the context current in this thread for the length of the block; blocks may nest.

        Raises:
            BackendUnavailableError: the block ran out of memory.
            RunError: another call of CUDA's failed within the block.
        """
        try:
            self._context.push()
        except self.driver.Error as error:
            raise self._failure(error) from error
        try:
            yield
        except self.driver.MemoryError as error:
            raise self.out_of_memory("a buffer", None) from error
        except self.driver.Error as error:
            raise self._failure(error) from error
        finally:
            try:
                self._context.pop()
            except self.driver.Error:  # after a fault every call fails; left in pycuda's stack, it would abort at exit
                _detach(self._context, self.driver)

    def _failure(self, error: Exception) -> RunError:
        reason = " ".join(str(error).split())
        return RunError(f"the GPU {self.gpu.name} failed ({reason}): start the program again.")

    def free_memory(self) -> tuple[int, int]:
        """(free, total) bytes of GPU memory."""
        free, total = self.driver.mem_get_info()
        return int(free), int(total)

    def allocate(self, nbytes: int, what: str) -> DeviceBuffer:
        """GPU memory for `what`.

        Raises:
            BackendUnavailableError: there is not so much.
        """
        try:
            return DeviceBuffer(self.driver.mem_alloc(nbytes), nbytes)
        except self.driver.MemoryError as error:
            raise self.out_of_memory(what, nbytes) from error

    def pinned_array(self, nbytes: int, what: str) -> Any:
        """uint8 [nbytes] of host memory that the GPU can read and write; its `base` is pycuda's allocation.

        Raises:
            BackendUnavailableError: there is not so much.
        """
        flags = self.driver.host_alloc_flags.DEVICEMAP if self.gpu.integrated else 0
        try:
            return self.driver.pagelocked_empty(nbytes, np.uint8, mem_flags=flags)
        except self.driver.MemoryError as error:
            raise self.out_of_memory(f"{what} (pinned host memory)", nbytes) from error

    def out_of_memory(self, what: str, nbytes: int | None) -> BackendUnavailableError:
        """The error to raise; says how many bytes are needed (None: unknown) and free."""
        free, total = self.free_memory()
        needed = f"{what} needs {megabytes(nbytes)}" if nbytes is not None else f"{what} found no room"
        return BackendUnavailableError(
            f"{self.gpu.name} is out of memory: {needed}, and {megabytes(free)} of {megabytes(total)} are free; end "
            "other programs on the GPU, or build the plan for a smaller --batch or --size."
        )

    def stream(self) -> Any:
        """A stream of its own, which does not wait for the default stream."""
        return self.driver.Stream(NON_BLOCKING)

    def event(self) -> Any:
        """An event for order only; a thread that waits for it sleeps instead of taking a core from the others."""
        flags = self.driver.event_flags
        return self.driver.Event(int(flags.DISABLE_TIMING) | int(flags.BLOCKING_SYNC))


def megabytes(nbytes: int) -> str:
    """`12.3 MB`, with at least a tenth."""
    return f"{max(nbytes / 1e6, 0.1):.1f} MB" if nbytes else "0 MB"


@lru_cache(maxsize=8)
def _primary_context(index: int) -> tuple[Any, Any]:
    """(pycuda.driver, the primary context of that GPU), retained for the life of the process."""
    try:
        driver = importlib.import_module("pycuda.driver")
    except ImportError as error:
        reason = " ".join(str(error).split())
        raise BackendUnavailableError(
            f"running a plan needs pycuda, which cannot be imported here ({reason}): `pip install pycuda` (it is built "
            "with nvcc, so put /usr/local/cuda/bin on the PATH)."
        ) from error
    try:
        driver.init()
        context = driver.Device(index).retain_primary_context()
    except driver.Error as error:
        reason = " ".join(str(error).split())
        raise BackendUnavailableError(
            f"GPU {index} gives no CUDA context ({reason}): see what `nvidia-smi` says of it, and end what fills it."
        ) from error
    # At exit, after the finalizers of all that was made later. Left to its destructor, pycuda detaches a primary
    # context as if it were none, fails, and says so on stderr.
    weakref.finalize(_primary_context, _detach, context, driver)
    return driver, context


def _detach(context: Any, driver: Any) -> None:
    """Let go of the context; after a fault it may be gone already."""
    with contextlib.suppress(driver.Error):
        context.detach()
