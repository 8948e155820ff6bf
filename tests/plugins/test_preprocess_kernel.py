"""The preprocessing kernel against runtime/preprocess.py: every pixel, every format, every odd size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plugins.describe import describe_preprocess
from plugins.host_arrays import described_frame
from plugins.kernels import Kernels
from runtime.preprocess import NetworkInput, canvas_size, network_size, preprocess
from runtime.spec import DetectorSpec
from tests.plugins.sanitized import run_sanitized
from tests.runtime.test_preprocess import noise, spec_with

SCHEDULES = ("forward", "reverse", 7)
EXACT = 1e-6  # of the range of values, against exact arithmetic: three float32 roundings
OPENCV = 1e-5  # the same, against OpenCV, whose weights are float32, too
# bytes come out as they are
PLAIN: dict[str, Any] = {"mean": [0, 0, 0], "std": [1, 1, 1], "value_scale": 1, "pad_value": -1}


@pytest.fixture(scope="module")
def kernels(cpu_kernels_path):
    return Kernels(cpu_kernels_path)


def run(kernels: Kernels, frames: Sequence[np.ndarray], spec: DetectorSpec, **options) -> NetworkInput:
    """The kernel on `frames`, sizes as runtime/preprocess.py chooses them."""
    rule, nv12 = spec.input, options.get("format") == "nv12"
    sizes = [
        network_size((frame.shape[0] * 2 // 3 if nv12 else frame.shape[0], frame.shape[1]), spec) for frame in frames
    ]
    numbers = (rule.mean, rule.std, rule.value_scale, rule.pad_value)
    return NetworkInput(*kernels.preprocess(frames, *canvas_size(sizes, spec), sizes, *numbers, **options))


def frame_height(frame: np.ndarray) -> int:
    """Also of an NV12 frame, [3 height / 2, width]."""
    return frame.shape[0] if frame.ndim == 3 else frame.shape[0] * 2 // 3


def value_range(spec: DetectorSpec) -> float:
    return 255 * spec.input.value_scale / min(spec.input.std)


def opencv_tolerance(frames: Sequence[np.ndarray], spec: DetectorSpec) -> float:
    """OpenCV rounds positions to float32 where it cannot use Intel's library: ARM, and frames with a side of 1."""
    exact = cv2.ipp.useIPP() and min(side for frame in frames for side in frame.shape[:2]) > 1
    longest = max(side for frame in frames for side in frame.shape[:2])
    return value_range(spec) * (OPENCV if exact else OPENCV + 2 * float(np.spacing(np.float32(longest))))


def check(kernels: Kernels, frames: Sequence[np.ndarray], spec: DetectorSpec) -> NetworkInput:
    """The kernel on BGR frames is runtime/preprocess.py within rounding, and exact arithmetic more closely still."""
    ours, expected = run(kernels, frames, spec), preprocess(frames, spec)
    assert ours.images.shape == expected.images.shape
    np.testing.assert_array_equal(ours.im_info, expected.im_info)
    np.testing.assert_allclose(ours.images, expected.images, rtol=0, atol=opencv_tolerance(frames, spec))
    for image, info, frame in zip(ours.images, ours.im_info, frames, strict=True):
        height, width = map(int, info[:2])
        exact = exact_arithmetic(frame, (height, width), spec)
        np.testing.assert_allclose(image[:, :height, :width], exact, rtol=0, atol=EXACT * value_range(spec))
        assert (image[:, height:] == np.float32(spec.input.pad_value)).all()
        assert (image[:, :, width:] == np.float32(spec.input.pad_value)).all()
    return ours


def exact_arithmetic(frame: np.ndarray, size: tuple[int, int], spec: DetectorSpec) -> np.ndarray:
    """The rule in float64, float64 [3, h, w]."""
    pixels = frame[:, :, ::-1].astype(np.float64)
    for axis in (0, 1):
        step = frame.shape[axis] / size[axis]
        place = np.clip((np.arange(size[axis]) + 0.5) * step - 0.5, 0, frame.shape[axis] - 1)
        first = np.floor(place).astype(int)
        weight = (place - first).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        second = np.minimum(first + 1, frame.shape[axis] - 1)
        pixels = np.take(pixels, first, axis) * (1 - weight) + np.take(pixels, second, axis) * weight
    normalised = (pixels * spec.input.value_scale - spec.input.mean) / spec.input.std
    return normalised.transpose(2, 0, 1)


SIZES = {
    "smaller": (480, 640),
    "much smaller": (1080, 1920),
    "larger": (37, 53),
    "odd sides": (101, 77),
    "portrait": (640, 427),
    "half": (576, 768),
    "twice": (144, 192),
    "one row": (1, 400),
    "one column": (400, 1),
    "one pixel": (1, 1),
    "two pixels": (1, 2),
}


