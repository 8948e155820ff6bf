"""runtime/hardware.py: cores, memory and other programs, on made-up /proc and /sys."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from runtime import hardware

ROOT = Path(__file__).resolve().parents[2]


def test_the_machine_is_described(monkeypatch):
    cpuinfo = "".join(
        f"processor : {n}\nmodel name : Fast CPU\nphysical id : 0\ncore id : {n // 2}\n\n" for n in range(4)
    )
    monkeypatch.setattr(hardware, "_lines", lambda path: cpuinfo.splitlines() if path == "/proc/cpuinfo" else [])
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    machine = hardware.describe_machine()
    assert (machine["cpu"], machine["physical_cores"], machine["memory_gb"]) == ("Fast CPU", 2, None)
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _: {0}, raising=False)
    assert hardware.physical_cores() == 1
    monkeypatch.setattr(hardware, "_lines", lambda path: [])  # a system without /proc
    assert hardware.cpu_name()
    assert hardware.cpu_flags() == ""
    assert hardware.resident_mb() is None
    assert hardware.physical_cores() == 1


def eight_cores(**files: str):
    """Files of /proc and /sys: 16 processors, two to a core, and what a container says of itself."""
    rows = [f"processor : {n}\nphysical id : {n % 8 // 4}\ncore id : {n % 4}\n" for n in range(16)]
    system = {"/proc/cpuinfo": "\n".join(rows), **files}
    return lambda path: system.get(path, "").splitlines()


V1 = "/sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("allowed", "files", "cores"),
    [
        (range(16), {}, 8),
        ({0, 8}, {}, 1),  # two hyperthreads of one core
        ({0, 8, 1, 4}, {}, 3),  # processor 4 has core id 0 too, on the other socket
        (range(16), {"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "250000 100000\n"}, 2),
        (range(16), {"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        (range(16), {"/proc/self/cgroup": "0::/\n", "/sys/fs/cgroup/cpu.max": "max 100000\n"}, 8),
        (range(16), {"/proc/self/cgroup": "0::/a/b\n", "/sys/fs/cgroup/a/cpu.max": "300000 100000\n"}, 3),
        (range(16), {"/proc/self/cgroup": "0::/a\n", "/sys/fs/cgroup/cpu.max": "broken\n"}, 8),
        (
            range(16),
            {
                "/proc/self/cgroup": "7:memory:/x\n4:cpu,cpuacct:/docker/1\n",
                f"{V1}/cpu.cfs_quota_us": "400000\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
        (
            range(16),
            {
                "/proc/self/cgroup": "4:cpu,cpuacct:/\n",
                f"{V1}/cpu.cfs_quota_us": "-1\n",
                f"{V1}/cpu.cfs_period_us": "100000\n",
            },
            8,
        ),
    ],
)
def test_cores_within_affinity_and_container_limits(monkeypatch, allowed, files, cores):
    monkeypatch.setattr(hardware, "_lines", eight_cores(**files))
    monkeypatch.setattr(hardware.os, "sched_getaffinity", lambda _: set(allowed), raising=False)
    monkeypatch.setattr(hardware.os, "cpu_count", lambda: 16)
    assert hardware.physical_cores() == cores


MEMORY = """
import numpy as np
from runtime.hardware import resident_mb
before = resident_mb()
held = np.ones(50_000_000, np.uint8)
print(*(before or ()), *(resident_mb() or ()))
"""


def test_memory_follows_what_is_allocated():
    """In a process of its own: a large one has room from before, and does not grow."""
    run = [sys.executable, "-c", MEMORY]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=True)
    if not done.stdout.strip():
        pytest.skip("this system has no /proc/self/status")
    before, _, now, peak = map(float, done.stdout.split())
    assert 40 < now - before < 80
    assert peak >= now
