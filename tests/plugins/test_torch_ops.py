"""The torch ops against the plain reference, on generic, tied, empty, bordering and broken inputs."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch

from plugins.box_detections.torch_op import box_detections
from plugins.common.boxes import decode_boxes, encode_boxes, grouped_nms, top_by_score
from plugins.pyramid_roi_align.torch_op import pyramid_roi_align, roi_levels
from plugins.roi_max_pool.torch_op import roi_max_pool
from plugins.rpn_proposals.torch_op import rpn_proposals
from tests.plugins import reference

CLIP = math.log(1000 / 16)
PIXELS = {"rtol": 1e-5, "atol": 1e-4}  # float32 exp differs by an ulp or two between NumPy and PyTorch


def numbers(*tensors):
    return [[t.numpy() for t in tensor] if isinstance(tensor, list) else tensor.numpy() for tensor in tensors]


# --- RpnProposals


def rpn_case(seed, batch=2, sizes=((9, 12), (5, 6)), anchors=3, logits="generic", dtype=torch.float32, **changes):
    """Arguments of rpn_proposals: a pyramid of `sizes` cells over an 80 x 100 px input, 72 x 93 px of it valid."""
    rng = torch.Generator().manual_seed(seed)
    objectness = [torch.randn(batch, anchors, h, w, generator=rng) for h, w in sizes]
    if logits == "tied":
        objectness = [torch.round(level) for level in objectness]
    deltas = [torch.randn(batch, 4 * anchors, h, w, generator=rng) * 0.5 for h, w in sizes]
    cells = torch.rand(len(sizes), anchors, 2, generator=rng) * 20 + 6
    cells = torch.cat((-cells, cells), dim=2).round()  # [L, A, 4]
    arguments = {
        "im_info": torch.tensor([[72.0, 93.0, 0.5, 0.6], [80.0, 100.0, 1.0, 1.0], [64.0, 90.0, 2.0, 2.0]])[:batch],
        "objectness": [level.to(dtype) for level in objectness],
        "bbox_deltas": [level.to(dtype) for level in deltas],
        "base_anchors": cells.flatten().tolist(),
        "strides": [stride for h, w in sizes for stride in (80 // h, 100 // w)],
        "pre_nms_top_n": 60,
        "post_nms_top_n": 40,
        "nms_threshold": 0.6,
        "score_threshold": 0.0,
        "min_size": 1e-3,
        "box_coder_weights": [1.0, 1.0, 1.0, 1.0],
        "box_clip": CLIP,
    }
    return {**arguments, **changes}


def check_rpn(arguments, least_rois=0):
    rois, num_rois = rpn_proposals(**arguments)
    tensors = numbers(arguments["im_info"], arguments["objectness"], arguments["bbox_deltas"])
    expected_rois, expected_num = reference.rpn_proposals(*tensors, *list(arguments.values())[3:])
    assert rois.dtype == torch.float32
    assert num_rois.dtype == torch.int32
    np.testing.assert_array_equal(num_rois.numpy(), expected_num)
    np.testing.assert_allclose(rois.numpy(), expected_rois, **PIXELS)
    assert expected_num.min() >= least_rois
    return rois, num_rois


RPN_CASES = {
    "batch 1, one level": {"batch": 1, "sizes": ((9, 12),)},
    "batch 3, five levels": {"batch": 3, "sizes": ((14, 17), (9, 12), (5, 6), (3, 3), (1, 1))},
    "equal logits everywhere": {"logits": "tied"},
    "float16 maps": {"dtype": torch.float16},
    "fewer anchors than pre_nms_top_n": {"pre_nms_top_n": 5000},
    "one proposal": {"post_nms_top_n": 1},
    "score threshold": {"score_threshold": 0.7},
    "large minimum size": {"min_size": 25.0},
    "NMS keeps all": {"nms_threshold": 1.0},
    "weights": {"box_coder_weights": [10.0, 10.0, 5.0, 5.0]},
    "15 anchors per cell": {"anchors": 15, "sizes": ((4, 5), (2, 3))},
}


@pytest.mark.parametrize("case", RPN_CASES.values(), ids=RPN_CASES.keys())
@pytest.mark.parametrize("seed", [0, 1])
def test_rpn_proposals_equal_reference(case, seed):
    check_rpn(rpn_case(seed, **case), least_rois=1)


def test_rpn_constant_logits_take_the_lowest_indices():
    arguments = rpn_case(0, batch=1, sizes=((4, 5), (2, 3)), pre_nms_top_n=7, nms_threshold=1.0)
    arguments["objectness"] = [torch.zeros_like(level) for level in arguments["objectness"]]
    arguments["bbox_deltas"] = [torch.zeros_like(level) for level in arguments["bbox_deltas"]]
    rois, num_rois = check_rpn(arguments, least_rois=14)
    cells = torch.tensor(arguments["base_anchors"]).reshape(2, 3, 4)
    assert num_rois.item() == 14
    second_cell = cells[0, 0] + torch.tensor([20.0, 20.0, 20.0, 20.0]) * torch.tensor([1.0, 0.0, 1.0, 0.0])
    torch.testing.assert_close(rois[0, 3], second_cell.clamp(min=0).minimum(torch.tensor([93.0, 72.0, 93.0, 72.0])))


def test_rpn_without_survivors_gives_zeros():
    rois, num_rois = check_rpn(rpn_case(0, score_threshold=1.0))
    assert num_rois.tolist() == [0, 0]
    assert not rois.any()


def test_rpn_drops_nan_and_survives_infinities():
    arguments = rpn_case(3, pre_nms_top_n=12)
    flat_logits, flat_deltas = arguments["objectness"][0].view(-1), arguments["bbox_deltas"][0].view(-1)
    best = flat_logits.topk(20).indices
    flat_logits[best[:6]] = math.nan  # would otherwise be the first candidates
    flat_logits[best[6]] = math.inf
    flat_logits[best[7:9]] = -math.inf
    flat_deltas[::7] = math.nan
    flat_deltas[3::31] = math.inf
    rois, _ = check_rpn(arguments, least_rois=1)
    assert rois.isfinite().all()


def test_rpn_with_nothing_but_nan_gives_nothing():
    arguments = rpn_case(4)
    arguments["objectness"] = [torch.full_like(level, math.nan) for level in arguments["objectness"]]
    _, num_rois = check_rpn(arguments)
    assert num_rois.tolist() == [0, 0]


def test_rpn_clips_to_the_valid_area_of_each_image():
    rois, _ = check_rpn(rpn_case(5, batch=3, score_threshold=0.0), least_rois=1)
    limits = torch.tensor([[93.0, 72.0], [100.0, 80.0], [90.0, 64.0]])
    assert (rois.amax(dim=1)[:, 2:] == limits).all()  # boxes reach the border, and none passes it


def test_rpn_saturated_scores_still_rank_by_logit():
    arguments = rpn_case(6, batch=1)
    arguments["objectness"] = [level + 60 for level in arguments["objectness"]]  # sigmoid is 1.0 for all
    check_rpn(arguments, least_rois=1)


def test_rpn_score_threshold_is_inclusive():
    arguments = rpn_case(7, batch=1, sizes=((4, 5),), score_threshold=0.5, nms_threshold=1.0)
    arguments["objectness"] = [torch.zeros_like(level) for level in arguments["objectness"]]  # sigmoid is 0.5
    check_rpn(arguments, least_rois=10)


# --- BoxDetections


def detection_case(seed, batch=2, num_rois=(18, 11, 20), classes=5, agnostic=False, dtype=torch.float32, **changes):
    """Arguments of box_detections: 20 rois per image in three clusters, so that NMS has work."""
    rng = torch.Generator().manual_seed(seed)
    centers = torch.tensor([[30.0, 30.0], [60.0, 40.0], [85.0, 60.0]])[torch.randint(3, (batch, 20), generator=rng)]
    centers = centers + torch.randn(batch, 20, 2, generator=rng) * 3
    halves = torch.rand(batch, 20, 2, generator=rng) * 10 + 8
    rois = torch.cat((centers - halves, centers + halves), dim=2).clamp(min=0, max=90)
    counts = torch.tensor(num_rois[:batch], dtype=torch.int32)
    rois[torch.arange(20)[None] >= counts[:, None]] = 0
    columns = 4 if agnostic else 4 * (classes + 1)
    arguments = {
        "rois": rois,
        "num_rois": counts,
        "class_logits": (torch.randn(batch * 20, classes + 1, generator=rng) * 2).to(dtype),
        "bbox_deltas": torch.randn(batch * 20, columns, generator=rng).to(dtype),
        "im_info": torch.tensor([[72.0, 93.0, 0.5, 0.6], [80.0, 100.0, 1.0, 1.0], [64.0, 90.0, 2.0, 2.0]])[:batch],
        "score_threshold": 0.05,
        "nms_threshold": 0.4,
        "max_detections": 30,
        "min_size": 1e-2,
        "box_coder_weights": [10.0, 10.0, 5.0, 5.0],
        "box_clip": CLIP,
    }
    return {**arguments, **changes}


def check_detections(arguments, least=0):
    results = box_detections(**arguments)
    expected = reference.box_detections(*numbers(*list(arguments.values())[:5]), *list(arguments.values())[5:])
    assert [result.dtype for result in results] == [torch.int32, torch.float32, torch.float32, torch.int32]
    np.testing.assert_array_equal(results[0].numpy(), expected[0])
    np.testing.assert_allclose(results[1].numpy(), expected[1], **PIXELS)
    np.testing.assert_allclose(results[2].numpy(), expected[2], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(results[3].numpy(), expected[3])
    assert expected[0].min() >= least
    return results


DETECTION_CASES = {
    "batch 1": {"batch": 1},
    "batch 3": {"batch": 3},
    "90 classes": {"classes": 90, "score_threshold": 0.02},
    "one class": {"classes": 1},
    "class-agnostic": {"agnostic": True},
    "float16": {"dtype": torch.float16},
    "few detections": {"max_detections": 3},
    "no score threshold": {"score_threshold": 0.0, "max_detections": 200},
    "NMS keeps all": {"nms_threshold": 1.0},
    "large minimum size": {"min_size": 20.0},
}


@pytest.mark.parametrize("case", DETECTION_CASES.values(), ids=DETECTION_CASES.keys())
@pytest.mark.parametrize("seed", [0, 1])
def test_box_detections_equal_reference(case, seed):
    check_detections(detection_case(seed, **case), least=1)


def test_detections_without_rois_or_survivors_are_padding():
    empty = check_detections(detection_case(0, num_rois=(0, 20)))
    assert empty[0][0] == 0
    for arguments in (detection_case(0, num_rois=(0, 0)), detection_case(0, score_threshold=1.0)):
        count, boxes, scores, classes = check_detections(arguments)
        assert not count.any()
        assert not boxes.any()
        assert not scores.any()
        assert (classes == -1).all()


def test_detections_score_threshold_is_strict():
    arguments = detection_case(0, classes=1, score_threshold=0.5)
    arguments["class_logits"] = torch.zeros_like(arguments["class_logits"])  # softmax is 0.5
    count, *_ = check_detections(arguments)
    assert not count.any()


def test_detections_look_at_num_rois_only():
    """Rows behind num_rois count for nothing, whatever stands in them."""
    arguments = detection_case(3)
    whole = detection_case(3, num_rois=(20, 20))
    arguments["rois"] = whole["rois"]
    count, *_ = check_detections(arguments, least=1)
    assert not torch.equal(count, check_detections(whole)[0])


def test_detections_with_equal_scores_follow_the_flat_index():
    arguments = detection_case(0, batch=1, num_rois=(6,), classes=3, nms_threshold=1.0)
    arguments["class_logits"] = torch.zeros_like(arguments["class_logits"])
    arguments["bbox_deltas"] = torch.zeros_like(arguments["bbox_deltas"])
    _, boxes, _, classes = check_detections(arguments, least=18)
    assert classes[0, :6].tolist() == [0, 1, 2, 0, 1, 2]  # class by class within roi 0, then roi 1
    torch.testing.assert_close(boxes[0, 0], boxes[0, 2])


def test_detections_drop_nan_and_survive_infinities():
    arguments = detection_case(1)
    arguments["class_logits"][3, 2] = math.nan  # the whole roi goes
    arguments["class_logits"][5, 1] = math.inf
    arguments["class_logits"][6, 1] = -math.inf
    arguments["bbox_deltas"].view(-1)[::9] = math.nan
    arguments["bbox_deltas"].view(-1)[4::37] = math.inf
    _, boxes, scores, _ = check_detections(arguments, least=1)
    assert boxes.isfinite().all()
    assert scores.isfinite().all()


def test_detections_are_in_image_pixels():
    arguments = detection_case(2, batch=1, num_rois=(1,), classes=1, score_threshold=0.0)
    arguments["rois"][0, 0] = torch.tensor([12.0, 6.0, 36.0, 30.0])
    arguments["bbox_deltas"] = torch.zeros_like(arguments["bbox_deltas"])
    _, boxes, _, _ = check_detections(arguments, least=1)
    torch.testing.assert_close(boxes[0, 0], torch.tensor([20.0, 12.0, 60.0, 60.0]))  # scale_y 0.5, scale_x 0.6


# --- PyramidRoiAlign and RoiMaxPool

ROIS = torch.tensor(
    [
        [[4.2, 3.1, 30.7, 25.9], [0.0, 0.0, 100.0, 80.0], [50.0, 40.0, 50.6, 40.3], [90.1, 70.2, 100.0, 80.0]],
        [[0, 0, 0, 0], [30, 20, 20, 40], [-5.0, -7.0, 20.0, 18.0], [60.0, 10.0, 120.0, 95.0]],
    ]
)  # whole input, tiny, at the border; padding, inverted, reaching outside


def pyramid(batch, levels, dtype=torch.float32, seed=0):
    rng = torch.Generator().manual_seed(seed)
    sizes = [(20, 25), (10, 13), (5, 7), (3, 4), (2, 2)][:levels]
    return [torch.randn(batch, 3, h, w, generator=rng).to(dtype) for h, w in sizes]


@pytest.mark.parametrize("levels", [1, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2])
def test_pyramid_roi_align_equals_reference(levels, dtype, aligned, sampling_ratio):
    features = pyramid(2, levels, dtype)
    scales = [2.0**-level for level in range(2, 2 + levels)]
    rule = (scales, 7, sampling_ratio, aligned, 56.0, 4)
    pooled = pyramid_roi_align(ROIS, features, *rule)
    expected = reference.pyramid_roi_align(ROIS.numpy(), *numbers(features), *rule)
    assert pooled.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 2e-3  # rounding to float16 may go either way
    np.testing.assert_allclose(pooled.numpy(), expected, rtol=0, atol=tolerance)
    assert not pooled[4:6].any()
    assert pooled[:4].any()


@pytest.mark.parametrize("batch", [1, 3])
def test_pyramid_roi_align_of_no_rois_is_empty(batch):
    pooled = pyramid_roi_align(torch.zeros(batch, 0, 4), pyramid(batch, 2), [0.25, 0.125], 7, 2, False, 224.0, 4)
    assert pooled.shape == (0, 3, 7, 7)


def test_pyramid_roi_align_drops_nan_rois():
    rois = torch.tensor([[[math.nan, 0.0, 20.0, 20.0], [0.0, 0.0, 20.0, 20.0]]])
    pooled = pyramid_roi_align(rois, pyramid(1, 2), [0.25, 0.125], 3, 2, False, 224.0, 4)
    assert not pooled[0].any()
    assert pooled[1].any()


def test_roi_levels_at_the_boundaries():
    sides = torch.tensor([0.0, 111.99, 112.0, 223.9, 224.0, 448.0, 5000.0])  # FPN, equation 1, with strides 4 .. 32
    rois = torch.stack((sides * 0, sides * 0, sides, sides), dim=1)
    levels = roi_levels(rois, [0.25, 0.125, 0.0625, 0.03125], 224.0, 4)
    assert levels.tolist() == [0, 0, 1, 1, 2, 3, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("size", "scale"), [(7, 0.25), (6, 0.125), (1, 0.25)])
def test_roi_max_pool_equals_reference(dtype, size, scale):
    features = pyramid(2, 1, dtype)[0]
    pooled = roi_max_pool(ROIS, features, size, scale)
    np.testing.assert_array_equal(pooled.numpy(), reference.roi_max_pool(ROIS.numpy(), features.numpy(), size, scale))
    assert pooled.dtype == dtype
    assert not pooled[4:6].any()
    assert roi_max_pool(torch.zeros(2, 0, 4), features, size, scale).shape == (0, 3, size, size)


def test_roi_max_pool_rounds_half_away_from_zero():
    features = torch.arange(8.0).repeat(8, 1)[None, None]  # each column its own number
    rois = torch.tensor([[[1.0, 1.0, 5.0, 5.0]]])  # times 0.5: 0.5 .. 2.5 -> columns 1 .. 3 (to even: 0 .. 2)
    assert roi_max_pool(rois, features, 3, 0.5).flatten().tolist() == [1, 2, 3] * 3


# --- shared arithmetic, registration, speed


def test_encode_undoes_decode():
    rng = torch.Generator().manual_seed(0)
    boxes = torch.rand(50, 2, generator=rng) * 50
    boxes = torch.cat((boxes, boxes + torch.rand(50, 2, generator=rng) * 40 + 2), dim=1)
    deltas = torch.randn(50, 4, generator=rng)
    weights = (10.0, 10.0, 5.0, 5.0)
    torch.testing.assert_close(encode_boxes(decode_boxes(deltas, boxes, weights, CLIP), boxes, weights), deltas)


def test_decode_caps_growth():
    box = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    grown = decode_boxes(torch.tensor([[0.0, 0.0, 99.0, 99.0]]), box, (1, 1, 1, 1), CLIP)
    torch.testing.assert_close(grown[0, 2:] - grown[0, :2], torch.tensor([1000.0, 1000.0]))


def test_top_by_score_is_a_stable_sort():
    rng = np.random.default_rng(0)
    for size, count in ((0, 5), (1, 0), (7, 20), (500, 100), (500, 499)):
        scores = rng.integers(-9, 9, (3, size)).astype(np.float32)
        scores[rng.random((3, size)) < 0.1] = np.nan
        scores[rng.random((3, size)) < 0.1] = np.inf
        scores[rng.random((3, size)) < 0.1] = -np.inf
        scores[rng.random((3, size)) < 0.1] = -0.0
        expected = np.argsort(-scores, axis=1, kind="stable")[:, :count]  # NumPy puts NaN last
        assert np.array_equal(top_by_score(torch.from_numpy(scores), count), expected)


def test_grouped_nms_treats_groups_apart():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(6, 1)
    kept = grouped_nms(boxes, torch.tensor([2, 0, 2, 1, 0, 2]), 4, 0.5)
    assert kept.tolist() == [0, 1, 3]
    assert grouped_nms(boxes[:0], torch.zeros(0, dtype=torch.int64), 4, 0.5).tolist() == []


def test_nms_threshold_is_strict_and_float32():
    pair = torch.tensor([[0.0, 0.0, 10.0, 3.0], [0.0, 0.0, 10.0, 10.0]])  # IoU is float32(0.3), above the double 0.3
    assert grouped_nms(pair, torch.zeros(2, dtype=torch.int64), 1, 0.3).tolist() == [0, 1]
    assert grouped_nms(pair, torch.zeros(2, dtype=torch.int64), 1, 0.29).tolist() == [0]


def test_ops_pass_the_custom_op_checks():
    """Schema, fake kernels (shapes and types without data) and aliasing, by PyTorch's own checker."""
    checks = ("test_schema", "test_faketensor")
    torch.library.opcheck(rpn_proposals, tuple(rpn_case(0).values()), test_utils=checks)
    torch.library.opcheck(box_detections, tuple(detection_case(0).values()), test_utils=checks)
    rule = ([0.25, 0.125], 7, 2, False, 224.0, 4)
    torch.library.opcheck(pyramid_roi_align, (ROIS, pyramid(2, 2), *rule), test_utils=checks)
    torch.library.opcheck(roi_max_pool, (ROIS, pyramid(2, 1)[0], 7, 0.25), test_utils=checks)


def test_detections_of_a_thousand_rois_and_ninety_classes_are_fast():
    """91 classes in a Python loop must not cost more than the network does; about 10 ms where this was written."""
    rng = torch.Generator().manual_seed(0)
    corners = torch.rand(1, 1000, 2, generator=rng) * 700
    rois = torch.cat((corners, corners + 60), dim=2)
    logits, deltas = torch.randn(1000, 91, generator=rng) * 2, torch.randn(1000, 364, generator=rng)
    im_info = torch.tensor([[800.0, 800.0, 1.0, 1.0]])
    rule = (0.05, 0.5, 100, 1e-2, [10.0, 10.0, 5.0, 5.0], CLIP)
    started = time.process_time()
    count, *_ = box_detections(rois, torch.tensor([1000], dtype=torch.int32), logits, deltas, im_info, *rule)
    assert time.process_time() - started < 0.5
    assert count.item() == 100
