"""What a student learns from a teacher: the terms of knowledge distillation, each zero where the two agree.

Shapes: B images, L levels, A anchors per cell, H x W cells of a level, C channels, N anchors of one image, M target
boxes of one image, S sampled rois of all images, K foreground classes. Boxes are xyxy network px.
Ref: Wang et al., Distilling Object Detectors with Fine-grained Feature Imitation (2019); Chen et al., Learning
Efficient Object Detection Models with Knowledge Distillation (2017); Hinton et al. (2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_iou

from plugins.common.boxes import encode_boxes
from training.losses import BACKGROUND, IGNORED, RoiSample, sample_labels
from training.settings import TrainSettings

LEAST_ENERGY = 1e-6  # where there are no objects, and so no distance


class RegionOutputs(NamedTuple):
    """What an RPN says: objectness L x [B, A, H, W] logits, deltas L x [B, 4A, H, W] scaled by its box coder."""

    objectness: Sequence[Tensor]
    bbox_deltas: Sequence[Tensor]
    box_coder_weights: Sequence[float]


class BoxOutputs(NamedTuple):
    """What a box head says of S rois: logits [S, K + 1], deltas [S, 4 (K + 1)] or, class-agnostic, [S, 4]."""

    class_logits: Tensor
    bbox_deltas: Tensor
    box_coder_weights: Sequence[float]


@torch.no_grad()
def near_objects(anchors: Tensor, boxes: Tensor, share: float) -> Tensor:
    """Cells of one level at which the teacher's features are imitated: bool [H, W].

    A cell is near an object if one of its anchors overlaps it by more than `share` of the most that any anchor of the
    level does: each object has some cells on every level, however small it is. Ref: Wang et al. (2019), section 3.2.

    Args:
        anchors: float32 [H, W, A, 4].
        boxes: float32 [M, 4], the objects of one image.
        share: 0 to 1, the paper's psi.
    """
    height, width = anchors.shape[:2]
    if len(boxes) == 0:
        return torch.zeros(height, width, dtype=torch.bool, device=anchors.device)
    overlaps = box_iou(boxes, anchors.reshape(-1, 4))  # [M, HWA]
    near = overlaps > share * overlaps.max(dim=1, keepdim=True).values
    return near.any(dim=0).reshape(height, width, -1).any(dim=-1)


def feature_imitation(student: Sequence[Tensor], teacher: Sequence[Tensor], near: Sequence[Tensor]) -> Tensor:
    """Squared distance of the features in the cells near objects, as a share of the teacher's squared features there.

    Wang et al. (2019), section 3.3, divide by the number of cells, and weigh that by 0.01; as a share it is about 1 to
    begin with, whatever the scale of the teacher's features and their number of channels are.

    Args:
        student, teacher: per level [B, C, H, W], of equal shapes.
        near: per level bool [B, H, W].
    """
    distances, energies = [], []
    for own, other, mask in zip(student, teacher, near, strict=True):
        own, other = own.float(), other.float()
        distances.append(((own - other).square().sum(dim=1) * mask).sum())  # [B, C, H, W] -> [B, H, W]
        energies.append((other.square().sum(dim=1) * mask).sum())
    return torch.stack(distances).sum() / torch.stack(energies).sum().clamp(min=LEAST_ENERGY)


def region_imitation(
    student: RegionOutputs, teacher: RegionOutputs, confidence: float, settings: TrainSettings
) -> tuple[Tensor, Tensor]:
    """Objectness and box loss of a student RPN against a teacher's at the same anchors.

    As many anchors per image are sampled as the RPN's own losses sample, but by the teacher's judgement: it is sure of
    an object where its probability is above `confidence`. Objectness: the Kullback-Leibler divergence of "object or
    not", the teacher's probability being the target. Boxes: L1 distance where the teacher is sure. Both are sums over
    the number of anchors sampled.
    """
    own, other = _flat_logits(student), _flat_logits(teacher)  # [B, N]
    sure = (other.sigmoid() > confidence).long()
    count, fraction = settings.rpn_batch_per_image, settings.rpn_positive_fraction
    label = sample_labels(sure, count, fraction)  # [B, N]
    sampled, positive = label != IGNORED, label > BACKGROUND
    scale = _rescaling(student, teacher, other)
    distance = (_flat_deltas(student)[positive] - _flat_deltas(teacher)[positive] * scale).abs().sum()
    total = sampled.sum().clamp(min=1)
    return _binary_divergence(own[sampled], other[sampled]).sum() / total, distance / total


def soft_classes(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """Kullback-Leibler divergence of the softened class probabilities, averaged over rois, times temperature².

    Ref: Hinton et al., Distilling the Knowledge in a Neural Network (2015), section 2.
    """
    if len(student_logits) == 0:
        return student_logits.sum()
    own = functional.log_softmax(student_logits.float() / temperature, dim=1)
    other = functional.log_softmax(teacher_logits.float() / temperature, dim=1)
    return functional.kl_div(own, other, reduction="batchmean", log_target=True) * temperature**2


def bounded_boxes(student: BoxOutputs, teacher: BoxOutputs, sample: RoiSample, margin: float) -> Tensor:
    """The student's squared box error where it is not better than the teacher's by `margin`; over all sampled rois.

    The teacher is a bound, not a target: what a teacher says about a box may contradict the truth, so a student that
    has passed it is left alone. Ref: Chen et al. (2017), section 3.3.

    Args:
        student, teacher: outputs for the same rois; errors are measured in the student's box coding.
        sample: those rois and what each should become.
    """
    foreground = torch.nonzero(sample.labels > BACKGROUND).flatten()
    labels = sample.labels[foreground]
    target = encode_boxes(sample.boxes[foreground], sample.rois[foreground], student.box_coder_weights)
    scale = _rescaling(student, teacher, target)
    own = (_deltas_of(student, foreground, labels) - target).square().sum(dim=1)
    other = (_deltas_of(teacher, foreground, labels) * scale - target).square().sum(dim=1)
    return (own * (own + margin > other)).sum() / max(sample.labels.numel(), 1)


def _deltas_of(outputs: BoxOutputs, rows: Tensor, labels: Tensor) -> Tensor:
    """The deltas [F, 4] that belong to the class of each of F rois."""
    deltas = outputs.bbox_deltas.unflatten(1, (outputs.bbox_deltas.shape[1] // 4, 4)).float()  # [S, K + 1 or 1, 4]
    return deltas[rows, labels if deltas.shape[1] > 1 else torch.zeros_like(labels)]


def _flat_logits(regions: RegionOutputs) -> Tensor:
    """float32 [B, N], anchor by anchor within a cell, level by level."""
    return torch.cat([level.permute(0, 2, 3, 1).flatten(1) for level in regions.objectness], dim=1).float()


def _flat_deltas(regions: RegionOutputs) -> Tensor:
    """float32 [B, N, 4], in the order of `_flat_logits`: each [B, A * 4, H, W] -> [B, H, W, A, 4] -> [B, HWA, 4]."""
    levels = [level.unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3) for level in regions.bbox_deltas]
    return torch.cat(levels, dim=1).float()


def _rescaling(student: RegionOutputs | BoxOutputs, teacher: RegionOutputs | BoxOutputs, like: Tensor) -> Tensor:
    """float32 [4]: turns the teacher's deltas into the student's box coding."""
    weights = torch.tensor(student.box_coder_weights) / torch.tensor(teacher.box_coder_weights)
    return weights.to(like.device)


def _binary_divergence(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student) of one probability each, elementwise."""
    probability = teacher_logits.sigmoid()
    yes = functional.logsigmoid(teacher_logits) - functional.logsigmoid(student_logits)
    no = functional.logsigmoid(-teacher_logits) - functional.logsigmoid(-student_logits)
    return probability * yes + (1 - probability) * no
