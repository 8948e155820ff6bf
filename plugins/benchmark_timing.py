"""Clocks of plugins/benchmark.py: CUDA graphs and events on a GPU; on a CPU, for a trial of the script, a stopwatch.

Ours is timed as it runs in an engine: captured into one CUDA graph and replayed. The graph holds the op many times in a
row, each time on other buffers, so many that together they are more than twice the L2 cache: every launch finds its
inputs in DRAM. torchvision waits for the GPU in its middle, so it cannot be captured: it is timed from its first launch
to its last by events, and to the end of its work by the wall clock.
"""

from __future__ import annotations

import ctypes
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

WARM_UPS = 3
MOST_COPIES = 2048
COPIED_BYTES = 1 << 30  # to measure the bandwidth
Launcher = Callable[[int | None], None]


class Timing(NamedTuple):
    """Microseconds of one call; `launches` only where a graph was made."""

    median_us: float
    p95_us: float
    launches: float | None = None


class Bench:
    """One device. `l2_bytes` and `bandwidth` (bytes per second, read and written) are None on a CPU."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else None
        self.bandwidth = measured_bandwidth() if device == "cuda" else None

    def copies(self, bytes_per_launch: int) -> int:
        """How many sets of buffers to go through in turn."""
        if self.l2_bytes is None:
            return 2
        return max(2, min(MOST_COPIES, math.ceil(2 * self.l2_bytes / max(1, bytes_per_launch))))

    def time_ours(self, launchers: Sequence[Launcher], repeat: int) -> Timing:
        """`launchers`: the op on each set of buffers."""
        return time_graph(launchers, repeat) if self.device == "cuda" else _time_calls(launchers, repeat)

    def time_peer(self, run: Callable[[Any], Any], prepared: Sequence[Any], repeat: int) -> tuple[Timing, Timing]:
        """By the GPU's clock and by the wall's; on a CPU both are the latter."""
        calls = [lambda _, one=one: run(one) for one in prepared]
        if self.device == "cuda":
            return time_eager(calls, repeat)
        timing = _time_calls(calls, repeat)
        return timing, timing

    def synchronize(self) -> None:
        """Wait for the device; errors of launches show here."""
        if self.device == "cuda":
            torch.cuda.synchronize()


def time_graph(launchers: Sequence[Launcher], repeat: int) -> Timing:
    """All launchers in one graph, replayed `repeat` times."""
    for launch in launchers:  # loads the kernels: not allowed in a capture
        launch(torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        stream = torch.cuda.current_stream().cuda_stream
        for launch in launchers:
            launch(stream)
    launches = count_nodes(graph.raw_cuda_graph()) / len(launchers)
    graph.instantiate()
    for _ in range(WARM_UPS):
        graph.replay()
    times = _events(lambda _: graph.replay(), repeat)
    return _timing([one / len(launchers) for one in times], launches)


def time_eager(calls: Sequence[Launcher], repeat: int) -> tuple[Timing, Timing]:
    """Calls in turn: by events, and by the wall clock from the call to the end of its work."""
    for call in calls[:WARM_UPS]:
        call(None)
    torch.cuda.synchronize()
    device, wall = [], []
    for turn in range(repeat):
        started = time.perf_counter()
        device += _events(calls[turn % len(calls)], 1)
        wall.append((time.perf_counter() - started) * 1e6)
    return _timing(device), _timing(wall)


def measured_bandwidth() -> float:
    """Bytes read and written per second by the best of some copies within the GPU's memory."""
    size = min(COPIED_BYTES, torch.cuda.mem_get_info()[0] // 4)
    source = torch.zeros(size, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    for _ in range(WARM_UPS):
        target.copy_(source)
    return 2 * size / (min(_events(lambda _: target.copy_(source), 20)) * 1e-6)


def count_nodes(graph: int) -> int:
    """Nodes of a cudaGraph_t: kernels, and copies and memsets if there were any."""
    count = ctypes.c_size_t()
    status = ctypes.CDLL("libcuda.so.1").cuGraphGetNodes(ctypes.c_void_p(graph), None, ctypes.byref(count))
    if status != 0:
        raise RuntimeError(f"cuGraphGetNodes failed with code {status}.")
    return count.value


def _events(call: Callable[[int | None], Any], repeat: int) -> list[float]:
    """Microseconds of each call on the GPU's clock."""
    pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeat)]
    for start, end in pairs:
        start.record()
        call(None)
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) * 1e3 for start, end in pairs]


def _time_calls(calls: Sequence[Launcher], repeat: int) -> Timing:
    times = []
    for turn in range(WARM_UPS + repeat):
        started = time.perf_counter()
        calls[turn % len(calls)](None)
        times.append((time.perf_counter() - started) * 1e6)
    return _timing(times[WARM_UPS:])


def _timing(times: Sequence[float], launches: float | None = None) -> Timing:
    ordered = sorted(times)
    return Timing(statistics.median(ordered), ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))], launches)
