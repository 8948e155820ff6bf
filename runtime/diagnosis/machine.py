"""What the machine is, for the doctor: system, Jetson, memory, packages, GPU. Reads files and asks the driver.

No host name, no serial number, no user: what is found may go into a public report.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from plugins.load import cache_folder
from runtime.backends.nvidia import driver_cuda_version, gpus
from runtime.diagnosis.children import CannotError, Values
from runtime.diagnosis.release import checked_out_commit, edgercnn_version
from runtime.hardware import cpu_name, physical_cores

ROOT = Path(__file__).resolve().parents[2]
SYSTEM_ROOT = Path("/")  # the tests put another one here
# L4T release: JetPack, where dpkg does not say. Ref: https://developer.nvidia.com/embedded/jetpack-archive
JETPACKS = {"36.3": "6.0", "36.4": "6.1", "36.4.0": "6.1", "36.4.3": "6.2", "36.4.4": "6.2.1", "38.2": "7.0"}
JETPACKS |= {"38.2.0": "7.0", "38.2.1": "7.0", "38.4": "7.1", "38.4.0": "7.1"}
JETPACK_MAJORS = {"35": "5", "36": "6", "38": "7", "39": "7"}
DEBIAN_PACKAGES = ("nvidia-jetpack", "nvidia-l4t-core", "libnvinfer10", "libnvinfer11", "libnvinfer-headers-dev",
                   "python3-libnvinfer")  # fmt: skip
PACKAGES = (
    *("numpy", "opencv-python", "opencv-python-headless", "opencv-contrib-python", "av", "tqdm", "matplotlib"),
    *("onnx", "onnxruntime", "onnxruntime-gpu", "torch", "torchvision", "onnxscript", "pycocotools"),
    *("tensorrt", "tensorrt-rtx", "tensorrt-lean", "pycuda"),
)
NVIDIA_VENDOR, DISPLAY_CLASS = "0x10de", "0x03"  # of PCI


def check_system(values: Values) -> None:
    """Operating system, Jetson, CPU, memory, disk, Python."""
    values["system"] = f"{_operating_system()}, {platform.system()} {platform.machine()}"
    values["cpu"], values["cores"], values["logical_cores"] = cpu_name(), physical_cores(), os.cpu_count()
    memory = _memory_bytes()
    values["memory_bytes"], values["free_memory_bytes"] = memory.get("MemTotal"), memory.get("MemAvailable")
    values["python"] = platform.python_version()
    values["in_virtual_environment"] = _in_virtual_environment()
    values["is_clone"] = (ROOT / "export" / "to_onnx.py").is_file()
    values["debian"] = _debian_packages(DEBIAN_PACKAGES)
    values["jetson"] = _jetson(values["debian"])
    values["cache_free_bytes"] = _free_bytes(cache_folder())
    values["cache_problem"] = _cache_problem(cache_folder())
    values["version"], values["commit"] = edgercnn_version(ROOT), checked_out_commit(ROOT)


def check_packages(values: Values) -> None:
    """Versions of the Python packages that matter, what requirements.txt asks for, what is there to import."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    values["versions"] = versions
    values["pins"] = _pins(ROOT / "requirements.txt")
    names = ("torch", "torchvision", "onnxscript", "pycocotools", "tqdm", "matplotlib")
    values["importable"] = [name for name in names if importlib.util.find_spec(name) is not None]


def check_gpu(values: Values) -> None:
    """The GPUs, as the driver describes them, with what is free of their memory."""
    values["driver"] = _driver_version()
    version = driver_cuda_version()
    values["cuda"] = None if version is None else f"{version[0]}.{version[1]}"
    values["toolkit"] = _toolkit_version()
    found = [vars(gpu) for gpu in gpus()]
    values["gpus"] = found
    if not found:
        raise CannotError(*_why_no_gpu(version is not None))
    values["gpus"] = [{**gpu, "free_bytes": _free_gpu_bytes(gpu["index"])} for gpu in found]


def _why_no_gpu(has_library: bool) -> tuple[str, str]:
    """(what is wrong, what mends it)."""
    driver_runs = (SYSTEM_ROOT / "proc/driver/nvidia/version").exists()
    if has_library:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        if hidden is not None and not hidden.strip().isdecimal():
            return f"CUDA_VISIBLE_DEVICES is {hidden!r}, which may hide the GPU", "unset CUDA_VISIBLE_DEVICES"
        name = _init_error()
        mend = "restart the machine" if driver_runs else "start the container with --gpus all"
        return f"NVIDIA's library libcuda.so.1 is here, but its driver answers {name}", mend
    if driver_runs:
        return "NVIDIA's driver runs, but libcuda.so.1 is not here", "start the container with --gpus all"
    if _has_card():
        return "an NVIDIA card is here, but no driver", "sudo ubuntu-drivers install"
    return "this machine has no NVIDIA GPU", ""


