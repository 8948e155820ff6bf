"""Stand-in for the building half of `tensorrt`, 10.x: it refuses wrong use as TensorRT does, and cannot build.

Objects take only the attributes that TensorRT's have. A test chooses by EDGERCNN_FAKE, one of MOODS, what happens in a
build, and by EDGERCNN_FAKE_VERSION which version this is. What the builder was told is written into the plan behind its
header, as JSON.

TensorRT's rules that are kept here: the parser wants creators for nodes without a body; inputs with a free axis need a
profile; interfaces need their __init__; a second load of a plugin library is refused; monitors are called from several
threads, and may say stop.
"""

from __future__ import annotations

import enum
import json
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import onnx

from tests.helpers_plan import plan_bytes

__version__ = os.environ.get("EDGERCNN_FAKE_VERSION", "10.16.1.11")
MOODS = (
    "abort",
    "deaf",
    "foreign-cache",
    "no-cores",
    "no-driver",
    "old",
    "out-of-memory",
    "prints",
    "refuses",
    "slow",
)
MOOD = os.environ.get("EDGERCNN_FAKE", "")
assert MOOD in ("", *MOODS), MOOD
PLUGIN_SOURCES = Path(__file__).resolve().parents[2] / "plugins"


class Strict:
    """As pybind11's classes: an attribute that was not declared cannot be set."""

    def __setattr__(self, name: str, value: object) -> None:
        if not name.startswith("_") and name not in type(self).__annotations__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        object.__setattr__(self, name, value)


_flags = {"STRONGLY_TYPED": 0} if __version__.startswith("11.") else {"EXPLICIT_BATCH": 0, "STRONGLY_TYPED": 1}
NetworkDefinitionCreationFlag = enum.IntEnum("NetworkDefinitionCreationFlag", _flags)  # type: ignore[misc]
_names = "TF32 REFIT GPU_FALLBACK" + ("" if MOOD == "old" else " VERSION_COMPATIBLE")
BuilderFlag = enum.Enum("BuilderFlag", _names)  # type: ignore[misc]
MemoryPoolType = enum.Enum("MemoryPoolType", "WORKSPACE")  # type: ignore[misc]
DeviceType = enum.Enum("DeviceType", "GPU DLA")  # type: ignore[misc]
ProfilingVerbosity = enum.Enum("ProfilingVerbosity", "LAYER_NAMES_ONLY DETAILED")  # type: ignore[misc]
HardwareCompatibilityLevel = enum.Enum("HardwareCompatibilityLevel", "NONE AMPERE_PLUS")  # type: ignore[misc]


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self.is_initialised = True


class IProgressMonitor:
    def __init__(self) -> None:
        self.is_initialised = True


class PluginField:
    def __init__(self, name: str) -> None:
        self.name = name


class Creator:
    """Its fields are those that the plugin's source declares."""

    def __init__(self, name: str) -> None:
        texts = [path.read_text() for path in PLUGIN_SOURCES.glob("*/plugin.cpp")]
        text = next(text for text in texts if f'kName = "{name}"' in text)
        self.field_names = [PluginField(field) for field in re.findall(r'list\.(?:number|integer)s?\("(\w+)"', text)]
        assert len(self.field_names) > 1


class Registry:
    """A library is a text file with the names of its plugins."""

    def __init__(self) -> None:
        self._creators: dict[str, Creator] = {}

    def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> Creator | None:
        return self._creators.get(type) if (version, plugin_namespace) == ("1", "") else None

    def load_library(self, plugin_path: str) -> object:
        names = Path(plugin_path).read_text().split()
        if self._creators:
            raise RuntimeError("plugin creator exists already")
        self._creators = {name: Creator(name) for name in names}
        return object()


_registry = Registry()


def get_plugin_registry() -> Registry:
    return _registry


