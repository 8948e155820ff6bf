"""The losses against torchvision's on the same weights and samples; and what must not break them."""

from __future__ import annotations

import pytest
import torch
import torchvision.ops.boxes
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import box_iou

from runtime.preprocess import preprocess
from tests.helpers import random_frame, spread_weights
from tests.training.test_models import torchvision_detector, torchvision_input
from training.losses import Targets, TrainSettings, detector_losses, match, rpn_losses, sample_labels, sample_rois
from training.models.detectors import FasterRcnn, build_detector
from training.models.specs import spec_for

NAME = "fasterrcnn_mobilenet_v3_large_320_fpn"
FRAME_HWS = ((300, 400), (420, 320))
BOXES = (  # image px; the second image has one box
    torch.tensor([[30.0, 40.0, 130.0, 160.0], [200.0, 100.0, 390.0, 290.0], [10.0, 10.0, 40.0, 35.0]]),
    torch.tensor([[60.0, 100.0, 300.0, 400.0]]),
)
LABELS = (torch.tensor([3, 17, 90]), torch.tensor([1]))


def random_boxes(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(count, 2, generator=generator) * 200
    return torch.cat((corners, corners + torch.rand(count, 2, generator=generator) * 80 + 1), dim=1)


@pytest.fixture
def no_chance(monkeypatch):
    """Samplers take the first candidates, and torchvision's NMS is the exact one."""
    monkeypatch.setattr(torch, "randperm", lambda count, device=None: torch.arange(count, device=device))
    exact = torchvision.ops.boxes._batched_nms_vanilla
    monkeypatch.setattr(torchvision.ops.boxes, "_batched_nms_coordinate_trick", exact)


@pytest.fixture(scope="module")
def ours() -> FasterRcnn:
    return spread_weights(build_detector(spec_for(NAME)), seed=0)


def network_targets(im_info: Tensor, boxes=BOXES, labels=LABELS) -> list[Targets]:
    scales = im_info[:, [3, 2, 3, 2]]
    return [Targets(box * scale, label) for box, scale, label in zip(boxes, scales, labels, strict=True)]


@pytest.mark.parametrize("empty", [False, True], ids=["with boxes", "second image without boxes"])
def test_losses_and_gradients_equal_torchvisions(ours, no_chance, empty):
    boxes = (BOXES[0], torch.zeros(0, 4)) if empty else BOXES
    labels = (LABELS[0], torch.zeros(0, dtype=torch.int64)) if empty else LABELS
    theirs = torchvision_detector(NAME, frozen=True).train()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    frames = [random_frame(index, *frame_hw) for index, frame_hw in enumerate(FRAME_HWS)]
    images, im_info = map(torch.from_numpy, preprocess(frames, ours.spec))
    theirs.transform.register_forward_hook(lambda _module, _inputs, output: setattr(output[0], "tensors", images))
    targets = [{"boxes": box.clone(), "labels": label} for box, label in zip(boxes, labels, strict=True)]
    expected = theirs([torchvision_input(frame, torch.float32) for frame in frames], targets)
    losses = ours.losses(images, im_info, network_targets(im_info, boxes, labels))
    pairs = {
        "rpn_objectness": "loss_objectness",
        "rpn_box": "loss_rpn_box_reg",
        "detector_class": "loss_classifier",
        "detector_box": "loss_box_reg",
    }
    for name, theirs_name in pairs.items():
        torch.testing.assert_close(getattr(losses, name), expected[theirs_name], rtol=1e-5, atol=1e-7)
        assert getattr(losses, name) > 0
    ours.zero_grad()
    sum(losses).backward()
    sum(expected.values()).backward()
    their_gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        scale = their_gradients[name].abs().max().item()
        torch.testing.assert_close(parameter.grad, their_gradients[name], rtol=1e-4, atol=1e-4 * scale + 1e-8)


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
    assert match(boxes[:0], boxes, 0.7, 0.4, keep_best=True).labels(LABELS[0][:0]).tolist() == [0, 0, 0, 0]


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
    assert torch.equal(sample.deltas[2], torch.zeros(4))


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


def test_rpn_losses_by_hand():
    """One anchor on the target and one far off, logits 0: objectness log 2; a delta off by 1: (1 - beta / 2) / 2."""
    anchors = torch.tensor([[0.0, 0.0, 20.0, 20.0], [100.0, 100.0, 120.0, 120.0]])
    target = Targets(anchors[:1], torch.tensor([5]))
    deltas = torch.zeros(1, 8, 1, 1)
    deltas[0, 2] = 1.0  # dw of anchor 0
    deltas[0, 4:] = 9.0  # of the background anchor: no part of the loss
    losses = rpn_losses([torch.zeros(1, 2, 1, 1)], [deltas], anchors, [target], (1.0, 1.0, 1.0, 1.0), TrainSettings())
    torch.testing.assert_close(losses[0], torch.tensor(2.0).log())
    torch.testing.assert_close(losses[1], torch.tensor((1.0 - 0.5 / 9) / 2))


BAD_BOXES = {
    "none": torch.zeros(0, 4),
    "without area": torch.tensor([[50.0, 50.0, 50.0, 90.0], [20.0, 20.0, 10.0, 40.0]]),
    "not finite": torch.tensor([[10.0, 10.0, float("nan"), 40.0], [0.0, 0.0, float("inf"), 40.0]]),
    "outside the image": torch.tensor([[5000.0, 5000.0, 5100.0, 5100.0]]),
    "a thousandth of a pixel": torch.tensor([[50.0, 50.0, 50.001, 50.001]]),
}


@pytest.mark.parametrize("boxes", BAD_BOXES.values(), ids=BAD_BOXES.keys())
def test_bad_targets_leave_the_losses_finite(boxes):
    torch.manual_seed(0)
    model = build_detector(spec_for("conveyor", ("a", "b"))).train()
    images, im_info = torch.randn(2, 3, 128, 160), torch.tensor([[128.0, 160.0, 1.0, 1.0]] * 2)
    bad = Targets(boxes, torch.ones(len(boxes), dtype=torch.int64))
    losses = model.losses(images, im_info, [bad, bad], TrainSettings(rpn_post_nms_top_n=50))
    sum(losses).backward()
    assert all(loss.isfinite() for loss in losses)
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters() if parameter.grad is not None)
    if boxes.numel() == 0 or (boxes[:, 2:] <= boxes[:, :2]).any():  # nothing to regress
        assert losses.rpn_box == losses.detector_box == 0


@pytest.mark.parametrize("head", [{}, {"kind": "conv_fc", "conv_channels": (8,)}], ids=["two_mlp", "conv_fc"])
def test_neither_proposals_nor_targets(head):
    spec = spec_for("conveyor", ("a", "b"), rpn={"score_threshold": 1.0}, box_head=head)
    model = build_detector(spec).train()
    nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    losses = model.losses(torch.randn(1, 3, 96, 128), torch.tensor([[96.0, 128.0, 1.0, 1.0]]), [nothing])
    sum(losses).backward()
    assert losses.detector_class == losses.detector_box == losses.rpn_box == 0
    assert losses.rpn_objectness > 0


def test_settings_reach_the_losses(ours):
    frames = [random_frame(index, *frame_hw) for index, frame_hw in enumerate(FRAME_HWS)]
    images, im_info = map(torch.from_numpy, preprocess(frames, ours.spec))
    seen = []
    hook = ours.roi_heads.box_head.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    for rois_per_image in (8, 32):
        ours.losses(images, im_info, network_targets(im_info), TrainSettings(box_batch_per_image=rois_per_image))
    hook.remove()
    assert seen == [16, 64]
