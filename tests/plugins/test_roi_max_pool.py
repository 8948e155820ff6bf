"""RoiMaxPool: the reference, the torch op, the ONNX body and the kernels give the same, exactly torchvision's."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import roi_pool

from plugins.build import build
from plugins.describe import describe_roi_max_pool
from plugins.kernels import Kernels
from plugins.roi_max_pool.torch_op import roi_max_pool
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

FARTHEST = 2.0**29  # cells


@pytest.fixture(scope="module")
def kernels(cpu_kernels_path):
    return all_schedules(cpu_kernels_path)


def pool_case(seed=0, batch=2, count=12, channels=3, dtype=torch.float32, size=(80, 100), **changes):
    """Arguments of roi_max_pool on features of stride 4."""
    return {
        "rois": random_rois(seed, batch, count, size),
        "features": pyramid(seed, batch, channels, 1, dtype, size)[0],
        "output_size": 7,
        "spatial_scale": 0.25,
        **changes,
    }


CASES = {
    "one image": {"batch": 1, "channels": 1},
    "three images": {"batch": 3, "count": 7},
    "other scale": {"spatial_scale": 0.0625, "output_size": 6},
    "scale not a power of two": {"spatial_scale": 0.3},
    "1 x 1": {"output_size": 1, "channels": 20},
    "14 x 14": {"output_size": 14, "channels": 8, "count": 9, "batch": 1},
    "40 x 40": {"output_size": 40, "channels": 9, "count": 5, "batch": 1},
    "20 channels": {"channels": 20},
    "64 channels": {"channels": 64, "output_size": 3},
    "no rois": {"count": 0},
    "one roi": {"count": 1},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_faces(kernels, case, dtype):
    """Reference == torch op == ONNX body == kernels in every layout."""
    arguments = pool_case(dtype=dtype, **case)
    pooled = run_kernels(kernels, "roi_max_pool", arguments, dtype)
    np.testing.assert_array_equal(pooled, roi_max_pool(**arguments).numpy())
    if pooled.size:
        np.testing.assert_array_equal(pooled, reference.roi_max_pool(*in_numpy(arguments)))
        check_faces("RoiMaxPool", arguments, check_reference=False, pooled_atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", [
    {"channels": 256, "count": 40, "batch": 1},
    {"channels": 264, "count": 3, "batch": 1, "output_size": 14},
    {"channels": 2, "count": 300, "batch": 3},
    {"channels": 1, "count": 4000, "batch": 1, "output_size": 2},
    {"channels": 4096, "count": 2, "batch": 1, "output_size": 2},
], ids=["256 channels", "14 x 14", "300 rois", "4000 rois", "4096 channels"])  # fmt: skip
def test_larger_cases_equal_the_torch_op(kernels, case, dtype):
    arguments = pool_case(1, dtype=dtype, **case)
    pooled = run_kernels(kernels[2:], "roi_max_pool", arguments, dtype)
    np.testing.assert_array_equal(pooled, roi_max_pool(**arguments).numpy())
    assert pooled.any()


@pytest.mark.parametrize("scale", [0.25, 0.0625])
def test_ten_thousand_rois_equal_torchvision(kernels, scale):
    rois = random_rois(2, 5, 1000, (256.0, 320.0))
    rois = rois[:, torch.arange(1000) != 3]  # the one with a NaN: torchvision would take it
    features = pyramid(2, 5, 3, 3, size=(256, 320))[0 if scale == 0.25 else 2]
    indexed = torch.cat((torch.arange(5.0).repeat_interleave(999)[:, None], rois.reshape(-1, 4)), dim=1)
    for dtype in (torch.float32, torch.float16):
        expected = roi_pool(features.to(dtype).float(), indexed, 7, scale).to(dtype)
        expected[(rois[..., 2:] <= rois[..., :2]).any(dim=2).flatten()] = 0  # padding: torchvision pools it
        result = kernels[0].roi_max_pool(rois.numpy(), features.to(dtype).numpy(), 7, scale)
        np.testing.assert_array_equal(result, expected.numpy())
        np.testing.assert_array_equal(np.signbit(result), np.signbit(expected.numpy()))


def test_corners_on_half_cells_round_away_from_zero(kernels):
    halves = torch.arange(-16.0, 120.0, 2.0)  # times 0.25: halves and wholes
    corners = torch.cartesian_prod(halves, halves)
    corners = corners[corners[:, 0] < corners[:, 1]]
    rois = torch.stack((corners[:, 0], corners[:, 0], corners[:, 1], corners[:, 1]), dim=1)[None]
    features = torch.arange(500.0).reshape(1, 1, 20, 25)
    expected = roi_max_pool(rois, features, 2, 0.25).numpy()
    np.testing.assert_array_equal(kernels[0].roi_max_pool(rois.numpy(), features.numpy(), 2, 0.25), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_nan_and_infinite_features(kernels, dtype):
    """torchvision's `value > maximum`, from the least float32 on: a NaN counts for nothing, even among NaN."""
    arguments = pool_case(dtype=dtype, channels=9)
    features = arguments["features"]
    flat = features.view(-1)
    flat[::3] = math.nan
    flat[1::5] = -math.inf
    flat[2::77] = math.inf
    features[0, 0] = math.nan
    features[0, 1] = -math.inf
    features[0, 2, ::2] = 0.0
    features[0, 2, 1::2] = -0.0  # not greater than 0, nor less
    pooled = run_kernels(kernels, "roi_max_pool", arguments, dtype)
    expected = roi_max_pool(**arguments).numpy()
    np.testing.assert_array_equal(pooled, expected)
    np.testing.assert_array_equal(np.signbit(pooled), np.signbit(expected))
    np.testing.assert_array_equal(pooled, reference.roi_max_pool(*in_numpy(arguments)))
    least = np.finfo(np.float32).min if dtype == torch.float32 else -np.inf
    assert (pooled[0, :2] == least).all()


