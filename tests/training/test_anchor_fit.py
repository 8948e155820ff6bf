"""Anchors and boxes: the best IoU against a loop over all anchors, k-means against planted clusters."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.anchors import base_anchors, grid_anchors, level_strides
from runtime.boxes import iou_matrix
from runtime.spec import AnchorSpec
from training.anchor_fit import PlacedBoxes, best_ious, fit_of, k_means, placed, suggested_anchors
from training.models.specs import spec_for

TWO_LEVELS = AnchorSpec(
    strides=(8, 16),
    stride_rule="nominal",
    sizes=((20, 33), (50, 71)),
    aspect_ratios=((0.5, 1.0, 2.3),) * 2,
    order="ratio_major",
    rounding="half_even",
)


def slow_best_ious(images, spec):
    """All anchors of every level, one IoU each."""
    found = []
    for boxes, image_hw in images:
        feature_hws = [(-(-image_hw[0] // stride), -(-image_hw[1] // stride)) for stride in spec.strides]
        strides = level_strides(spec, image_hw, feature_hws)
        levels = zip(base_anchors(spec), strides, feature_hws, strict=True)
        anchors = np.concatenate([grid_anchors(*level) for level in levels])
        found += [max(iou_matrix(box[None], anchors)[0]) for box in boxes]
    return np.array(found)


@st.composite
def boxes_in(draw, height, width):
    count = draw(st.integers(0, 5))
    rows = []
    for _ in range(count):
        x, y = draw(st.floats(0, width - 3)), draw(st.floats(0, height - 3))
        rows.append([x, y, draw(st.floats(x + 2, width)), draw(st.floats(y + 2, height))])
    return np.array(rows, np.float32).reshape(-1, 4)


@settings(max_examples=60, deadline=None)
@given(
    first=boxes_in(90, 120),
    second=boxes_in(64, 100),
    rule=st.sampled_from(["nominal", "image_over_feature"]),
    rounding=st.sampled_from(["half_even", "none"]),
)
def test_best_iou_is_that_of_all_anchors(first, second, rule, rounding):
    spec = dataclasses.replace(TWO_LEVELS, stride_rule=rule, rounding=rounding)
    images = [PlacedBoxes(first, (96, 128)), PlacedBoxes(second, (72, 110))]
    np.testing.assert_allclose(best_ious(images, spec), slow_best_ious(images, spec), atol=1e-5)


def test_a_box_that_is_an_anchor_has_iou_1():
    anchors = grid_anchors(base_anchors(TWO_LEVELS)[1], (16, 16), (6, 8))
    inside = anchors[((anchors[:, :2] >= 0) & (anchors[:, 2:] <= (128, 96))).all(axis=1)]
    assert len(inside) > 5
    np.testing.assert_allclose(best_ious([PlacedBoxes(inside, (96, 128))], TWO_LEVELS), 1)
    assert len(best_ious([PlacedBoxes(np.zeros((0, 4), np.float32), (96, 128))], TWO_LEVELS)) == 0


def test_boxes_are_placed_as_the_network_sees_them():
    spec = spec_for("conveyor", input={"min_size": 288, "max_size": 384})
    boxes, image_hw = placed(np.array([[10, 20, 110, 220]]), (480, 640), spec)
    np.testing.assert_allclose(boxes, [[6, 12, 66, 132]])
    assert image_hw == (288, 384)
    boxes, image_hw = placed(np.array([[0, 0, 301, 400]]), (400, 301), spec)  # 288 wide would be 382.7 high
    np.testing.assert_allclose(boxes, [[0, 0, 288, 382]])
    assert image_hw == (384, 288)


def test_fit_counts_boxes_at_or_above():
    fit = fit_of(np.array([0.2, 0.5, 0.6, 0.7]))
    assert fit == pytest.approx({"mean_best_iou": 0.5, "share_at_0.5": 0.75, "share_at_0.7": 0.25})


@pytest.mark.parametrize("seed", range(5))
def test_k_means_finds_planted_clusters(seed):
    rng = np.random.default_rng(seed)
    planted = np.array([[0.0, 0.0], [3.0, 0.2], [0.5, 4.0], [6.0, 6.0]])
    members = np.concatenate([rng.normal(center, 0.1, (n, 2)) for center, n in zip(planted, (200, 10, 50, 30))])
    found = k_means(rng.permutation(members), 4, np.random.default_rng(seed))
    distances = np.linalg.norm(found[:, None] - planted, axis=2)
    assert sorted(distances.argmin(axis=1)) == [0, 1, 2, 3]
    assert distances.min(axis=1).max() < 0.15


def test_k_means_centres_are_the_means_of_their_points():
    points = np.random.default_rng(0).normal(size=(60, 1))
    centers = k_means(points, 3, np.random.default_rng(0))
    nearest = np.abs(points - centers[:, 0]).argmin(axis=1)
    for index, center in enumerate(centers):
        np.testing.assert_allclose(points[nearest == index].mean(axis=0), center)
    # no split of the sorted points into three runs is better
    ordered = np.sort(points[:, 0])
    costs = [
        sum(((part - part.mean()) ** 2).sum() for part in np.split(ordered, [first, second]))
        for first in range(1, 58)
        for second in range(first + 1, 59)
    ]
    cost = (np.abs(points - centers[:, 0]).min(axis=1) ** 2).sum()
    assert cost <= min(costs) * 1.001


def planted_sides(sizes, ratios, count=40):
    rng = np.random.default_rng(0)
    pairs = [(size, ratio) for size in sizes for ratio in ratios]
    jitter = np.exp(rng.normal(0, 0.02, (len(pairs) * count, 2)))
    size, ratio = np.repeat(pairs, count, axis=0).T
    return size / np.sqrt(ratio) * jitter[:, 0], size * np.sqrt(ratio) * jitter[:, 1]


def test_suggestion_finds_planted_sizes_and_ratios_on_their_levels():
    suggestion = suggested_anchors(*planted_sides((14, 26, 60, 90), (0.4, 1.2, 3.0)), TWO_LEVELS)
    np.testing.assert_allclose(suggestion.anchors.sizes, [[14, 26], [60, 90]], rtol=0.02)
    np.testing.assert_allclose(suggestion.anchors.aspect_ratios, [[0.4, 1.2, 3.0]] * 2, rtol=0.03)
    assert suggestion.fitted_levels == (0, 1)
    unchanged = dataclasses.replace(suggestion.anchors, sizes=TWO_LEVELS.sizes, aspect_ratios=TWO_LEVELS.aspect_ratios)
    assert unchanged == TWO_LEVELS


def test_levels_without_boxes_keep_their_sizes():
    suggestion = suggested_anchors(*planted_sides((14, 26), (0.5, 1.0, 2.0)), TWO_LEVELS)
    np.testing.assert_allclose(suggestion.anchors.sizes[0], [14, 26], rtol=0.02)
    assert suggestion.anchors.sizes[1] == TWO_LEVELS.sizes[1]
    assert suggestion.fitted_levels == (0,)
    few = suggested_anchors(*planted_sides((14, 26), (1.0, 1.1, 1.2), count=3), TWO_LEVELS)  # 18 boxes for two sizes
    assert few.anchors.sizes == TWO_LEVELS.sizes
    alike = suggested_anchors(np.full(9, 20.0), np.full(9, 20.0), TWO_LEVELS)
    assert alike.anchors == TWO_LEVELS
    assert alike.fitted_levels == ()
