"""What the preprocessing kernel refuses: every field out of its range, in a sentence that names value and range."""

from __future__ import annotations

import ctypes
import re

import numpy as np
import pytest

from plugins.describe import describe_preprocess
from plugins.host_arrays import described_frame
from plugins.kernels import Kernels

REFUSED = {  # what is set, and the number and range that the sentence must name
    "no frames": ({"batch": 0}, "batch is 0: expected 1 to 32"),
    "33 frames": ({"batch": 33}, "batch is 33"),
    "format": ({"format": 3}, "format is 3"),
    "color": ({"color": -1}, "color is -1"),
    "type": ({"type": 2}, "type is 2"),
    "canvas": ({"height": 0}, "the canvas is 0 x 96"),
    "large canvas": ({"width": 32768}, "32767"),
    "value_scale": ({"value_scale": 0.0}, "value_scale is 0"),
    "NaN": ({"value_scale": float("nan")}, "value_scale is nan"),
    "pad_value": ({"pad_value": float("inf")}, "pad_value is inf"),
    "std": ({"std": (ctypes.c_double * 3)(1, 0, 1)}, "std[1] is 0"),
    "tiny std": ({"std": (ctypes.c_double * 3)(1, 1, 1e-31)}, "std[2] 1e-31"),
    "mean": ({"mean": (ctypes.c_double * 3)(float("nan"), 0, 0)}, "mean[0] is nan"),
}
FRAME_REFUSED = {
    "pixels": ({"pixels": None}, "frame 1 has a null pointer for pixels"),
    "height": ({"height": 0}, "frame 1 is 0 x 40"),
    "width": ({"width": 32768}, "1 to 32767"),
    "valid": ({"valid_height": 0}, "become 0 x 60"),
    "beyond the canvas": ({"valid_width": 97}, "fit into the canvas, 64 x 96"),
    "pitch": ({"pitch": 39}, "pitch 39"),
    "large pitch": ({"pitch": 2**31 - 1}, "less than 4 GiB"),
    "odd side": ({"width": 39}, "must be even"),
    "chroma": ({"chroma": None}, "null pointer for chroma"),
    "odd chroma": ({"chroma": 12345}, "odd address"),
    "chroma pitch": ({"chroma_pitch": 41}, "chroma_pitch 41"),
    "large chroma pitch": ({"chroma_pitch": 2**31 - 2}, "less than 4 GiB"),
    "short chroma": ({"chroma_pitch": 38}, "expected 40 (one row) or more, even"),
}


@pytest.fixture(scope="module")
def kernels(cpu_kernels_path):
    return Kernels(cpu_kernels_path)


def nv12_op():
    """Two frames of 30 x 40 px that become 50 x 60 on a canvas of 64 x 96."""
    frame = np.zeros((45, 40), np.uint8)
    described = [described_frame(frame, (50, 60), "nv12", index) for index in range(2)]
    return describe_preprocess(described, 64, 96, [0, 0, 0], [1, 1, 1], 1, 0, format="nv12")


@pytest.mark.parametrize(("changes", "sentence"), REFUSED.values(), ids=REFUSED.keys())
def test_wrong_numbers_are_refused(kernels, changes, sentence):
    op = nv12_op()
    for name, value in changes.items():
        setattr(op, name, value)
    refuses(kernels, op, sentence)


@pytest.mark.parametrize(("changes", "sentence"), FRAME_REFUSED.values(), ids=FRAME_REFUSED.keys())
def test_wrong_frames_are_refused(kernels, changes, sentence):
    op = nv12_op()
    kernels.check("preprocess", op)
    for name, value in changes.items():
        setattr(op.frames[1], name, value)
    refuses(kernels, op, sentence)


def refuses(kernels, op, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        kernels.check("preprocess", op)
    with pytest.raises(RuntimeError, match="_check"):
        kernels.launch("preprocess", op, None, None, workspace=None)
