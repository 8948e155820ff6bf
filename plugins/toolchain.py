"""What a build needs and where it may be: cmake, a C++ compiler, nvcc, TensorRT's headers, this machine's GPUs."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

OLDEST_CUDA = (12, 6)  # JetPack 6's
SYSTEM_NVCC = Path("/usr/local/cuda/bin/nvcc")
TENSORRT_FOLDERS = ("/usr/include", "/usr/local/tensorrt/include", "/opt/tensorrt/include")
PYPI_NVCC = "cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]==13.0.2"


class BuildError(Exception):
    """A build that failed, in one sentence."""

    exit_code = 1


class ToolchainError(BuildError):
    """What the user asked for cannot be had with what is on this machine."""

    exit_code = 2


class MissingToolError(ToolchainError):
    """A tool that is not on this machine, or does not run."""


class Compiler(NamedTuple):
    """A compiler's command and the line it says of itself."""

    path: Path
    version: str


class Nvcc(NamedTuple):
    """nvcc, its release (13.0.88) and the architectures it knows (87)."""

    path: Path
    version: str
    architectures: tuple[str, ...]


class TensorRT(NamedTuple):
    """A folder with TensorRT's headers and their version (10.3.0)."""

    include: Path
    version: str


def find_tool(name: str) -> Path:
    """cmake or ninja: on PATH, else the one that pip installed for this Python.

    Raises:
        MissingToolError: there is none.
    """
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        spec = importlib.util.find_spec(name)
        for folder in (spec and spec.submodule_search_locations) or []:
            found = found or shutil.which(name, path=str(Path(folder) / "data" / "bin"))
    if found is None:
        raise MissingToolError(f"{name} is not installed: `apt-get install {name}` or `pip install {name}`.")
    return Path(found)


def find_cxx() -> Compiler:
    """The C++ compiler: $CXX, else g++, c++ or clang++ on PATH.

    Raises:
        MissingToolError: there is none, or it does not run.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    found = next(filter(None, (shutil.which(name) for name in named[:1] or ("g++", "c++", "clang++"))), None)
    if found is None:
        looked = f"$CXX is {os.environ['CXX']!r}, which is not there" if named else "none of g++, c++, clang++ on PATH"
        raise MissingToolError(f"no C++ compiler ({looked}): `apt-get install g++`, or set CXX to one.")
    return Compiler(Path(found), _run([found, *named[1:], "--version"]).splitlines()[0])


def find_nvcc(given: Path | None = None) -> Nvcc | None:
    """nvcc, or None: `given`, $CUDACXX, $CUDA_HOME, $CUDA_PATH, PATH, /usr/local/cuda, this Python's packages.

    Raises:
        ToolchainError: `given` or $CUDACXX is not there or does not run.
        MissingToolError: the one found elsewhere does not run.
    """
    named = given or shutil.which(os.environ.get("CUDACXX", "")) or os.environ.get("CUDACXX")
    if not named:
        found = next((path for path in _nvcc_candidates() if _is_program(path)), None)
        return _describe_nvcc(found) if found else None
    if not _is_program(Path(named)):
        option = "--nvcc" if given else "CUDACXX"
        raise ToolchainError(f"{option} {named}: there is no program; give nvcc's path, or leave it out to search.")
    try:
        return _describe_nvcc(Path(named).absolute())
    except MissingToolError as error:
        raise ToolchainError(str(error)) from error


def find_tensorrt(given: Path | None = None) -> TensorRT | None:
    """TensorRT's headers, or None: `given`, $TENSORRT_INCLUDE, the system's folders, a conda environment.

    Raises:
        ToolchainError: `given` or $TENSORRT_INCLUDE has no NvInferRuntime.h, or the version cannot be read.
    """
    for name, folder in (("--tensorrt-include", given), ("$TENSORRT_INCLUDE", os.environ.get("TENSORRT_INCLUDE"))):
        if folder and not (Path(folder) / "NvInferRuntime.h").is_file():
            raise ToolchainError(f"{name} {folder}: there is no NvInferRuntime.h in it; give the folder that has it.")
        if folder:
            return TensorRT(Path(folder).absolute(), _tensorrt_version(Path(folder)))
    multiarch = sysconfig.get_config_var("MULTIARCH") or f"{os.uname().machine}-linux-gnu"
    folders = [f"{TENSORRT_FOLDERS[0]}/{multiarch}", *TENSORRT_FOLDERS]
    if conda := os.environ.get("CONDA_PREFIX"):
        folders += [f"{conda}/include", f"{conda}/targets/{os.uname().machine}-linux/include"]
    for folder in folders:
        if (Path(folder) / "NvInferRuntime.h").is_file():
            return TensorRT(Path(folder), _tensorrt_version(Path(folder)))
    return None


def machine_architectures() -> list[str]:
    """Of the GPUs in this machine, through the driver; empty where there is none. Works on desktops and Jetsons."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    found = set()
    for device in range(count.value):
        for value, attribute in ((major, 75), (minor, 76)):  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
            if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device) != 0:
                return []
        found.add(10 * major.value + minor.value)
    return [str(number) for number in sorted(found)]


def _describe_nvcc(path: Path) -> Nvcc:
    version = re.search(r"V(\d+\.\d+\.\d+)", _run([str(path), "--version"]))
    if version is None:
        raise MissingToolError(f"{path} does not say its version as nvcc does: give another by --nvcc.")
    if tuple(map(int, version[1].split(".")[:2])) < OLDEST_CUDA:
        oldest = ".".join(map(str, OLDEST_CUDA))
        raise MissingToolError(f"{path} is of CUDA {version[1]}, {oldest} or newer is needed: give another by --nvcc.")
    return Nvcc(path, version[1], tuple(re.findall(r"compute_(\d+)\b", _run([str(path), "--list-gpu-arch"]))))


def _nvcc_candidates() -> Iterable[Path]:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            yield Path(os.environ[name]) / "bin" / "nvcc"
    if on_path := shutil.which("nvcc"):
        yield Path(on_path)
    yield SYSTEM_NVCC
    for folder in sys.path:
        yield from sorted(Path(folder).glob("nvidia/cu*/bin/nvcc"), reverse=True)


def _tensorrt_version(include: Path) -> str:
    """From NvInferVersion.h, whose macros differ: NV_TENSORRT_MAJOR is a number, or the name of one that is."""
    path = include / "NvInferVersion.h"
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    macros = dict(re.findall(r"^#define (\w+) (\w+)", text, re.MULTILINE))
    numbers = [macros.get(f"NV_TENSORRT_{part}", "") for part in ("MAJOR", "MINOR", "PATCH")]
    numbers = [macros.get(number, number) for number in numbers]
    if not all(number.isdigit() for number in numbers):
        raise ToolchainError(f"{path} does not say TensorRT's version: give TensorRT's own folder of headers.")
    return ".".join(numbers)


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _run(command: Sequence[str]) -> str:
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:  # an empty file, a program for another processor
        reason = error.strerror or str(error)
        raise MissingToolError(f"`{shlex.join(command)}` does not run ({reason}): repair or replace it.") from error
    if result.returncode != 0:
        last = (result.stderr or result.stdout).strip().splitlines()[-1:] or ["no output"]
        raise MissingToolError(f"`{shlex.join(command)}` failed ({last[0]}): repair or replace it.")
    return result.stdout
