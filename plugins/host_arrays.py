"""NumPy arrays as the kernels want memory: aligned, contiguous, in a plugin's layouts, and watched where they write.

Outputs and workspace hold a pattern before a launch, so that what a kernel left out shows, and have guard bytes behind
them, which must still hold it afterwards. Padding between C and the pitch is NaN in inputs, so that a read of it shows.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from plugins.describe import channel_pitch
from plugins.kernel_structs import Frame

ALIGNMENT = 16  # of every pointer: common/abi.h
PATTERN = 0xCD
# the address sanitizer watches the end of an allocation itself, if nothing of ours lies behind it
GUARD_BYTES = 0 if hasattr(ctypes.CDLL(None), "__asan_init") else 64


class OutputArray:
    """Memory that a kernel writes, as `array`."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        memory = aligned_bytes(size + GUARD_BYTES)
        memory[:] = PATTERN
        self.array = memory[:size].view(dtype).reshape(shape)
        self._guard = memory[size:]

    def check_guard(self, what: str) -> None:
        """See that nothing was written behind the array.

        Raises:
            RuntimeError: something was.
        """
        if (self._guard != PATTERN).any():
            raise RuntimeError(f"{what} was written beyond its end.")


def aligned_bytes(size: int) -> np.ndarray:
    """uint8 [size] at an aligned address, which is what malloc gives on every 64-bit system."""
    memory = np.empty(size, np.uint8)
    if memory.ctypes.data % ALIGNMENT:
        memory = np.empty(size + ALIGNMENT, np.uint8)
        memory = memory[-memory.ctypes.data % ALIGNMENT :][:size]
    return memory


def input_array(array: np.ndarray, dtype: Any = None) -> np.ndarray:
    """A contiguous copy of `array`, of that type."""
    array = np.asarray(array)
    kind = np.dtype(dtype or array.dtype)
    copy = aligned_bytes(array.size * kind.itemsize).view(kind).reshape(array.shape)
    copy[...] = array
    return copy


def packed(array: np.ndarray, layout: str) -> np.ndarray:
    """A copy of [B, C, H, W] as `layout` has it in memory."""
    pitch = channel_pitch(array.shape[1], layout)
    if not pitch:
        return input_array(array)
    batch, channels, height, width = array.shape
    cells = np.full((batch, height, width, pitch), np.nan, array.dtype)
    cells[..., :channels] = array.transpose(0, 2, 3, 1)
    return input_array(cells)


def pooled_output(op: Any, dtype: np.dtype) -> OutputArray:
    """Memory for [B * R, C, P, P] in the op's output layout."""
    rows, size = op.batch * op.rois, max(op.output_size, 0)
    return OutputArray(
        (rows, size, size, op.output_pitch) if op.output_layout else (rows, op.channels, size, size), dtype
    )


def unpacked(pooled: np.ndarray, op: Any) -> np.ndarray:
    """[B * R, C, P, P], whatever the op's output layout is."""
    return pooled[..., : op.channels].transpose(0, 3, 1, 2) if op.output_layout else pooled


def described_frame(frame: np.ndarray, valid_size: tuple[int, int], format: str, index: int) -> Frame:
    """The C struct of one frame, where it is: rows may lie apart, as in a picture cut out of a larger one.

    Raises:
        ValueError: it is not uint8 [height, width, 3] or NV12 [3 height / 2, width], or its rows are not contiguous.
    """
    trailing = () if format == "nv12" else (3,)
    shape = "[3 * height / 2, width]" if format == "nv12" else "[height, width, 3]"
    if frame.dtype != np.uint8 or frame.ndim != 2 + len(trailing) or frame.shape[2:] != trailing:
        raise ValueError(f"frame {index} is {frame.dtype} {list(frame.shape)}: {format} is uint8 {shape}.")
    if frame.strides[1:] != (*(3 for _ in trailing), 1):
        raise ValueError(f"frame {index} has rows that are not contiguous: use numpy.ascontiguousarray.")
    height, pitch = frame.shape[0], frame.strides[0]
    chroma = None
    if format == "nv12":
        height = height * 2 // 3
        chroma = frame.ctypes.data + height * pitch
    return Frame(
        pixels=frame.ctypes.data,
        chroma=chroma,
        pitch=pitch,
        chroma_pitch=pitch if chroma else 0,
        height=height,
        width=frame.shape[1],
        valid_height=valid_size[0],
        valid_width=valid_size[1],
    )


def expect(name: str, array: np.ndarray, shape: tuple[int, ...], dtype: np.dtype | None = None) -> None:
    """See that `array` has that shape and, if given, that type.

    Raises:
        ValueError: it has not.
    """
    if array.shape != shape or (dtype is not None and array.dtype != dtype):
        wanted = f"{dtype} {list(shape)}" if dtype is not None else str(list(shape))
        raise ValueError(f"{name} is {array.dtype} {list(array.shape)}: expected {wanted}.")
