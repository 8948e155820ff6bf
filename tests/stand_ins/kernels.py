"""Stand-in for libedgercnn_kernels.so: preprocessing in NumPy, on the machine's memory, when the stream gets there."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from plugins.kernel_structs import COLORS, FORMATS, Preprocess
from runtime.preprocess import _write_planes
from tests.stand_ins.machine import machine


class KernelsLibrary:
    """The three functions that the backend calls, with the C signatures."""

    def __init__(self, status: int = 0) -> None:
        self.status = status

    def edgercnn_preprocess_check(self, op: Preprocess) -> bytes | None:
        return b"frame 0 is odd." if op.frames[0].width == 1313 else None

    def edgercnn_status_string(self, status: int) -> bytes:
        return b"no kernel image is available for execution on the device"

    def edgercnn_preprocess(self, op: Preprocess, images: int, im_info: int, workspace: Any, handle: int) -> int:
        assert workspace is None
        assert images % 16 == 0
        copied = Preprocess.from_buffer_copy(ctypes.string_at(ctypes.addressof(op), ctypes.sizeof(op)))
        if self.status == 0:
            machine().stream(handle).add(lambda: write_batch(copied, images, im_info))
        return self.status


def write_batch(op: Preprocess, images: int, im_info: int) -> None:
    shape = (op.batch, 3, op.height, op.width)
    batch = machine().on_device(images, 4 * int(np.prod(shape))).view(np.float32).reshape(shape)
    info = machine().on_device(im_info, 16 * op.batch).view(np.float32).reshape(op.batch, 4)
    rule: Any = SimpleNamespace(mean=tuple(op.mean), std=tuple(op.std), value_scale=op.value_scale)
    for index in range(op.batch):
        frame = op.frames[index]
        picture = bgr_of(frame, op.format, op.color)
        height, width = frame.valid_height, frame.valid_width
        batch[index] = op.pad_value
        _write_planes(picture, batch[index, :, :height, :width], rule)
        info[index] = (height, width, height / frame.height, width / frame.width)


def bgr_of(frame: Any, format: int, color: int) -> np.ndarray:
    """uint8 [height, width, 3] of a described frame."""
    if format == FORMATS["nv12"]:
        assert color == COLORS["bt601"], "OpenCV knows no other"
        luma = rows_of(frame.pixels, frame.height, frame.width, frame.pitch)
        chroma = rows_of(frame.chroma, frame.height // 2, frame.width, frame.chroma_pitch)
        return cv2.cvtColor(np.concatenate([luma, chroma]), cv2.COLOR_YUV2BGR_NV12)
    picture = rows_of(frame.pixels, frame.height, 3 * frame.width, frame.pitch).reshape(frame.height, frame.width, 3)
    return picture if format == FORMATS["bgr"] else np.ascontiguousarray(picture[:, :, ::-1])


def rows_of(address: int, height: int, row_bytes: int, pitch: int) -> np.ndarray:
    data = machine().on_device(address, pitch * (height - 1) + row_bytes)
    rows = [data[row * pitch : row * pitch + row_bytes] for row in range(height)]
    return np.stack(rows)
