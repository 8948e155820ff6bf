"""What a measurement was made on: without it, a time means nothing."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "opencv-python", "onnxruntime", "onnxruntime-gpu", "torch", "torchvision", "tensorrt")


def describe_machine() -> dict[str, Any]:
    """CPU, cores, memory, operating system, and the versions of what may have run."""
    return {
        "cpu": cpu_name(),
        "physical_cores": physical_cores(),
        "logical_cores": os.cpu_count(),
        "memory_gb": _memory_gb(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


def cpu_name() -> str:
    """The CPU's model name, or its architecture where the system does not tell."""
    for key in ("model name", "Model", "Hardware"):
        for line in _lines("/proc/cpuinfo"):
            name, _, value = line.partition(":")
            if name.strip() == key and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def physical_cores() -> int:
    """Cores without counting hyperthreads, no more than this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    pairs, socket = set(), ""
    for line in _lines("/proc/cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() == "physical id":
            socket = value.strip()
        elif name.strip() == "core id":
            pairs.add((socket, value.strip()))
    return min(len(pairs) or allowed, allowed)


class CpuWatch:
    """How much of the busy CPU time since its making went to other programs: they slow contestants unequally."""

    def __init__(self) -> None:
        self._busy = _busy_seconds()
        self._own = _own_seconds()

    def others_share(self) -> float | None:
        """0 to 1; None where the system does not tell."""
        busy = _busy_seconds()
        if busy is None or self._busy is None or busy <= self._busy:
            return None
        return min(1.0, max(0.0, 1.0 - (_own_seconds() - self._own) / (busy - self._busy)))


def _busy_seconds() -> float | None:
    """CPU time of all programs since the start of the system."""
    for line in _lines("/proc/stat"):
        if line.startswith("cpu "):
            user, nice, system, _idle, _waiting, *interrupts = (int(ticks) for ticks in line.split()[1:])
            return (user + nice + system + sum(interrupts[:3])) / os.sysconf("SC_CLK_TCK")
    return None


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _memory_gb() -> float | None:
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemTotal:"):
            return round(int(line.split()[1]) / 1024**2, 1)
    return None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return []


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
