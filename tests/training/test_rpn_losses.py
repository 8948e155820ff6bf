"""The RPN's losses against equation 1 of the paper written out, anchor by anchor, for every choice of its parts."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from tests.training.box_cases import boxes_of, encoded, giou_loss, log_loss, smooth_l1
from training.losses import Targets, rpn_losses
from training.rpn_losses import label_anchors
from training.settings import TrainSettings

ONES = (1.0, 1.0, 1.0, 1.0)
SIDES = ((3, 4), (2, 2))  # cells of two levels
PER_CELL = 2
EVERYTHING = {"rpn_batch_per_image": 1000, "rpn_positive_fraction": 1.0}  # nothing is left to chance
IM_INFO = torch.tensor([[40.0, 50.0, 1.0, 1.0], [30.0, 50.0, 1.0, 1.0]])
TARGETS = [
    Targets(torch.tensor([[2.0, 3.0, 20.0, 22.0], [22.0, 10.0, 39.0, 30.0]]), torch.tensor([1, 2])),
    Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)),
]


def random_outputs(seed: int = 0) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Logits and deltas of two images and two levels, and their anchors [N, 4] in (level, h, w, a) order."""
    generator = torch.Generator().manual_seed(seed)
    logits = [torch.randn(2, PER_CELL, *side, generator=generator) for side in SIDES]
    deltas = [0.5 * torch.randn(2, 4 * PER_CELL, *side, generator=generator) for side in SIDES]
    count = sum(height * width * PER_CELL for height, width in SIDES)
    corners = torch.rand(count, 2, generator=generator) * 25
    anchors = torch.cat((corners, corners + 8 + torch.rand(count, 2, generator=generator) * 20), dim=1)
    anchors[3] = TARGETS[0].boxes[0] + 1.0  # IoU above 0.7
    return [level.requires_grad_() for level in logits], [level.requires_grad_() for level in deltas], anchors


def rows(maps: list[Tensor], image: int, width: int) -> list[list[float]]:
    """The numbers of each anchor of one image, in the anchors' order."""
    numbers = []
    for level in maps:
        _, _, height, columns = level.shape
        for y in range(height):
            for x in range(columns):
                for anchor in range(PER_CELL):
                    numbers.append(level[image, anchor * width : (anchor + 1) * width, y, x].tolist())
    return numbers


def focal_loss(logit: float, is_object: bool, alpha: float, gamma: float) -> float:
    """-alpha_t (1 - p_t)^gamma log(p_t)."""
    p = 1 / (1 + math.exp(-logit))
    p_t, alpha_t = (p, alpha) if is_object else (1 - p, 1 - alpha)
    return -alpha_t * (1 - p_t) ** gamma * math.log(p_t)


def written_out(logits, deltas, anchors: Tensor, labels: Tensor, rule: TrainSettings) -> tuple[float, float]:
    """L = 1 / N_cls sum L_cls + lambda / N_reg sum p* L_reg."""
    of_objectness = of_boxes = 0.0
    num_positive = num_sampled = 0
    for image, target in enumerate(TARGETS):
        for index, (logit, delta) in enumerate(zip(rows(logits, image, 1), rows(deltas, image, 4), strict=True)):
            label = labels[image, index].item()
            if label == -1:
                continue
            num_sampled += 1
            num_positive += label
            if rule.rpn_objectness_loss == "focal":
                of_objectness += focal_loss(logit[0], label == 1, rule.rpn_focal_alpha, rule.rpn_focal_gamma)
            else:
                of_objectness += log_loss(logit[0], label == 1)
            if label == 1:
                anchor = anchors[index].tolist()
                box = target.boxes[box_iou(anchors[index : index + 1], target.boxes).argmax()].tolist()
                if rule.rpn_box_loss == "giou":
                    of_boxes += giou_loss(delta, anchor, box, ONES)
                else:
                    errors = [own - wanted for own, wanted in zip(delta, encoded(box, anchor, ONES), strict=True)]
                    of_boxes += sum(smooth_l1(error, rule.rpn_smooth_l1_beta) for error in errors)
    is_focal, published = rule.rpn_objectness_loss == "focal", rule.rpn_normalisation == "published"
    n_cls = max(num_positive, 1) if is_focal else len(TARGETS) * rule.rpn_batch_per_image if published else num_sampled
    locations = sum(height * width for height, width in SIDES)
    n_reg = len(TARGETS) * locations if published else max(num_positive, 1) if is_focal else num_sampled
    return of_objectness / n_cls, rule.rpn_box_weight * of_boxes / n_reg


