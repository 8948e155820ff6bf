"""Tries TensorRT, pycuda and our libraries, for the doctor; each function runs in a process of its own.

Some of these libraries end the process that uses them without a driver, which is why.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

from plugins.load import LibraryError, find_library, library_metadata, load_kernels, source_digest
from runtime.backends.nvidia import gpu_count, gpus
from runtime.backends.tensorrt_library import (
    PLUGINS,
    TensorRt,
    find_tensorrt,
    installed_flavours,
    load_plugins,
    make_logger,
    missing_plugins,
)
from runtime.diagnosis.children import CannotError, Values
from runtime.diagnosis.doubling_graph import doubling_model

AHEAD_OF_TIME_SM = 86  # any that TensorRT-RTX knows: built for without a GPU
LEAN_MODULES = ("tensorrt_lean", "tensorrt_lean_bindings")
EXPORTED = ("getCreators", "setLoggerFinder")
BYTES = 256


def check_tensorrt(values: Values) -> None:
    """Import TensorRT; where there is a GPU, start its runtime, build a small plan and load it."""
    library = _imported("tensorrt", values)
    if gpu_count() == 0:
        raise CannotError("TensorRT builds and runs on a GPU only")
    _build_and_load(library, values)


def check_tensorrt_rtx(values: Values) -> None:
    """Build a small plan for a GPU that need not be there; where there is one, build for it and load the plan too."""
    library = _imported("tensorrt_rtx", values)
    values["ahead_of_time_bytes"] = len(_small_plan(library, make_logger(library), AHEAD_OF_TIME_SM))
    if gpu_count():
        _build_and_load(library, values)


def check_tensorrt_lean(values: Values) -> None:
    """Import the lean runtime, which runs plans that are version-compatible, and builds none."""
    for name in LEAN_MODULES:
        if importlib.util.find_spec(name) is not None:
            values["version"] = importlib.import_module(name).__version__
            return
    raise ModuleNotFoundError("no lean runtime", name=LEAN_MODULES[0])


def check_plugin_library(values: Values) -> None:
    """Where the TensorRT plugin library is, what it was built for, whether it opens."""
    version = None
    if "tensorrt" in installed_flavours():
        version = find_tensorrt("tensorrt").version
    path = _describe_library("plugins", version, values)
    library = ctypes.CDLL(str(path))
    lacking = [name for name in EXPORTED if not hasattr(library, name)]
    if lacking:
        raise CannotError(f"{path.name} has no function {lacking[0]}, so it is no TensorRT plugin library of ours")
    values["symbols"] = list(EXPORTED)


def check_kernel_library(values: Values) -> None:
    """Where the library of CUDA kernels (preprocessing among them) is, what it was built for, whether it opens."""
    path = _describe_library("cuda", None, values)
    library = load_kernels(path)
    names = ("preprocess", "rpn_proposals", "pyramid_roi_align", "roi_max_pool", "box_detections")
    values["symbols"] = [f"edgercnn_{name}" for name in names if hasattr(library, f"edgercnn_{name}")]


def check_plugin_registry(values: Values) -> None:
    """Load the plugin library into TensorRT's registry."""
    library = _imported("tensorrt", values)
    path = find_library("plugins", library.version)
    if path is None:
        raise CannotError(f"there is no plugin library for TensorRT {library.version}")
    logger = make_logger(library)
    load_plugins(library, path)
    values["ops"] = [name for name in PLUGINS if name not in missing_plugins(library)]
    del logger


def check_pycuda(values: Values) -> None:
    """Open pycuda's context on the GPU as the TensorRT backend does, and bring a few bytes there and back."""
    if importlib.util.find_spec("pycuda") is None:
        raise ModuleNotFoundError("no pycuda", name="pycuda")
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # copied there, not installed
        values["version"] = importlib.metadata.version("pycuda")
    if gpu_count() == 0:
        raise CannotError("there is no GPU to try it on")
    from runtime.backends.cuda_device import CudaDevice, TransferBuffer

    device = CudaDevice(gpus()[0])
    with device.active():
        buffer, stream = TransferBuffer(device, BYTES, "a few bytes"), device.stream()
        buffer.host[:] = range(BYTES)
        buffer.upload(BYTES, stream)
        buffer.download(BYTES, stream)
        stream.synchronize()
        received = buffer.host.tolist()
        buffer.free()
    if received != list(range(BYTES)):
        raise CannotError("bytes copied to the GPU and back with pycuda are not the same")


def _describe_library(kind: str, version: str | None, values: Values) -> Path:
    try:
        path = find_library(kind, version)
        if path is None and version is not None and (other := find_library(kind)) is not None:
            _describe(other, kind, values)
            raise CannotError(f"there is none for TensorRT {version}, only one for {values['tensorrt'] or 'another'}")
    except LibraryError as error:
        raise CannotError(str(error).rstrip("."), "unset EDGERCNN_PLUGINS") from error
    if path is None:
        raise CannotError("it is not built yet")
    _describe(path, kind, values)
    return path


def _describe(path: Path, kind: str, values: Values) -> None:
    metadata = library_metadata(path)
    tools = metadata.get("tools", {})
    values["path"] = str(path)
    values["architectures"] = [int(sm) for sm in metadata.get("architectures", [])]
    values["tensorrt"] = tools.get("tensorrt")
    digest = source_digest(kind)
    values["old_sources"] = digest is not None and metadata.get("sources_sha256") not in (None, digest)


def _imported(flavour: str, values: Values) -> TensorRt:
    if flavour not in installed_flavours():
        raise ModuleNotFoundError(f"no {flavour}", name=flavour)
    library = find_tensorrt(flavour)
    values["version"] = library.version
    values["has_builder"] = hasattr(library.module, "Builder") and hasattr(library.module, "OnnxParser")
    return library


def _build_and_load(library: TensorRt, values: Values) -> None:
    """`runtime`: it starts. `built_bytes`: a plan for this machine's GPU. `loaded`: the runtime took it."""
    logger = make_logger(library)
    runtime = library.module.Runtime(logger)
    values["runtime"] = True
    if not values["has_builder"]:
        raise CannotError("this TensorRT has no builder or no ONNX parser")
    plan = _small_plan(library, logger, None)
    values["built_bytes"] = len(plan)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None or engine.create_execution_context() is None:
        raise CannotError(f"{library.title} cannot load the plan that it built ({_last(logger)})")
    values["loaded"] = True


def _small_plan(library: TensorRt, logger: Any, sm: int | None) -> bytes:
    """A plan of x + x; for `sm`, or for the GPU that is here."""
    trt = library.module
    network_builder = trt.Builder(logger)
    network = network_builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(doubling_model()):
        raise CannotError(f"{library.title} cannot parse a small ONNX file ({_last(logger)})")
    config = network_builder.create_builder_config()
    if sm is not None:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), 0)
    plan = network_builder.build_serialized_network(network, config)
    if plan is None:
        where = f"sm_{sm}" if sm is not None else " and ".join(f"sm_{gpu.sm}" for gpu in gpus())
        raise CannotError(f"{library.title} cannot build a small plan for {where} ({_last(logger)})")
    return bytes(plan)


def _last(logger: Any) -> str:
    return logger.errors[-1][:160] if logger.errors else "no reason given"
