"""Which anchors and proposals are objects, which are background, and which of them train: sections 3.1.2 and 2.3.

Nothing here waits for a GPU but `usable_targets`, once. Shapes: N anchors or proposals of one image, M target boxes of
one image, I ignored boxes of one image; ... is nothing for one image, or B for a batch whose images are padded with
boxes of zeros, which overlap nothing. Boxes are xyxy network px.
Ref: Ren et al., Faster R-CNN (2015), section 3.1.2; Girshick, Fast R-CNN (2015), section 2.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

IGNORED, BACKGROUND = -1, 0  # labels of anchors and proposals; foreground is 1 .. K
NO_BOXES = torch.zeros(0, 4)


class Targets(NamedTuple):
    """What is to be found in one image: boxes float32 [M, 4] xyxy network px, labels int64 [M], 1 .. K.

    ignored: float32 [I, 4] xyxy network px, what training leaves out: crowds and difficult objects. They are no objects
    to be found; whether they are background is up to `on_ignored`.
    """

    boxes: Tensor
    labels: Tensor
    ignored: Tensor = NO_BOXES


def usable_targets(targets: Sequence[Targets]) -> list[Targets]:
    """The targets without boxes that have no width or height (or are not finite): a detector cannot learn them."""
    each = (Targets(*target) for target in targets)  # pairs, too
    targets = [Targets(boxes.float(), labels, ignored.float()) for boxes, labels, ignored in each]
    if not targets or _usable(torch.cat([target.boxes for target in targets])).all():  # one look at the whole batch
        return targets
    return [
        Targets(boxes[usable], labels[usable], ignored)
        for boxes, labels, ignored in targets
        for usable in [_usable(boxes)]
    ]


class Matches(NamedTuple):
    """For each of N boxes: the target box it overlaps most, and whether that makes it one of three kinds."""

    target: Tensor  # int64 [..., N], 0 .. M - 1, or 0 where there is no target
    is_foreground: Tensor  # bool [..., N]
    is_background: Tensor  # bool [..., N]

    def labels(self, target_labels: Tensor) -> Tensor:
        """int64 [..., N]: the label [..., M] of the target, BACKGROUND, or IGNORED for what lies between thresholds."""
        labels = torch.where(self.is_background, BACKGROUND, IGNORED)
        if target_labels.shape[-1] == 0:
            return labels
        return torch.where(self.is_foreground, target_labels.gather(-1, self.target), labels)

    def boxes(self, target_boxes: Tensor) -> Tensor:
        """float32 [..., N, 4]: the matched ones of [..., M, 4]; zeros where there are no targets."""
        if target_boxes.shape[-2] == 0:
            return target_boxes.new_zeros(*self.target.shape, 4)
        return target_boxes.take_along_dim(self.target[..., None], dim=-2)


@torch.no_grad()
def match(
    target_boxes: Tensor,
    boxes: Tensor,
    foreground_iou: float,
    background_iou: float,
    *,
    keep_best: bool,
    background_floor: float = 0.0,
    taking_part: Tensor | None = None,
    never_background: Tensor | None = None,
) -> Matches:
    """Assign each of `boxes` [..., N, 4] to one of `target_boxes` [..., M, 4], to the background, or to neither.

    Args:
        foreground_iou: a box is foreground from this IoU with its best target.
        background_iou: it is background below this IoU ...
        background_floor: ... and from this one.
        keep_best: the boxes that overlap a target more than any other box does are foreground whatever their IoU, so
            that no target that overlaps a box goes without; each still goes to the target *it* overlaps most.
        taking_part: bool [..., N]; other boxes are neither, and the best of no target. None: all do.
        never_background: bool [..., N], of `on_ignored`; boxes that are foreground or neither. None: none are.
    """
    part = torch.ones_like(boxes[..., 0], dtype=torch.bool) if taking_part is None else taking_part
    candidates = part if never_background is None else part & ~never_background
    if target_boxes.shape[-2] == 0 or boxes.shape[-2] == 0:
        is_background = candidates if background_floor <= 0 else torch.zeros_like(part)
        return Matches(torch.zeros_like(part, dtype=torch.int64), torch.zeros_like(part), is_background)
    iou = torch.where(part[..., None, :], box_iou(target_boxes, boxes), 0.0)  # [..., M, N]
    best_iou, index = iou.max(dim=-2)
    is_foreground = best_iou >= foreground_iou
    is_background = candidates & (best_iou < background_iou) & (best_iou >= background_floor)
    if keep_best:
        best_of_target = iou.max(dim=-1, keepdim=True).values  # [..., M, 1]
        is_best = ((iou == best_of_target) & (best_of_target > 0)).any(dim=-2)
        is_foreground, is_background = is_foreground | is_best, is_background & ~is_best
    return Matches(index, is_foreground, is_background)


@torch.no_grad()
def on_ignored(boxes: Tensor, ignored: Tensor, overlap: float | None) -> Tensor | None:
    """Which of `boxes` [..., N, 4] lie on one of the `ignored` ones [..., I, 4]: bool [..., N]; None where none can.

    A box does if more than `overlap` of its own area is in it; None for `overlap`: none do. Such a box is not
    background, for there may be objects in it that nobody has drawn boxes around. But it stays foreground where it is:
    the frame around a crowd often holds objects that are annotated one by one, and they would go without. MMDetection
    and py-faster-rcnn let go of both, Omni3D of background alone.
    Ref: MMDetection, max_iou_assigner.py, `ignore_iof_thr`; Girshick, py-faster-rcnn, `_filter_crowd_proposals`; Brazil
    et al., Omni3D (2023), `RPNWithIgnore`.
    """
    if overlap is None or ignored.shape[-2] == 0:
        return None
    own = boxes[..., 2:] - boxes[..., :2]
    area = (own[..., 0] * own[..., 1])[..., None]
    return (_common_area(boxes, ignored) > overlap * area).any(dim=-1)


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of each of `boxes` [..., M, 4] and each of `others` [..., N, 4]: [..., M, N].

    As torchvision's, to the bit, and for batches; 0 instead of NaN where neither box has an area.
    """
    sides, other_sides = boxes[..., 2:] - boxes[..., :2], others[..., 2:] - others[..., :2]
    area, other_area = sides[..., 0] * sides[..., 1], other_sides[..., 0] * other_sides[..., 1]
    common = _common_area(boxes, others)
    union = area[..., None] + other_area[..., None, :] - common
    return common / union.clamp(min=torch.finfo(union.dtype).tiny)


