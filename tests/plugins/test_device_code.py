"""What the kernels share (plugins/common/*.h), compiled for the CPU grid, against NumPy and torchvision."""

from __future__ import annotations

import ctypes
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import nms

from plugins.common.boxes import clip_boxes, decode_boxes
from tests.plugins import reference
from tests.plugins.cpu_grid_library import GRID, compile_code

KERNELS = Path(__file__).parent / "device_code_kernels.cu"

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")


@pytest.fixture(scope="module")
def code(tmp_path_factory):
    library = tmp_path_factory.mktemp("device_code") / "libdevice_code.so"
    compile_code(library, ["-O2", "-shared"], KERNELS, GRID)
    return ctypes.CDLL(str(library))


@pytest.fixture(scope="module", params=["forward", "reverse", "shuffled"])
def schedule(code, request):
    """The order in which the grid's threads run: no result may depend on it."""
    mode = ["forward", "reverse", "shuffled"].index(request.param)
    assert code.edgercnn_cpu_set_schedule(mode, ctypes.c_uint64(7)) == 0


def pointer(array):
    assert array.flags.c_contiguous
    return ctypes.c_void_p(array.ctypes.data)


# --- rank.h


def rank_keys(code, scores, indices=None):
    scores = np.ascontiguousarray(scores, np.float32)
    indices = np.arange(scores.size, dtype=np.uint32) if indices is None else np.asarray(indices, np.uint32)
    keys, back = np.zeros(scores.size, np.uint64), np.zeros(scores.size, np.float32)
    code.test_rank_keys(pointer(scores), pointer(indices), scores.size, pointer(keys), pointer(back))
    return keys, back


def best_keys(code, keys, count):
    best, found = np.full(max(2, 2 * count), 77, np.uint64), ctypes.c_int(-1)
    assert code.test_rank(pointer(keys), keys.size, count, pointer(best), ctypes.byref(found)) == 0
    return best[: found.value]


def expected_order(scores, count):
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    return np.array([i for i in order if not np.isnan(scores[i])][:count], np.int64)


SPECIAL = [
    0.0,
    -0.0,
    math.inf,
    -math.inf,
    math.nan,
    1e-45,
    -1e-45,
    3.4e38,
    -3.4e38,
    1.0,
    np.nextafter(1, 2, dtype="f4"),
]


def test_keys_order_as_scores_do(code):
    scores = np.array(SPECIAL, np.float32)
    keys, back = rank_keys(code, scores)
    expected = [0.0 if score == 0 else score for score in scores]
    kept = ~np.isnan(scores)
    np.testing.assert_array_equal(back[kept], np.array(expected, np.float32)[kept])
    assert keys[np.isnan(scores)].tolist() == [0]
    order = np.argsort(keys)[::-1][: kept.sum()]
    assert order.tolist() == expected_order(scores, 99).tolist()  # 0.0 (index 0) before -0.0 (index 1)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_selection_is_a_stable_sort(code, schedule, data):
    size = data.draw(st.integers(1, 3000))
    count = data.draw(st.integers(1, 1500))
    seed = data.draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    kind = data.draw(st.sampled_from(["normal", "few values", "one value", "special", "half", "narrow"]))
    scores = {
        "normal": lambda: rng.normal(size=size),
        "few values": lambda: rng.integers(-2, 3, size),
        "one value": lambda: np.full(size, -1.5),
        "special": lambda: rng.choice(SPECIAL, size),
        "half": lambda: rng.normal(size=size).astype(np.float16),
        "narrow": lambda: 1 + rng.integers(0, 50, size) * 2.0**-23,
    }[kind]().astype(np.float32)
    keys, _ = rank_keys(code, scores)
    best = best_keys(code, keys, count)
    order = (~best.astype(np.uint32)).astype(np.int64) & 0xFFFFFFFF
    np.testing.assert_array_equal(order, expected_order(scores, count))


def test_selection_of_nothing(code):
    assert best_keys(code, rank_keys(code, np.full(300, np.nan))[0], 5).size == 0


def test_exclusive_sum(code, schedule):
    values = np.random.default_rng(0).integers(0, 1000, 128).astype(np.uint32)
    sums = np.zeros(128, np.uint32)
    assert code.test_sum(pointer(values), pointer(sums)) == 0
    np.testing.assert_array_equal(sums, np.cumsum(values) - values)


# --- nms.h


def kept_boxes(code, boxes, threshold, most=1 << 30):
    boxes = np.ascontiguousarray(boxes, np.float32)
    words, total = np.full(-(-len(boxes) // 64), 0xCD, np.uint64), ctypes.c_int(-1)
    status = code.test_nms(
        pointer(boxes), len(boxes), most, ctypes.c_float(threshold), pointer(words), ctypes.byref(total)
    )
    assert status == 0
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    kept = np.flatnonzero(bits)
    assert total.value == kept.size
    return kept


def random_boxes(rng, count, spread):
    corners = rng.random((count, 2)) * spread
    return np.concatenate((corners, corners + 5 + rng.random((count, 2)) * 40), axis=1).astype(np.float32)


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 128, 300, 1000])
@pytest.mark.parametrize("spread", [5, 100, 3000])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_nms_is_torchvisions(code, schedule, count, spread, threshold):
    boxes = random_boxes(np.random.default_rng(count), count, spread)
    ranks = torch.arange(count, 0, -1, dtype=torch.float32)
    expected = nms(torch.from_numpy(boxes), ranks, float(np.float32(threshold))).numpy()
    np.testing.assert_array_equal(kept_boxes(code, boxes, threshold), np.sort(expected))


