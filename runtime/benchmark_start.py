"""How long each contestant takes from nothing to its first boxes, and how much memory it then holds.

Every measurement is a process of its own (`runtime/benchmark_child.py`), contestants take turns, and the median counts.
The files lie in the system's page cache by then, so no disk is measured. "process" begins before the interpreter starts
and ends when its line arrives here; "open" begins in the child when NumPy and OpenCV are imported and nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.onnxruntime_cache import SWITCH
from runtime.benchmark_child import DETECTED
from runtime.errors import RunError

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Entry:
    """A contestant as a child process opens it: `what` is the child's JSON, without frame and threads."""

    name: str
    what: dict[str, Any]
    uses_cache: bool = True  # of optimised models


@dataclass(frozen=True)
class Start:
    """Medians of several processes. Memory in MB (10^6 bytes), None where the system does not tell."""

    name: str
    process_ms: float  # process start -> first detections
    open_ms: float  # open -> first detections
    resident_mb: float | None
    peak_mb: float | None
    runs: int


def measure_starts(
    entries: Sequence[Entry], frame: np.ndarray, threads: int, runs: int, advance: Callable[[int], object]
) -> list[Start]:
    """Start every entry `runs` times, in turns, after one start that does not count and fills the caches.

    Args:
        frame: uint8 [height, width, 3] BGR.
        advance: called with 1 after each start.

    Raises:
        RunError: a child failed.
    """
    measured: list[list[dict[str, Any]]] = [[] for _ in entries]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "frame.npy"
        np.save(file, frame)
        for number in range(runs + 1):
            for entry, results in zip(entries, measured, strict=True):
                result = _start(entry, {**entry.what, "frame": str(file), "threads": threads})
                if number > 0:
                    results.append(result)
                advance(1)
    return [_summary(entry.name, results) for entry, results in zip(entries, measured, strict=True)]


def _start(entry: Entry, what: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "runtime.benchmark_child", json.dumps(what)]
    environment = {**os.environ, SWITCH: os.environ.get(SWITCH, "1") if entry.uses_cache else "0"}
    with tempfile.TemporaryFile("w+") as errors:
        begin = time.perf_counter()
        child = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1
        )
        with child:
            assert child.stdout is not None, "a pipe was asked for"
            lines = []
            process_ms = None
            for line in child.stdout:
                if line.strip() == DETECTED:
                    process_ms = (time.perf_counter() - begin) * 1e3
                lines.append(line)
        if child.returncode != 0 or process_ms is None:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or [f"exit code {child.returncode}"])[-1]
            raise RunError(f"{entry.name} failed in a process of its own: {last.removeprefix('error: ')}")
    return {**json.loads(lines[-1]), "process_ms": process_ms}


def _summary(name: str, results: list[dict[str, Any]]) -> Start:
    def median(key: str) -> float | None:
        values = [result[key] for result in results]
        return None if None in values else float(np.median(values))

    process_ms, open_ms = median("process_ms"), median("opened_ms")
    assert process_ms is not None, "every process has a time"
    assert open_ms is not None, "every process has a time"
    return Start(name, process_ms, open_ms, median("resident_mb"), median("peak_mb"), len(results))
