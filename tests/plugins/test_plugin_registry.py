"""The plugin library in the plugin registries of the TensorRTs that are installed: none of this needs a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.plugins.plugin_cases import ATTRIBUTES

SCRIPT = Path(__file__).with_name("plugin_registry.py")
# module: the major version of the headers that it goes with; None is its own
TENSORRTS = {"tensorrt": None, "tensorrt_lean_bindings": None, "tensorrt_rtx": 11}
ALL = {
    op: ["1", "", [[name, dtype, length] for name, (dtype, length, _) in fields.items()]]
    for op, fields in ATTRIBUTES.items()
}


@pytest.fixture(scope="module", params=TENSORRTS)
def run(request, plugins):
    """Run steps of plugin_registry.py with the library: what they found, and what was said on stderr."""
    module, library = request.param, plugins.path
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")
    version = f"from {module} import __version__; print(__version__)"
    major = TENSORRTS[module] or int(subprocess.check_output([sys.executable, "-c", version], text=True).split(".")[0])
    if major != plugins.version // 10000:
        pytest.skip(f"{module} wants a library for TensorRT {major}, TENSORRT_INCLUDE is {plugins.version // 10000}")

    def run_steps(*steps, **environment):
        result = subprocess.run(
            [sys.executable, SCRIPT, module, library, *steps],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
        )
        assert result.returncode == 0, f"{result.returncode} {result.stdout} {result.stderr}"
        return [json.loads(line) for line in result.stdout.splitlines()], result.stderr

    run_steps.module = module
    return run_steps


def test_creators_are_registered_by_load_library(run):
    assert run("load", "find") == ([True, ALL], "")


def test_a_library_can_be_unloaded_and_loaded_again(run):
    assert run("load", "unload", "find", "load", "find") == ([True, True, {}, True, ALL], "")


def test_plugins_are_created_and_refused(run):
    (_, created), said = run("load", "create")
    assert created == {"name": "RoiMaxPool", "version": "1", "refused": True}
    assert said == "edgercnn: RoiMaxPool pool: attribute spatial_scale is missing and has no default, give it\n"


def test_a_library_that_is_opened_registers_itself_and_stays(run):
    if run.module == "tensorrt_rtx":
        pytest.skip("TensorRT-RTX takes no plugins, so the library does not look for it")
    assert run("open", "find", "close", "find") == ([True, ALL, True, ALL], "")


def test_a_library_that_is_opened_can_be_loaded_by_a_builder_as_well(run):
    if run.module == "tensorrt_lean_bindings":
        pytest.skip("TensorRT's lean runtime has no builder")
    found, said = run("build", "find")
    assert found == [True, {}]  # in the builder's registry, not in the process's
    found, said = run("open", "build", "load" if run.module == "tensorrt_rtx" else "find")
    assert all(found)
    assert "edgercnn" not in said


def test_opening_and_then_loading_the_library_does_no_harm(run):
    """Loading is refused, as loading twice is; what was registered stays."""
    if run.module == "tensorrt_rtx":
        pytest.skip("TensorRT-RTX takes no plugins, so the library does not look for it")
    assert run("open", "load", "find")[0] == [True, False, ALL]
    assert run("load", "load", "find")[0] == [True, False, ALL]


def test_a_preloaded_library_brings_tensorrt_along(run, plugins, tmp_path):
    """LD_PRELOAD loads it before TensorRT is there; here libnvinfer.so is the lean runtime, where there is no other."""
    if run.module == "tensorrt_rtx":
        pytest.skip("TensorRT-RTX takes no plugins, so the library does not look for it")
    environment = {"LD_PRELOAD": str(plugins.path), "LD_LIBRARY_PATH": str(tmp_path)}
    name = f"libnvinfer.so.{plugins.version // 10000}"
    packages = [file for path in sys.path for file in Path(path).glob(f"tensorrt*_libs/libnvinfer*.so.{name[-2:]}")]
    brought = next((file for file in packages if file.name in (name, name.replace(".so", "_lean.so"))), None)
    if brought is None:
        pytest.skip(f"{name} is not among Python's packages")
    (tmp_path / name).symlink_to(brought)
    assert run("find", **environment) == ([ALL], "")


def test_a_preloaded_library_says_when_it_cannot_register(run, plugins, tmp_path):
    environment = {"LD_PRELOAD": str(plugins.path), "LD_LIBRARY_PATH": str(tmp_path)}
    found, said = run("find", **environment)
    if found == [ALL]:
        pytest.skip("TensorRT is installed in this machine's library folders")
    assert found == [{}]
    name = f"libnvinfer.so.{plugins.version // 10000}"
    assert said == f"edgercnn: no plugins from LD_PRELOAD, add the folder of {name} to LD_LIBRARY_PATH\n"
