"""Run Python code that loads the sanitized CPU library: in a process of its own, with the sanitizer's runtime first."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from plugins.toolchain import find_cxx

ROOT = Path(__file__).resolve().parents[2]
HEADER = """
import sys
import numpy as np
from plugins.kernels import Kernels
library = sys.argv[1]
"""


def run_sanitized(library: Path, code: str, *, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `code`, which finds `np`, `Kernels` and `library`, a path. No torch, please: it takes its time there.

    A finding of a sanitizer ends the process with its report on stderr and a code other than 0.
    """
    runtime = subprocess.run([find_cxx().path, "-print-file-name=libasan.so"], capture_output=True, text=True)
    name = runtime.stdout.strip()
    if not Path(name).is_absolute():
        pytest.skip(f"{find_cxx().path} has no libasan.so")
    environment = {
        **os.environ,
        "LD_PRELOAD": str(Path(name).resolve()),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own at exit
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONPATH": str(ROOT),
    }
    return subprocess.run(
        [sys.executable, "-c", HEADER + code, str(library)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout,
    )  # fmt: skip


def sanitized_results(
    library: Path, folder: Path, op: str, calls: Iterable[tuple[list[Any], dict[str, Any]]]
) -> list[Any]:
    """What the op's method of `Kernels` gives for each (arguments, keywords) of `calls`, under the sanitizers.

    They travel through files in `folder`. A finding of a sanitizer fails the test.
    """
    (folder / "calls").write_bytes(pickle.dumps(list(calls)))
    code = f"""
import pickle
from pathlib import Path
folder = Path({str(folder)!r})
calls = pickle.loads((folder / "calls").read_bytes())
results = [Kernels(library).{op}(*arguments, **keywords) for arguments, keywords in calls]
(folder / "results").write_bytes(pickle.dumps(results))
"""
    finished = run_sanitized(library, code)
    assert finished.returncode == 0, finished.stderr
    return pickle.loads((folder / "results").read_bytes())
