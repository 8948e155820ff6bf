"""What the driver says, asked through a stand-in for libcuda that is compiled here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# an Orin and an RTX 4090; numbers of attributes are those of cuda.h
DRIVER = r"""
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return flags == 0 && RESULT == 0 ? 0 : 100; }
int cuDriverGetVersion(int* version) { *version = 12060; return 0; }
int cuDeviceGetCount(int* count) { *count = 2; return 0; }
int cuDeviceGet(int* device, int index) { *device = 40 + index; return index < 2 ? 0 : 101; }
int cuDeviceGetName(char* name, int size, int device) { strncpy(name, device == 40 ? "Orin" : "NVIDIA GeForce RTX 4090", size); return 0; }
int cuDeviceTotalMem_v2(size_t* bytes, int device) { *bytes = device == 40 ? 8ul << 30 : 24ul << 30; return 0; }
int cuDeviceGetAttribute(int* value, int number, int device) {
    int orin = device == 40;
    *value = number == 75 ? 8 : number == 76 ? (orin ? 7 : 9) : number == 18 ? orin : -1;
    return 0;
}
"""  # noqa: E501
ASK = """
import dataclasses, json
from runtime.backends.nvidia import driver_cuda_version, gpu_count, gpus
print(json.dumps([gpu_count(), [dataclasses.astuple(gpu) for gpu in gpus()], driver_cuda_version()]))
"""


def answer(folder: Path, *, result: int) -> list[object]:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs Linux and a C compiler")
    source, library = folder / "driver.c", folder / "libcuda.so.1"
    source.write_text(DRIVER)
    subprocess.run([compiler, "-shared", "-fPIC", f"-DRESULT={result}", "-o", library, source], check=True)
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder)}
    run = [sys.executable, "-c", ASK]
    done = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_gpus_are_what_the_driver_says(tmp_path):
    orin, desktop = [0, "Orin", 87, 8 << 30, True], [1, "NVIDIA GeForce RTX 4090", 89, 24 << 30, False]
    assert answer(tmp_path, result=0) == [2, [orin, desktop], [12, 6]]


def test_a_driver_without_device_has_no_gpus(tmp_path):
    """As in a container that was started without them."""
    assert answer(tmp_path, result=100) == [0, [], [12, 6]]
