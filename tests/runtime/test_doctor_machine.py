"""What the doctor reads of a machine, with files, packages and a driver that are made up; and its table of versions."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from runtime.diagnosis import machine
from runtime.diagnosis.children import run_checks
from runtime.diagnosis.release import checked_out_commit, edgercnn_version
from runtime.diagnosis.versions import rtx_problem, tensorrt_problem, torch_pair_fits

ROOT = Path(__file__).resolve().parents[2]
FAKE_DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuGetErrorName(int code, const char **name) { *name = "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"; return 0; }
int cuDriverGetVersion(int *version) { *version = 12060; return 0; }
int cuDeviceGetCount(int *count) { *count = 1; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "Orin", length); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 64000000000; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) {
  *value = which == 75 ? 8 : which == 76 ? 7 : 1;  /* sm_87, integrated */
  return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = context; return 0; }
int cuCtxSetCurrent(void *context) { return 0; }
int cuMemGetInfo_v2(size_t *free, size_t *total) { *free = 30000000000; *total = 64000000000; return 0; }
"""


def system_with(folder: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system for machine, with these files."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.setattr(machine, "SYSTEM_ROOT", folder)


TEGRA = "# R{}, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025\n"
JETSONS = {
    # what /etc/nv_tegra_release says, what dpkg says: L4T and JetPack
    "JetPack 6.2": (TEGRA.format("36 (release), REVISION: 4.3"), {}, ("36.4.3", "6.2")),
    "JetPack 6.2, by dpkg": (
        TEGRA.format("36 (release), REVISION: 4.3"),
        {"nvidia-jetpack": "6.2+b77"},
        ("36.4.3", "6.2"),
    ),
    "JetPack 7.0": (TEGRA.format("38 (release), REVISION: 2.1"), {}, ("38.2.1", "7.0")),
    "JetPack 5": (TEGRA.format("35 (release), REVISION: 4.1"), {}, ("35.4.1", "5")),
    "a release yet to come": (TEGRA.format("36 (release), REVISION: 9.9"), {}, ("36.9.9", "6")),
    "by dpkg alone": ("", {"nvidia-l4t-core": "38.4.0-20251001"}, ("38.4.0", "7.1")),
}


@pytest.mark.parametrize("name", JETSONS)
def test_jetson(name, tmp_path, monkeypatch):
    release, debian, (l4t, jetpack) = JETSONS[name]
    model = "NVIDIA Jetson AGX Orin Developer Kit\0"
    files = {"proc/device-tree/model": model, **({"etc/nv_tegra_release": release} if release else {})}
    system_with(tmp_path, files, monkeypatch)
    expected = {"board": "NVIDIA Jetson AGX Orin Developer Kit", "l4t": l4t, "jetpack": jetpack}
    assert machine._jetson(debian) == expected


def test_a_desktop_is_no_jetson(tmp_path, monkeypatch):
    system_with(tmp_path, {}, monkeypatch)
    assert machine._jetson({}) is None


DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep 23 10:11:16 UTC 2025\nGCC version: 13\n"
CARD = {"sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n", "sys/bus/pci/devices/0000:01:00.0/class": "0x030000\n"}
SOUND = {"sys/bus/pci/devices/0000:01:00.1/vendor": "0x10de\n", "sys/bus/pci/devices/0000:01:00.1/class": "0x040300\n"}
WITHOUT_GPU = {
    # files, environment, whether libcuda is there: problem, what mends it
    "no card": (SOUND, {}, False, "this machine has no NVIDIA GPU", ""),
    "no driver": ({**CARD, **SOUND}, {}, False, "an NVIDIA card is here, but no driver", "ubuntu-drivers"),
    "container": ({"proc/driver/nvidia/version": DRIVER}, {}, False, "libcuda.so.1 is not here", "--gpus all"),
    "hidden": ({}, {"CUDA_VISIBLE_DEVICES": "-1"}, True, "CUDA_VISIBLE_DEVICES is '-1'", "unset CUDA_VISIBLE_DEVICES"),
}


@pytest.mark.parametrize("name", WITHOUT_GPU)
def test_why_there_is_no_gpu(name, tmp_path, monkeypatch):
    files, environment, has_library, problem, mend = WITHOUT_GPU[name]
    system_with(tmp_path, files, monkeypatch)
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    found = machine._why_no_gpu(has_library)
    assert problem in found[0]
    assert mend in found[1] if mend else not found[1]


def test_driver_and_toolkit_versions(tmp_path, monkeypatch):
    jetson = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build\n"
    toolkit = '{"cuda": {"name": "CUDA SDK", "version": "12.6.68"}, "nvcc": {"version": "12.6.60"}}'
    system_with(tmp_path, {"proc/driver/nvidia/version": jetson, "usr/local/cuda/version.json": toolkit}, monkeypatch)
    assert (machine._driver_version(), machine._toolkit_version()) == ("540.4.0", "12.6.68")
    system_with(tmp_path, {"proc/driver/nvidia/version": DRIVER}, monkeypatch)
    assert machine._driver_version() == "580.95.05"


def test_pins(tmp_path):
    path = tmp_path / "requirements.txt"
    path.write_text('# c\ntorch==2.11.0\nnumpy==9.0; python_version >= "3.99"\nnumpy==2.2.6; python_version < "3.99"\n')
    assert machine._pins(path) == {"torch": "2.11.0", "numpy": "2.2.6"}


def fake_driver(folder: Path, init: int) -> dict[str, str]:
    """An environment with a libcuda.so.1 that describes an Orin, or whose cuInit answers `init`."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to make a driver with")
    source = folder / "driver.c"
    source.write_text(FAKE_DRIVER)
    command = [compiler, "-shared", "-fPIC", f"-DINIT={init}", "-o", str(folder / "libcuda.so.1"), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    return {"LD_LIBRARY_PATH": str(folder)}


def test_gpu_as_the_driver_describes_it(tmp_path, monkeypatch):
    for name, value in fake_driver(tmp_path, 0).items():
        monkeypatch.setenv(name, value)
    finding = run_checks({"gpu": ()})["gpu"]
    assert finding.works, finding
    assert finding.get("cuda") == "12.6"
    (gpu,) = finding.get("gpus")
    assert (gpu["name"], gpu["sm"], gpu["integrated"], gpu["free_bytes"]) == ("Orin", 87, True, 30_000_000_000)


def test_a_driver_that_does_not_start(tmp_path, monkeypatch):
    for name, value in fake_driver(tmp_path, 803).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    finding = run_checks({"gpu": ()})["gpu"]
    assert "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH" in finding.problem
    assert finding.get("cuda") == "12.6"


def test_pycuda_and_tensorrt_as_the_backend_uses_them(tmp_path, monkeypatch):
    """With the stand-ins of the backend's tests: bytes through pycuda; a TensorRT that runs and builds nothing."""
    for name, value in fake_driver(tmp_path, 0).items():
        monkeypatch.setenv(name, value)
    start = "from tests.stand_ins import machine\nmachine._current.append(machine.Machine())\n"
    (tmp_path / "sitecustomize.py").write_text(start)  # Python runs it as each child starts
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT / 'tests' / 'stand_ins' / 'packages'}:{ROOT}")
    findings = run_checks({"pycuda": (), "tensorrt": ()})
    assert findings["tensorrt"].get("version") == "10.16.1.11"
    assert findings["tensorrt"].get("runtime"), findings["tensorrt"]
    assert "no builder" in findings["tensorrt"].problem
    assert findings["pycuda"].works, findings["pycuda"]


