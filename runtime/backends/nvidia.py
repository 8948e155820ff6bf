"""What this machine has of NVIDIA's, found without importing any of it: some libraries complain without a GPU."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import lru_cache

INTEGRATED, SM_MAJOR, SM_MINOR = 18, 75, 76  # CUdevice_attribute, cuda.h


@dataclass(frozen=True)
class Gpu:
    """One GPU, as the driver describes it."""

    index: int
    name: str
    sm: int  # compute capability without its dot: 87 for 8.7
    memory_bytes: int
    integrated: bool  # shares its memory with the CPU, as on a Jetson


@lru_cache(maxsize=1)
def gpu_count() -> int:
    """NVIDIA GPUs that the driver offers; 0 where there is no driver."""
    driver = _driver()
    count = ctypes.c_int(0)
    if driver is None or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


@lru_cache(maxsize=1)
def gpus() -> tuple[Gpu, ...]:
    """Every GPU that the driver offers; empty where there is no driver."""
    return tuple(_gpu(index) for index in range(gpu_count()))


@lru_cache(maxsize=1)
def driver_cuda_version() -> tuple[int, int] | None:
    """(major, minor) of the newest CUDA that the driver supports; None without a driver."""
    library = _library()
    version = ctypes.c_int(0)
    if library is None or library.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL | None:
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


@lru_cache(maxsize=1)
def _driver() -> ctypes.CDLL | None:
    """The driver's library, initialised; None where it is missing or finds no device."""
    library = _library()
    return library if library is not None and library.cuInit(0) == 0 else None


def _gpu(index: int) -> Gpu:
    driver = _driver()
    assert driver is not None, "gpu_count() found a driver"
    device, memory, name = ctypes.c_int(0), ctypes.c_size_t(0), ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(device), index)
    driver.cuDeviceGetName(name, len(name), device)
    driver.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    major, minor, integrated = (_attribute(driver, device, number) for number in (SM_MAJOR, SM_MINOR, INTEGRATED))
    return Gpu(index, name.value.decode(errors="replace"), 10 * major + minor, memory.value, bool(integrated))


def _attribute(driver: ctypes.CDLL, device: ctypes.c_int, number: int) -> int:
    value = ctypes.c_int(0)
    driver.cuDeviceGetAttribute(ctypes.byref(value), number, device)
    return value.value