class Profile:
    def __init__(self) -> None:
        self._shapes: dict[str, tuple[Any, Any, Any]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        if not all(low <= mid <= high for low, mid, high in zip(min, opt, max, strict=True)):
            raise ValueError("not a valid range of shapes")
        self._shapes[input] = (tuple(min), tuple(opt), tuple(max))


class TimingCache:
    def __init__(self, data: bytes) -> None:
        self.data = data

    def serialize(self) -> bytes:
        return self.data + b"timed"


class Config(Strict):
    progress_monitor: IProgressMonitor
    builder_optimization_level: int
    hardware_compatibility_level: HardwareCompatibilityLevel
    plugins_to_serialize: list[str]
    profiling_verbosity: ProfilingVerbosity
    default_device_type: DeviceType
    DLA_core: int

    def __init__(self) -> None:
        self._flags = {BuilderFlag["TF32"]}
        self._profiles: list[Profile] = []
        self._pools: dict[MemoryPoolType, int] = {}
        self._cache = TimingCache(b"")

    def set_flag(self, flag: BuilderFlag) -> None:
        assert isinstance(flag, BuilderFlag)
        self._flags.add(flag)

    def clear_flag(self, flag: BuilderFlag) -> None:
        self._flags.discard(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        assert isinstance(pool_size, int)
        self._pools[pool] = pool_size

    def add_optimization_profile(self, profile: Profile) -> int:
        self._profiles.append(profile)
        return len(self._profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache:
        return TimingCache(bytes(serialized_timing_cache))

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        self._cache = cache
        return MOOD != "foreign-cache"

    def get_timing_cache(self) -> TimingCache:
        return self._cache


class Network:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.model: onnx.ModelProto | None = None


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


class OnnxParser:
    def __init__(self, network: Network, logger: ILogger) -> None:
        assert isinstance(network, Network)
        assert logger.is_initialised
        self._network, self._errors = network, []  # type: ignore[var-annotated]

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]

    def parse(self, model: bytes, path: str | None = None) -> bool:
        parsed = onnx.load_model_from_string(model)
        bodies = {function.name for function in parsed.functions}
        for node in parsed.graph.node:
            if node.domain and node.op_type not in bodies and _registry.get_creator(node.op_type, "1") is None:
                self._errors.append(ParserError(f"Plugin not found: {node.op_type}"))
        self._network.model = parsed
        return not self._errors


class Builder:
    def __init__(self, logger: ILogger) -> None:
        if MOOD == "no-driver":
            logger.log(ILogger.ERROR, "CUDA initialization failure with error: 35")  # type: ignore[attr-defined]
            raise TypeError("pybind11::init(): factory function returned nullptr")
        assert logger.is_initialised
        self._logger: Any = logger

    num_DLA_cores = 0 if MOOD == "no-cores" else 2

    def create_network(self, flags: int = 0) -> Network:
        return Network(flags)

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        assert network.model is not None, "nothing was parsed"
        self._check_profile(network.model, config)
        if MOOD == "abort":
            os.write(2, b"terminate called after throwing an instance of 'nvinfer1::Oops'\n")
            os.abort()
        if MOOD == "prints":
            os.write(1, b"a library prints what it likes\n")
            self._logger.log(ILogger.WARNING, "some weights are very small")
            self._logger.log(ILogger.WARNING, "some weights are very small")
        if MOOD == "deaf":
            time.sleep(60)
        if MOOD == "refuses":
            self._logger.log(ILogger.ERROR, "Error Code 4: Internal Error (no implementation\n for node x.)")
            return None
        if MOOD == "out-of-memory":
            self._logger.log(ILogger.ERROR, "Error Code 2: OutOfMemory (Requested size was 13504984 bytes.)")
            return None
        if not _go_through_phases(config.progress_monitor, 400 if MOOD == "slow" else 3):
            self._logger.log(ILogger.ERROR, "Error Code 7: BuildCanceled (Build canceled by user)")
            return None
        return plan_bytes(version=__version__, size=512) + json.dumps(_told(network, config)).encode()

    def _check_profile(self, model: onnx.ModelProto, config: Config) -> None:
        for value in model.graph.input:
            free = [not dim.dim_value for dim in value.type.tensor_type.shape.dim]
            if any(free):
                shapes = config._profiles[0]._shapes[value.name]
                assert len(shapes[0]) == len(free)


def _go_through_phases(monitor: Any, steps: int) -> bool:
    """Two phases inside one, each in a thread of its own; False when the monitor said stop."""
    assert monitor.is_initialised
    answers = [True]

    def work(name: str) -> None:
        monitor.phase_start(name, "Building engine", steps)
        for step in range(steps):
            time.sleep(0.02)
            answers.append(monitor.step_complete(name, step))
            if not answers[-1]:
                break
        monitor.phase_finish(name)

    monitor.phase_start("Building engine", None, 2)
    threads = [threading.Thread(target=work, args=(name,)) for name in ("Optimizing graph", "Timing tactics")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers += [monitor.step_complete("Building engine", step) for step in range(2)]
    monitor.phase_finish("Building engine")
    return all(answers)


def _told(network: Network, config: Config) -> dict[str, Any]:
    """What was asked, for the test to look at."""
    assert network.model is not None
    settings = {name: str(value) for name, value in vars(config).items() if not name.startswith("_")}
    settings.pop("progress_monitor")
    return {
        "flags": sorted(flag.name for flag in config._flags),
        "network_flags": network.flags,
        "pools": {pool.name: size for pool, size in config._pools.items()},
        "profiles": [profile._shapes for profile in config._profiles],
        "bodies": [function.name for function in network.model.functions],
        "nodes": [node.op_type for node in network.model.graph.node if node.domain],
        "settings": settings,
    }
