"""The detector's sampling and losses against slow loops written from the papers' sentences."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.training.box_cases import boxes_of, encoded, giou_loss, iou, smooth_l1, whole_boxes
from training.losses import RoiSample, Targets, detector_losses, sample_rois
from training.settings import TrainSettings

QUICK = settings(max_examples=60, deadline=None)
WEIGHTS = (10.0, 10.0, 5.0, 5.0)
DEVIATIONS = (0.1, 0.1, 0.2, 0.2)  # published: targets are divided by them


def padded(images: list[list]) -> tuple[Tensor, Tensor]:
    """Proposals of each image as [B, R, 4], with rows of zeros behind them, and their numbers."""
    rois = torch.zeros(len(images), max(map(len, images)) + 1, 4)
    for image, boxes in enumerate(images):
        rois[image, : len(boxes)] = boxes_of(boxes)
    return rois, torch.tensor([len(boxes) for boxes in images], dtype=torch.int32)


@QUICK
@given(
    st.lists(st.tuples(whole_boxes(0, 20), whole_boxes(0, 4)), min_size=1, max_size=3),
    st.sampled_from([(0.5, 0.5, 0.0), (0.5, 0.5, 0.1), (0.6, 0.4, 0.2)]),
)
def test_proposals_are_labelled_by_the_papers_sentences(images, thresholds):
    """Girshick (2015), section 2.3: "we take 25% of the RoIs from object proposals that have intersection over union
    (IoU) overlap with a ground-truth bounding box of at least 0.5 ... The remaining RoIs are sampled from object
    proposals that have a maximum IoU with ground truth in the interval [0.1, 0.5)". Here all are taken."""
    high, low, floor = thresholds
    rule = TrainSettings(
        box_foreground_iou=high,
        box_background_iou=low,
        box_background_floor=floor,
        box_batch_per_image=1000,
        box_positive_fraction=1.0,
    )
    expected = []
    for image, (proposals, boxes) in enumerate(images):
        for proposal in [*proposals, *boxes]:  # the ground truth is added
            overlaps = [iou(proposal, box) for box in boxes]
            best = max(overlaps, default=0.0)
            if best >= high:
                expected.append((image, proposal, {1 + i for i, overlap in enumerate(overlaps) if overlap == best}))
            elif floor <= best < low:
                expected.append((image, proposal, {0}))
    targets = [Targets(boxes_of(boxes), torch.arange(1, len(boxes) + 1)) for _, boxes in images]
    sample = sample_rois(*padded([proposals for proposals, _ in images]), targets, WEIGHTS, rule)
    assert sample.images.tolist() == [image for image, _, _ in expected]
    assert torch.equal(sample.rois, boxes_of([proposal for _, proposal, _ in expected]))
    for label, box, (image, _, classes) in zip(sample.labels.tolist(), sample.boxes, expected, strict=True):
        assert label in classes
        if label:
            assert torch.equal(box, targets[image].boxes[label - 1])


@QUICK
@given(whole_boxes(0, 40), whole_boxes(1, 3), st.integers(1, 30), st.integers(0, 9))
def test_one_in_four_is_foreground_at_most(proposals, boxes, count, seed):
    everything = {"box_batch_per_image": 1000, "box_positive_fraction": 1.0}
    target = Targets(boxes_of(boxes), torch.ones(len(boxes), dtype=torch.int64))
    torch.manual_seed(seed)
    pool = sample_rois(*padded([proposals]), [target], WEIGHTS, TrainSettings(**everything)).labels
    sample = sample_rois(*padded([proposals]), [target], WEIGHTS, TrainSettings(box_batch_per_image=count))
    num_foreground = min((pool > 0).sum().item(), int(count * 0.25))
    assert (sample.labels > 0).sum() == num_foreground
    assert (sample.labels == 0).sum() == min((pool == 0).sum().item(), count - num_foreground)


def test_rois_are_sampled_with_the_target_boxes_among_them():
    target = Targets(torch.tensor([[10.0, 10.0, 50.0, 50.0]]), torch.tensor([2]))
    rois = torch.zeros(2, 5, 4)
    rois[0, :2] = torch.tensor([[11.0, 11.0, 50.0, 50.0], [100.0, 100.0, 120.0, 120.0]])
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    counts = torch.tensor([2, 0], dtype=torch.int32)
    sample = sample_rois(rois, counts, [target, nothing], (10.0, 10.0, 5.0, 5.0), TrainSettings())
    assert sample.images.tolist() == [0, 0, 0]
    assert sample.labels.tolist() == [2, 0, 2]
    assert torch.equal(sample.rois[2], target.boxes[0])
    assert torch.equal(sample.boxes[2], target.boxes[0])


