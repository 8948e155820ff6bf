"""A plan deserialised: its tensors, checked against the spec, its profile, and execution contexts of it.

Works with TensorRT 10.3 to 11.x and TensorRT-RTX alike; what only some of them have is asked for with getattr.
Shapes: B images, H x W the network's canvas, D rows for detections.
"""

from __future__ import annotations

import mmap
import threading
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from runtime.backends.cuda_device import CudaDevice
from runtime.backends.tensorrt_library import TensorRt, load_plugins, make_logger
from runtime.backends.tensorrt_load import CheckedPlan, rebuild_command
from runtime.errors import ArtifactError, EdgeRcnnError, RunError, UserError

INPUTS = ("images", "im_info")
INPUT_RANKS = (4, 2)
MEMORY_WORDS = ("out of memory", "outofmemory", "memory allocation", "cudaerrormemoryallocation", "alloc_failed")


@dataclass(frozen=True)
class OutputTensor:
    """One output: its shape for one image, and its NumPy type."""

    shape: tuple[int, ...]
    dtype: type

    def nbytes(self, batch: int) -> int:
        """Bytes for `batch` images."""
        return batch * int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class PlanEngine:
    """The weights: shared by the detectors of several threads. Make and drop it with the device active.

    Raises:
        ArtifactError: TensorRT refuses the plan, or it is no detector of the spec's.
        BackendUnavailableError: not enough memory, or the plugin library does not load.
    """

    def __init__(self, plan: CheckedPlan, device: CudaDevice) -> None:
        self._plan = plan
        self._lock = threading.Lock()  # contexts are made in one thread at a time
        self._logger: Any = process_logger(plan.library)
        if plan.plugins is not None:
            load_plugins(plan.library, plan.plugins)
        self._runtime: Any = plan.library.module.Runtime(self._logger)
        if plan.needs_host_code:
            self._runtime.engine_host_code_allowed = True
        self._engine: Any = self._deserialise(device)
        self._config: Any = self._runtime_config()  # contexts refer to it and do not keep it alive
        self.outputs = self._checked_tensors()
        self.min_images, self.max_images = self._profile()
        self._check_canvas()

    @property
    def max_batch(self) -> int:
        return self.max_images[0]

    @property
    def title(self) -> str:
        """`TensorRT 10.16.1.11, NVIDIA Orin (sm_87), fp16`"""
        plan = self._plan
        precision = f", {plan.record.precision}" if plan.record is not None else ""
        return f"{plan.library.title}, {plan.gpu.name} (sm_{plan.gpu.sm}){precision}"

    def new_context(self, device: CudaDevice) -> Any:
        """An execution context, for one thread of inference.

        Raises:
            BackendUnavailableError: not enough memory.
            RunError: TensorRT gives none for another reason.
        """
        with self._lock:
            self._logger.errors.clear()
            config = [] if self._config is None else [self._config]
            context = self._engine.create_execution_context(*config)
            if context is not None:
                return context
            if self._ran_out_of_memory():
                needed = self._engine.device_memory_size_v2  # 10.1 and later
                raise device.out_of_memory(f"the execution context of {self._plan.path}", int(needed))
            raise self.failure(f"TensorRT gives no execution context of {self._plan.path}")

    def check_size(self, shape: tuple[int, ...]) -> None:
        """See that images [B, 3, H, W] of this shape fit into the profile; B may be below its minimum.

        Raises:
            UserError: they do not.
        """
        low, high = self.min_images, self.max_images
        if len(shape) != 4 or shape[1] != 3 or shape[0] < 1:
            raise UserError(
                f"images have the shape {list(shape)}: expected [B, 3, H, W], as Detector.prepare makes them."
            )
        if shape[0] > high[0]:
            raise UserError(
                f"a batch of {shape[0]} images is outside the profile of {self._plan.path}, which takes {low[0]} to "
                f"{high[0]}: give fewer at once, or build it with `--batch 1 {shape[0]} {shape[0]}`."
            )
        if not all(small <= side <= large for small, side, large in zip(low[2:], shape[2:], high[2:])):
            raise UserError(self._outside(shape[2], shape[3]))

    def failure(self, what: str) -> RunError:
        """The error to raise when TensorRT failed, with what it said."""
        return RunError(f"{what}{self._said()}: run `python runtime/doctor.py`, or build the plan again.")

    def _deserialise(self, device: CudaDevice) -> Any:
        path = self._plan.path
        self._logger.errors.clear()
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            size = len(data)
            engine = self._runtime.deserialize_cuda_engine(data)  # copies what it needs
        if engine is not None:
            return engine
        if self._ran_out_of_memory():
            raise device.out_of_memory(f"loading {path}", size)
        command = self._rebuild()
        raise ArtifactError(f"{self._plan.library.title} cannot load {path}{self._said()}: run {command}.")

    def _checked_tensors(self) -> dict[str, OutputTensor]:
        """Outputs by name, in the spec's order, after a look at every tensor."""
        engine, trt, spec = self._engine, self._plan.library.module, self._plan.spec
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        outputs = [name for name in names if name not in inputs]
        if set(inputs) != set(INPUTS) or set(outputs) != set(spec.outputs.names):
            raise self._foreign(f"from {', '.join(inputs)} to {', '.join(outputs)}")
        rows, single = spec.detection.max_detections, trt.DataType.FLOAT
        shapes: dict[str, tuple[tuple[int, ...], Any]] = {"images": ((3, -1, -1), single), "im_info": ((4,), single)}
        wanted = ((1,), trt.DataType.INT32), ((rows, 4), single), ((rows,), single), ((rows,), trt.DataType.INT32)
        shapes |= dict(zip(spec.outputs.names, wanted))
        for name, (shape, dtype) in shapes.items():
            found, type_found = tuple(engine.get_tensor_shape(name)), engine.get_tensor_dtype(name)
            fits = len(found) == len(shape) + 1 and all(want in (-1, got) for want, got in zip(shape, found[1:]))
            if not fits or type_found != dtype or engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
                raise self._foreign(f"with {name} as {type_found} {list(found)}")
        kinds = {trt.DataType.INT32: np.int32, single: np.float32}
        return {name: OutputTensor(shapes[name][0], kinds[shapes[name][1]]) for name in spec.outputs.names}

    def _profile(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Smallest and largest images [B, 3, H, W]."""
        shape = tuple(self._engine.get_tensor_shape("images"))
        if min(shape) > 0:
            return shape, shape
        low, _, high = self._engine.get_tensor_profile_shape("images", 0)
        return tuple(low), tuple(high)

    def _check_canvas(self) -> None:
        rule, low, high = self._plan.spec.input, self.min_images, self.max_images
        if rule.height is None or rule.width is None:
            return
        if not (low[2] <= rule.height <= high[2] and low[3] <= rule.width <= high[3]):
            raise ArtifactError(self._outside(rule.height, rule.width))

    def _outside(self, height: int, width: int) -> str:
        low, high = (f"{shape[2]}x{shape[3]}" for shape in (self.min_images, self.max_images))
        takes = low if low == high else f"{low} to {high}"
        return (
            f"images of {height}x{width} px are outside the profile of {self._plan.path}, which takes {takes}: give "
            f"the spec of the file it was built from, or run {self._rebuild()}."
        )

    def _foreign(self, found: str) -> EdgeRcnnError:
        spec = self._plan.spec
        return ArtifactError(
            f"{self._plan.path} is a plan {found}: expected a detector from float32 images and im_info to "
            f"{', '.join(spec.outputs.names)} with {spec.detection.max_detections} rows; run "
            f"{self._rebuild()}."
        )

    def _rebuild(self) -> str:
        return rebuild_command(self._plan.path, self._plan.record, self._plan.gpu)

    def _runtime_config(self) -> Any:
        """TensorRT-RTX: compile for a new shape at once; done in the background, a captured graph would miss it."""
        strategies = getattr(self._plan.library.module, "DynamicShapesKernelSpecializationStrategy", None)
        if strategies is None or not hasattr(self._engine, "create_runtime_config"):
            return None
        config = self._engine.create_runtime_config()
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        return config

    def _ran_out_of_memory(self) -> bool:
        lines = " ".join(self._logger.errors).lower()
        return any(words in lines for words in MEMORY_WORDS)

    def _said(self) -> str:
        """TensorRT's first error line, in parentheses; the others follow from it. Each is said once."""
        errors = list(self._logger.errors)
        self._logger.errors.clear()
        return f" ({errors[0].rstrip('.')})" if errors else ""


@lru_cache(maxsize=4)
def process_logger(library: TensorRt) -> Any:
    """The one logger: TensorRT keeps the first that it gets for the life of the process."""
    return make_logger(library)
