"""The NumPy reference of anchors and boxes equals torchvision, and holds its own laws."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from runtime import anchors, boxes
from runtime.spec import AnchorSpec, DetectorSpec
from tests.helpers_spec import spec_mapping

UNIT = (1.0, 1.0, 1.0, 1.0)
HEAD = (10.0, 10.0, 5.0, 5.0)


def anchor_spec(**changes: object) -> AnchorSpec:
    mapping = spec_mapping()
    mapping["anchors"].update(changes)
    return DetectorSpec.from_json(json.dumps(mapping)).anchors


@pytest.mark.parametrize(
    ("sizes", "ratios"),
    [
        ([[32.0], [64.0], [128.0]], [[0.5, 1.0, 2.0]] * 3),  # resnet50_fpn's
        ([[32.0, 64.0, 128.0, 256.0, 512.0]] * 3, [[0.5, 1.0, 2.0]] * 3),  # mobilenet_v3's
        ([[13.0, 27.5], [41.0, 50.0], [99.0, 7.0]], [[0.33, 3.1]] * 3),
        ([[1.0], [3.0], [5.0]], [[1.0]] * 3),  # corners at .5: half goes to even
    ],
)
@pytest.mark.parametrize("rule", ["nominal", "image_over_feature"])
def test_anchors_equal_torchvision(sizes, ratios, rule):
    spec = anchor_spec(sizes=sizes, aspect_ratios=ratios, stride_rule=rule)
    image_hw, feature_hws = (800, 1088), [(50, 68), (25, 34), (13, 17)]
    generator = AnchorGenerator(tuple(map(tuple, sizes)), tuple(map(tuple, ratios)))
    feature_maps = [torch.zeros(1, 1, height, width) for height, width in feature_hws]
    expected = generator(ImageList(torch.zeros(1, 3, *image_hw), [image_hw]), feature_maps)[0].numpy()
    strides = anchors.level_strides(spec, image_hw, feature_hws)
    if rule == "nominal":
        assert strides == [(16, 16), (32, 32), (64, 64)]
    else:
        assert strides == [(16, 16), (32, 32), (61, 64)]  # torchvision's: 800 // 13 = 61
        levels = zip(anchors.base_anchors(spec), strides, feature_hws, strict=True)
        produced = np.concatenate([anchors.grid_anchors(*level) for level in levels])
        np.testing.assert_array_equal(produced, expected)


coordinates = st.floats(-500, 500, width=32)


@st.composite
def box_arrays(draw: st.DrawFn, max_boxes: int = 12) -> np.ndarray:
    """float32 [N, 4] boxes with sides of 1 to 300 px."""
    count = draw(st.integers(1, max_boxes))
    corners = draw(hnp.arrays(np.float32, (count, 2), elements=coordinates))
    sides = draw(hnp.arrays(np.float32, (count, 2), elements=st.floats(1, 300, width=32)))
    return np.concatenate([corners, corners + sides], axis=1)


@pytest.mark.parametrize("weights", [UNIT, HEAD])
def test_decode_and_encode_equal_torchvision(weights):
    rng = np.random.default_rng(1)
    corners = rng.uniform(-20, 400, (200, 2))
    reference = np.concatenate([corners, corners + rng.uniform(1, 300, (200, 2))], axis=1).astype(np.float32)
    deltas = rng.normal(0, 4, (200, 4)).astype(np.float32)  # wide enough for dw and dh to meet the cap
    assert (deltas[:, 2:] / np.array(weights[2:]) > math.log(1000 / 16)).any() or weights == HEAD
    coder = BoxCoder(weights)
    decoded = boxes.decode_boxes(deltas, reference, weights)
    expected = coder.decode_single(torch.from_numpy(deltas), torch.from_numpy(reference)).numpy()
    np.testing.assert_allclose(decoded, expected, rtol=1e-6, atol=1e-3)
    targets = reference[::-1].copy()
    encoded = boxes.encode_boxes(targets, reference, weights)
    np.testing.assert_allclose(
        encoded, coder.encode_single(torch.from_numpy(targets), torch.from_numpy(reference)), rtol=1e-5, atol=1e-5
    )


@given(box_arrays(), st.sampled_from([UNIT, HEAD]), st.randoms(use_true_random=False))
def test_decode_undoes_encode(reference, weights, random):
    order = list(range(len(reference)))
    random.shuffle(order)
    targets = reference[order]
    sides = targets[:, 2:] - targets[:, :2]
    assume((sides / (reference[:, 2:] - reference[:, :2]) < 60).all())  # within the cap of exp
    decoded = boxes.decode_boxes(boxes.encode_boxes(targets, reference, weights), reference, weights)
    np.testing.assert_allclose(decoded, targets, atol=0.02)


@given(box_arrays(), st.integers(1, 400), st.integers(1, 400))
def test_clipped_boxes_lie_inside(candidates, height, width):
    clipped = boxes.clip_boxes(candidates, (height, width))
    expected = torchvision.ops.clip_boxes_to_image(torch.from_numpy(candidates), (height, width))
    np.testing.assert_array_equal(clipped, expected)
    assert clipped.min() >= 0
    assert clipped[:, 2].max() <= width
    assert clipped[:, 3].max() <= height
    assert (clipped[:, :2] <= clipped[:, 2:]).all()


@given(box_arrays(), box_arrays())
def test_iou_equals_torchvision_and_is_symmetric(boxes_a, boxes_b):
    ious = boxes.iou_matrix(boxes_a, boxes_b)
    np.testing.assert_allclose(
        ious, torchvision.ops.box_iou(torch.from_numpy(boxes_a), torch.from_numpy(boxes_b)), atol=1e-6
    )
    np.testing.assert_array_equal(ious, boxes.iou_matrix(boxes_b, boxes_a).T)
    assert ious.min() >= 0
    assert ious.max() <= 1 + 1e-6
    np.testing.assert_allclose(np.diag(boxes.iou_matrix(boxes_a, boxes_a)), 1, atol=1e-6)


def test_iou_of_boxes_without_area_is_zero():
    empty = np.zeros((2, 4), np.float32)
    assert (boxes.iou_matrix(empty, empty) == 0).all()


def test_nms_equals_torchvision():
    rng = np.random.default_rng(2)
    for _ in range(20):
        corners = rng.uniform(0, 60, (80, 2))
        candidates = np.concatenate([corners, corners + rng.uniform(5, 40, (80, 2))], axis=1).astype(np.float32)
        scores = rng.permutation(80).astype(np.float32)  # no ties, which torchvision leaves to chance
        classes = rng.integers(0, 3, 80)
        tensors = torch.from_numpy(candidates), torch.from_numpy(scores)
        np.testing.assert_array_equal(boxes.nms(candidates, scores, 0.5), torchvision.ops.nms(*tensors, 0.5))
        np.testing.assert_array_equal(
            boxes.nms_per_class(candidates, scores, classes, 0.5),
            torchvision.ops.batched_nms(*tensors, torch.from_numpy(classes), 0.5),
        )


@given(box_arrays(), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_what_nms_keeps_does_not_overlap_and_what_it_drops_does(candidates, threshold, seed):
    scores = np.random.default_rng(seed).integers(0, 4, len(candidates)).astype(np.float32)  # many ties
    kept = boxes.nms(candidates, scores, threshold)
    ious = boxes.iou_matrix(candidates, candidates)
    limit = np.float32(threshold)
    assert all(not ious[a, b] > limit for a in kept for b in kept if a != b)
    rank = {index: (-scores[index], index) for index in range(len(candidates))}
    for dropped in set(range(len(candidates))) - set(kept.tolist()):
        assert any(ious[dropped, winner] > limit and rank[winner] < rank[dropped] for winner in kept)
    assert sorted(kept.tolist(), key=rank.__getitem__) == kept.tolist()


def test_nms_ties_go_to_the_lowest_index_and_the_threshold_is_strict():
    same = np.array([[0, 0, 10, 10]] * 3, np.float32)
    assert boxes.nms(same, np.ones(3, np.float32), 0.5).tolist() == [0]
    half = np.array([[0, 0, 2, 1], [0, 0, 1, 1]], np.float32)  # IoU exactly 0.5
    assert boxes.nms(half, np.array([1, 1], np.float32), 0.5).tolist() == [0, 1]


def test_nms_drops_nan_scores_and_takes_no_boxes():
    two = np.array([[0, 0, 5, 5], [20, 20, 30, 30]], np.float32)
    assert boxes.nms(two, np.array([np.nan, 0.1], np.float32), 0.5).tolist() == [1]
    nothing = np.zeros((0, 4), np.float32)
    assert boxes.nms(nothing, np.zeros(0, np.float32), 0.5).size == 0
    assert boxes.nms_per_class(nothing, np.zeros(0, np.float32), np.zeros(0, np.int32), 0.5).size == 0


def test_large_enough_asks_for_both_sides():
    rows = np.array([[0, 0, 2, 2], [0, 0, 2, 1.9], [0, 0, np.nan, 5]], np.float32)
    assert boxes.large_enough(rows, 2.0).tolist() == [True, False, False]
