"""PyramidRoiAlign: the reference, the torch op, the ONNX body and the kernels give the same, which is torchvision's."""

from __future__ import annotations

import math
import mmap

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import MultiScaleRoIAlign, roi_align

from plugins.build import build
from plugins.describe import describe_pyramid_roi_align
from plugins.kernels import Kernels
from plugins.pyramid_roi_align.torch_op import pyramid_roi_align
from tests.plugins import reference
from tests.plugins.one_node import check_faces, in_numpy
from tests.plugins.pooling_faces import (
    all_schedules,
    layout_pairs,
    pooled_memory,
    pyramid,
    random_rois,
    run_kernels,
    without_padding,
)
from tests.plugins.sanitized import sanitized_results

ATOL = {torch.float32: 2e-6, torch.float16: 2e-3}  # features are N(0, 1); rounding to float16 may go either way
FARTHEST = 2.0**18  # cells


@pytest.fixture(scope="module")
def kernels(cpu_kernels_path):
    return all_schedules(cpu_kernels_path)


def align_case(
    seed=0, batch=2, count=12, channels=3, levels=3, dtype=torch.float32, size=(80, 100), largest=4.5, **changes
):
    """Arguments of pyramid_roi_align; levels change at sides of 28, 56, ... px."""
    return {
        "rois": random_rois(seed, batch, count, size, largest),
        "features": pyramid(seed, batch, channels, levels, dtype, size),
        "spatial_scales": [2.0**-level for level in range(2, 2 + levels)],
        "output_size": 7,
        "sampling_ratio": 2,
        "aligned": False,
        "canonical_scale": 56.0,
        "canonical_level": 4,
        **changes,
    }


CASES = {
    "one level": {"levels": 1, "batch": 1},
    "six levels, three images": {"levels": 6, "batch": 3},
    "aligned": {"aligned": True},
    "one sample": {"sampling_ratio": 1, "channels": 1},
    "three samples, aligned": {"sampling_ratio": 3, "aligned": True},
    "sixteen samples": {"sampling_ratio": 16, "output_size": 2, "count": 8, "batch": 1},
    "adaptive": {"sampling_ratio": 0, "count": 11, "batch": 1},
    "adaptive, aligned, 1 x 1": {"sampling_ratio": 0, "aligned": True, "output_size": 1, "levels": 2},
    "1 x 1": {"output_size": 1, "channels": 20},
    "14 x 14": {"output_size": 14, "channels": 8, "count": 9, "batch": 1},
    "33 x 33": {"output_size": 33, "channels": 9, "count": 5, "batch": 1, "sampling_ratio": 1},
    "20 channels": {"channels": 20},
    "64 channels": {"channels": 64, "output_size": 3},
    "no rois": {"count": 0},
    "one roi": {"count": 1},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_faces(kernels, case, dtype):
    """Reference == torch op == ONNX body == kernels in every layout."""
    arguments = align_case(dtype=dtype, **case)
    pooled = run_kernels(kernels, "pyramid_roi_align", arguments, dtype)
    np.testing.assert_allclose(pooled, pyramid_roi_align(**arguments).numpy(), rtol=0, atol=ATOL[dtype])
    if pooled.size:
        np.testing.assert_allclose(pooled, reference.pyramid_roi_align(*in_numpy(arguments)), rtol=0, atol=ATOL[dtype])
    if arguments["sampling_ratio"] > 0 and pooled.size:
        check_faces("PyramidRoiAlign", arguments, check_reference=False, pooled_atol=ATOL[dtype])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", [
    {"channels": 256, "count": 40, "batch": 1},
    {"channels": 264, "count": 3, "batch": 1, "output_size": 14},
    {"channels": 2, "count": 300, "batch": 3, "sampling_ratio": 0, "aligned": True},
    {"channels": 1, "count": 4000, "batch": 1, "output_size": 2},
    {"channels": 4096, "count": 2, "batch": 1, "output_size": 2, "levels": 1},
], ids=["256 channels", "14 x 14", "300 rois, adaptive", "4000 rois", "4096 channels"])  # fmt: skip
def test_larger_cases_equal_the_torch_op(kernels, case, dtype):
    arguments = align_case(1, dtype=dtype, **case)
    pooled = run_kernels(kernels[2:], "pyramid_roi_align", arguments, dtype)
    np.testing.assert_allclose(pooled, pyramid_roi_align(**arguments).numpy(), rtol=0, atol=ATOL[dtype])
    assert pooled.any()


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_ten_thousand_rois_equal_torchvision(kernels, sampling_ratio, aligned):
    """2,500 rois each way; positive features, so that no sum is small beside its terms."""
    rois = random_rois(2, 5, 500, (256.0, 320.0), 5.0)
    rois = rois[:, torch.arange(500) != 3]  # the one with a NaN: torchvision would take it
    maps = [level.abs() for level in pyramid(2, 5, 3, 4, size=(256, 320))]
    scales = [2.0**-level for level in range(2, 6)]
    rule = (7, sampling_ratio, aligned, 112.0, 4)
    if aligned:  # MultiScaleRoIAlign has no such option: one level
        indexed = torch.cat((torch.arange(5.0).repeat_interleave(499)[:, None], rois.reshape(-1, 4)), dim=1)
        expected = roi_align(maps[1], indexed, 7, 1 / 8, sampling_ratio or -1, True).numpy()
        scales, maps = scales[1:2], maps[1:2]
    else:
        names = [str(level) for level in range(4)]
        pool = MultiScaleRoIAlign(names, 7, sampling_ratio or -1, canonical_scale=112)
        expected = pool(dict(zip(names, maps, strict=True)), list(rois), [(256, 320)] * 5).numpy()
    sides = rois.reshape(-1, 4)[:, 2:] - rois.reshape(-1, 4)[:, :2]
    expected[(sides <= 0).any(dim=1).numpy()] = 0  # padding: torchvision pools it
    numbers = [level.numpy() for level in maps]
    result = kernels[0].pyramid_roi_align(rois.numpy(), numbers, scales, *rule)
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-7)
    halves = [level.astype(np.float16) for level in numbers]
    in_half = kernels[0].pyramid_roi_align(rois.numpy(), halves, scales, *rule, layout="nhwc8")
    np.testing.assert_allclose(in_half.astype(np.float32), expected, rtol=1e-2, atol=1e-6)


