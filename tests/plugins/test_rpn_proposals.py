"""RpnProposals: the reference, the torch op, the ONNX body and the kernels give the same rois."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plugins.kernels import Kernels
from tests.plugins.rpn_proposal_cases import (
    CROWDS,
    EDGES,
    check_all_faces,
    crowd,
    run_kernels,
)
from tests.plugins.test_torch_ops import RPN_CASES, rpn_case


@pytest.fixture(scope="module")
def kernels(cpu_kernels_path):
    return Kernels(cpu_kernels_path)


@pytest.fixture(scope="module")
def runs(cpu_kernels_path):
    """The CPU library, its threads in three orders, with maps in all layouts."""
    ways = (("forward", "nchw"), ("reverse", "nhwc8"), (7, "nhwc16"), (8, "nhwc"))
    return [(Kernels(cpu_kernels_path, schedule=schedule), layout) for schedule, layout in ways]


# --- all faces, small inputs


@pytest.mark.parametrize("case", RPN_CASES.values(), ids=RPN_CASES.keys())
@pytest.mark.parametrize("seed", [0, 1])
def test_faces(runs, case, seed):
    _, num_rois = check_all_faces(runs, rpn_case(seed, **case))
    assert num_rois.min() >= 1


@pytest.mark.parametrize("case", EDGES.values(), ids=EDGES.keys())
def test_faces_at_the_edges(runs, case):
    check_all_faces(runs, rpn_case(4, **case), body=case.get("batch") != 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("pre_nms_top_n", [12, 400])
def test_faces_with_nan_and_infinities(runs, dtype, pre_nms_top_n):
    arguments = rpn_case(3, pre_nms_top_n=pre_nms_top_n, dtype=dtype)
    logits, deltas = arguments["objectness"][0].view(-1), arguments["bbox_deltas"][0].view(-1)
    best = logits.float().topk(20).indices
    logits[best[:6]] = math.nan  # would otherwise be the first candidates
    logits[best[6]] = math.inf
    logits[best[7:9]] = -math.inf
    deltas[::7] = math.nan
    deltas[3::31] = math.inf
    deltas[5::37] = -math.inf
    rois, num_rois = check_all_faces(runs, arguments)
    assert num_rois.min() >= 1
    assert np.isfinite(rois).all()


def test_faces_with_nan_in_place_of_all_logits(runs):
    arguments = rpn_case(4)
    arguments["objectness"] = [torch.full_like(level, math.nan) for level in arguments["objectness"]]
    assert not check_all_faces(runs, arguments)[1].any()


def test_faces_with_fewer_logits_than_are_wanted_of_a_large_level(runs):
    """All but 150 of 33,600 logits are NaN: the sample that bounds the candidates finds nearly nothing."""
    for pre_nms_top_n in (200, 300, 5000):  # small blocks, large ones, sort in the workspace
        arguments = crowd(5, sizes=((70, 160),), pre_nms_top_n=pre_nms_top_n, place="apart")
        logits = arguments["objectness"][0].view(-1)
        logits[torch.randperm(logits.numel(), generator=torch.Generator().manual_seed(0))[150:]] = math.nan
        _, num_rois = check_all_faces(runs, arguments, body=False, slow_reference=False)
        assert num_rois.tolist() == [150]


def test_saturated_scores_still_rank_by_logit(runs):
    arguments = rpn_case(6, batch=1)
    arguments["objectness"] = [level + 60 for level in arguments["objectness"]]  # sigmoid is 1.0 for all
    check_all_faces(runs, arguments)


def test_score_threshold_is_inclusive(runs):
    arguments = rpn_case(7, batch=1, sizes=((4, 5),), score_threshold=0.5, nms_threshold=1.0)
    arguments["objectness"] = [torch.zeros_like(level) for level in arguments["objectness"]]  # sigmoid is 0.5
    assert check_all_faces(runs, arguments)[1].min() >= 10
    arguments["score_threshold"] = float(np.nextafter(np.float32(0.5), np.float32(1)))
    assert not check_all_faces(runs, arguments)[1].any()


# --- many candidates


@pytest.mark.parametrize("name", CROWDS)
def test_faces_of_a_crowd(runs, name):
    case = dict(CROWDS[name])
    body = case.pop("body", False)
    _, num_rois = check_all_faces(runs, crowd(0, **case), body=body, slow_reference=False)
    assert num_rois.min() >= 1


def test_a_chain_leaves_every_second_box(runs):
    rois, num_rois = run_kernels(runs, crowd(0, sizes=((20, 30),), place="chain"))
    assert num_rois.tolist() == [300]
    np.testing.assert_allclose(rois[0, :300, 0], np.arange(0, 1200, 4), atol=1e-3)


def test_all_suppressed_leaves_one_box_per_level(runs):
    assert run_kernels(runs, crowd(1, batch=2, place="same"))[1].tolist() == [2, 2]


def test_none_suppressed_leaves_all(runs):
    assert run_kernels(runs, crowd(1, place="apart", post_nms_top_n=2000))[1].tolist() == [1050]


def sampled_indices(cells, anchors):
    """What select.h looks at to bound the candidates of a level."""
    number = np.arange(2048)
    cell = (number * 65536 + number * 49471 % 65536) * cells // 2048 >> 16
    return cell * anchors + (number * 37345 % 65536 * anchors >> 16)


def by_index(level):
    """A view of a map [1, A, H, W] in the order of anchor indices, (y W + x) A + a."""
    return level.permute(0, 2, 3, 1).reshape(-1)


def test_a_sample_that_misleads(kernels):
    """It has the level's best logits, 2048 of them, and so tells a bound that 70 of 700 wanted reach."""
    for pre_nms_top_n in (250, 700):
        arguments = crowd(3, sizes=((100, 160),), pre_nms_top_n=pre_nms_top_n, place="apart")
        logits = by_index(arguments["objectness"][0])
        logits[sampled_indices(100 * 160, 3)] += 10
        arguments["objectness"] = [logits.reshape(1, 100, 160, 3).permute(0, 3, 1, 2).contiguous()]
        check_all_faces([(kernels, "nchw")], arguments, body=False, slow_reference=False)


