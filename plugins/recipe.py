"""What decides how a library turns out: the tools that are found, and the definitions that CMakeLists.txt gets."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plugins.load import LIBRARIES, cache_folder, source_digest
from plugins.toolchain import (
    PYPI_NVCC,
    MissingToolError,
    Nvcc,
    ToolchainError,
    find_cxx,
    find_nvcc,
    find_tensorrt,
    machine_architectures,
)

ROOT = Path(__file__).resolve().parent
# what compilers read of the environment besides their command lines
ENVIRONMENT = (
    *("CXXFLAGS", "CUDAFLAGS", "LDFLAGS", "CUDAHOSTCXX"),
    *("NVCC_CCBIN", "NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "LIBRARY_PATH", "CPATH"),
)
Say = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """What a caller may choose; see plugins.build.build."""

    architectures: Sequence[str] | None = None
    nvcc: Path | None = None
    tensorrt_include: Path | None = None
    sanitize: bool = False
    lineinfo: bool = False
    resource_usage: bool = False
    ops: Sequence[str] | None = None


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what a library becomes, but for the sources."""

    kind: str
    definitions: dict[str, str]  # CMake's
    tools: dict[str, Any]  # what is found, with versions
    architectures: tuple[str, ...] = ()

    @property
    def with_usage(self) -> bool:
        """Whether ptxas is to report."""
        return "EDGERCNN_RESOURCE_USAGE" in self.definitions

    def library(self) -> Path:
        """Where the cache has the library of the present sources."""
        same_code = ("EDGERCNN_RESOURCE_USAGE", "EDGERCNN_TENSORRT_INCLUDE")  # of the headers the version counts
        definitions = {name: value for name, value in self.definitions.items() if name not in same_code}
        key = _hash(source_digest(self.kind), self.kind, definitions, self.tools, self.architectures)
        return cache_folder() / "plugins" / key / LIBRARIES[self.kind]

    def tree(self) -> Path:
        """CMake's build tree. The CUDA libraries share one, and so the kernels' objects."""
        definitions = {name: value for name, value in self.definitions.items() if name != "EDGERCNN_TENSORRT_INCLUDE"}
        tools = {name: value for name, value in self.tools.items() if name != "tensorrt"}
        return cache_folder() / "plugins" / "trees" / _hash(str(ROOT), definitions, tools)


def find_recipe(kind: str, options: Options, say: Say) -> Recipe:
    """Look for the tools that a library of that kind needs.

    Raises:
        MissingToolError: one is not there.
        ToolchainError: options that are wrong or do not go together.
    """
    if kind not in LIBRARIES:
        raise ToolchainError(f"kind {kind!r}: expected one of {', '.join(LIBRARIES)}.")
    if kind != "cpu" and options.sanitize:
        raise ToolchainError(f"{kind} cannot have sanitizers, only cpu can: for CUDA run compute-sanitizer.")
    cxx = find_cxx()
    say(f"C++ compiler: {cxx.path}, {cxx.version}")
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    recipe = Recipe(kind, {}, {"cxx": f"{cxx.path}: {cxx.version}", "environment": environment})
    if not os.environ.get("CXX"):  # which cmake reads itself, arguments and all
        recipe.definitions["CMAKE_CXX_COMPILER"] = str(cxx.path)
    if options.ops is not None:
        recipe.definitions["EDGERCNN_OPS"] = ";".join(_known_ops(options.ops))
    if kind == "cpu":
        recipe.definitions["EDGERCNN_CUDA"] = "OFF"
        if options.sanitize:
            recipe.definitions["EDGERCNN_SANITIZE"] = "ON"
        return recipe
    if kind == "plugins" and options.ops is not None:
        raise MissingToolError("the plugin library has all ops: leave --ops out, or give --kind cuda or cpu.")
    recipe = _with_nvcc(recipe, options, say)
    return _with_tensorrt(recipe, options, say) if kind == "plugins" else recipe


