"""Stand-in for tensorrt 10.16: plans are ONNX files behind a header (tests/stand_ins/plans.py), run by ONNX Runtime.

It refuses what TensorRT refuses, with a line in the log and None or False.
"""

from __future__ import annotations

import enum
import json
import threading
from typing import Any

import numpy as np

from tests.stand_ins.machine import CudaFailure, machine

__version__ = "10.16.1.11"
HEADER_BYTES = 28


class TensorIOMode(enum.Enum):
    NONE, INPUT, OUTPUT = 0, 1, 2


class TensorLocation(enum.Enum):
    DEVICE, HOST = 0, 1


class DataType(enum.Enum):
    FLOAT, HALF, INT8, INT32 = 0, 1, 2, 3


TYPES = {"tensor(float)": DataType.FLOAT, "tensor(int32)": DataType.INT32, "tensor(float16)": DataType.HALF}
NUMPY = {DataType.FLOAT: np.float32, DataType.INT32: np.int32, DataType.HALF: np.float16}


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        pass


class _Registry:
    def __init__(self) -> None:
        self.creators: set[str] = set()

    def get_creator(self, name: str, version: str, namespace: str = "") -> Any:
        return object() if (version, namespace) == ("1", "") and name in self.creators else None

    def load_library(self, path: str) -> Any:
        with open(path, "rb") as file:
            names = file.read().decode().split()
        self.creators |= set(names)
        return object()


_registry = _Registry()


def get_plugin_registry() -> _Registry:
    return _registry


class Runtime:
    def __init__(self, logger: ILogger) -> None:
        self.logger = logger
        self.engine_host_code_allowed = False

    def deserialize_cuda_engine(self, serialized_engine: Any) -> ICudaEngine | None:
        if not machine().context_stack():
            raise RuntimeError("CUDA initialisation failure: no context is current in this thread")
        data = bytes(memoryview(serialized_engine))
        version = ".".join(str(part) for part in data[24:HEADER_BYTES])
        if version != __version__:
            return self._refuse(
                f"IRuntime::deserializeCudaEngine: expecting library version {version} got {__version__}"
            )
        try:
            length = int.from_bytes(data[28:32], "little")
            facts = json.loads(data[32 : 32 + length])
        except ValueError:
            return self._refuse(
                "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magic tag does not match)"
            )
        missing = [name for name in facts["plugins"] if name not in _registry.creators]
        if missing:
            return self._refuse(
                f"IPluginRegistry::getCreator: Error Code 4: Cannot find plugin: {missing[0]}, version: 1"
            )
        if facts["host_code"] and not self.engine_host_code_allowed:
            return self._refuse("IRuntime: Error Code 3: engine_host_code_allowed is not set")
        try:
            weights = machine().allocate(facts["weights_bytes"], device=True, pinned=False)
        except CudaFailure as error:
            return self._refuse(f"IRuntime: Error Code 2: OutOfMemory (no further information) ({error.text})")
        return ICudaEngine(self, facts, data[32 + length :], weights)

    def _refuse(self, line: str) -> None:
        self.logger.log(ILogger.ERROR, line)


class ICudaEngine:
    def __init__(self, runtime: Runtime, facts: dict[str, Any], model: bytes, weights: Any) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._runtime, self._facts, self._weights = runtime, facts, weights
        self._inputs = {value.name: value for value in self._session.get_inputs()}
        self._outputs = {value.name: value for value in self._session.get_outputs()}
        self.device_memory_size_v2 = facts["context_bytes"]

    @property
    def num_io_tensors(self) -> int:
        return len(self._inputs) + len(self._outputs)

    def get_tensor_name(self, index: int) -> str:
        return [*self._inputs, *self._outputs][index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return TYPES[{**self._inputs, **self._outputs}[name].type]

    def get_tensor_location(self, name: str) -> TensorLocation:
        return TensorLocation.DEVICE

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self._inputs:
            low, _, high = self._facts["profiles"][name]
            return tuple(a if a == b else -1 for a, b in zip(low, high))
        shape = self._outputs[name].shape
        return tuple(side if isinstance(side, int) else -1 for side in shape)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        assert profile_index == 0
        return [tuple(shape) for shape in self._facts["profiles"][name]]

    def create_execution_context(self) -> IExecutionContext | None:
        assert machine().context_stack(), "no context is current in this thread"
        try:
            memory = machine().allocate(self.device_memory_size_v2, device=True, pinned=False)
        except CudaFailure:
            self._runtime.logger.log(ILogger.ERROR, "IExecutionContext: Error Code 2: OutOfMemory (Requested size ...)")
            return None
        return IExecutionContext(self, memory)

    def __del__(self) -> None:
        if hasattr(self, "_weights"):
            machine().discard(self._weights)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, memory: Any) -> None:
        self._engine, self._memory = engine, memory
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._prepared = False  # for the present shapes, by an enqueue outside of a capture
        self._busy = threading.Lock()

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine._facts["profiles"][name]
        fits = len(shape) == len(low) and all(a <= side <= b for a, side, b in zip(low, shape, high))
        if not fits:
            line = f"IExecutionContext::setInputShape: Error Code 3: static dimension mismatch for {name}"
            self._engine._runtime.logger.log(ILogger.ERROR, line)
            return False
        if self._shapes.get(name) != tuple(shape):
            self._prepared = False
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        known = name in self._engine._inputs or name in self._engine._outputs
        if not known or not isinstance(memory, int) or memory <= 0 or memory % 256:
            return False
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle: int) -> bool:
        assert self._busy.acquire(blocking=False), "two threads in one execution context"
        try:
            return self._enqueue(stream_handle)
        finally:
            self._busy.release()

    def _enqueue(self, stream_handle: int) -> bool:
        engine, log = self._engine, self._engine._runtime.logger.log
        assert machine().context_stack(), "no context is current in this thread"
        names = [*engine._inputs, *engine._outputs]
        missing = [name for name in names if name not in self._addresses]
        if missing or len(self._shapes) < len(engine._inputs):
            log(ILogger.ERROR, f"IExecutionContext::enqueueV3: Error Code 3: address or shape of {missing} is not set")
            return False
        if machine().refuse_running:
            log(ILogger.ERROR, "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (an illegal memory access)")
            return False
        stream = machine().stream(stream_handle)
        if stream.capture is not None and (machine().refuse_capture or not self._prepared):
            stream.capture_valid = False
            log(ILogger.ERROR, "IExecutionContext::enqueueV3: Error Code 1: Cuda Runtime (stream is capturing)")
            return False
        self._prepared = True
        machine().count("enqueues")
        stream.add(self._work(dict(self._shapes), dict(self._addresses)))
        return True

    def _work(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> Any:
        engine = self._engine

        def run() -> None:
            feeds = {}
            for name, shape in shapes.items():
                data = machine().on_device(addresses[name], 4 * int(np.prod(shape)))
                feeds[name] = data.view(np.float32).reshape(shape).copy()
            outputs = engine._session.run(list(engine._outputs), feeds)
            for name, output in zip(engine._outputs, outputs):
                packed = np.ascontiguousarray(output)
                machine().on_device(addresses[name], packed.nbytes)[:] = packed.reshape(-1).view(np.uint8)

        return run

    def __del__(self) -> None:
        machine().discard(self._memory)