@pytest.mark.parametrize("pre_nms_top_n", [200, 700])
def test_the_best_of_a_level_in_one_chunk(runs, pre_nms_top_n):
    """More of them reach the bound than the chunk has room for."""
    arguments = crowd(2, sizes=((100, 160),), pre_nms_top_n=pre_nms_top_n, place="apart")
    arguments["objectness"] = [torch.linspace(-3, 3, 48000).reshape(1, 100, 160, 3).permute(0, 3, 1, 2).contiguous()]
    check_all_faces(runs, arguments, body=False, slow_reference=False)


def test_more_keys_than_registers_hold(kernels):
    """About 12,000 keys are handed on to a block that holds 8192."""
    arguments = crowd(2, sizes=((400, 500),), pre_nms_top_n=4000, place="apart")
    arguments["im_info"][:, 0] = 8000.0
    check_all_faces([(kernels, "nchw")], arguments, body=False, slow_reference=False)


def test_more_chunks_than_threads(kernels):
    """259 chunks hand on to a block of 256 threads; the best are in the last ones."""
    arguments = crowd(2, sizes=((840, 840),), pre_nms_top_n=100)
    arguments["objectness"][0][:, :, -8:] += 10
    arguments["im_info"][:, 0] = 5000.0
    check_all_faces([(kernels, "nchw")], arguments, body=False, slow_reference=False)


