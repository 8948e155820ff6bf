"""Faster R-CNN's four losses: matching, sampling, targets. Numbers and normalisations are torchvision's.

Shapes: B images, L levels, A anchors per cell, N anchors or proposals of one image, M target boxes of one image,
S sampled rois of all images, K foreground classes. Boxes are xyxy network px.
Ref: Ren et al., Faster R-CNN (2015), section 3.1.2; Girshick, Fast R-CNN (2015), section 2.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_iou

from plugins.common.boxes import encode_boxes

IGNORED, BACKGROUND = -1, 0  # labels of anchors and proposals; foreground is 1 .. K


class Targets(NamedTuple):
    """What is to be found in one image: boxes float32 [M, 4] xyxy network px, labels int64 [M], 1 .. K."""

    boxes: Tensor
    labels: Tensor


class Losses(NamedTuple):
    """The four scalars that are added up."""

    rpn_objectness: Tensor
    rpn_box: Tensor
    detector_class: Tensor
    detector_box: Tensor


class RoiSample(NamedTuple):
    """Proposals chosen to train the detector on: of all images, S rows."""

    rois: Tensor  # float32 [S, 4]
    images: Tensor  # int64 [S], index in the batch
    labels: Tensor  # int64 [S], 0 .. K
    deltas: Tensor  # float32 [S, 4], regression targets; of meaning where the label is foreground


@dataclass(frozen=True)
class TrainSettings:
    """Choices of training that the weights do not need later; the defaults are torchvision's."""

    rpn_pre_nms_top_n: int = 2000  # per level
    rpn_post_nms_top_n: int = 2000  # per image
    rpn_foreground_iou: float = 0.7
    rpn_background_iou: float = 0.3
    rpn_batch_per_image: int = 256
    rpn_positive_fraction: float = 0.5
    box_foreground_iou: float = 0.5
    box_background_iou: float = 0.5
    box_batch_per_image: int = 512
    box_positive_fraction: float = 0.25
    smooth_l1_beta: float = 1 / 9


def rpn_losses(
    objectness: Sequence[Tensor],
    bbox_deltas: Sequence[Tensor],
    anchors: Tensor,
    targets: Sequence[Targets],
    box_coder_weights: Sequence[float],
    settings: TrainSettings,
) -> tuple[Tensor, Tensor]:
    """Objectness and box loss of the RPN.

    Args:
        objectness: L x [B, A, H, W] logits.
        bbox_deltas: L x [B, 4A, H, W].
        anchors: [N, 4], level by level in (h, w, a) order, the same for every image.
        targets: one per image.
    """
    logits = torch.cat([level.permute(0, 2, 3, 1).flatten(1) for level in objectness], dim=1)  # [B, N]
    deltas = torch.cat([_flat_deltas(level) for level in bbox_deltas], dim=1)  # [B, N, 4]
    labels, box_targets = [], []
    for target in targets:
        matches = match(target.boxes, anchors, settings.rpn_foreground_iou, settings.rpn_background_iou, keep_best=True)
        image_labels = matches.labels(torch.ones_like(target.labels))
        labels.append(sample_labels(image_labels, settings.rpn_batch_per_image, settings.rpn_positive_fraction))
        box_targets.append(matches.boxes(target.boxes))
    label = torch.stack(labels)  # [B, N]
    image, index = torch.nonzero(label == 1).unbind(dim=1)
    regression = encode_boxes(torch.stack(box_targets)[image, index], anchors[index], box_coder_weights)
    sampled = label != IGNORED
    count = sampled.sum().clamp(min=1)
    beta = settings.smooth_l1_beta
    box_loss = functional.smooth_l1_loss(deltas[image, index].float(), regression, beta=beta, reduction="sum") / count
    objectness_loss = functional.binary_cross_entropy_with_logits(
        logits[sampled].float(), label[sampled].float(), reduction="sum"
    )
    return objectness_loss / count, box_loss


@torch.no_grad()
def sample_rois(
    rois: Tensor,
    num_rois: Tensor,
    targets: Sequence[Targets],
    box_coder_weights: Sequence[float],
    settings: TrainSettings,
) -> RoiSample:
    """Choose proposals for the detector, the target boxes among them, and say what each should become.

    Args:
        rois: float32 [B, R, 4], zero padded; num_rois: int32 [B].
        targets: one per image.
    """
    samples = []
    for image, (target, count) in enumerate(zip(targets, num_rois.tolist(), strict=True)):
        proposals = torch.cat((rois[image, :count], target.boxes))
        matches = match(
            target.boxes, proposals, settings.box_foreground_iou, settings.box_background_iou, keep_best=False
        )
        labels = sample_labels(
            matches.labels(target.labels), settings.box_batch_per_image, settings.box_positive_fraction
        )
        chosen = torch.nonzero(labels != IGNORED).flatten()
        proposals, labels = proposals[chosen], labels[chosen]
        deltas = encode_boxes(matches.boxes(target.boxes)[chosen], proposals, box_coder_weights)
        samples.append(RoiSample(proposals, torch.full_like(labels, image), labels, deltas))
    return RoiSample(*(torch.cat(parts) for parts in zip(*samples, strict=True)))