def _common_area(boxes: Tensor, others: Tensor) -> Tensor:
    """Of each of `boxes` [..., M, 4] and each of `others` [..., N, 4]: [..., M, N]."""
    boxes, others = boxes[..., None, :], others[..., None, :, :]
    sides = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])
    sides = sides.clamp(min=0)
    return sides[..., 0] * sides[..., 1]


@torch.no_grad()
def sample_labels(labels: Tensor, count: int, positive_fraction: float) -> Tensor:
    """Keep `count` of each row's labels at random, at most that fraction of them foreground; the rest is IGNORED.

    Where there is less foreground, background fills its place, and where that is short too, fewer are kept.

    Args:
        labels: int64 [..., N].
    """
    is_positive = _draw(labels > BACKGROUND, int(count * positive_fraction))
    num_negative = count - is_positive.sum(dim=-1, keepdim=True)
    is_negative = _draw(labels == BACKGROUND, count, num_negative)
    return torch.where(is_positive | is_negative, labels, IGNORED)


def _draw(is_candidate: Tensor, at_most: int, number: Tensor | None = None) -> Tensor:
    """Some of the candidates, drawn from torch's random numbers: bool [..., N], as `is_candidate`.

    Args:
        at_most: of each row.
        number: int64 [..., 1], a smaller limit of each row.
    """
    keys = torch.rand(is_candidate.shape, dtype=torch.float64, device=is_candidate.device)  # float64: none twice
    keys = torch.where(is_candidate, keys, 2.0)
    smallest = keys.topk(min(at_most, keys.shape[-1]), dim=-1, largest=False)
    is_drawn = smallest.values < 1.0
    if number is not None:
        is_drawn &= torch.arange(is_drawn.shape[-1], device=keys.device) < number
    return torch.zeros_like(is_candidate).scatter(-1, smallest.indices, is_drawn)


def _usable(boxes: Tensor) -> Tensor:
    """Which of the boxes [M, 4] are finite and have an area, bool [M]."""
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1) & boxes.isfinite().all(dim=1)