@pytest.mark.parametrize("ignore_outside", [False, True], ids=["all anchors", "those inside"])
@pytest.mark.parametrize("normalisation", ["sampled", "published"])
@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
@pytest.mark.parametrize("objectness_loss", ["log", "focal"])
def test_losses_are_equation_1(objectness_loss, box_loss, normalisation, ignore_outside):
    rule = TrainSettings(
        rpn_objectness_loss=objectness_loss,
        rpn_focal_alpha=0.3,
        rpn_focal_gamma=1.5,
        rpn_box_loss=box_loss,
        rpn_normalisation=normalisation,
        rpn_ignore_outside=ignore_outside,
        rpn_smooth_l1_beta=0.3,
        rpn_box_weight=3.0,
        **EVERYTHING,
    )
    logits, deltas, anchors = random_outputs()
    labels, _ = label_anchors(anchors, IM_INFO, TARGETS, rule)
    assert {-1, 0, 1} == set(labels[0].tolist())
    expected = written_out(logits, deltas, anchors, labels, rule)
    losses = rpn_losses(logits, deltas, anchors, IM_INFO, TARGETS, ONES, rule)
    assert [loss.item() for loss in losses] == pytest.approx(expected, rel=1e-5)


def test_log_loss_of_one_logit_is_the_published_loss_over_two_classes():
    """Cross-entropy of the scores (background, object) is log loss of their difference, gradients included."""
    generator = torch.Generator().manual_seed(3)
    scores = torch.randn(9, 2, generator=generator, requires_grad=True)
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0, 1])
    published = torch.nn.functional.cross_entropy(scores, labels, reduction="sum")
    expected = torch.autograd.grad(published, scores)[0]
    total = sum(log_loss(*pair) for pair in zip((scores[:, 1] - scores[:, 0]).tolist(), (labels == 1).tolist()))
    assert total == pytest.approx(published.item(), rel=1e-5)
    logits = scores[:, 1] - scores[:, 0]
    ours = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.float(), reduction="sum")
    torch.testing.assert_close(torch.autograd.grad(ours, scores)[0], expected)


def test_lambda_balances_the_published_losses():
    """The paper: N_cls = 256, N_reg ~ 2400 and lambda = 10 weigh both about equally, here 256 / 240."""
    anchors = torch.tensor([[0.0, 0.0, 20.0, 20.0]]).repeat(2400, 1) + 100 * torch.arange(2400)[:, None]
    target = Targets(anchors[:1], torch.tensor([1]))
    rule = TrainSettings(rpn_normalisation="published", rpn_box_weight=10.0, rpn_smooth_l1_beta=1.0)
    deltas = torch.zeros(1, 4, 40, 60)
    deltas[0, 0, 0, 0] = 2.5  # smooth L1: 2
    im_info = torch.tensor([[640.0, 960.0, 1.0, 1.0]])
    losses = rpn_losses([torch.zeros(1, 1, 40, 60)], [deltas], anchors, im_info, [target], ONES, rule)
    assert losses[0].item() == pytest.approx(math.log(2))  # 256 anchors of log 2 over 256
    assert losses[1].item() == pytest.approx(10 * 2.0 / 2400)


