"""One thread's buffers around an InferenceSession: outputs allocated once, inputs taken as they lie in memory.

Shapes: B images, H x W the network's canvas, D rows for detections.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from runtime.backends.base import RawOutputs
from runtime.spec import DetectorSpec


class SessionBuffers:
    """I/O binding. On the CPU the network reads the caller's arrays and writes into ours, both without a copy.

    On a GPU the inputs have a place in its memory, which every call fills; the outputs, a few kB, come back into ours.
    """

    def __init__(self, ort: Any, session: Any, spec: DetectorSpec, on_gpu: bool) -> None:
        self._ort, self._session, self._names, self._on_gpu = ort, session, spec.outputs.names, on_gpu
        self._rows = spec.detection.max_detections
        self._binding: Any = session.io_binding()
        self._batch = 0
        self._outputs: list[np.ndarray] = []
        self._on_device: dict[str, Any] = {}

    def run(self, images: np.ndarray, im_info: np.ndarray) -> RawOutputs:
        """Outputs of images float32 [B, 3, H, W] and im_info float32 [B, 4]; they are the caller's, not our buffers."""
        inputs = {"images": images, "im_info": im_info}
        if len(images) != self._batch:
            self._allocate(inputs)
        for name, array in inputs.items():
            if self._on_gpu:
                if list(self._on_device[name].shape()) != list(array.shape):
                    raise ValueError(f"{name} is {list(array.shape)}, expected {self._on_device[name].shape()}")
                self._on_device[name].update_inplace(array)
            else:
                self._binding.bind_cpu_input(name, array)
        self._session.run_with_iobinding(self._binding)
        if self._on_gpu:
            self._binding.synchronize_outputs()
        return RawOutputs(*(output.copy() for output in self._outputs))

    def _allocate(self, inputs: dict[str, np.ndarray]) -> None:
        """Buffers for as many images as these inputs have."""
        batch = len(inputs["images"])
        self._batch = 0  # nothing to run with, should one of the next lines fail
        self._outputs = [np.zeros(shape, dtype) for shape, dtype in output_shapes(batch, self._rows)]
        for name, output in zip(self._names, self._outputs, strict=True):
            self._binding.bind_output(name, "cpu", 0, output.dtype.type, list(output.shape), output.ctypes.data)
        if self._on_gpu:
            make = self._ort.OrtValue.ortvalue_from_shape_and_type
            for name, array in inputs.items():
                self._on_device[name] = make(list(array.shape), np.float32, "cuda", 0)
                self._binding.bind_ortvalue_input(name, self._on_device[name])
        self._batch = batch


def output_shapes(batch: int | str | None, rows: int) -> list[tuple[tuple, type]]:
    """(shape, dtype) of the four outputs in the spec's order."""
    boxes, per_row = (batch, rows, 4), (batch, rows)
    return [((batch, 1), np.int32), (boxes, np.float32), (per_row, np.float32), (per_row, np.int32)]