def detector_losses(
    class_logits: Tensor, bbox_deltas: Tensor, sample: RoiSample, settings: TrainSettings
) -> tuple[Tensor, Tensor]:
    """Classification and box loss of the detector.

    Args:
        class_logits: [S, K + 1], background first.
        bbox_deltas: [S, 4 (K + 1)] or, class-agnostic, [S, 4].
        sample: what `sample_rois` chose.
    """
    count = max(sample.labels.numel(), 1)
    class_loss = functional.cross_entropy(class_logits.float(), sample.labels, reduction="sum") / count
    foreground = torch.nonzero(sample.labels > BACKGROUND).flatten()
    deltas = bbox_deltas.reshape(len(sample.labels), bbox_deltas.shape[1] // 4, 4)  # [S, K + 1 or 1, 4]
    column = sample.labels[foreground] if deltas.shape[1] > 1 else torch.zeros_like(foreground)
    box_loss = functional.smooth_l1_loss(
        deltas[foreground, column].float(), sample.deltas[foreground], beta=settings.smooth_l1_beta, reduction="sum"
    )
    return class_loss, box_loss / count


class Matches(NamedTuple):
    """For each of N boxes: the target box it overlaps most, int64 [N], and whether that makes it one of three kinds."""

    target: Tensor  # int64 [N], 0 .. M - 1, or 0 where there is no target
    is_foreground: Tensor  # bool [N]
    is_background: Tensor  # bool [N]

    def labels(self, target_labels: Tensor) -> Tensor:
        """int64 [N]: the target's label, BACKGROUND, or IGNORED for what lies between the thresholds."""
        labels = torch.full_like(self.target, IGNORED)
        labels[self.is_background] = BACKGROUND
        labels[self.is_foreground] = target_labels[self.target[self.is_foreground]]
        return labels

    def boxes(self, target_boxes: Tensor) -> Tensor:
        """float32 [N, 4]: the matched target boxes; zeros where there are no targets."""
        return target_boxes[self.target] if len(target_boxes) else target_boxes.new_zeros(len(self.target), 4)


@torch.no_grad()
def match(
    target_boxes: Tensor, boxes: Tensor, foreground_iou: float, background_iou: float, *, keep_best: bool
) -> Matches:
    """Assign each of `boxes` [N, 4] to one of `target_boxes` [M, 4], to the background, or to neither.

    Args:
        foreground_iou: a box is foreground from this IoU with its best target.
        background_iou: it is background below this IoU.
        keep_best: the boxes that overlap a target more than any other box does are foreground whatever their IoU, so
            that no target that overlaps a box goes without; each still goes to the target *it* overlaps most.
    """
    if len(target_boxes) == 0 or len(boxes) == 0:
        nothing = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
        return Matches(torch.zeros_like(nothing, dtype=torch.int64), nothing, ~nothing)
    iou = box_iou(target_boxes, boxes)  # [M, N]
    best_iou, index = iou.max(dim=0)
    is_foreground, is_background = best_iou >= foreground_iou, best_iou < background_iou
    if keep_best:
        best_of_target = iou.max(dim=1, keepdim=True).values  # [M, 1]
        is_best = ((iou == best_of_target) & (best_of_target > 0)).any(dim=0)
        is_foreground, is_background = is_foreground | is_best, is_background & ~is_best
    return Matches(index, is_foreground, is_background)


def sample_labels(labels: Tensor, count: int, positive_fraction: float) -> Tensor:
    """Keep `count` of the labels int64 [N] at random, at most that fraction of them foreground; the rest is IGNORED."""
    positive, negative = torch.nonzero(labels > BACKGROUND).flatten(), torch.nonzero(labels == BACKGROUND).flatten()
    num_positive = min(positive.numel(), int(count * positive_fraction))
    num_negative = min(negative.numel(), count - num_positive)
    positive = positive[torch.randperm(positive.numel(), device=labels.device)[:num_positive]]
    negative = negative[torch.randperm(negative.numel(), device=labels.device)[:num_negative]]
    sampled = torch.full_like(labels, IGNORED)
    sampled[positive], sampled[negative] = labels[positive], BACKGROUND
    return sampled


def usable_targets(targets: Sequence[Targets]) -> list[Targets]:
    """The targets without boxes that have no width or height (or are not finite): a detector cannot learn them."""
    kept = []
    for boxes, labels in targets:
        usable = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & boxes.isfinite().all(dim=1)
        kept.append(Targets(boxes[usable].float(), labels[usable]))
    return kept


def _flat_deltas(deltas: Tensor) -> Tensor:
    """[B, 4A, H, W] -> [B, H * W * A, 4]."""
    batch, channels, height, width = deltas.shape
    return deltas.reshape(batch, channels // 4, 4, height, width).permute(0, 3, 4, 1, 2).reshape(batch, -1, 4)