def test_version_and_commit(tmp_path, monkeypatch):
    """With a git that says what it is told to."""
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "3.2.1"\n')
    assert edgercnn_version(tmp_path) == "3.2.1"
    tools = tmp_path / "tools"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    assert checked_out_commit(tmp_path) == ""
    (tmp_path / ".git").mkdir()
    assert checked_out_commit(tmp_path) == "", "git is not installed"
    git = tools / "git"
    for status, expected in (("", "1a2b3c4"), ("M x.py", "1a2b3c4, changed")):
        git.write_text(f'#!/bin/sh\ncase "$*" in *rev-parse*) echo 1a2b3c4;; *status*) echo "{status}";; esac\n')
        git.chmod(0o755)
        assert checked_out_commit(tmp_path) == expected
    git.write_text("#!/bin/sh\nexit 128\n")
    assert checked_out_commit(tmp_path) == ""


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGERCNN_CACHE", str(tmp_path))
    assert machine._cache_problem(tmp_path / "yet" / "to come") == ""
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    assert machine._cache_problem(tmp_path / "file") == "EDGERCNN_CACHE cannot be written (Not a directory)"


def test_versions_table():
    assert tensorrt_problem("10.3.0", [87]) == ("", "")
    assert tensorrt_problem("10.16.1.11", [87]) == ("", "")
    assert tensorrt_problem("10.13.3.9", [110]) == ("", "")
    assert "sm_87" in tensorrt_problem("10.13.3.9", [87])[0]
    lacking = [sm for sm in (75, 80, 86, 87, 89, 90, 100, 110, 120, 121) if rtx_problem("1.7", [sm])]
    assert lacking == [75, 87, 90, 100, 110]
    assert torch_pair_fits("2.11.0+cpu", "0.26.0+cpu")
    assert not torch_pair_fits("2.10.0", "0.26.0")
