"""The ops of a kernel library for Python: on raw pointers (`check`, `workspace_size`, `launch`) and on NumPy arrays.

The array methods are for the CPU library, whose pointers are to host memory. They take the arguments of the torch ops
and of tests/plugins/reference.py, and watch what the kernels write (host_arrays.py). For the CUDA library, describe an
op (describe.py) and launch it on device pointers:

    op = describe_roi_max_pool(rois.shape, features.shape, 7, 1 / 16, dtype="float16")
    kernels.check("roi_max_pool", op)
    workspace = ...  # kernels.workspace_size("roi_max_pool", op) bytes on the device
    kernels.launch("roi_max_pool", op, rois, features, pooled, workspace=workspace, stream=stream)  # addresses

Shapes: B images, L levels, A anchors per cell, R rois per image, K foreground classes, D detections, C channels,
P = output_size.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plugins.describe import (
    describe_box_detections,
    describe_preprocess,
    describe_pyramid_roi_align,
    describe_roi_max_pool,
    describe_rpn_proposals,
)
from plugins.host_arrays import (
    OutputArray,
    described_frame,
    expect,
    input_array,
    packed,
    pooled_output,
    unpacked,
)
from plugins.load import load_kernels

SCHEDULES = {"forward": 0, "reverse": 1}
SHUFFLED = 2


class Kernels:
    """A kernel library, CUDA or CPU.

    `schedule` is the order in which the CPU library runs the threads of a block: "forward", "reverse", or a seed for a
    random one. Results must not depend on it.

    Raises:
        LibraryError: the library does not load.
        ValueError: `schedule` is none of these.
    """

    def __init__(self, library: Path, *, schedule: str | int = "forward") -> None:
        if not isinstance(schedule, int) and schedule not in SCHEDULES:
            raise ValueError(f"schedule {schedule!r}: expected 'forward', 'reverse' or a whole number, the seed.")
        self.path = Path(library)
        self.library = load_kernels(self.path)
        mode, seed = (SHUFFLED, schedule) if isinstance(schedule, int) else (SCHEDULES[schedule], 0)
        self._schedule = ctypes.c_int32(mode), ctypes.c_uint64(seed)

    # --- on raw pointers

    def check(self, name: str, op: ctypes.Structure) -> None:
        """See that the op's numbers are ones its kernels take.

        Raises:
            ValueError: they are not; the C side's sentence.
        """
        sentence = getattr(self.library, f"edgercnn_{name}_check")(op)
        if sentence is not None:
            raise ValueError(sentence.decode())

    def workspace_size(self, name: str, op: ctypes.Structure) -> int:
        """Bytes of scratch memory a launch needs."""
        return getattr(self.library, f"edgercnn_{name}_workspace")(op)

    def launch(
        self, name: str, op: ctypes.Structure, *pointers: Any, workspace: Any, stream: int | None = None
    ) -> None:
        """Put the op on `stream`. A pointer is an address, None, or for a C array of pointers a list of addresses.

        Raises:
            RuntimeError: the launch failed; the C side's sentence.
        """
        if hasattr(self.library, "edgercnn_cpu_set_schedule"):  # kept per OS thread, so set before every launch
            self.library.edgercnn_cpu_set_schedule(*self._schedule)
        given = [(ctypes.c_void_p * len(p))(*p) if isinstance(p, (list, tuple)) else p for p in pointers]
        status = getattr(self.library, f"edgercnn_{name}")(op, *given, workspace, stream)
        if status != 0:
            raise RuntimeError(f"{name}: {self.library.edgercnn_status_string(status).decode()}")

    # --- on NumPy arrays

    def rpn_proposals(
        self,
        im_info: np.ndarray,
        objectness: Sequence[np.ndarray],
        bbox_deltas: Sequence[np.ndarray],
        base_anchors: Sequence[float],
        strides: Sequence[int],
        pre_nms_top_n: int,
        post_nms_top_n: int,
        nms_threshold: float,
        score_threshold: float,
        min_size: float,
        box_coder_weights: Sequence[float],
        box_clip: float,
        *,
        layout: str = "nchw",
    ) -> tuple[np.ndarray, np.ndarray]:
        """See plugins/rpn_proposals/README.md; the maps are [B, A, H, W] and [B, 4A, H, W] whatever `layout` is."""
        shapes = [logits.shape for logits in objectness]
        batch, anchors = shapes[0][:2]
        dtype = objectness[0].dtype
        op = describe_rpn_proposals(
            shapes, base_anchors, strides, pre_nms_top_n, post_nms_top_n, nms_threshold, score_threshold, min_size,
            box_coder_weights, box_clip, dtype=dtype.name, layout=layout,
        )  # fmt: skip
        expect("im_info", im_info, (batch, 4))
        for level, (logits, deltas) in enumerate(zip(objectness, bbox_deltas, strict=True)):
            expect(f"objectness {level}", logits, (batch, anchors, *logits.shape[2:]), dtype)
            expect(f"bbox_deltas {level}", deltas, (batch, 4 * anchors, *logits.shape[2:]), dtype)
        maps = [[packed(array, layout) for array in arrays] for arrays in (objectness, bbox_deltas)]
        rois, num_rois = OutputArray((batch, max(post_nms_top_n, 0), 4), np.float32), OutputArray((batch,), np.int32)
        self._run("rpn_proposals", op, [input_array(im_info, np.float32), *maps], [rois, num_rois])
        return rois.array, num_rois.array

    def box_detections(
        self,
        rois: np.ndarray,
        num_rois: np.ndarray,
        class_logits: np.ndarray,
        bbox_deltas: np.ndarray,
        im_info: np.ndarray,
        score_threshold: float,
        nms_threshold: float,
        max_detections: int,
        min_size: float,
        box_coder_weights: Sequence[float],
        box_clip: float,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """See plugins/box_detections/README.md: num_detections, detection_boxes, _scores, _classes."""
        dtype = class_logits.dtype
        op = describe_box_detections(
            rois.shape, class_logits.shape, bbox_deltas.shape, score_threshold, nms_threshold, max_detections, min_size,
            box_coder_weights, box_clip, dtype=dtype.name,
        )  # fmt: skip
        batch, rows = op.batch, op.batch * op.rois
        expect("rois", rois, (batch, op.rois, 4))
        expect("num_rois", num_rois, (batch,))
        expect("class_logits", class_logits, (rows, op.classes + 1))
        expect("bbox_deltas", bbox_deltas, (rows, 4 if op.class_agnostic else 4 * (op.classes + 1)), dtype)
        expect("im_info", im_info, (batch, 4))
        kept = max(max_detections, 0)
        outputs = [
            OutputArray((batch, 1), np.int32),
            OutputArray((batch, kept, 4), np.float32),
            OutputArray((batch, kept), np.float32),
            OutputArray((batch, kept), np.int32),
        ]
        inputs = [
            input_array(rois, np.float32),
            input_array(num_rois, np.int32),
            input_array(class_logits),
            input_array(bbox_deltas),
        ]
        self._run("box_detections", op, [*inputs, input_array(im_info, np.float32)], outputs)
        counts, boxes, scores, classes = (output.array for output in outputs)
        return counts, boxes, scores, classes

    def pyramid_roi_align(
        self,
        rois: np.ndarray,
        features: Sequence[np.ndarray],
        spatial_scales: Sequence[float],
        output_size: int,
        sampling_ratio: int,
        aligned: bool,
        canonical_scale: float,
        canonical_level: int,
        *,
        layout: str = "nchw",
        output_layout: str = "nchw",
    ) -> np.ndarray:
        """See plugins/pyramid_roi_align/README.md; arrays are NCHW here, whatever the two layouts are."""
        dtype = features[0].dtype
        op = describe_pyramid_roi_align(
            rois.shape, [feature.shape for feature in features], spatial_scales, output_size, sampling_ratio, aligned,
            canonical_scale, canonical_level, dtype=dtype.name, layout=layout, output_layout=output_layout,
        )  # fmt: skip
        expect("rois", rois, (op.batch, op.rois, 4))
        for level, feature in enumerate(features):
            expect(f"features {level}", feature, (op.batch, op.channels, *feature.shape[2:]), dtype)
        maps = [packed(feature, layout) for feature in features]
        pooled = pooled_output(op, dtype)
        self._run("pyramid_roi_align", op, [input_array(rois, np.float32), maps], [pooled])
        return unpacked(pooled.array, op)

    def roi_max_pool(
        self,
        rois: np.ndarray,
        features: np.ndarray,
        output_size: int,
        spatial_scale: float,
        *,
        layout: str = "nchw",
        output_layout: str = "nchw",
    ) -> np.ndarray:
        """See plugins/roi_max_pool/README.md; arrays are NCHW here, whatever the two layouts are."""
        op = describe_roi_max_pool(
            rois.shape, features.shape, output_size, spatial_scale, dtype=features.dtype.name, layout=layout,
            output_layout=output_layout,
        )  # fmt: skip
        expect("rois", rois, (op.batch, op.rois, 4))
        expect("features", features, (op.batch, op.channels, op.height, op.width))
        pooled = pooled_output(op, features.dtype)
        self._run("roi_max_pool", op, [input_array(rois, np.float32), packed(features, layout)], [pooled])
        return unpacked(pooled.array, op)

    def preprocess(
        self,
        frames: Sequence[np.ndarray],
        height: int,
        width: int,
        sizes: Sequence[tuple[int, int]],
        mean: Sequence[float],
        std: Sequence[float],
        value_scale: float,
        pad_value: float,
        *,
        format: str = "bgr",
        color: str = "bt601",
        dtype: Any = np.float32,
    ) -> tuple[np.ndarray, np.ndarray]:
        """uint8 frames, BGR or RGB [h, w, 3] or NV12 [3h / 2, w], into [B, 3, height, width] RGB and im_info [B, 4].

        `sizes` are the (height, width) of the resized pictures at the canvas's top left. Rows may lie apart
        (`strides[0]`), as in a frame cut out of a larger one.
        """
        dtype = np.dtype(dtype)
        described = [
            described_frame(frame, size, format, index)
            for index, (frame, size) in enumerate(zip(frames, sizes, strict=True))
        ]
        op = describe_preprocess(
            described, height, width, mean, std, value_scale, pad_value, format=format, color=color, dtype=dtype.name
        )
        images = OutputArray((len(frames), 3, max(height, 0), max(width, 0)), dtype)
        im_info = OutputArray((len(frames), 4), np.float32)
        self._run("preprocess", op, [], [images, im_info])
        return images.array, im_info.array

    def _run(self, name: str, op: ctypes.Structure, inputs: list[Any], outputs: list[OutputArray]) -> None:
        """Check, launch, and see that nothing was written behind the outputs. A list of arrays is a C array."""
        self.check(name, op)
        workspace = OutputArray((self.workspace_size(name, op),), np.uint8)
        pointers = [[a.ctypes.data for a in item] if isinstance(item, list) else item.ctypes.data for item in inputs]
        pointers += [output.array.ctypes.data for output in outputs]
        self.launch(name, op, *pointers, workspace=workspace.array.ctypes.data)
        for index, output in enumerate(outputs):
            output.check_guard(f"{name}: output {index}")
        workspace.check_guard(f"{name}: the workspace")
