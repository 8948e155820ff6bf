"""Which boxes train: the rules against slow loops written from the papers' sentences, and against torchvision."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import box_iou

from tests.training.box_cases import boxes_of, iou, whole_boxes
from training import matching
from training.matching import Targets, match, on_ignored, sample_labels, usable_targets
from training.rpn_losses import label_anchors
from training.settings import TrainSettings

QUICK = settings(max_examples=60, deadline=None)
ALL = {"rpn_batch_per_image": 1000}  # more than there are: nothing is left to chance


def random_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 200
    return torch.cat((corners, corners + torch.rand(count, 2, generator=generator) * 80 + 1), dim=1)


@QUICK
@given(whole_boxes(0, 25), whole_boxes(0, 4), st.booleans(), st.sampled_from([(0.7, 0.3), (0.5, 0.5), (0.4, 0.1)]))
def test_anchors_are_labelled_by_the_papers_sentences(anchors, boxes, ignore_outside, thresholds):
    """Ren et al. (2015), section 3.1.2 and 3.3.

    "We assign a positive label to two kinds of anchors: (i) the anchor/anchors with the highest Intersection-over-Union
    overlap with a ground-truth box, or (ii) an anchor that has an IoU overlap higher than 0.7 with any ground-truth
    box." "We assign a negative label to a non-positive anchor if its IoU ratio is lower than 0.3 for all ground-truth
    boxes. Anchors that are neither positive nor negative do not contribute." "During training, we ignore all
    cross-boundary anchors so they do not contribute to the loss."
    """
    high, low = thresholds
    height, width = 14, 11
    inside = [
        x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height if ignore_outside else True for x1, y1, x2, y2 in anchors
    ]
    expected = [-1] * len(anchors)
    for index, anchor in enumerate(anchors):
        if not inside[index]:
            continue
        overlaps = [iou(anchor, box) for box in boxes]
        rivals = [max(iou(other, box) for other, is_in in zip(anchors, inside) if is_in) for box in boxes]
        is_highest = any(overlap == best and overlap > 0 for overlap, best in zip(overlaps, rivals))
        if is_highest or any(overlap >= high for overlap in overlaps):
            expected[index] = 1
        elif all(overlap < low for overlap in overlaps):
            expected[index] = 0
    rule = TrainSettings(
        rpn_ignore_outside=ignore_outside,
        rpn_foreground_iou=high,
        rpn_background_iou=low,
        rpn_positive_fraction=1.0,
        **ALL,
    )
    target = Targets(boxes_of(boxes), torch.full((len(boxes),), 3))
    im_info = torch.tensor([[height, width, 1.0, 1.0]])
    labels, towards = label_anchors(boxes_of(anchors), im_info, [target], rule)
    assert labels[0].tolist() == expected
    for index, label in enumerate(expected):
        if label == 1:  # each is sent to the box that *it* overlaps most
            overlaps = [iou(anchors[index], box) for box in boxes]
            assert iou(anchors[index], towards[0, index].tolist()) == max(overlaps)


def test_each_image_has_its_own_boundary():
    """The same anchor, 10 px wide, is inside one image and outside the other, whose padding is not valid."""
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 4.0, 4.0], [-1.0, 0.0, 4.0, 4.0]])
    target = Targets(anchors[:1], torch.tensor([1]))
    im_info = torch.tensor([[10.0, 10.0, 1.0, 1.0], [10.0, 9.0, 1.0, 1.0]])
    rule = TrainSettings(rpn_ignore_outside=True, rpn_positive_fraction=1.0, **ALL)
    labels, _ = label_anchors(anchors, im_info, [target, target], rule)
    assert labels.tolist() == [[1, 0, -1], [-1, 1, -1]]  # the second image's best is the best of those inside
    everywhere, _ = label_anchors(anchors, im_info, [target] * 2, TrainSettings(rpn_positive_fraction=1.0, **ALL))
    assert everywhere.tolist() == [[1, 0, 0]] * 2


def test_nothing_trains_when_all_anchors_are_outside():
    anchors = torch.tensor([[-5.0, 0.0, 10.0, 10.0]] * 3)
    target = Targets(torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.tensor([1]))
    labels, _ = label_anchors(
        anchors, torch.tensor([[50.0, 50.0, 1, 1]]), [target], TrainSettings(rpn_ignore_outside=True)
    )
    assert labels.tolist() == [[-1, -1, -1]]


@pytest.mark.parametrize("keep_best", [False, True])
@pytest.mark.parametrize("thresholds", [(0.7, 0.3), (0.5, 0.5)])
def test_match_equals_torchvisions_matcher(keep_best, thresholds):
    boxes, targets = random_boxes(400, 0), random_boxes(9, 1)
    expected = Matcher(*thresholds, allow_low_quality_matches=keep_best)(box_iou(targets, boxes))
    matches = match(targets, boxes, *thresholds, keep_best=keep_best)
    assert torch.equal(matches.is_foreground, expected >= 0)
    assert torch.equal(matches.is_background, expected == Matcher.BELOW_LOW_THRESHOLD)
    assert torch.equal(matches.target[expected >= 0], expected[expected >= 0])
    assert matches.is_foreground.any()


def test_every_target_that_overlaps_an_anchor_gets_one():
    boxes, targets = random_boxes(300, 2), random_boxes(6, 3)
    matches = match(targets, boxes, 0.95, 0.3, keep_best=True)
    best = box_iou(targets, boxes).argmax(dim=1)
    assert matches.is_foreground[best].all()
    assert not match(targets, boxes, 0.95, 0.3, keep_best=False).is_foreground[best].all()


def test_a_target_far_from_all_anchors_takes_none():
    """Its best IoU is 0, and so is that of every anchor: torchvision would make all of them foreground."""
    matches = match(torch.tensor([[900.0, 900.0, 950.0, 950.0]]), random_boxes(50, 4), 0.7, 0.3, keep_best=True)
    assert not matches.is_foreground.any()
    assert matches.is_background.all()


def test_labels_of_matches():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5.5], [0, 0, 10, 3], [50, 50, 60, 60]])
    matches = match(boxes[:1], boxes, 0.7, 0.4, keep_best=False)
    assert matches.labels(torch.tensor([7])).tolist() == [7, -1, 0, 0]  # IoU 1, 0.55, 0.3, 0
    assert match(boxes[:0], boxes, 0.7, 0.4, keep_best=True).labels(torch.tensor([], dtype=torch.int64)).tolist() == [
        0,
        0,
        0,
        0,
    ]


@pytest.mark.parametrize(("positives", "negatives"), [(300, 5000), (10, 5000), (300, 20), (0, 50), (5, 0), (0, 0)])
def test_sample_keeps_torchvisions_numbers(positives, negatives):
    generator = torch.Generator().manual_seed(0)
    labels = torch.cat((torch.full((positives,), 4), torch.zeros(negatives, dtype=torch.int64), torch.full((30,), -1)))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    expected_positive, expected_negative = BalancedPositiveNegativeSampler(256, 0.5)([labels])
    sampled = sample_labels(labels, 256, 0.5)
    assert (sampled > 0).sum() == expected_positive[0].sum()
    assert (sampled == 0).sum() == expected_negative[0].sum()
    assert torch.equal(sampled[sampled != -1], labels[sampled != -1])  # nothing gets another label


def test_sampling_is_random_and_seeded():
    labels = torch.zeros(1000, dtype=torch.int64)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(sample_labels(labels, 100, 0.5))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


@QUICK
@given(
    st.integers(0, 40),
    st.integers(0, 40),
    st.integers(0, 10),
    st.integers(1, 32),
    st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_sample_has_so_many_positives_and_is_padded_with_negatives(positives, negatives, ignored, count, fraction):
    """ "We randomly sample 256 anchors in an image ... where the sampled positive and negative anchors have a ratio of
    up to 1:1. If there are fewer than 128 positive samples in an image, we pad the mini-batch with negative ones." """
    labels = torch.tensor([2] * positives + [0] * negatives + [-1] * ignored, dtype=torch.int64)
    sampled = sample_labels(labels, count, fraction)
    num_positive = min(positives, int(count * fraction))
    assert (sampled > 0).sum() == num_positive
    assert (sampled == 0).sum() == min(negatives, count - num_positive)
    assert torch.equal(sampled[sampled != -1], labels[sampled != -1])


