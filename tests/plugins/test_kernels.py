"""plugins/kernels.py and its parts: ctypes' structs are the compiler's, and misuse is an error, not a crash."""

from __future__ import annotations

import ctypes
import math
import shutil
import subprocess

import numpy as np
import pytest

from plugins.describe import channel_pitch, describe_roi_max_pool, describe_rpn_proposals
from plugins.host_arrays import ALIGNMENT, OutputArray, described_frame, input_array, packed
from plugins.kernel_structs import COLORS, FORMATS, MAX_ANCHORS, MAX_FRAMES, MAX_LEVELS, OPS, TYPES, Frame
from plugins.kernels import Kernels
from tests.plugins.sanitized import run_sanitized
from tests.plugins.stand_in import PLUGINS

STRUCTS = [*(struct for struct, _ in OPS.values()), Frame]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")


@needs_compiler
def test_the_structs_are_the_compilers(tmp_path):
    """Size, and offset and size of every field; a field that only one side has does not compile or moves another."""
    lines, expected = [], []
    for struct in STRUCTS:
        name = f"edgercnn::{struct.__name__}"
        lines.append(f'printf("%zu\\n", sizeof({name}));')
        expected.append(f"{ctypes.sizeof(struct)}")
        for field, *_ in struct._fields_:
            lines.append(f'printf("%zu %zu\\n", offsetof({name}, {field}), sizeof({name}::{field}));')
            expected.append(f"{getattr(struct, field).offset} {getattr(struct, field).size}")
    constants = {"kMaxLevels": MAX_LEVELS, "kMaxAnchors": MAX_ANCHORS, "kMaxFrames": MAX_FRAMES}
    constants |= {"kFloat32": TYPES["float32"], "kFloat16": TYPES["float16"], "kNCHW": 0, "kNHWC": 1}
    constants |= {"kBGR8": FORMATS["bgr"], "kRGB8": FORMATS["rgb"], "kNV12": FORMATS["nv12"]}
    constants |= {"kBT601": COLORS["bt601"], "kBT709": COLORS["bt709"]}
    for constant, value in constants.items():
        lines.append(f'printf("%d\\n", static_cast<int>(edgercnn::{constant}));')
        expected.append(str(value))
    includes = "".join(f'#include "{op}/kernel.h"\n' for op in OPS) + "#include <stddef.h>\n#include <stdio.h>\n"
    (tmp_path / "layout.cpp").write_text(f"{includes}int main() {{\n" + "\n".join(lines) + "\n}\n")
    command = ["g++", "-std=c++17", "-I", str(PLUGINS), str(tmp_path / "layout.cpp"), "-o", str(tmp_path / "layout")]
    subprocess.run(command, check=True)
    printed = subprocess.run([str(tmp_path / "layout")], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines() == expected


def test_layouts_round_the_pitch_up():
    assert [channel_pitch(12, layout) for layout in ("nchw", "nhwc", "nhwc8", "nhwc16")] == [0, 12, 16, 16]
    array = np.arange(2 * 3 * 2 * 2, dtype=np.float16).reshape(2, 3, 2, 2)
    cells = packed(array, "nhwc8")
    assert cells.shape == (2, 2, 2, 8)
    np.testing.assert_array_equal(cells[..., :3].transpose(0, 3, 1, 2), array)
    assert np.isnan(cells[..., 3:]).all()


@pytest.mark.parametrize("array", [np.zeros((0, 4)), np.ones((3, 5))[:, ::2], np.ones(9, np.float32)[1:]])
def test_inputs_are_contiguous_and_aligned(array):
    given = input_array(array, np.float32)
    assert given.flags.c_contiguous
    assert given.dtype == np.float32
    assert given.ctypes.data % ALIGNMENT == 0
    np.testing.assert_array_equal(given, array)


def test_outputs_start_as_a_pattern_and_their_end_is_watched():
    output = OutputArray((2, 3), np.float32)
    assert (output.array.view(np.uint8) == 0xCD).all()
    output.array[:] = 0
    output.check_guard("the output")
    ctypes.memset(output.array.ctypes.data + output.array.nbytes, 0, 1)
    with pytest.raises(RuntimeError, match="the output was written beyond its end"):
        output.check_guard("the output")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layout": "chw"}, "layout 'chw': expected one of nchw, nhwc, nhwc8, nhwc16"),
        ({"dtype": "float64"}, "dtype 'float64': expected one of float32, float16"),
        ({"objectness_shapes": [(1, 3, 4, 4)] * 7}, "received 7 levels: the kernels take at most 6"),
        ({"base_anchors": [0.0] * 641}, "received 641 numbers of base_anchors: the kernels take at most 640"),
    ],
)
def test_what_does_not_fit_the_struct_is_refused(changes, sentence):
    attributes = {"pre_nms_top_n": 10, "post_nms_top_n": 5, "nms_threshold": 0.7, "score_threshold": 0.0}
    attributes |= {"min_size": 1e-3, "box_coder_weights": (1, 1, 1, 1), "box_clip": math.log(1000 / 16)}
    attributes |= {"objectness_shapes": [(1, 3, 4, 4)], "base_anchors": [0.0] * 12, "strides": [4, 4]}
    with pytest.raises(ValueError, match=sentence):
        describe_rpn_proposals(**{**attributes, **changes})


