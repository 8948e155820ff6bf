"""Every attribute of TensorRT's Python API that the builder's code uses exists, or is asked for with hasattr.

The code is read, not run: `trt.BuilderFlag.REFIT` is looked up in the module, `config.set_flag` in IBuilderConfig, by
the names of variables. The module is tensorrt_rtx, which is installed; another can be named, with the Python that has
it: EDGERCNN_TENSORRT="/opt/venv/bin/python tensorrt" python -m pytest tests/export/test_build_engine_api.py
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_structure import ROOT

FILES = ("export/engine_builder.py", "export/engine_config.py", "runtime/backends/tensorrt_library.py")
# what variables of these names are
CLASSES = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "profile": "IOptimizationProfile",
    "cache": "ITimingCache",
    "registry": "IPluginRegistry",
    "creator": "IPluginCreatorV3One",
    "flags": "BuilderFlag",
    "capabilities": "ComputeCapability",
}
RTX_ONLY = {"ComputeCapability", "IBuilderConfig.num_compute_capabilities", "IBuilderConfig.set_compute_capability"}
BUILDER_ONLY = ("Builder", "IBuilderConfig", "INetworkDefinition", "OnnxParser", "NetworkDefinitionCreationFlag")
LIST_NAMES = """
import importlib, json, sys
trt = importlib.import_module(sys.argv[1])
names = {name: dir(getattr(trt, name)) for name in dir(trt)}
print(json.dumps({"version": trt.__version__, "names": names}))
"""


@pytest.fixture(scope="module")
def api() -> dict[str, list[str]]:
    """Names in the module, and the names in each of them."""
    named = os.environ.get("EDGERCNN_TENSORRT")
    if named is None and importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("the package tensorrt-rtx (requirements-dev.txt) is not installed")
    python, module = named.split() if named else (sys.executable, "tensorrt_rtx")
    result = subprocess.run([python, "-c", LIST_NAMES, module], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.splitlines()[-1])
    print(module, found["version"])
    return found["names"]


def test_the_code_uses_what_there_is(api):
    used = set().union(*(used_names(ROOT / path) for path in FILES))
    assert {"Builder", "OnnxParser.parse", "IBuilderConfig.set_flag", "DeviceType.DLA"} <= used, "the code is read"
    is_rtx = "ComputeCapability" in api
    missing = []
    for name in sorted(used):
        root, _, attribute = name.partition(".")
        if not is_rtx and (name in RTX_ONLY or root in RTX_ONLY):
            continue
        if root in BUILDER_ONLY and "Builder" not in api:  # a runtime, like tensorrt_lean
            continue
        if root not in api or (attribute and attribute not in api[root]):
            missing.append(name)
    assert missing == []
    assert len(used) >= 40


def used_names(path: Path) -> set[str]:
    """`BuilderFlag.TF32`, `IBuilderConfig.set_flag`, ... in a file, but for those that hasattr asks for first."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used, asked = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            used.add(api_name(node))
        is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        if is_call and node.func.id == "hasattr" and isinstance(node.args[1], ast.Constant):
            asked.add(node.args[1].value)
        if is_call and node.func.id in ("_set_flag",) and isinstance(node.args[2], ast.Constant):
            used.add(f"BuilderFlag.{node.args[2].value}")
    return {name for name in used if name and name.split(".")[-1] not in asked}


def api_name(node: ast.Attribute) -> str | None:
    """The name in TensorRT's module that an attribute access stands for; None where it stands for something else."""
    parts: list[str] = []
    value: ast.expr = node
    while isinstance(value, ast.Attribute):
        parts.insert(0, value.attr)
        value = value.value
    if not isinstance(value, ast.Name):
        return None
    if value.id == "library" and parts[0] == "module":
        parts = parts[1:]
    elif value.id in CLASSES:
        parts = [CLASSES[value.id], parts[0]]
    elif value.id != "trt":
        return None
    return ".".join(parts[:2]) or None