def test_levels_are_torchvisions_at_their_borders(kernels):
    """Every level holds its own number, so the result names the level."""
    sides = np.array([1e-30, 1, 112, 224, 448, 896, 5000], np.float32)
    near = np.concatenate([np.nextafter(sides, side) for side in (0, np.inf)] + [sides, sides * 0.9999999])
    for height in (1.0, 0.5, 3.0):  # of sides with the same area, whose product may round otherwise
        boxes = np.stack((near * 0 + 8, near * 0 + 8, 8 + near * np.float32(height), 8 + near / np.float32(height)), 1)
        maps = [torch.full((1, 1, 256 >> level, 256 >> level), 1.0 + level) for level in range(4)]
        rule = ([2.0**-level for level in range(2, 6)], 1, 1, False, 224.0, 4)
        rois = torch.from_numpy(boxes[None].astype(np.float32))
        expected = pyramid_roi_align(rois, maps, *rule).numpy()
        result = kernels[0].pyramid_roi_align(rois.numpy(), [level.numpy() for level in maps], *rule)
        np.testing.assert_array_equal(result, expected)
    assert set(np.unique(result)) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
def test_infinite_and_huge_rois_end_at_the_farthest_cell(kernels, sampling_ratio, aligned):
    """Beyond 2^18 cells a corner counts as there: infinite ones give numbers, and no loop is endless."""
    boxes = [[[-x, -x, x, x], [10.0, 20.0, x, 30.0], [-x, 0.0, 9.0, 9.0]] for x in (math.inf, 3e38, 1e12)]
    rois = torch.tensor(boxes).reshape(1, -1, 4)
    arguments = align_case(batch=1, sampling_ratio=sampling_ratio, aligned=aligned)
    pooled = run_kernels(kernels, "pyramid_roi_align", {**arguments, "rois": rois}, torch.float32)
    assert np.isfinite(pooled).all()
    assert pooled.any() == (sampling_ratio == 0)  # two samples a bin miss the features
    limit = (FARTHEST + 1) * 2**4  # the coarsest level's stride
    ended = {**arguments, "rois": rois.clamp(-limit, limit)}
    np.testing.assert_array_equal(pooled, run_kernels(kernels[:1], "pyramid_roi_align", ended, torch.float32))


COORDINATE = st.floats(-400, 400, width=32)


@given(
    corners=st.lists(st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE), min_size=1, max_size=8),
    channels=st.integers(1, 9),
    output_size=st.integers(1, 9),
    sampling_ratio=st.integers(0, 3),
    aligned=st.booleans(),
    half=st.booleans(),
)
def test_any_rois_equal_the_torch_op(kernels, corners, channels, output_size, sampling_ratio, aligned, half):
    dtype = torch.float16 if half else torch.float32
    arguments = align_case(
        batch=1, channels=channels, dtype=dtype, output_size=output_size, sampling_ratio=sampling_ratio, aligned=aligned
    )
    arguments["rois"] = torch.tensor([corners])
    pooled = run_kernels(kernels[:1], "pyramid_roi_align", arguments, dtype)
    np.testing.assert_allclose(pooled, pyramid_roi_align(**arguments).numpy(), rtol=0, atol=ATOL[dtype])


