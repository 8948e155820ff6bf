"""Libraries that several tests use: made once, or skipped with the reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plugins.build import build
from plugins.toolchain import MissingToolError
from tests.plugins.cpu_grid_library import FORWARD, SCHEDULES, SWITCHES, Library, kernel_library
from tests.plugins.plugin_driver import DRIVER, PluginLibrary, compile_plugins, compile_shared, cuda_include


def built_or_skipped(kind: str, **options: Any) -> Path:
    """`build`, or the test is skipped because a tool is missing on this machine."""
    try:
        return build(kind, **options)
    except MissingToolError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def cpu_kernels_path() -> Path:
    """The kernels on the CPU."""
    return built_or_skipped("cpu")


@pytest.fixture(scope="session")
def sanitized_kernels_path() -> Path:
    """The same, with the address and undefined-behaviour sanitizers."""
    return built_or_skipped("cpu", sanitize=True)


@pytest.fixture(scope="session")
def tensorrt_include() -> Path:
    """The folder of TensorRT's headers, which no package on PyPI has."""
    given = os.environ.get("TENSORRT_INCLUDE")
    if not given:
        pytest.skip("TENSORRT_INCLUDE is not set: the folder of NvInferRuntime.h, TensorRT 10.0 or later")
    if shutil.which("g++") is None:
        pytest.skip("no g++ on this machine")
    if cuda_include() is None:
        pytest.skip("no cuda_runtime_api.h: install CUDA or the Python package nvidia-cuda-runtime")
    return Path(given)


@pytest.fixture(scope="session")
def plugins(tensorrt_include, cpu_kernels_path, tmp_path_factory) -> PluginLibrary:
    """The TensorRT plugins on the CPU kernels."""
    folder = tmp_path_factory.mktemp("plugins")
    driver = compile_shared([DRIVER], folder / "libplugin_driver.so", tensorrt_include)
    return PluginLibrary(driver, compile_plugins(folder, tensorrt_include, cpu_kernels_path))


@pytest.fixture(scope="module", params=SWITCHES)
def grid(request, tmp_path_factory) -> Library:
    """The CPU grid's test kernels, with both ways to switch fibers."""
    return kernel_library(tmp_path_factory.getbasetemp(), request.param)


@pytest.fixture(params=SCHEDULES)
def ordered(grid, request) -> Iterator[Library]:
    """The same, in every order of threads."""
    assert grid.set_schedule(*SCHEDULES[request.param]) == 0
    yield grid
    grid.set_schedule(FORWARD)