@pytest.mark.parametrize("objectness_loss", ["log", "focal"])
@pytest.mark.parametrize("box_loss", ["smooth_l1", "giou"])
def test_gradients_reach_what_trains_and_nothing_else(objectness_loss, box_loss):
    rule = TrainSettings(
        rpn_objectness_loss=objectness_loss, rpn_box_loss=box_loss, rpn_ignore_outside=True, **EVERYTHING
    )
    logits, deltas, anchors = random_outputs()
    labels, _ = label_anchors(anchors, IM_INFO, TARGETS, rule)
    losses = rpn_losses(logits, deltas, anchors, IM_INFO, TARGETS, ONES, rule)
    gradients = torch.autograd.grad(sum(losses), [*logits, *deltas])
    for image in (0, 1):
        for label, of_logit, of_delta in zip(
            labels[image].tolist(), rows(gradients[:2], image, 1), rows(gradients[2:], image, 4), strict=True
        ):
            assert (of_logit[0] != 0) == (label != -1)
            every = any if box_loss == "giou" else all  # a box within the other may be moved without a change of GIoU
            assert every(value != 0 for value in of_delta) if label == 1 else not any(of_delta)


@pytest.mark.parametrize("rule", [TrainSettings(), TrainSettings(rpn_objectness_loss="focal", rpn_box_loss="giou")])
def test_images_without_boxes_train_objectness_alone(rule):
    logits, deltas, anchors = random_outputs()
    losses = rpn_losses(logits, deltas, anchors, IM_INFO, [TARGETS[1]] * 2, ONES, rule)
    assert losses[0] > 0
    assert losses[1] == 0
    sum(losses).backward()
    assert all(level.grad.isfinite().all() for level in (*logits, *deltas))


@pytest.mark.parametrize("objectness_loss", ["log", "focal"])
@pytest.mark.parametrize("normalisation", ["sampled", "published"])
def test_losses_are_zero_when_all_anchors_are_ignored(objectness_loss, normalisation):
    rule = TrainSettings(rpn_ignore_outside=True, rpn_objectness_loss=objectness_loss, rpn_normalisation=normalisation)
    logits, deltas, anchors = random_outputs()
    losses = rpn_losses(logits, deltas, anchors - 100, IM_INFO, TARGETS, ONES, rule)
    assert losses[0] == losses[1] == 0
    sum(losses).backward()
    assert not any(level.grad.any() for level in (*logits, *deltas))


def test_focal_loss_takes_every_anchor_and_log_loss_a_sample():
    _, _, anchors = random_outputs()
    for objectness_loss, expected in (("log", 6), ("focal", None)):
        rule = TrainSettings(rpn_objectness_loss=objectness_loss, rpn_batch_per_image=6, rpn_background_iou=0.7)
        labels, _ = label_anchors(anchors, IM_INFO, TARGETS, rule)
        assert (labels != -1).sum(dim=1).tolist() == [expected or len(anchors)] * 2


def test_encoding_is_that_of_the_rcnn_paper():
    anchors, boxes = boxes_of([(0, 0, 10, 20)]), boxes_of([(5, 5, 25, 15)])
    expected = [1.0, 0.0, math.log(2), math.log(0.5)]  # tx, ty, tw, th
    assert encoded(boxes[0].tolist(), anchors[0].tolist(), ONES) == pytest.approx(expected)


def test_rpn_losses_by_hand():
    """One anchor on the target and one far off, logits 0: objectness log 2; a delta off by 1: (1 - beta / 2) / 2."""
    anchors = torch.tensor([[0.0, 0.0, 20.0, 20.0], [100.0, 100.0, 120.0, 120.0]])
    target = Targets(anchors[:1], torch.tensor([5]))
    deltas = torch.zeros(1, 8, 1, 1)
    deltas[0, 2] = 1.0  # dw of anchor 0
    deltas[0, 4:] = 9.0  # of the background anchor: no part of the loss
    losses = rpn_losses(
        [torch.zeros(1, 2, 1, 1)],
        [deltas],
        anchors,
        torch.tensor([[200.0, 200.0, 1.0, 1.0]]),
        [target],
        (1.0, 1.0, 1.0, 1.0),
        TrainSettings(),
    )
    torch.testing.assert_close(losses[0], torch.tensor(2.0).log())
    torch.testing.assert_close(losses[1], torch.tensor((1.0 - 0.5 / 9) / 2))