def test_nms_of_a_chain_through_many_tiles(code, schedule):
    """Each box suppresses the next alone, so every second one stays, however long the chain is."""
    left = np.arange(700, dtype=np.float32)
    boxes = np.stack((left * 2, 0 * left, left * 2 + 10, 0 * left + 10), axis=1)  # a neighbour's IoU is 2/3
    np.testing.assert_array_equal(kept_boxes(code, boxes, 0.5), np.arange(0, 700, 2))


def test_nms_stops_at_the_tile_that_has_enough(code, schedule):
    boxes = random_boxes(np.random.default_rng(3), 500, 1e5)
    everything = kept_boxes(code, boxes, 0.5)
    some = kept_boxes(code, boxes, 0.5, most=100)
    assert 100 <= some.size <= 100 + 64
    np.testing.assert_array_equal(some, everything[: some.size])


# --- boxes.h


@settings(max_examples=200, deadline=None)
@given(
    numerator=st.integers(1, 4095),
    denominator=st.integers(1, 4095),
    scale=st.floats(0.01, 300),
    steps=st.integers(-3, 3),
)
def test_suppression_at_the_threshold(code, numerator, denominator, scale, steps):
    """An IoU within three steps of float32 from the threshold, where product and quotient may disagree."""
    inner, outer = sorted((numerator, denominator))
    a = np.array([0, 0, outer * scale, 1], np.float32)
    b = np.array([0, 0, inner * scale, 1], np.float32)
    threshold = np.float32(reference.iou(a, b))
    for _ in range(abs(steps)):
        threshold = np.nextafter(threshold, np.float32(2 if steps > 0 else 0), dtype=np.float32)
    result = np.zeros(1, np.uint8)
    code.test_suppresses(pointer(a), pointer(b), pointer(threshold.reshape(1)), 1, pointer(result))
    assert bool(result[0]) == bool(reference.iou(a, b) > threshold)


def test_suppression_of_a_million_pairs_at_the_threshold(code):
    rng = np.random.default_rng(0)
    count = 1_000_000
    a = np.concatenate([random_boxes(rng, count // 2, 60), random_boxes(rng, count // 2, 10) * 1e-3])
    b = np.concatenate([random_boxes(rng, count // 2, 60), random_boxes(rng, count // 2, 10) * 1e-3])
    width = np.maximum(np.minimum(a[:, 2], b[:, 2]) - np.maximum(a[:, 0], b[:, 0]), np.float32(0))
    height = np.maximum(np.minimum(a[:, 3], b[:, 3]) - np.maximum(a[:, 1], b[:, 1]), np.float32(0))
    inter = width * height
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (a, b)]
    iou = inter / (areas[0] + areas[1] - inter)
    offset = rng.integers(-2, 3, count).astype(np.int32)
    thresholds = np.where(iou > 0, (iou.view(np.int32) + offset).view(np.float32), np.float32(0))
    result = np.zeros(count, np.uint8)
    code.test_suppresses(pointer(a), pointer(b), pointer(thresholds), count, pointer(result))
    np.testing.assert_array_equal(result.astype(bool), iou > thresholds)
    assert 0.2 < result.mean() < 0.8


def test_suppression_of_boxes_without_area(code):
    boxes = np.array([[5, 5, 5, 9], [5, 5, 5, 9], [0, 0, 10, 10]], np.float32)
    for first, second in ((0, 1), (0, 2), (2, 0)):
        for threshold in (0.0, 0.5):
            result = np.ones(1, np.uint8)
            limit = np.array([threshold], np.float32)
            code.test_suppresses(pointer(boxes[first]), pointer(boxes[second]), pointer(limit), 1, pointer(result))
            assert result[0] == 0


def test_decoding_is_torchvisions(code):
    rng = np.random.default_rng(0)
    boxes = random_boxes(rng, 500, 700)
    deltas = rng.normal(0, 2, (500, 4)).astype(np.float32)
    deltas[:20] = rng.choice(np.array([math.nan, math.inf, -math.inf, 0, 99], np.float32), (20, 4))
    weights = np.array([10, 10, 5, 5], np.float32)
    clip = math.log(1000 / 16)
    decoded = np.zeros_like(boxes)
    code.test_decode(
        pointer(deltas),
        pointer(boxes),
        pointer(weights),
        ctypes.c_float(clip),
        500,
        ctypes.c_float(600),
        ctypes.c_float(800),
        pointer(decoded),
    )
    expected = decode_boxes(torch.from_numpy(deltas), torch.from_numpy(boxes), weights.tolist(), clip)
    expected = clip_boxes(expected, torch.tensor([600.0, 800.0])).numpy()
    np.testing.assert_allclose(decoded, expected, rtol=0, atol=1e-4)
    assert np.isnan(decoded).any()
