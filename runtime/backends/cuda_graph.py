"""CUDA graphs by the driver's own functions: pycuda wraps neither stream capture nor graphs.

Capture is thread-local: what other threads do meanwhile (uploads on another stream, their allocations) neither enters
the graph nor spoils it; calls that wait or allocate are refused in the capturing thread only.
Ref: https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__STREAM.html and group__CUDA__GRAPH.html
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
Handle = ctypes.c_void_p
# name: the types of its arguments; all return a CUresult, 0 for success
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cuStreamBeginCapture_v2": (Handle, ctypes.c_int),
    "cuStreamEndCapture": (Handle, ctypes.POINTER(Handle)),
    "cuGraphInstantiateWithFlags": (ctypes.POINTER(Handle), Handle, ctypes.c_ulonglong),  # CUDA 11.4
    "cuGraphLaunch": (Handle, Handle),
    "cuGraphDestroy": (Handle,),
    "cuGraphExecDestroy": (Handle,),
    "cuGetErrorString": (ctypes.c_int, ctypes.POINTER(ctypes.c_char_p)),
}


class GraphError(Exception):
    """A capture, instantiation or launch that the driver refused."""


class Graph:
    """An instantiated graph. The addresses in it must stay valid; launch and close want the context current."""

    def __init__(self, handle: ctypes.c_void_p) -> None:
        self._handle: ctypes.c_void_p | None = handle

    def launch(self, stream: Any) -> None:
        """Put one run of the whole graph on `stream`.

        Raises:
            GraphError: the driver refused.
        """
        _call("cuGraphLaunch", self._handle, stream.handle)

    def close(self) -> None:
        """Free it. A run of it must not be under way."""
        if self._handle is not None:
            driver_library().cuGraphExecDestroy(self._handle)
            self._handle = None


def capture_graph(stream: Any, work: Callable[[], None]) -> Graph:
    """What `work` puts on `stream` (not the default one), without running it.

    Raises:
        GraphError: the driver refused; or `work` raised, which is then the cause.
    """
    failure: Exception | None = None
    template = Handle()
    with _no_garbage_collection():
        _call("cuStreamBeginCapture_v2", stream.handle, THREAD_LOCAL)
        try:
            work()
        except Exception as error:  # whatever it is: the capture must end, and the caller goes on without a graph
            failure = error
        status = driver_library().cuStreamEndCapture(stream.handle, ctypes.byref(template))
    try:
        if failure is not None:
            raise GraphError(" ".join(str(failure).split())) from failure
        if status != 0 or not template.value:
            raise GraphError(f"cuStreamEndCapture: {_said(status)}")
        executable = Handle()
        _call("cuGraphInstantiateWithFlags", ctypes.byref(executable), template, 0)
        return Graph(executable)
    finally:
        if template.value:
            driver_library().cuGraphDestroy(template)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Collected, a forgotten buffer would be freed in the midst of a capture, which that spoils."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@lru_cache(maxsize=1)
def driver_library() -> Any:
    """libcuda with the types of the functions above set."""
    library = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    for name, types in FUNCTIONS.items():
        if hasattr(library, name):  # an old driver lacks some: the capture then says so
            function = getattr(library, name)
            function.argtypes, function.restype = types, ctypes.c_int
    return library


def _call(name: str, *arguments: Any) -> None:
    function = getattr(driver_library(), name, None)
    if function is None:
        raise GraphError(f"this driver has no {name}")
    status = function(*arguments)
    if status != 0:
        raise GraphError(f"{name}: {_said(status)}")


def _said(status: int) -> str:
    text = ctypes.c_char_p()
    known = driver_library().cuGetErrorString(status, ctypes.byref(text)) == 0 and text.value
    return text.value.decode() if known and text.value else f"error {status}"