def test_infinite_and_huge_rois_end_at_the_farthest_cell(kernels):
    """Beyond 2^29 cells a corner counts as there."""
    boxes = [[[-x, -x, x, x], [10.0, 20.0, x, 30.0], [-x, 0.0, 9.0, 9.0]] for x in (math.inf, 3e38, 1e12)]
    rois = torch.tensor(boxes).reshape(1, -1, 4)
    arguments = {**pool_case(batch=1), "rois": rois}
    pooled = run_kernels(kernels, "roi_max_pool", arguments, torch.float32)
    assert np.isfinite(pooled).all()
    assert pooled[0].any()
    ended = {**arguments, "rois": rois.clamp(-FARTHEST * 4, FARTHEST * 4)}
    np.testing.assert_array_equal(pooled, run_kernels(kernels[:1], "roi_max_pool", ended, torch.float32))
    np.testing.assert_array_equal(pooled, roi_max_pool(**ended).numpy())


COORDINATE = st.floats(-(2.0**24), 2.0**24, width=32) | st.floats(-200, 300, width=32)


@given(
    corners=st.lists(st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE), min_size=1, max_size=8),
    channels=st.integers(1, 9),
    output_size=st.integers(1, 9),
    scale=st.sampled_from([0.25, 0.0625, 0.3]),
    half=st.booleans(),
)
def test_any_rois_equal_the_torch_op(kernels, corners, channels, output_size, scale, half):
    dtype = torch.float16 if half else torch.float32
    arguments = pool_case(batch=1, channels=channels, dtype=dtype, output_size=output_size, spatial_scale=scale)
    arguments["rois"] = torch.tensor([corners])
    pooled = run_kernels(kernels[:1], "roi_max_pool", arguments, dtype)
    np.testing.assert_array_equal(pooled, roi_max_pool(**arguments).numpy())


def described(arguments, layout, output_layout):
    rois, features, *attributes = arguments.values()
    dtype = str(features.dtype).removeprefix("torch.")
    return describe_roi_max_pool(
        rois.shape, features.shape, *attributes, dtype=dtype, layout=layout, output_layout=output_layout
    )


@pytest.mark.parametrize("layout", ["nchw", "nhwc", "nhwc8", "nhwc16"])
@pytest.mark.parametrize("channels", [3, 8, 20])
def test_padding_channels_are_zero(kernels, layout, channels):
    arguments = pool_case(channels=channels, dtype=torch.float16)
    op = described(arguments, layout, "nhwc16")
    pooled = pooled_memory(kernels[0], "roi_max_pool", op, arguments["rois"], [arguments["features"]], layout, "cpu")
    np.testing.assert_array_equal(without_padding(pooled, op).numpy(), roi_max_pool(**arguments).numpy())


def test_the_sanitizers_find_nothing(sanitized_kernels_path, kernels, tmp_path):
    far = torch.tensor([[[-math.inf, -3e38, math.inf, 3e38], [10.0, 0.0, 1e12, 9.0]]])
    cases = [
        ({**pool_case(batch=1), "rois": far}, "nhwc", "nchw"),
        (pool_case(channels=20, dtype=torch.float16), "nhwc8", "nhwc16"),
        (pool_case(channels=20, dtype=torch.float16, output_size=14, batch=1), "nhwc8", "nchw"),
        (pool_case(channels=5, dtype=torch.float16), "nchw", "nhwc8"),
        (pool_case(channels=4), "nhwc", "nhwc"),
    ]
    calls = [(in_numpy(case), {"layout": one, "output_layout": other}) for case, one, other in cases]
    found = sanitized_results(sanitized_kernels_path, tmp_path, "roi_max_pool", calls)
    for (arguments, _), result in zip(calls, found, strict=True):
        np.testing.assert_array_equal(result, kernels[0].roi_max_pool(*arguments))


# --- on a GPU


@pytest.fixture(scope="module")
def cuda_kernels():
    return Kernels(build("cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_on_a_gpu(cuda_kernels, case, dtype):
    arguments = pool_case(dtype=dtype, **case)
    expected = roi_max_pool(**arguments).numpy()
    for layout, output_layout in layout_pairs(dtype):
        op = described(arguments, layout, output_layout)
        rois, maps = arguments["rois"], [arguments["features"]]
        pooled = pooled_memory(cuda_kernels, "roi_max_pool", op, rois, maps, layout, "cuda")
        np.testing.assert_array_equal(without_padding(pooled, op).numpy(), expected)
