"""Compiles and loads kernels for the CPU grid's tests."""

from __future__ import annotations

import ctypes
import functools
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
KERNELS = ROOT / "tests" / "plugins" / "cpu_grid_kernels.cu"
GRID = ROOT / "plugins" / "common" / "cpu_grid.cpp"
WARNINGS = ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]  # #pragma unroll
COMMAND = ["g++", "-x", "c++", "-std=c++17", *WARNINGS, "-ffp-contract=off", "-fPIC", "-I", str(ROOT / "plugins")]

FAULT, EMPTY_GRID = -2, 9  # kKernelFault, cudaErrorInvalidConfiguration
FORWARD, REVERSE, SHUFFLED = 0, 1, 2
SCHEDULES = {"forward": (FORWARD, 0), "reverse": (REVERSE, 0), "seed1": (SHUFFLED, 1), "seed2": (SHUFFLED, 2)}
SWITCHES = {"assembly": "-DNDEBUG", "ucontext": "-DEDGERCNN_CPU_UCONTEXT"}  # how fibers switch: the flag


def compile_code(output: Path, flags: Iterable[str], *sources: Path) -> None:
    command = [*COMMAND, *flags, *map(str, sources), "-o", str(output)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@dataclass
class Library:
    """A library's functions test_<name>; arrays are given as their addresses, int as int32."""

    code: ctypes.CDLL

    def call(self, name: str, *arguments: np.ndarray | int) -> int:
        plain = [ctypes.c_void_p(a.ctypes.data) if isinstance(a, np.ndarray) else ctypes.c_int(a) for a in arguments]
        return int(getattr(self.code, f"test_{name}")(*plain))

    def set_schedule(self, mode: int, seed: int = 0) -> int:
        return int(self.code.edgercnn_cpu_set_schedule(ctypes.c_int(mode), ctypes.c_uint64(seed)))

    def fault(self) -> str:
        self.code.edgercnn_cpu_fault.restype = ctypes.c_char_p
        return str(self.code.edgercnn_cpu_fault().decode())


@functools.cache
def kernel_library(folder: Path, switch: str) -> Library:
    """The test kernels, compiled once for all modules of tests."""
    path = folder / f"libcpu_grid_{switch}.so"
    compile_code(path, ["-O2", "-shared", SWITCHES[switch]], KERNELS, GRID)
    return Library(ctypes.CDLL(str(path)))
