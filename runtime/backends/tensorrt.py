"""Runs TensorRT plans: `open_detector("fp16.plan")`. Needs TensorRT or TensorRT-RTX, pycuda and an NVIDIA GPU.

Frames go into pinned memory and are uploaded while the batch before is computed (tensorrt_buffers.py); preprocessing,
network and download are one CUDA graph (tensorrt_runner.py). What must fit before is in tensorrt_load.py.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from runtime.backends.base import RawOutputs
from runtime.backends.cuda_device import CudaDevice
from runtime.backends.device_frame import DeviceFrame, split_frames
from runtime.backends.tensorrt_buffers import StagedBatch
from runtime.backends.tensorrt_engine import PlanEngine
from runtime.backends.tensorrt_load import check_plan
from runtime.backends.tensorrt_preprocess import PreprocessKernel, find_kernel
from runtime.backends.tensorrt_resources import PlanResources
from runtime.errors import BackendUnavailableError, SourceError, UserError
from runtime.preprocess import canvas_size, check_frame, network_size, preprocess
from runtime.spec import DetectorSpec


class TensorRtBackend:
    """One plan on one GPU. `stage` may run in another thread than `infer_staged`; a second thread that infers wants a
    clone.

    Raises:
        BackendUnavailableError: not enough memory.
        RunError: TensorRT gives no execution context.
    """

    name = "tensorrt"

    def __init__(
        self, spec: DetectorSpec, device: CudaDevice, engine: PlanEngine, kernel: PreprocessKernel | None, note: str
    ) -> None:
        self.spec = spec
        self.max_batch: int | None = engine.max_batch
        self._device, self._kernel, self._note, self._title = device, kernel, note, engine.title
        self._resources = PlanResources(device, engine, kernel)
        self._finalizer = weakref.finalize(self, self._resources.close)  # at exit too, while CUDA still works

    @property
    def description(self) -> str:
        """`TensorRT 10.16.1.11, NVIDIA Orin (sm_87), fp16, CUDA graph`; says what does not run as it should."""
        runner = self._resources.runner
        parts = [self._title, "CUDA graph"] if runner is not None and runner.has_graph else [self._title]
        if runner is not None and runner.graph_failure:
            parts.append(f"without a CUDA graph ({runner.graph_failure})")
        if self._kernel is None:
            parts.append(f"frames prepared on the CPU ({self._note})")
        return ", ".join(parts)

    def stage(self, frames: Sequence[Any]) -> StagedBatch:
        """Take frames in and start their upload; waits for a free slot.

        Args:
            frames: uint8 [height, width, 3] BGR arrays of any sizes, or DeviceFrames of one format.

        Raises:
            SourceError: no frame, or one of another type or shape.
            UserError: more frames than `max_batch`, or a canvas outside the profile.
            RunError: no slot came free.
        """
        if len(frames) == 0:
            raise SourceError("received no frames: give at least one uint8 array [height, width, 3].")
        on_device = split_frames(frames)
        for index, frame in enumerate(frames if on_device is None else ()):
            check_frame(frame, index)
        if self._kernel is None:
            if on_device is not None:
                raise BackendUnavailableError(
                    f"DeviceFrames need the preprocessing kernel, and {self._note}; give arrays meanwhile."
                )
            return self._stage_images(*preprocess(frames, self.spec))
        return self._stage_frames(frames, on_device, self._kernel)

    def infer_staged(self, staged: StagedBatch) -> RawOutputs:
        """Outputs for the staged frames. The batch is released, whatever happens.

        Raises:
            UserError: another detector prepared the batch, a clone for instance, which may write where this one reads.
            RunError: TensorRT or the GPU failed.
        """
        if not staged.is_of(self._resources.slots):
            raise UserError("this batch was prepared by another detector: infer it there, or prepare its frames here.")
        with self._device.active():
            return self._resources.running().run(staged)

    def infer(self, images: np.ndarray, im_info: np.ndarray) -> RawOutputs:
        """Outputs of images float32 [B, 3, H, W] and im_info float32 [B, 4], prepared on the CPU.

        Raises:
            UserError: B above `max_batch`, or a size outside the profile.
            RunError: TensorRT or the GPU failed.
        """
        return self.infer_staged(self._stage_images(images, im_info))

    def clone(self) -> TensorRtBackend:
        """A backend for another thread: the same engine, with its own execution context, buffers and streams.

        Raises:
            BackendUnavailableError: not enough memory.
        """
        self._resources.running()
        return TensorRtBackend(self.spec, self._device, self._resources.engine, self._kernel, self._note)

    def close(self) -> None:
        """Free buffers, graphs and context; the engine too, unless a clone still uses it."""
        self._finalizer()

    def _stage_frames(
        self, frames: Sequence[Any], on_device: list[DeviceFrame] | None, kernel: PreprocessKernel
    ) -> StagedBatch:
        self._resources.running()
        count, resources = len(frames), self._resources
        batch = max(count, resources.engine.min_images[0])
        canvas = canvas_size([network_size(frame.shape[:2], self.spec) for frame in frames], self.spec)
        shape = (batch, 3, *canvas)
        resources.engine.check_size(shape)
        with resources.slots.taken() as slot:
            placed = on_device or slot.place_frames(frames, resources.copy_stream)
            return StagedBatch(
                resources.slots,
                slot,
                count=count,
                shape=shape,
                addresses=resources.network_input(),
                ops=kernel.describe(placed + placed[-1:] * (batch - count), canvas),
                uploads=on_device is None,
            )

    def _stage_images(self, images: np.ndarray, im_info: np.ndarray) -> StagedBatch:
        self._resources.running()
        resources = self._resources
        resources.engine.check_size(images.shape)
        if im_info.shape != (len(images), 4):
            raise UserError(
                f"im_info has the shape {list(im_info.shape)}: expected [{len(images)}, 4], one row per image."
            )
        batch = max(len(images), resources.engine.min_images[0])
        with resources.slots.taken() as slot:
            addresses = slot.place_images(images, im_info, batch, resources.copy_stream)
            shape = (batch, 3, images.shape[2], images.shape[3])
            return StagedBatch(resources.slots, slot, count=len(images), shape=shape, addresses=addresses)


def open_backend(
    path: str | os.PathLike[str],
    *,
    providers: list[str] | None = None,
    threads: int | None = None,
    spec: str | os.PathLike[str] | None = None,
) -> TensorRtBackend:
    """Load a plan that `export/build_engine.py` built.

    Args:
        path: the plan; its sidecar `<plan>.json` is read too.
        spec: file with the spec (.onnx, or its JSON), for a plan without a sidecar.

    Raises:
        ArtifactError: the plan or its sidecar is missing, damaged, edited or stale.
        BackendUnavailableError: this machine lacks something, memory included.
        UserError: `providers` or `threads` was given.
    """
    path = Path(path)
    for option, value in (("provider", providers), ("threads", threads)):
        if value is not None:
            raise UserError(f"--{option} is for ONNX Runtime, and {path} is a TensorRT plan: leave it out.")
    plan = check_plan(path, Path(spec) if spec is not None else None)
    device = CudaDevice(plan.gpu)
    kernel, note = find_kernel(plan.spec, plan.gpu.sm)
    with device.active():
        engine = PlanEngine(plan, device)
    return TensorRtBackend(plan.spec, device, engine, kernel, note)