@pytest.mark.parametrize("frame_hw", SIZES.values(), ids=SIZES.keys())
@pytest.mark.parametrize("canvas", [None, (288, 384)], ids=["free canvas", "fixed canvas"])
def test_bgr_is_the_runtimes(kernels, frame_hw, canvas):
    check(kernels, [noise(*frame_hw)], spec_with(288, 384, canvas))


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1))
def test_every_size_is_the_runtimes(kernels, height, width, min_size, seed):
    check(kernels, [noise(height, width, seed)], spec_with(min_size, 2 * min_size))


@pytest.mark.parametrize("count", [1, 3, 32])
def test_a_batch_of_different_sizes(kernels, count):
    sizes = [(40 + 17 * i % 90, 30 + 29 * i % 110) for i in range(count)]
    check(kernels, [noise(*size, seed) for seed, size in enumerate(sizes)], spec_with(64, 96))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_threads_with_one_to_four_rows(kernels, count):
    """There are more rows per thread from 2^18 pixels of canvas on; each keeps rows of the frame for the next."""
    frames = [noise(height, 500, seed) for seed, height in enumerate((300, 1100, 530, 540, 700)[:count])]
    check(kernels, frames, spec_with(512, 544, (512, 544)))


def test_normalisation_and_padding_are_the_specs(kernels):
    spec = spec_with(64, 96, (64, 96))
    rule = {"mean": (102.9, 115.9, 122.7), "std": (1.0, 2.0, 57.375), "value_scale": 1.0, "pad_value": -1.7}
    check(kernels, [noise(50, 50)], spec.replace(input=dataclasses.replace(spec.input, **rule)))


@pytest.mark.parametrize("frame_hw", [(96, 128), (97, 131), (1, 1), (1, 160), (3, 2)])
@pytest.mark.parametrize("format", ["bgr", "rgb"])
def test_without_resizing_every_bit_is_the_runtimes(kernels, frame_hw, format):
    frame, spec = noise(*frame_hw), spec_with(min(frame_hw), max(frame_hw))
    given_frame = frame if format == "bgr" else np.ascontiguousarray(frame[:, :, ::-1])
    ours, expected = run(kernels, [given_frame], spec, format=format), preprocess([frame], spec)
    assert expected.im_info[0].tolist() == [*frame_hw, 1, 1]
    np.testing.assert_array_equal(ours.images, expected.images)
    np.testing.assert_array_equal(ours.im_info, expected.im_info)


@pytest.mark.parametrize("frame_hw", [(96, 128), (61, 35), (1, 1)])
def test_rgb_is_bgr_read_backwards(kernels, frame_hw):
    frame, spec = noise(*frame_hw), spec_with(64, 96)
    rgb = run(kernels, [np.ascontiguousarray(frame[:, :, ::-1])], spec, format="rgb")
    np.testing.assert_array_equal(rgb.images, run(kernels, [frame], spec).images)


def nv12_noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height * 3 // 2, width), np.uint8)


@pytest.mark.parametrize("frame_hw", [(480, 640), (1080, 1920), (38, 54), (2, 2), (2, 300), (300, 2), (64, 96)])
def test_nv12_is_opencvs_bgr(kernels, frame_hw):
    """To the bit: the same kernel arithmetic follows the same integers."""
    frame, spec = nv12_noise(*frame_hw), spec_with(64, 96)
    ours, theirs = run(kernels, [frame], spec, format="nv12"), run(kernels, [opencvs_bgr(frame)], spec)
    np.testing.assert_array_equal(ours.images, theirs.images)
    np.testing.assert_array_equal(ours.im_info, theirs.im_info)
    check(kernels, [opencvs_bgr(frame)], spec)


