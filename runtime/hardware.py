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


def cpu_flags() -> str:
    """The CPU's instruction sets as the system lists them; "" where it does not."""
    for key in ("flags", "Features"):
        for line in _lines("/proc/cpuinfo"):
            name, _, value = line.partition(":")
            if name.strip() == key:
                return " ".join(sorted(value.split()))
    return ""


def physical_cores() -> int:
    """Cores that this process may use: hyperthreads of one core count once, and a container's CPU quota is a limit."""
    logical = os.cpu_count() or 1
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(logical))
    cores, processor, socket = set(), -1, ""
    for line in _lines("/proc/cpuinfo"):
        name, _, value = (part.strip() for part in line.partition(":"))
        if name == "processor" and value.isdigit():
            processor = int(value)
        elif name == "physical id":
            socket = value
        elif name == "core id" and processor in allowed:
            cores.add((socket, value))
    return max(1, min(len(cores) or len(allowed), int(_cpu_quota())))


def resident_mb() -> tuple[float, float] | None:
    """RAM of this process, now and at most so far, MB (10^6 bytes); None where the system does not tell."""
    found = {}
    for line in _lines("/proc/self/status"):
        name, _, value = line.partition(":")
        if name in ("VmRSS", "VmHWM"):
            found[name] = int(value.split()[0]) * 1024 / 1e6
    return (found["VmRSS"], found["VmHWM"]) if len(found) == 2 else None


def _cpu_quota() -> float:
    """CPUs' worth of time that the control groups of this process may use, as `docker run --cpus` sets it.

    Ref: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max),
    https://docs.kernel.org/scheduler/sched-bwc.html (cpu.cfs_quota_us)
    """
    quotas = [float(os.cpu_count() or 1)]
    for line in _lines("/proc/self/cgroup"):
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for folder in _with_parents(path):
            root = f"/sys/fs/cgroup/{controllers + '/' if controllers else ''}{folder}".rstrip("/")
            quota = _lines(f"{root}/cpu.cfs_quota_us") + _lines(f"{root}/cpu.cfs_period_us")
            for limit in [" ".join(quota), *_lines(f"{root}/cpu.max")]:
                words = limit.split()
                if len(words) == 2 and all(word.isdigit() for word in words) and int(words[1]) > 0:
                    quotas.append(int(words[0]) / int(words[1]))
    return min(quotas)


def _with_parents(path: str) -> list[str]:
    """ "/a/b" -> ["a/b", "a", ""]: inside a container, only the last is there."""
    parts = path.strip("/").split("/")
    return ["/".join(parts[:count]) for count in range(len(parts), -1, -1)]


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