@pytest.mark.parametrize("outlier", [1e30, -1e30, math.inf, -math.inf])
@pytest.mark.parametrize("sizes", [((20, 30),), ((70, 160),)])
def test_one_logit_far_from_all_others(runs, sizes, outlier):
    """It leaves all others to one bucket of the sort."""
    arguments = crowd(2, sizes=sizes, pre_nms_top_n=600)
    arguments["objectness"][0][0, 1, 7, 9] = outlier
    check_all_faces(runs, arguments, body=False, slow_reference=False)


# --- the threshold of NMS


@pytest.mark.parametrize("scale", [1.0, 2.0**-71])  # areas that floats have, and areas of which they lose bits
def test_iou_is_compared_as_if_divided(kernels, scale):
    """Pairs of boxes, and thresholds one float below, at and above the IoU of each."""
    pairs, rng = 60, np.random.default_rng(0)
    arguments = crowd(0, batch=pairs, sizes=((1, 1),), anchors=2, min_size=0.0)
    base_anchors = [100.0, 100.0, 164.0, 140.0, 110.0, 104.0, 180.0, 149.0]
    arguments["base_anchors"] = [scale * side for side in base_anchors]
    arguments["bbox_deltas"] = [torch.from_numpy(rng.normal(0, 0.2, (pairs, 8, 1, 1)).astype(np.float32))]
    arguments["objectness"] = [torch.tensor([1.0, 0.0]).reshape(1, 2, 1, 1).repeat(pairs, 1, 1, 1)]
    boxes = run_kernels([(kernels, "nchw")], {**arguments, "nms_threshold": 1.0})[0][:, :2]
    (left, top, right, bottom), (left2, top2, right2, bottom2) = boxes.transpose(1, 2, 0)
    width, height = (
        np.minimum(right, right2) - np.maximum(left, left2),
        np.minimum(bottom, bottom2) - np.maximum(top, top2),
    )
    union = (right - left) * (bottom - top) + (right2 - left2) * (bottom2 - top2) - width * height
    iou = width * height / union
    assert iou.dtype == np.float32
    assert (width > 0).all()
    assert (height > 0).all()
    for limit in iou:
        for threshold in (np.nextafter(limit, np.float32(0)), limit, np.nextafter(limit, np.float32(1))):
            _, num_rois = run_kernels([(kernels, "nchw")], {**arguments, "nms_threshold": float(threshold)})
            np.testing.assert_array_equal(num_rois, np.where(iou > threshold, 1, 2))


# --- generated inputs


@st.composite
def generated_cases(draw):
    """Any small shapes, attributes and mixture of spread, equal and broken numbers."""
    seed, batch, anchors = draw(st.integers(0, 2**20)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    sizes = draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6))
    place = draw(st.sampled_from(["clusters", "same", "apart", "chain", "waves"]))
    arguments = crowd(
        seed,
        batch=batch,
        sizes=tuple(sizes),
        anchors=anchors,
        place=place,
        logits=draw(st.sampled_from(["spread", "few", "equal"])),
        dtype=draw(st.sampled_from([torch.float32, torch.float16])) if place == "same" else torch.float32,
        pre_nms_top_n=draw(st.integers(1, 300)),
        post_nms_top_n=draw(st.integers(1, 300)),
        score_threshold=draw(st.sampled_from([-1.0, 0.0, 0.3, 0.5, 1.0])),
        nms_threshold=draw(st.sampled_from([0.0, 0.3, 0.7, 1.0])),
        min_size=draw(st.sampled_from([0.0, 1e-3, 5.0])),
    )
    broken = st.sampled_from([math.nan, math.inf, -math.inf])
    for name in ("objectness", "bbox_deltas"):
        numbers = draw(st.sampled_from(arguments[name])).view(-1)
        for index in draw(st.lists(st.integers(0, numbers.numel() - 1), max_size=4)):
            numbers[index] = draw(broken)
    return arguments


@settings(max_examples=30)
@given(arguments=generated_cases())
def test_faces_of_generated_inputs(runs, arguments):
    check_all_faces(runs, arguments)