def described(arguments, layout, output_layout):
    rois, features, *attributes = arguments.values()
    dtype = str(features[0].dtype).removeprefix("torch.")
    shapes = [level.shape for level in features]
    return describe_pyramid_roi_align(
        rois.shape, shapes, *attributes, dtype=dtype, layout=layout, output_layout=output_layout
    )


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "nhwc8", "nhwc16"])
@pytest.mark.parametrize("channels", [3, 8, 20])
def test_padding_channels_are_zero(kernels, layout, channels):
    arguments = align_case(channels=channels, dtype=torch.float16)
    op = described(arguments, layout, "nhwc16")
    rois, features = arguments["rois"], arguments["features"]
    pooled = pooled_memory(kernels[0], "pyramid_roi_align", op, rois, features, layout, "cpu")
    expected = pyramid_roi_align(**arguments).numpy()
    np.testing.assert_allclose(without_padding(pooled, op).numpy(), expected, rtol=0, atol=ATOL[torch.float16])


@pytest.mark.parametrize("layout", ["nchw", "nhwc8"])
def test_maps_of_more_than_four_billion_elements(kernels, layout):
    """The last channels of the second image of 8192 x 8192 cells; memory that is never touched takes no room."""
    side, channels = 8192, 40
    memory = mmap.mmap(-1, 2 * channels * side * side * 2, flags=mmap.MAP_PRIVATE | 0x4000)  # MAP_NORESERVE
    maps = np.frombuffer(memory, np.float16)
    maps = maps.reshape(2, channels, side, side) if layout == "nchw" else maps.reshape(2, side, side, channels)
    view = maps if layout == "nchw" else maps.transpose(0, 3, 1, 2)
    patch = np.random.default_rng(0).normal(size=(8, 4, 4)).astype(np.float16)
    view[1, 32:, side - 4 :, side - 4 :] = patch
    rois = torch.tensor([[[0.0, 0.0, 4.0, 4.0]], [[side - 4.0, side - 4.0, side - 1.0, side - 1.0]]])
    rule = ([1.0], 3, 2, False, 224.0, 4)
    op = describe_pyramid_roi_align(rois.shape, [(2, channels, side, side)], *rule, dtype="float16", layout=layout)
    pooled = torch.full((2, channels, 3, 3), -77.0, dtype=torch.float16)
    pointers = [rois.data_ptr(), [maps.ctypes.data], pooled.data_ptr()]
    kernels[0].launch("pyramid_roi_align", op, *pointers, workspace=None)
    corner = torch.from_numpy(patch)[None]
    expected = pyramid_roi_align(torch.tensor([[[0.0, 0.0, 3.0, 3.0]]]), [corner], *rule)
    np.testing.assert_allclose(pooled[1, 32:].numpy(), expected[0].numpy(), rtol=0, atol=ATOL[torch.float16])
    assert not pooled[0].any()
    assert not pooled[1, :32].any()


def test_the_largest_numbers_fit_into_shared_memory(kernels):
    """40 x 40 bins with 16 samples, and adaptive ones on the largest levels: the kernel starts."""
    for changes in ({"sampling_ratio": 16}, {"sampling_ratio": 0, "size": (4 * 1246, 4 * 1246), "levels": 1}):
        arguments = align_case(batch=1, count=1, channels=1, output_size=40, **changes)
        pooled = kernels[0].pyramid_roi_align(*in_numpy(arguments), layout="nhwc")
        np.testing.assert_allclose(pooled, pyramid_roi_align(**arguments).numpy(), rtol=1e-5, atol=2e-6)


def test_the_sanitizers_find_nothing(sanitized_kernels_path, kernels, tmp_path):
    cases = [
        (align_case(count=11, sampling_ratio=0, aligned=True, batch=1), "nhwc", "nchw"),
        (align_case(count=11, channels=20, dtype=torch.float16), "nhwc8", "nhwc16"),
        (align_case(count=11, channels=20, dtype=torch.float16, levels=6, batch=1), "nhwc8", "nchw"),
        (align_case(count=11, channels=5, dtype=torch.float16, output_size=14, batch=1), "nchw", "nhwc8"),
        (align_case(count=11, channels=4, aligned=True), "nhwc", "nhwc"),
    ]
    calls = [(in_numpy(case), {"layout": one, "output_layout": other}) for case, one, other in cases]
    found = sanitized_results(sanitized_kernels_path, tmp_path, "pyramid_roi_align", calls)
    for (arguments, _), result in zip(calls, found, strict=True):
        np.testing.assert_array_equal(result, kernels[0].pyramid_roi_align(*arguments))


# --- on a GPU


@pytest.fixture(scope="module")
def cuda_kernels():
    return Kernels(build("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_on_a_gpu(cuda_kernels, case, dtype):
    arguments = align_case(dtype=dtype, **case)
    expected = pyramid_roi_align(**arguments).numpy()
    for layout, output_layout in layout_pairs(dtype):
        op = described(arguments, layout, output_layout)
        rois, features = arguments["rois"], arguments["features"]
        pooled = pooled_memory(cuda_kernels, "pyramid_roi_align", op, rois, features, layout, "cuda")
        np.testing.assert_allclose(without_padding(pooled, op).numpy(), expected, rtol=0, atol=ATOL[dtype])