def test_a_floor_leaves_images_without_boxes_out():
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    for floor, expected in ((0.0, 2), (0.1, 0)):
        rule = TrainSettings(box_background_floor=floor)
        assert len(sample_rois(*padded([[(0, 0, 5, 5), (3, 3, 9, 9)]]), [nothing], WEIGHTS, rule).labels) == expected


def random_sample(seed: int = 0) -> RoiSample:
    """Eight rois of classes 0 .. 2, with boxes near them."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(8, 2, generator=generator) * 50
    rois = torch.cat((corners, corners + 10 + torch.rand(8, 2, generator=generator) * 30), dim=1)
    boxes = rois + torch.rand(8, 4, generator=generator) * 4 - 2
    return RoiSample(rois, torch.zeros(8, dtype=torch.int64), torch.tensor([0, 1, 2, 0, 2, 1, 0, 1]), boxes, WEIGHTS)


@pytest.mark.parametrize("agnostic", [False, True], ids=["box per class", "one box"])
@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
def test_losses_are_written_out(box_loss, agnostic):
    """L = L_cls(p, u) + lambda [u >= 1] L_loc(t^u, v), equation 1, over the number of rois."""
    sample = random_sample()
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(8, 3, generator=generator, requires_grad=True)
    deltas = torch.randn(8, 4 if agnostic else 12, generator=generator, requires_grad=True)
    of_classes = of_boxes = 0.0
    for row, label in enumerate(sample.labels.tolist()):
        of_classes -= torch.log_softmax(logits[row].double(), dim=0)[label].item()
        if label == 0:
            continue
        roi, box = sample.rois[row].tolist(), sample.boxes[row].tolist()
        own = (deltas[row] if agnostic else deltas[row, 4 * label : 4 * label + 4]).tolist()
        if box_loss == "giou":
            of_boxes += giou_loss(own, roi, box, WEIGHTS)
        else:
            wanted = [t / deviation for t, deviation in zip(encoded(box, roi, (1, 1, 1, 1)), DEVIATIONS, strict=True)]
            of_boxes += sum(smooth_l1(mine - right, 0.7) for mine, right in zip(own, wanted, strict=True))
    rule = TrainSettings(box_loss=box_loss, box_smooth_l1_beta=0.7, box_weight=2.0)
    losses = detector_losses(logits, deltas, sample, rule)
    assert [loss.item() for loss in losses] == pytest.approx([of_classes / 8, 2.0 * of_boxes / 8], rel=1e-5)
    gradient = torch.autograd.grad(losses[1], deltas)[0].reshape(8, -1, 4)
    for row, label in enumerate(sample.labels.tolist()):
        trained = {label if not agnostic else 0} if label else set()
        assert {column for column, of_box in enumerate(gradient[row]) if of_box.any()} == trained


def test_no_gradient_reaches_the_proposals():
    rois = boxes_of([(0, 0, 10, 10), (20, 20, 40, 44)])[None].requires_grad_()
    target = Targets(boxes_of([(1, 1, 11, 10)]), torch.tensor([1]))
    sample = sample_rois(rois, torch.tensor([2]), [target], WEIGHTS, TrainSettings())
    assert not any(value.requires_grad for value in sample[:4])


@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
def test_losses_without_rois_are_zero(box_loss):
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    sample = sample_rois(torch.zeros(1, 3, 4), torch.tensor([0]), [nothing], WEIGHTS, TrainSettings())
    logits, deltas = torch.zeros(0, 3, requires_grad=True), torch.zeros(0, 12, requires_grad=True)
    losses = detector_losses(logits, deltas, sample, TrainSettings(box_loss=box_loss))
    assert losses[0] == losses[1] == 0
    sum(losses).backward()


@pytest.mark.parametrize("agnostic", [False, True])
def test_detector_losses_by_hand(agnostic):
    """Two rois: foreground class 1 with an error of 2 in one delta, and background."""
    target = Targets(torch.tensor([[0.0, 0.0, 20.0, 20.0]]), torch.tensor([1]))
    rois = torch.tensor([[[60.0, 60.0, 70.0, 70.0]]])
    sample = sample_rois(rois, torch.tensor([1]), [target], (10.0, 10.0, 5.0, 5.0), TrainSettings())
    deltas = torch.zeros(2, 4 if agnostic else 8)
    deltas[1, 0 if agnostic else 4] = 2.0
    class_loss, box_loss = detector_losses(torch.zeros(2, 2), deltas, sample, TrainSettings())
    torch.testing.assert_close(class_loss, torch.tensor(2.0).log())
    torch.testing.assert_close(
        box_loss, torch.tensor((2.0 - 0.5 / 9) / 2)
    )  # beyond beta: |error| - beta / 2, over 2 rois