def test_every_candidate_has_the_same_chance():
    labels = torch.tensor([[1] * 6 + [0] * 14 + [-1] * 2] * 4000)
    torch.manual_seed(0)
    shares = (sample_labels(labels, 8, 0.25) != -1).double().mean(dim=0)
    torch.testing.assert_close(shares[:6], torch.full((6,), 2 / 6, dtype=torch.float64), rtol=0, atol=0.03)
    torch.testing.assert_close(shares[6:20], torch.full((14,), 6 / 14, dtype=torch.float64), rtol=0, atol=0.03)
    assert not shares[20:].any()


def test_rows_are_sampled_apart_from_each_other():
    labels = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 0, 0, -1, -1], [-1] * 6])
    sampled = sample_labels(labels, 4, 0.5)
    assert (sampled == 1).sum(dim=1).tolist() == [2, 0, 0]
    assert (sampled == 0).sum(dim=1).tolist() == [2, 4, 0]


def test_unusable_boxes_are_left_out():
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 5, 9], [0, 0, float("nan"), 4], [9, 9, 3, 3], [1, 1, 2, 2]])
    good = Targets(boxes[[0, 4]], torch.tensor([1, 5]))
    first, second = usable_targets([Targets(boxes, torch.arange(1, 6)), good])
    for target in (first, second):
        assert torch.equal(target.boxes, good.boxes)
        assert torch.equal(target.labels, good.labels)
    assert usable_targets([]) == []


