"""A clone of plugins/ with tiny sources, that compiles in no time, and tools whose behaviour a test chooses."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from plugins.recipe import cmake_set

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
KERNEL = """
#include "common/abi.h"
#ifdef __CUDACC__
namespace edgercnn {
__global__ void %(op)sKernel(float* data) { data[threadIdx.x] += 1.0f; }
}
EDGERCNN_API int32_t edgercnn_%(op)s(float* data) { edgercnn::%(op)sKernel<<<1, 32>>>(data); return 0; }
#else
EDGERCNN_API int32_t edgercnn_%(op)s(float* data) { data[0] += 1.0f; return 0; }
#endif
int32_t hidden_%(op)s() { return 1; }
"""
CPU_GRID = '#include "common/abi.h"\nEDGERCNN_API const char* edgercnn_cpu_fault() { return ""; }\n'
REGISTRY = """
#include <NvInferRuntime.h>
#include "common/abi.h"
EDGERCNN_API void* const* getCreators(int32_t& count) { count = NV_TENSORRT_MAJOR; return nullptr; }
EDGERCNN_API void setLoggerFinder(void*) {}
"""
CXX = """#!/bin/sh
# a C++ compiler that keeps a diary, and waits at the link as long as a file is there
folder='{folder}'
echo "$@" >> "$folder/diary"
case "$*" in *-shared*libedgercnn*) if [ -e "$folder/hold" ]; then
    echo half > libedgercnn_kernels_cpu.so
    touch "$folder/waiting"
    while [ -e "$folder/hold" ]; do sleep 0.05; done
fi;; esac
exec {compiler} "$@"
"""
NVCC = """#!/bin/sh
case "$1" in
    --version)
        echo "nvcc: NVIDIA (R) Cuda compiler driver"
        echo "Cuda compilation tools, release 12.6, V12.6.68"
        exit {status};;
    --list-gpu-arch) for a in 75 80 86 87 89 90; do echo compute_$a; done; exit {status};;
esac
echo "nvcc fatal   : error: this nvcc is out of order" >&2
exit 1
"""
# no nvcc and no TensorRT, whatever this machine has; {tools} is all of PATH
BARE = """
import sys
from pathlib import Path
sys.path[:] = [{clone!r}] + [folder for folder in sys.path if not list(Path(folder or ".").glob("nvidia/cu*/bin"))]
import plugins.toolchain as toolchain
toolchain.SYSTEM_NVCC = Path("/nonexistent/nvcc")
toolchain.TENSORRT_FOLDERS = ("/nonexistent",)
toolchain.machine_architectures = lambda: []
import plugins.build as build
import plugins.recipe as recipe
recipe.machine_architectures = lambda: []
sys.exit(build.run(sys.argv[1:]))
"""
NEEDED = "g++ c++ gcc cc ld as ar ranlib nm objdump objcopy strip readelf cmake ninja make sh uname rm touch sleep"


class Clone:
    """A folder with plugins/, a cache, and a PATH of its own with the tools that a build needs, but for nvcc."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plugins = folder / "plugins"
        self.cache = folder / "cache"
        self.tools = folder / "tools"
        for source in [*PLUGINS.glob("*.py"), *PLUGINS.glob("*.map"), PLUGINS / "CMakeLists.txt"]:
            self.write(source.name, source.read_text(encoding="utf-8"))
        for name in ("__init__.py", "abi.h", "status.cpp"):
            self.write(f"common/{name}", (PLUGINS / "common" / name).read_text(encoding="utf-8"))
        self.write("common/cpu_grid.cpp", CPU_GRID)
        self.write("registry.cpp", REGISTRY)
        for op in cmake_set("EDGERCNN_ALL_OPS"):
            self.write(f"{op}/kernel.cu", KERNEL % {"op": op})
        self.tools.mkdir()
        for name in NEEDED.split():
            if found := shutil.which(name, path=f"{os.environ['PATH']}:{Path(sys.executable).parent}"):
                (self.tools / name).symlink_to(found)

    def write(self, name: str, text: str) -> None:
        path = self.plugins / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def program(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
        return path

    def compiler(self) -> Path:
        """See CXX."""
        return self.program("cxx", CXX.format(folder=self.folder, compiler=shutil.which("g++")))

    def diary(self) -> list[str]:
        """What the compiler was asked for."""
        return (self.folder / "diary").read_text(encoding="utf-8").splitlines()

    def nvcc(self, status: int = 0) -> Path:
        """An nvcc that knows CUDA 12.6's architectures and compiles nothing; with another status, not even that."""
        return self.program("nvcc", NVCC.format(status=status))

    def tensorrt(self, version: str = "#define NV_TENSORRT_MAJOR 10") -> Path:
        """A folder of headers."""
        folder = self.folder / "include"
        folder.mkdir(exist_ok=True)
        (folder / "NvInferRuntime.h").write_text('#include "NvInferVersion.h"\n', encoding="utf-8")
        text = f"{version}\n#define NV_TENSORRT_MINOR 3\n#define NV_TENSORRT_PATCH 0 //!< the patch\n"
        (folder / "NvInferVersion.h").write_text(text, encoding="utf-8")
        return folder

    def environment(self, **variables: object) -> dict[str, str]:
        """PATH and cache of our own, and nothing that would lead a build elsewhere."""
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
        ours = {"PATH": str(self.tools), "EDGERCNN_CACHE": str(self.cache), "PYTHONDONTWRITEBYTECODE": "1"}
        return kept | ours | {name: str(value) for name, value in variables.items()}

    def command(self, *arguments: object) -> list[str]:
        """The command line on a machine without CUDA; --nvcc and --tensorrt-include bring it back."""
        return [sys.executable, "-c", BARE.format(clone=str(self.folder)), *map(str, arguments)]

    def build(self, *arguments: object, **variables: object) -> subprocess.CompletedProcess[str]:
        """Run that command."""
        return subprocess.run(
            self.command(*arguments), env=self.environment(**variables), cwd=self.folder,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    def libraries(self) -> list[Path]:
        """What the cache shows others."""
        return sorted((self.cache / "plugins").glob("*/*.so"))


def exports(library: Path) -> set[str]:
    """Names that a library defines for others."""
    result = subprocess.run(
        ["nm", "-D", "--defined-only", "--format=posix", str(library)], capture_output=True, text=True, check=True
    )
    return {line.split()[0] for line in result.stdout.splitlines()}