def opencvs_bgr(frame: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(frame, cv2.COLOR_YUV2BGR_NV12)


def all_colors(v: int) -> np.ndarray:
    """An NV12 frame of 256 x 1024 px that has every pair of Y and U with this V: a 2 x 2 square has four Y."""
    y = np.arange(256, dtype=np.uint8).reshape(64, 2, 2).transpose(1, 0, 2).reshape(2, 128)  # 64 squares
    luma = np.tile(y, (128, 8))  # [256, 1024]: 128 x 512 squares
    u = np.arange(256).reshape(32, 8).repeat(64, axis=1).repeat(4, axis=0)  # [128, 512]
    chroma = np.stack((u, np.full_like(u, v)), axis=-1).reshape(128, 1024)
    return np.concatenate((luma, chroma.astype(np.uint8)))


def integer_rgb(frame: np.ndarray, red: float, blue: float) -> np.ndarray:
    """RGB [3, h, w] of an NV12 frame by Kr = `red` and Kb = `blue`, limited range, 20 fraction bits."""
    height, green = frame_height(frame), 1 - red - blue
    luma = np.maximum(frame[:height].astype(np.int64) - 16, 0)
    u, v = (frame[height:, i::2].astype(np.int64).repeat(2, 0).repeat(2, 1) - 128 for i in (0, 1))

    def fixed(coefficient):
        return round(coefficient * 2**20)

    y = luma * fixed(255 / 219)
    from_v, from_u = 2 * (1 - red) * 255 / 224, 2 * (1 - blue) * 255 / 224
    sums = (v * fixed(from_v), u * fixed(-from_u * blue / green) + v * fixed(-from_v * red / green), u * fixed(from_u))
    return np.stack([np.clip((y + add + 2**19) >> 20, 0, 255) for add in sums])


@pytest.mark.parametrize("color", ["bt601", "bt709"])
def test_each_of_the_16_million_colors(kernels, color):
    for start in range(0, 256, 32):
        frames = [all_colors(v) for v in range(start, start + 32)]
        images, _ = kernels.preprocess(frames, 256, 1024, [(256, 1024)] * 32, **PLAIN, format="nv12", color=color)
        for image, frame in zip(images, frames, strict=True):
            if color == "bt601":
                expected = opencvs_bgr(frame)[:, :, ::-1].transpose(2, 0, 1)
            else:
                expected = integer_rgb(frame, 0.2126, 0.0722)
            np.testing.assert_array_equal(image, expected)


def test_all_colors_are_all():
    height, frame = 256, all_colors(9)
    u = frame[height:, ::2].repeat(2, 0).repeat(2, 1)
    assert len(np.unique(frame[:height].astype(int) * 256 + u)) == 256 * 256


@pytest.mark.parametrize("format", ["bgr", "nv12"])
def test_rows_may_lie_apart(kernels, format):
    spec = spec_with(64, 96)
    large = noise(90, 110) if format == "bgr" else nv12_noise(90, 110)
    part = large[11:71, 13:93] if format == "bgr" else large[15:105, 12:92]
    ours = run(kernels, [part], spec, format=format)
    np.testing.assert_array_equal(ours.images, run(kernels, [part.copy()], spec, format=format).images)


@pytest.mark.parametrize("canvas_w", [96, 97], ids=["pairs", "an odd width"])
@pytest.mark.parametrize("format", ["bgr", "nv12"])
@pytest.mark.parametrize("valid_w", [90, 91, 96])
def test_fp16_is_fp32_rounded(kernels, canvas_w, format, valid_w):
    frame = noise(51, 77) if format == "bgr" else nv12_noise(52, 78)
    numbers = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 1 / 255, 0.3)
    arguments = ([frame], 64, canvas_w, [(60, valid_w)], *numbers)
    single, _ = kernels.preprocess(*arguments, format=format)
    half, info = kernels.preprocess(*arguments, format=format, dtype=np.float16)
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, single.astype(np.float16))  # to nearest, ties to even: half an ulp
    assert info.tolist() == [[60, valid_w, *np.float32([60 / frame_height(frame), valid_w / frame.shape[1]])]]


def test_fp16_overflows_to_infinity(kernels):
    images, _ = kernels.preprocess([noise(4, 4)], 4, 4, [(4, 4)], **{**PLAIN, "value_scale": 1e4}, dtype=np.float16)
    assert images.max() == np.inf


@pytest.mark.parametrize("format", ["bgr", "nv12"])
def test_the_order_of_threads_does_not_matter(cpu_kernels_path, format):
    frames = [noise(70, 90), noise(200, 31)] if format == "bgr" else [nv12_noise(70, 90), nv12_noise(200, 32)]
    first, *others = (
        run(Kernels(cpu_kernels_path, schedule=schedule), frames, spec_with(64, 96), format=format)
        for schedule in SCHEDULES
    )
    for other in others:
        np.testing.assert_array_equal(first.images, other.images)
        np.testing.assert_array_equal(first.im_info, other.im_info)


def test_im_info_may_be_left_out(kernels):
    frame, images = noise(8, 10), np.zeros((1, 3, 8, 10), np.float32)
    op = describe_preprocess([described_frame(frame, (8, 10), "bgr", 0)], 8, 10, **PLAIN)
    kernels.launch("preprocess", op, images.ctypes.data, None, workspace=None)
    np.testing.assert_array_equal(images[0], frame[:, :, ::-1].transpose(2, 0, 1))


def test_the_sanitizers_find_nothing(sanitized_kernels_path):
    """Taps at the last row and column read nothing behind the frame."""
    code = """
sizes = [(45, 70), (400, 1), (1, 400), (1, 1), (300, 600)]
numbers = ([0, 0, 0], [1, 1, 1], 1, 0)
for dtype in (np.float32, np.float16):
    for canvas in ((64, 96), (64, 97), (900, 901)):
        for height, width in sizes:
            frame = np.zeros((height, width, 3), np.uint8)
            Kernels(library).preprocess([frame], *canvas, [(60, 91)], *numbers, dtype=dtype)
            frame = np.zeros((3 * height, 2 * width), np.uint8)
            Kernels(library).preprocess([frame], *canvas, [(60, 91)], *numbers, format="nv12", dtype=dtype)
"""
    result = run_sanitized(sanitized_kernels_path, code)
    assert result.returncode == 0, result.stderr