def padded(parts: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)


def test_iou_is_torchvisions_to_the_bit_for_each_image_of_a_batch():
    boxes = torch.stack([random_boxes(7, seed) for seed in range(3)])
    others = torch.stack([random_boxes(50, seed) for seed in range(3, 6)])
    found = matching.box_iou(boxes, others)
    assert found.shape == (3, 7, 50)
    for image in range(3):
        assert torch.equal(found[image], box_iou(boxes[image], others[image]))
        assert torch.equal(matching.box_iou(boxes[image], others[image]), found[image])


@pytest.mark.parametrize("keep_best", [False, True])
@pytest.mark.parametrize("counts", [(3, 0, 8, 1), (0, 0)])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_a_padded_batch_is_matched_image_by_image(keep_best, counts, floor):
    boxes = [random_boxes(80 - 10 * image, image) for image in range(len(counts))]
    targets = [random_boxes(count, 10 + image) for image, count in enumerate(counts)]
    ignored = [random_boxes(2 * image, 20 + image) for image in range(len(counts))]
    labels = [torch.arange(1, count + 1) for count in counts]
    rule = {"keep_best": keep_best, "background_floor": floor}
    batch = match(
        padded(targets), padded(boxes), 0.5, 0.3, **rule,
        taking_part=padded([torch.ones(len(part), dtype=torch.bool) for part in boxes]),
        never_background=on_ignored(padded(boxes), padded(ignored), 0.4),
    )  # fmt: skip
    of_batch = batch.labels(padded(labels)), batch.boxes(padded(targets))
    for image, own in enumerate(boxes):
        single = match(targets[image], own, 0.5, 0.3, **rule, never_background=on_ignored(own, ignored[image], 0.4))
        foreground = single.is_foreground
        assert torch.equal(of_batch[0][image, : len(own)], single.labels(labels[image]))
        assert (of_batch[0][image, len(own) :] == -1).all()  # padding trains nothing
        assert torch.equal(of_batch[1][image, : len(own)][foreground], single.boxes(targets[image])[foreground])


def test_boxes_without_area_overlap_nothing():
    flat, box = torch.tensor([[10.0, 10, 10, 40], [0, 0, 0, 0]]), torch.tensor([[0.0, 0, 20, 20]])
    assert matching.box_iou(torch.cat((flat, box)), flat).tolist() == [[0, 0], [0, 0], [0, 0]]