def _init_error() -> str:
    """What cuInit says, by its name."""
    driver = ctypes.CDLL("libcuda.so.1")
    code, text = driver.cuInit(0), ctypes.c_char_p()
    known = driver.cuGetErrorName(code, ctypes.byref(text)) == 0 and text.value is not None
    return text.value.decode() if known and text.value else f"error {code}"


def _free_gpu_bytes(index: int) -> int | None:
    """Through a context, which the end of this process gives back."""
    driver = ctypes.CDLL("libcuda.so.1")
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), index) != 0 or driver.cuCtxSetCurrent(context) != 0:
        return None
    return free.value if driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total)) == 0 else None


def _has_card() -> bool:
    """Whether PCI has a display device of NVIDIA's."""
    for device in (SYSTEM_ROOT / "sys/bus/pci/devices").glob("*"):
        if _text(device / "vendor").strip() == NVIDIA_VENDOR and _text(device / "class").startswith(DISPLAY_CLASS):
            return True
    return False


def _driver_version() -> str | None:
    found = re.search(
        r"(?:Module|Module for \S+)\s+(\d+\.\d+(?:\.\d+)?)", _text(SYSTEM_ROOT / "proc/driver/nvidia/version")
    )
    return found[1] if found else None


def _toolkit_version() -> str | None:
    """Of /usr/local/cuda, as its version.json says."""
    found = re.search(
        r'"cuda"\s*:\s*\{[^}]*"version"\s*:\s*"([\d.]+)"', _text(SYSTEM_ROOT / "usr/local/cuda/version.json")
    )
    return found[1] if found else None


def _jetson(debian: dict[str, str]) -> dict[str, str] | None:
    """Board, L4T and JetPack; None where this is no Jetson."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", _text(SYSTEM_ROOT / "etc/nv_tegra_release"))
    core = debian.get("nvidia-l4t-core", "").split("-")[0]
    l4t = f"{found[1]}.{found[2]}" if found else core
    if not l4t:
        return None
    board = _text(SYSTEM_ROOT / "proc/device-tree/model").strip("\0\n ")
    package = debian.get("nvidia-jetpack", "").split("+")[0].split("-")[0]
    jetpack = package or JETPACKS.get(l4t) or JETPACK_MAJORS.get(l4t.split(".")[0], "")
    return {"board": board or "unknown board", "l4t": l4t, "jetpack": jetpack}


def _debian_packages(names: Sequence[str]) -> dict[str, str]:
    """Installed versions, by dpkg; empty where there is no dpkg."""
    command = ["dpkg-query", "--showformat=${Package} ${Version} ${db:Status-Status}\n", "--show", *names]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return {}
    rows = [line.split() for line in listed.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 3 and row[2] == "installed"}


def _pins(requirements: Path) -> dict[str, str]:
    """name: version of the lines `name==version`, where a line's python_version fits."""
    pins = {}
    here = tuple(int(part) for part in platform.python_version_tuple()[:2])
    for line in _text(requirements).splitlines():
        found = re.match(r'([\w.-]+)==([\w.]+)(?:\s*;\s*python_version\s*(<|>=)\s*"(\d+)\.(\d+)")?', line)
        if found is None:
            continue
        limit = (int(found[4] or 0), int(found[5] or 0))
        if found[3] is None or (here < limit if found[3] == "<" else here >= limit):
            pins[found[1]] = found[2]
    return pins


def _operating_system() -> str:
    found = re.search(r'^PRETTY_NAME="?([^"\n]*)', _text(SYSTEM_ROOT / "etc/os-release"), re.MULTILINE)
    return found[1] if found else platform.system()


def _memory_bytes() -> dict[str, int]:
    rows = re.findall(r"^(\w+):\s+(\d+) kB", _text(SYSTEM_ROOT / "proc/meminfo"), re.MULTILINE)
    return {name: int(value) * 1024 for name, value in rows}


def _in_virtual_environment() -> str:
    """An empty text: no; "closed": one that does not see the system's packages; "open": one that does."""
    if sys.prefix == sys.base_prefix:
        return ""
    settings = _text(Path(sys.prefix) / "pyvenv.cfg").lower()
    return "open" if re.search(r"include-system-site-packages\s*=\s*true", settings) else "closed"


def _free_bytes(folder: Path) -> int | None:
    """Of the disk that the folder is on, or would be."""
    for existing in (folder, *folder.parents):
        if existing.is_dir():
            return shutil.disk_usage(existing).free
    return None


def _cache_problem(folder: Path) -> str:
    """Why nothing can be put into the folder, "" if something can; tries the nearest folder above it that exists."""
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    name = "EDGERCNN_CACHE" if os.environ.get("EDGERCNN_CACHE") else "the folder for the cache"
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return ""
    except OSError as error:
        return f"{name} cannot be written ({error.strerror or error})"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
