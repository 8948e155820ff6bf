"""What ptxas says of every kernel: registers, spills, stack, shared memory. From a log of `nvcc -Xptxas -v`."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from typing import NamedTuple


class Usage(NamedTuple):
    """One kernel on one architecture; everything but `registers` (per thread) is in bytes."""

    kernel: str
    architecture: str
    registers: int
    spill_stores: int
    spill_loads: int
    stack: int
    shared: int  # static


def parse_usage(log: str) -> list[Usage]:
    """The kernels that a log reports, by name and architecture."""
    found = []
    kernel, architecture, frame = "", "", (0, 0, 0)
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '(\S+)' for 'sm_(\w+)'", line):
            kernel, architecture, frame = match[1], match[2], (0, 0, 0)
        elif match := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            frame = (int(match[1]), int(match[2]), int(match[3]))
        elif kernel and (match := re.search(r"Used (\d+) registers", line)):
            shared = re.search(r"(\d+) bytes smem", line)
            stack, stores, loads = frame
            found.append(
                Usage(kernel, architecture, int(match[1]), stores, loads, stack, int(shared[1]) if shared else 0)
            )
            kernel = ""
    names = _short_names({usage.kernel for usage in found})
    usages = [usage._replace(kernel=names[usage.kernel]) for usage in found]
    return sorted(usages, key=lambda usage: (usage.kernel, int(re.sub(r"\D", "", usage.architecture))))


def usage_table(usages: Iterable[Usage]) -> str:
    """Rows for people."""
    head = ("kernel", "sm", "registers", "spill stores", "spill loads", "stack", "static shared")
    rows = [head, *(tuple(map(str, usage)) for usage in usages)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width) for column, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]
    return "\n".join(lines)


def _short_names(mangled: set[str]) -> dict[str, str]:
    """C++ names without namespaces and parameters, where c++filt is there to read them."""
    ordered = sorted(mangled)
    if not ordered or shutil.which("c++filt") is None:
        return {name: name for name in ordered}
    result = subprocess.run(["c++filt"], input="\n".join(ordered), capture_output=True, text=True, check=True)
    return dict(zip(ordered, map(_short_name, result.stdout.splitlines()), strict=True))


def _short_name(name: str) -> str:
    """`void edgercnn::op::(anonymous namespace)::scan<float, 4>(float*)` -> `op::scan<float, 4>`."""
    name = name.replace("(anonymous namespace)::", "").replace("edgercnn::", "").removeprefix("void ")
    depth = 0
    for index, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0:
            return name[:index]
    return name