def choose_architectures(requested: Sequence[str] | None, nvcc: Nvcc) -> tuple[tuple[str, ...], str]:
    """What to compile for, ascending, and why these. The newest gets PTX, too.

    Raises:
        ToolchainError: nvcc does not know one of them.
    """
    every = list(requested or []) == ["all"]
    machine = machine_architectures() if requested is None else []
    if every or (requested is None and not machine):
        ours = cmake_set("EDGERCNN_ALL_ARCHITECTURES")
        chosen = [name for name in ours if name in nvcc.architectures]
        lacking = " ".join(name for name in ours if name not in chosen)
        reason = "all" if every else "all, for there is no GPU here"
        reason += f" but {lacking}, which nvcc {nvcc.version} does not know" if lacking else ""
    else:
        chosen = [name.replace(".", "").removeprefix("sm_") for name in requested or machine]
        reason = "as asked for" if requested else "of this machine's GPU"
    if "all" in chosen:
        raise ToolchainError("--architectures: `all` stands alone, leave the others out.")
    unknown = [name for name in chosen if name not in nvcc.architectures]
    if unknown or not chosen:
        known = " ".join(sorted(nvcc.architectures, key=int))
        raise ToolchainError(
            f"architecture {' '.join(unknown) or 'none'}{' of this machine' if machine else ''}: nvcc {nvcc.version} "
            f"({nvcc.path}) knows {known}; name some of these, or `all`, or use another nvcc."
        )
    return tuple(sorted(set(chosen), key=int)), reason


def cmake_set(name: str) -> list[str]:
    """A list that CMakeLists.txt sets: it alone knows the ops and the architectures."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.search(rf"^set\({name} ([^)]*)\)", text, re.MULTILINE)
    assert found is not None, name
    return found[1].split()


def _with_nvcc(recipe: Recipe, options: Options, say: Say) -> Recipe:
    nvcc = find_nvcc(options.nvcc)
    if nvcc is None:
        raise MissingToolError(
            "nvcc is not in $CUDACXX, $CUDA_HOME, $CUDA_PATH, PATH, /usr/local/cuda or this Python's packages: install "
            f"the CUDA toolkit, or `pip install {shlex.quote(PYPI_NVCC)}`, or give --nvcc."
        )
    say(f"nvcc: {nvcc.path}, {nvcc.version}")
    architectures, reason = choose_architectures(options.architectures, nvcc)
    say(f"architectures: {' '.join(architectures)} ({reason})")
    codes = [f"{name}-real" for name in architectures] + [f"{architectures[-1]}-virtual"]
    definitions = {
        **recipe.definitions,
        "EDGERCNN_CUDA": "ON",
        "EDGERCNN_TENSORRT_INCLUDE": "",
        "CMAKE_CUDA_COMPILER": str(nvcc.path),
        "CMAKE_CUDA_ARCHITECTURES": ";".join(codes),
    }
    if options.lineinfo:
        definitions["EDGERCNN_LINEINFO"] = "ON"
    if options.resource_usage:
        definitions["EDGERCNN_RESOURCE_USAGE"] = "ON"
    return Recipe(recipe.kind, definitions, {**recipe.tools, "nvcc": f"{nvcc.path}: {nvcc.version}"}, architectures)


def _with_tensorrt(recipe: Recipe, options: Options, say: Say) -> Recipe:
    headers = find_tensorrt(options.tensorrt_include)
    if headers is None:
        raise MissingToolError(
            "TensorRT's headers (NvInferRuntime.h) are not in $TENSORRT_INCLUDE or the system's folders: install "
            "libnvinfer-headers-dev, or give the include folder of the TensorRT you run by --tensorrt-include."
        )
    say(f"TensorRT's headers: {headers.include}, {headers.version}")
    definitions = {**recipe.definitions, "EDGERCNN_TENSORRT_INCLUDE": str(headers.include)}
    return Recipe(recipe.kind, definitions, {**recipe.tools, "tensorrt": headers.version}, recipe.architectures)


def _known_ops(ops: Sequence[str]) -> list[str]:
    known = cmake_set("EDGERCNN_ALL_OPS")
    if not ops or not set(ops) <= set(known):
        raise ToolchainError(f"--ops {' '.join(ops)}: expected some of {' '.join(known)}.")
    return sorted(set(ops))


def _hash(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]
