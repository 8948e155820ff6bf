"""Frames on the GPU to the network's input, by the kernel of plugins/preprocess in libedgercnn_kernels.so.

Shapes: B images, H x W the network's canvas. The kernel takes 32 frames at a time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from runtime.backends.device_frame import DeviceFrame
from runtime.backends.gpu_code import runs_on
from runtime.errors import RunError, SourceError
from runtime.preprocess import network_size
from runtime.spec import DetectorSpec

BUILD = "python plugins/build.py --kind cuda"
FLOAT_BYTES = 4


class PreprocessKernel:
    """The launch function, and what it needs to know of the spec."""

    def __init__(self, library: Any, spec: DetectorSpec) -> None:
        from plugins import kernel_structs

        self._structs = kernel_structs
        self._library = library
        self._spec = spec

    def describe(self, frames: Sequence[DeviceFrame], canvas: tuple[int, int]) -> tuple[ctypes.Structure, ...]:
        """The kernel's parameters, for 32 of these frames of one format at a time, and a canvas of (H, W).

        Raises:
            SourceError: the kernel does not take such frames; its own sentence.
        """
        step = self._structs.MAX_FRAMES
        ops = tuple(self._describe(frames[start : start + step], canvas) for start in range(0, len(frames), step))
        for op in ops:
            sentence = self._library.edgercnn_preprocess_check(op)
            if sentence is not None:
                raise SourceError(f"the frames do not fit the preprocessing kernel: {sentence.decode()}")
        return ops

    def launch(self, ops: Sequence[Any], images: int, im_info: int, stream: Any) -> None:
        """Put the kernel on `stream`: images float32 [B, 3, H, W] and im_info float32 [B, 4] at these addresses.

        Raises:
            RunError: the launch failed.
        """
        for op in ops:
            status = self._library.edgercnn_preprocess(op, images, im_info, None, stream.handle)
            if status != 0:
                said = self._library.edgercnn_status_string(status).decode()
                raise RunError(f"the preprocessing kernel did not start ({said}): build it again with `{BUILD}`.")
            images += op.batch * 3 * op.height * op.width * FLOAT_BYTES
            im_info += op.batch * 4 * FLOAT_BYTES

    def _describe(self, frames: Sequence[DeviceFrame], canvas: tuple[int, int]) -> ctypes.Structure:
        structs, rule = self._structs, self._spec.input
        sizes = [network_size(frame.shape[:2], self._spec) for frame in frames]
        described = [
            structs.Frame(
                pixels=frame.pointer,
                chroma=frame.chroma_pointer or None,
                pitch=frame.pitch,
                chroma_pitch=frame.chroma_pitch,
                height=frame.height,
                width=frame.width,
                valid_height=height,
                valid_width=width,
            )
            for frame, (height, width) in zip(frames, sizes, strict=True)
        ]
        return structs.Preprocess(
            batch=len(frames),
            format=structs.FORMATS[frames[0].format],
            color=structs.COLORS[frames[0].color],
            type=structs.TYPES["float32"],
            height=canvas[0],
            width=canvas[1],
            value_scale=rule.value_scale,
            pad_value=rule.pad_value,
            mean=(structs.Double * 3)(*rule.mean),
            std=(structs.Double * 3)(*rule.std),
            frames=(structs.Frame * structs.MAX_FRAMES)(*described),
        )


def find_kernel(spec: DetectorSpec, sm: int) -> tuple[PreprocessKernel | None, str]:
    """(the kernel, "") or (None, why frames are prepared on the CPU, and the command that mends it)."""
    try:
        from plugins.load import LibraryError, find_library, library_metadata, load_kernels
    except ModuleNotFoundError:
        return None, "the folder plugins/ is not beside runtime/: copy it too"
    try:
        path = find_library("cuda")
        if path is None:
            return None, f"libedgercnn_kernels.so is missing: `{BUILD}`"
        architectures = library_metadata(path).get("architectures", [])
        if architectures and not runs_on(architectures, sm):
            return None, f"{path} has no code for sm_{sm}: `{BUILD} --architectures {sm}`"
        return PreprocessKernel(load_kernels(path), spec), ""
    except LibraryError as error:
        return None, str(error).rstrip(".")
