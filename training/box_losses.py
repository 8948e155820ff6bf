"""The detector's part of the losses (Fast R-CNN): which proposals it learns from, and its two losses on them.

Shapes: B images, R proposals per image, M target boxes of one image, S sampled rois of all images, K foreground
classes. Boxes are xyxy network px.
Ref: Girshick, Fast R-CNN (2015), section 2.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.matching import BACKGROUND, IGNORED, Targets, match, on_ignored, sample_labels
from training.regression import box_regression_loss
from training.settings import TrainSettings


class RoiSample(NamedTuple):
    """Proposals chosen to train the detector on: of all images, S rows."""

    rois: Tensor  # float32 [S, 4]
    images: Tensor  # int64 [S], index in the batch
    labels: Tensor  # int64 [S], 0 .. K
    boxes: Tensor  # float32 [S, 4], the target boxes they overlap most; of meaning where the label is foreground
    box_coder_weights: tuple[float, ...]  # of the deltas that lead from the ones to the others


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
    target_boxes = _padded([target.boxes for target in targets])  # [B, M, 4]
    target_labels = _padded([target.labels for target in targets])  # [B, M]
    proposals = torch.cat((rois, target_boxes), dim=1)  # [B, R + M, 4]
    is_roi = torch.arange(rois.shape[1], device=rois.device) < num_rois[:, None]  # [B, R]
    matches = match(
        target_boxes,
        proposals,
        settings.box_foreground_iou,
        settings.box_background_iou,
        keep_best=False,
        background_floor=settings.box_background_floor,
        taking_part=torch.cat((is_roi, target_labels > BACKGROUND), dim=1),
        never_background=_on_ignored(proposals, targets, settings),
    )
    labels = matches.labels(target_labels)
    labels = sample_labels(labels, settings.box_batch_per_image, settings.box_positive_fraction)
    chosen = torch.nonzero(labels != IGNORED).unbind(dim=1)  # image and index; the one wait for the device
    boxes = matches.boxes(target_boxes)
    return RoiSample(proposals[chosen], chosen[0], labels[chosen], boxes[chosen], tuple(box_coder_weights))


def _on_ignored(proposals: Tensor, targets: Sequence[Targets], settings: TrainSettings) -> Tensor | None:
    """on_ignored of a batch: bool [B, R], or None."""
    if settings.ignore_overlap is None:
        return None
    return on_ignored(proposals, _padded([target.ignored for target in targets]), settings.ignore_overlap)


def _padded(parts: Sequence[Tensor]) -> Tensor:
    """One tensor for all images, zeros behind the last of each: a box that overlaps nothing, a label of no object."""
    return nn.utils.rnn.pad_sequence(list(parts), batch_first=True)


def detector_losses(
    class_logits: Tensor, bbox_deltas: Tensor, sample: RoiSample, settings: TrainSettings
) -> tuple[Tensor, Tensor]:
    """Classification and box loss of the detector, both sums over the number of rois sampled.

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
    box_loss = box_regression_loss(
        deltas[foreground, column],
        sample.rois[foreground],
        sample.boxes[foreground],
        sample.box_coder_weights,
        kind=settings.box_loss,
        beta=settings.box_smooth_l1_beta,
    )
    return class_loss, settings.box_weight * box_loss / count
