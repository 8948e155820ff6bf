"""Every name of TensorRT's that runtime/backends uses exists in the real modules, or is asked for before it is used.

`tensorrt_rtx` comes with requirements-dev.txt. Others are named in TENSORRT_MODULES as FOLDER=MODULE, separated by
commas, like /venv/lib/python3.11/site-packages=tensorrt_lean_bindings; each is imported in its own process.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BACKENDS = Path(__file__).resolve().parents[2] / "runtime" / "backends"
# file: expressions in it that are objects of TensorRT's, and of which class ("" is the module itself)
OBJECTS = {
    "tensorrt_engine.py": {
        "trt": "",
        "plan.library.module": "",
        "self._plan.library.module": "",
        "self._runtime": "Runtime",
        "self._engine": "ICudaEngine",
        "engine": "ICudaEngine",
        "config": "IRuntimeConfig",
    },
    "tensorrt_runner.py": {"self._context": "IExecutionContext"},
    "tensorrt_library.py": {
        "trt": "",
        "module": "",
        "library.module": "",
        "registry": "IPluginRegistry",
        "library.module.get_plugin_registry()": "IPluginRegistry",
    },
}
FEATURES = {  # used only where hasattr or getattr has found them, or what they belong to
    "DynamicShapesKernelSpecializationStrategy",
    "IExecutionContext.is_stream_capturable",
    "ICudaEngine.create_runtime_config",
    "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
}
PROBE = """
import functools, importlib, json, sys
sys.path.insert(0, sys.argv[1])
module = importlib.import_module(sys.argv[2])
def has(name):
    try:
        functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        return False
    return True
print(json.dumps([name for name in json.loads(sys.argv[3]) if not has(name)]))
"""


def used_names() -> set[str]:
    """`TensorIOMode.INPUT`, `ICudaEngine.get_tensor_name`, ... as the code has them."""
    names = set()
    for file, objects in OBJECTS.items():
        for node in ast.walk(ast.parse((BACKENDS / file).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                owner, attributes = ast.unparse(node.value), [node.attr]
                while owner not in objects and "." in owner:  # trt.TensorIOMode.INPUT
                    owner, _, attribute = owner.rpartition(".")
                    attributes.insert(0, attribute)
                if owner in objects:
                    names.add(".".join(filter(None, [objects[owner], *attributes])).replace("()", ""))
            is_question = isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr")
            if is_question and ast.unparse(node.args[0]) in objects and isinstance(node.args[1], ast.Constant):
                names.add(".".join(filter(None, [objects[ast.unparse(node.args[0])], node.args[1].value])))
    return names


def missing_names(folder: str, module: str) -> set[str]:
    command = [sys.executable, "-c", PROBE, folder, module, json.dumps(sorted(used_names()))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_names_are_found_in_the_code():
    """The scan sees what is there; otherwise the tests below would prove nothing."""
    names = used_names()
    assert {"Runtime", "TensorIOMode.INPUT", "ILogger.ERROR", "get_plugin_registry"} <= names
    assert {"ICudaEngine.get_tensor_profile_shape", "Runtime.deserialize_cuda_engine"} <= names
    assert {"IExecutionContext.execute_async_v3", "IPluginRegistry.load_library"} <= names
    assert names >= FEATURES


def test_tensorrt_rtx_has_every_name():
    pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: requirements-dev.txt has it")
    assert missing_names("", "tensorrt_rtx") == set()


def test_further_tensorrt_modules_have_every_name_but_asked_ones():
    given = os.environ.get("TENSORRT_MODULES")
    if not given:
        pytest.skip("TENSORRT_MODULES is not set: FOLDER=MODULE, of TensorRT installations to look into")
    for one in given.split(","):
        folder, _, module = one.partition("=")
        missing = missing_names(folder, module)
        print(f"{module} in {folder} lacks {sorted(missing) or 'nothing'}")
        assert missing <= FEATURES
