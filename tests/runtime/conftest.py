"""A machine with a GPU, TensorRT, pycuda and our libraries, all of it stand-ins."""

from __future__ import annotations

import gc
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plugins import load
from runtime.backends import cuda_device, cuda_graph, nvidia
from runtime.backends.nvidia import Gpu
from tests.helpers_onnx import small_spec
from tests.stand_ins import machine as machine_module
from tests.stand_ins.kernels import KernelsLibrary
from tests.stand_ins.machine import DriverLibrary, Machine
from tests.stand_ins.plans import OPS, write_stand_in_plan
from tests.stand_ins.scene import write_pixel_onnx

PACKAGES = Path(__file__).resolve().parents[1] / "stand_ins" / "packages"
NAMES = ("pycuda", "tensorrt")
GPU = Gpu(0, "NVIDIA GeForce RTX 4090", 89, 24 << 30, False)


def forget_packages() -> None:
    for name in list(sys.modules):
        if name.split(".")[0] in NAMES:
            del sys.modules[name]
    importlib.invalidate_caches()
    cuda_device._primary_context.cache_clear()


def write_library(path: Path, content: str, architectures: list[str]) -> Path:
    path.write_text(content)
    Path(f"{path}.json").write_text(json.dumps({"architectures": architectures}))
    return path


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Machine]:
    """The stand-ins in place; at the end, everything on the GPU must have been freed."""
    made = Machine()
    machine_module.install(made)
    forget_packages()
    monkeypatch.syspath_prepend(PACKAGES)
    monkeypatch.setattr(nvidia, "gpus", lambda: (GPU,))
    monkeypatch.setattr(cuda_graph, "driver_library", lambda: DriverLibrary(made))
    libraries = tmp_path / "libraries"
    libraries.mkdir()
    write_library(libraries / load.LIBRARIES["cuda"], "kernels", ["89"])
    write_library(libraries / load.LIBRARIES["plugins"], " ".join(OPS), ["89"])
    monkeypatch.setenv("EDGERCNN_PLUGINS", str(libraries))
    monkeypatch.setattr(load, "load_kernels", lambda path: KernelsLibrary())
    yield made
    gc.collect()
    assert made.leaked == [], "destroyed where no context was current"
    forget_packages()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    write_pixel_onnx(path)
    return path


@pytest.fixture
def plan(machine, tmp_path: Path, model: Path) -> Path:
    write_stand_in_plan(tmp_path / "fp32.plan", model, small_spec())
    return tmp_path / "fp32.plan"
