"""Find and load the libraries that `python plugins/build.py` makes. No compiler, no torch: for devices, too.

A library is looked for in this order:
    1. $EDGERCNN_PLUGINS: a library, or a folder with libraries in it
    2. beside this file, where `python plugins/build.py --output plugins` puts it
    3. in the cache, `$EDGERCNN_CACHE` or ~/.cache/edgercnn: the newest one made of the sources beside this file
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plugins.kernel_structs import OPS

ROOT = Path(__file__).resolve().parent
BUILD_COMMAND = "python plugins/build.py"
LIBRARIES = {
    "cpu": "libedgercnn_kernels_cpu.so",
    "cuda": "libedgercnn_kernels.so",
    "plugins": "libedgercnn_plugins.so",
}
METADATA = ".json"  # what a library's name plus this says of it: sources, tools, architectures
SOURCES = (".cpp", ".cu", ".h", ".map")
SKIPPED = {  # how names of files begin that a library is not made of
    "cpu": ("plugin", "registry"),
    "cuda": ("plugin", "registry", "cpu_grid"),
    "plugins": ("cpu_grid", "kernels.map"),
}


class LibraryError(Exception):
    """A library of ours that is missing, foreign or does not load, in one sentence."""

    exit_code = 2


def plugin_library(tensorrt_version: str | None = None) -> Path:
    """The TensorRT plugin library, for `registry.load_library(str(path))`.

    Args:
        tensorrt_version: as `tensorrt.__version__` has it; a cached library made for another major is passed over.

    Raises:
        LibraryError: there is none.
    """
    return required_library("plugins", tensorrt_version)


def required_library(kind: str, tensorrt_version: str | None = None) -> Path:
    """`find_library`, or an error.

    Raises:
        LibraryError: there is none; or $EDGERCNN_PLUGINS is not there.
    """
    found = find_library(kind, tensorrt_version)
    if found is None:
        wanted = f" for TensorRT {tensorrt_version}" if tensorrt_version else ""
        raise LibraryError(
            f"{LIBRARIES[kind]}{wanted} is not in $EDGERCNN_PLUGINS, in {ROOT} or, made of its present sources, in "
            f"{cache_folder() / 'plugins'}: run `{BUILD_COMMAND} --kind {kind}`, or set EDGERCNN_PLUGINS to its folder."
        )
    return found


def find_library(kind: str, tensorrt_version: str | None = None) -> Path | None:
    """The library of that kind ("cpu", "cuda", "plugins") to use here, or None.

    Raises:
        LibraryError: $EDGERCNN_PLUGINS is set to what is not there.
    """
    name = LIBRARIES[kind]
    if named := os.environ.get("EDGERCNN_PLUGINS"):
        path = Path(named)
        if not path.exists():
            raise LibraryError(f"EDGERCNN_PLUGINS is {named}, which is not there: give a library or its folder.")
        if path.is_file() and (path.name == name or (kind == "plugins" and path.name not in LIBRARIES.values())):
            return path.absolute()
        if (path / name).is_file():
            return (path / name).absolute()
    if (ROOT / name).is_file():
        return ROOT / name
    major = tensorrt_version.split(".")[0] if tensorrt_version else None
    return next(_cached_libraries(kind, major), None)


def library_metadata(library: Path) -> dict[str, Any]:
    """What plugins/build.py wrote beside the library; empty where there is nothing to read."""
    try:
        content = json.loads(metadata_path(library).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def metadata_path(library: Path) -> Path:
    """`libedgercnn_plugins.so.json` beside `libedgercnn_plugins.so`."""
    return library.with_name(library.name + METADATA)


def load_kernels(path: Path) -> ctypes.CDLL:
    """The kernel library at `path`, CUDA or CPU, with the types of its functions set.

    Raises:
        LibraryError: it does not load, or is no kernel library.
    """
    try:
        library = ctypes.CDLL(os.fspath(path))
        library.edgercnn_status_string.argtypes = [ctypes.c_int32]
        library.edgercnn_status_string.restype = ctypes.c_char_p
        for op, (struct, pointers) in OPS.items():
            if hasattr(library, f"edgercnn_{op}"):  # a developer's library may have some of the ops only
                _declare(library, f"edgercnn_{op}", struct, pointers)
    except (OSError, AttributeError) as error:
        raise LibraryError(f"{path} is no kernel library that loads here ({error}): run `{BUILD_COMMAND}`.") from error
    return library


def _declare(library: ctypes.CDLL, name: str, struct: type[ctypes.Structure], pointers: int) -> None:
    described = ctypes.POINTER(struct)
    check, workspace, launch = (getattr(library, name + suffix) for suffix in ("_check", "_workspace", ""))
    check.argtypes, check.restype = [described], ctypes.c_char_p
    workspace.argtypes, workspace.restype = [described], ctypes.c_size_t
    launch.argtypes, launch.restype = [described] + [ctypes.c_void_p] * pointers, ctypes.c_int32


def cache_folder() -> Path:
    """Folder for what can be made again: `$EDGERCNN_CACHE`, else `~/.cache/edgercnn`."""
    return Path(os.environ.get("EDGERCNN_CACHE") or Path.home() / ".cache" / "edgercnn").absolute()


def source_digest(kind: str) -> str | None:
    """SHA-256 over names and contents of the sources of that library; None where they are not installed."""
    digest, found = hashlib.sha256(), False
    for path in sorted([*ROOT.glob("*"), *ROOT.glob("*/*")]):
        is_source = path.suffix in SOURCES or path.name == "CMakeLists.txt"
        if is_source and not path.name.startswith(SKIPPED[kind]):
            content = path.read_bytes()
            digest.update(f"{path.relative_to(ROOT).as_posix()} {len(content)}\n".encode() + content)
            found = True
    return digest.hexdigest() if found else None


def cached_libraries() -> list[Path]:
    """Every finished library in the cache, newest first."""
    folders = cache_folder() / "plugins"
    found = [path for name in LIBRARIES.values() for path in folders.glob(f"*/{name}") if metadata_path(path).is_file()]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def _cached_libraries(kind: str, tensorrt_major: str | None) -> Iterator[Path]:
    """Those to use here: whole, of the present sources (where they are), for that TensorRT."""
    digest = source_digest(kind)
    for path in cached_libraries():
        metadata = library_metadata(path)
        definitions, tools = metadata.get("definitions", {}), metadata.get("tools", {})
        is_whole = definitions.get("EDGERCNN_SANITIZE") != "ON" and "EDGERCNN_OPS" not in definitions
        is_present = digest is None or metadata.get("sources_sha256") == digest
        fits = tensorrt_major is None or str(tools.get("tensorrt", "")).split(".")[0] == tensorrt_major
        if path.name == LIBRARIES[kind] and is_whole and is_present and fits:
            yield path
