"""The C++ sources' own rules: launch functions only launch, and every op's room is complete."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"
OPS = ("rpn_proposals", "pyramid_roi_align", "roi_max_pool", "box_detections")
ROOMS = (*OPS, "preprocess")
# what allocates, waits, or copies to or from the host: none of it can be captured into a CUDA graph
FORBIDDEN = (
    r"cudaMalloc\w*",
    r"cudaFree\w*",
    r"cudaMemcpy\w*",
    r"cudaMemset\w*",
    r"cuda\w*Synchronize",
    r"cudaStreamCreate\w*",
    r"cudaHostAlloc|cudaHostRegister",
    r"\bnew\b(?! \w*-)",
    r"\bmalloc\b|\bcalloc\b|\brealloc\b",
    r"std::(vector|string|map|unique_ptr|shared_ptr|make_unique)\b",
    r"\bthrust::|\bcub::",
    r"<<<",  # launch() is the one way, and reports its error
)


def code_of(path: Path) -> str:
    """The file without comments and string literals."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r'"(?:[^"\\\n]|\\.)*"', '""', text)


def kernel_sources() -> list[Path]:
    """What is compiled for the GPU: the rooms' kernels and headers, and what they share but for the CPU grid."""
    shared = [path for path in (PLUGINS / "common").glob("*.h") if not path.name.startswith(("plugin", "cpu_grid"))]
    return sorted([path for room in ROOMS for path in (PLUGINS / room).glob("*.[ch]u*")] + shared)


def relative(path: Path) -> str:
    return path.relative_to(PLUGINS).as_posix()


@pytest.mark.parametrize("path", kernel_sources(), ids=relative)
def test_launch_functions_only_launch(path):
    code = code_of(path)
    found = [match.group() for pattern in FORBIDDEN for match in re.finditer(pattern, code)]
    assert not found, f"{relative(path)} uses {found}"


@pytest.mark.parametrize("room", ROOMS)
def test_every_kernel_states_its_threads(room):
    """Without a bound the compiler may take more registers than a block of that size can have."""
    paths = [PLUGINS / room / "kernel.cu", *(PLUGINS / room).glob("*.h")]
    kernels = [head for path in paths for head in re.findall(r"__global__([^{;]*)", code_of(path))]
    assert kernels
    assert all("__launch_bounds__" in head for head in kernels), kernels


@pytest.mark.parametrize("room", OPS)
def test_a_room_has_every_face(room):
    names = {path.name for path in (PLUGINS / room).iterdir()}
    assert names >= {"torch_op.py", "onnx_body.py", "kernel.h", "kernel.cu", "plugin.cpp", "README.md"}


def test_sources_are_files_that_can_be_read_at_a_sitting():
    for path in PLUGINS.rglob("*"):
        if path.suffix in (".cu", ".cpp", ".h"):
            lines = path.read_text(encoding="utf-8").splitlines()
            assert len(lines) <= 400, f"{relative(path)} has {len(lines)} lines"
            assert max(map(len, lines)) <= 120, f"{relative(path)} has a line of more than 120 columns"