@pytest.mark.parametrize(
    ("frame", "format", "sentence"),
    [
        (np.zeros((4, 6, 3), np.float32), "bgr", r"frame 2 is float32 \[4, 6, 3\]: bgr is uint8 \[height, width, 3\]"),
        (np.zeros((6, 4), np.uint8), "rgb", r"rgb is uint8 \[height, width, 3\]"),
        (np.zeros((6, 4, 3), np.uint8), "nv12", r"nv12 is uint8 \[3 \* height / 2, width\]"),
        (np.zeros((6, 8, 3), np.uint8)[:, ::2], "bgr", "rows that are not contiguous"),
    ],
)
def test_frames_of_another_kind_are_refused(frame, format, sentence):
    with pytest.raises(ValueError, match=sentence):
        described_frame(frame, (4, 6), format, 2)


def test_frames_are_described_where_they_are():
    picture = np.zeros((9, 20, 3), np.uint8)
    frame = described_frame(picture[2:8, 5:15], (3, 4), "bgr", 0)
    assert (frame.pixels, frame.pitch) == (picture[2:, 5:].ctypes.data, 60)
    assert (frame.height, frame.width, frame.valid_height, frame.valid_width) == (6, 10, 3, 4)
    luma_and_chroma = np.zeros((9, 8), np.uint8)
    frame = described_frame(luma_and_chroma, (3, 4), "nv12", 0)
    assert (frame.height, frame.width, frame.chroma - frame.pixels, frame.chroma_pitch) == (6, 8, 48, 8)


ROIS = np.array([[[0, 0, 12, 12], [4, 4, 30, 20]]], np.float32)
FEATURES = np.arange(2 * 5 * 6, dtype=np.float32).reshape(1, 2, 5, 6)


def test_the_cs_sentence_comes_as_a_value_error(cpu_kernels_path):
    with pytest.raises(ValueError, match="output_size is 0"):
        Kernels(cpu_kernels_path).roi_max_pool(ROIS, FEATURES, 0, 0.25)


def test_a_refused_op_does_not_launch(cpu_kernels_path):
    kernels = Kernels(cpu_kernels_path)
    op = describe_roi_max_pool(ROIS.shape, FEATURES.shape, -1, 0.25)
    with pytest.raises(RuntimeError, match="roi_max_pool: the op's numbers are not valid"):
        kernels.launch("roi_max_pool", op, None, None, None, workspace=None)


@pytest.mark.parametrize(
    ("rois", "features", "sentence"),
    [
        (ROIS[..., :3], FEATURES, r"rois is float32 \[1, 2, 3\]: expected \[1, 2, 4\]"),
        (np.repeat(ROIS, 2, axis=0), FEATURES, r"features is float32 \[1, 2, 5, 6\]: expected \[2, 2, 5, 6\]"),
        (ROIS, FEATURES.astype(np.int32), "dtype 'int32': expected one of float32, float16"),
    ],
)
def test_arrays_that_do_not_go_together_are_refused(cpu_kernels_path, rois, features, sentence):
    with pytest.raises(ValueError, match=sentence):
        Kernels(cpu_kernels_path).roi_max_pool(rois, features, 2, 0.25)


def test_an_unknown_schedule_is_refused(cpu_kernels_path):
    with pytest.raises(ValueError, match="schedule 'backward': expected 'forward', 'reverse' or a whole number"):
        Kernels(cpu_kernels_path, schedule="backward")


def test_the_sanitizers_watch_outputs_and_inputs(sanitized_kernels_path):
    """A launch that is given too little memory must not pass: the sanitized tests of the ops rest on it."""
    code = """
rois = np.array([[[0, 0, 12, 12]]], np.float32)
features = np.ones((1, 2, 5, 6), np.float32)
kernels = Kernels(library)
assert kernels.roi_max_pool(rois, features, 2, 0.25).shape == (1, 2, 2, 2)
print("good")
from plugins.describe import describe_roi_max_pool
from plugins.host_arrays import OutputArray
op = describe_roi_max_pool(rois.shape, features.shape, 2, 0.25)
pooled, scratch = OutputArray((12,), np.float32), OutputArray((kernels.workspace_size("roi_max_pool", op),), np.uint8)
op.channels = 3  # the features have 2
addresses = [array.ctypes.data for array in (rois, features, pooled.array)]
kernels.launch("roi_max_pool", op, *addresses, workspace=scratch.array.ctypes.data)
print("bad")
"""
    result = run_sanitized(sanitized_kernels_path, code)
    assert result.stdout == "good\n"
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr
