"""The region proposal network's two losses.

Shapes: B images, L levels, A anchors per cell, H x W cells of a level, N anchors of one image. Boxes are xyxy network
px.
Ref: Ren et al., Faster R-CNN (2015), section 3.1.2; Lin et al., Focal Loss (2017), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from training.matching import IGNORED, Targets, match, on_ignored, sample_labels
from training.regression import box_regression_loss
from training.settings import AS_PUBLISHED, FOCAL_LOSS, TrainSettings


def rpn_losses(
    objectness: Sequence[Tensor],
    bbox_deltas: Sequence[Tensor],
    anchors: Tensor,
    im_info: Tensor,
    targets: Sequence[Targets],
    box_coder_weights: Sequence[float],
    settings: TrainSettings,
) -> tuple[Tensor, Tensor]:
    """Objectness and box loss of the RPN: equation 1 of the paper, of a batch.

    Each is a sum divided by a number: of the anchors sampled or, as published, N_cls = the size of the sample (256 per
    image) for objectness and N_reg = the number of anchor locations (about 2400 per image) for boxes. The focal loss
    takes the number of positive anchors for N_cls, and for what the sample would be.

    Args:
        objectness: L x [B, A, H, W] logits.
        bbox_deltas: L x [B, 4A, H, W].
        anchors: [N, 4], level by level in (h, w, a) order, the same for every image.
        im_info: float32 [B, 4]; its first two numbers are the valid height and width of each image.
        targets: one per image.
    """
    logits = torch.cat([level.permute(0, 2, 3, 1).flatten(1) for level in objectness], dim=1)  # [B, N]
    deltas = torch.cat([_flat_deltas(level) for level in bbox_deltas], dim=1)  # [B, N, 4]
    labels, boxes = label_anchors(anchors, im_info, targets, settings)
    is_positive = labels == 1
    image, index = torch.nonzero(is_positive).unbind(dim=1)  # P positives of all images; the one wait for the device
    box_loss = box_regression_loss(
        deltas[image, index],
        anchors[index],
        boxes[image, index],
        box_coder_weights,
        kind=settings.rpn_box_loss,
        beta=settings.rpn_smooth_l1_beta,
    )
    objectness_loss = _objectness_losses(logits.float(), is_positive.float(), settings)  # [B, N]
    is_focal = settings.rpn_objectness_loss == FOCAL_LOSS
    count = (is_positive if is_focal else labels != IGNORED).sum().clamp(min=1)
    num_objectness, num_boxes = count, count
    if settings.rpn_normalisation == AS_PUBLISHED:
        locations = sum(level.shape[2] * level.shape[3] for level in objectness)
        num_boxes = torch.full_like(count, len(targets) * locations)
        num_objectness = count if is_focal else torch.full_like(count, len(targets) * settings.rpn_batch_per_image)
    objectness_sum = torch.where(labels != IGNORED, objectness_loss, 0.0).sum()
    return objectness_sum / num_objectness, settings.rpn_box_weight * box_loss / num_boxes


@torch.no_grad()
def label_anchors(
    anchors: Tensor, im_info: Tensor, targets: Sequence[Targets], settings: TrainSettings
) -> tuple[Tensor, Tensor]:
    """Which anchors train the RPN, and towards what.

    Returns:
        labels int64 [B, N]: 1 positive, BACKGROUND negative, IGNORED; boxes float32 [B, N, 4], the target of each.
    """
    inside = _inside(anchors, im_info) if settings.rpn_ignore_outside else [None] * len(targets)
    labels, boxes = [], []
    for target, taking_part in zip(targets, inside, strict=True):
        thresholds = (settings.rpn_foreground_iou, settings.rpn_background_iou)
        matches = match(
            target.boxes,
            anchors,
            *thresholds,
            keep_best=True,
            taking_part=taking_part,
            never_background=on_ignored(anchors, target.ignored, settings.ignore_overlap),
        )
        labels.append(matches.labels(torch.ones_like(target.labels)))
        boxes.append(matches.boxes(target.boxes))
    label = torch.stack(labels)
    if settings.rpn_objectness_loss != FOCAL_LOSS:
        label = sample_labels(label, settings.rpn_batch_per_image, settings.rpn_positive_fraction)
    return label, torch.stack(boxes)


def _objectness_losses(logits: Tensor, is_object: Tensor, settings: TrainSettings) -> Tensor:
    """Of each anchor, float32 [B, N]: log loss or focal loss of logits and 0 or 1, both float32 [B, N]."""
    if settings.rpn_objectness_loss == FOCAL_LOSS:
        return sigmoid_focal_loss(logits, is_object, settings.rpn_focal_alpha, settings.rpn_focal_gamma)
    return functional.binary_cross_entropy_with_logits(logits, is_object, reduction="none")


def _inside(anchors: Tensor, im_info: Tensor) -> Tensor:
    """Which anchors [N, 4] do not reach out of the valid area of each image: bool [B, N]."""
    limits = im_info[:, :2].flip(-1)  # [B, 2] width, height
    return (anchors[:, :2] >= 0).all(dim=1) & (anchors[:, 2:] <= limits[:, None]).all(dim=2)


def _flat_deltas(deltas: Tensor) -> Tensor:
    """[B, 4A, H, W] -> [B, H * W * A, 4]."""
    batch, channels, height, width = deltas.shape
    return deltas.reshape(batch, channels // 4, 4, height, width).permute(0, 3, 4, 1, 2).reshape(batch, -1, 4)
