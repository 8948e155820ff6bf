"""Which anchors and proposals are objects, which are background, and which of them train: sections 3.1.2 and 2.3.

Nothing here waits for a GPU but `usable_targets`, once. Shapes: N anchors or proposals of one image, M target boxes of
one image. Boxes are xyxy network px.
Ref: Ren et al., Faster R-CNN (2015), section 3.1.2; Girshick, Fast R-CNN (2015), section 2.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

IGNORED, BACKGROUND = -1, 0  # labels of anchors and proposals; foreground is 1 .. K


class Targets(NamedTuple):
    """What is to be found in one image: boxes float32 [M, 4] xyxy network px, labels int64 [M], 1 .. K."""

    boxes: Tensor
    labels: Tensor


def usable_targets(targets: Sequence[Targets]) -> list[Targets]:
    """The targets without boxes that have no width or height (or are not finite): a detector cannot learn them."""
    targets = [Targets(boxes.float(), labels) for boxes, labels in targets]
    if not targets or _usable(torch.cat([target.boxes for target in targets])).all():  # one look at the whole batch
        return targets
    return [Targets(boxes[usable], labels[usable]) for boxes, labels in targets for usable in [_usable(boxes)]]


class Matches(NamedTuple):
    """For each of N boxes: the target box it overlaps most, int64 [N], and whether that makes it one of three kinds."""

    target: Tensor  # int64 [N], 0 .. M - 1, or 0 where there is no target
    is_foreground: Tensor  # bool [N]
    is_background: Tensor  # bool [N]

    def labels(self, target_labels: Tensor) -> Tensor:
        """int64 [N]: the target's label, BACKGROUND, or IGNORED for what lies between the thresholds."""
        labels = torch.where(self.is_background, BACKGROUND, IGNORED)
        return torch.where(self.is_foreground, target_labels[self.target], labels) if len(target_labels) else labels

    def boxes(self, target_boxes: Tensor) -> Tensor:
        """float32 [N, 4]: the matched target boxes; zeros where there are no targets."""
        return target_boxes[self.target] if len(target_boxes) else target_boxes.new_zeros(len(self.target), 4)


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
) -> Matches:
    """Assign each of `boxes` [N, 4] to one of `target_boxes` [M, 4], to the background, or to neither.

    Args:
        foreground_iou: a box is foreground from this IoU with its best target.
        background_iou: it is background below this IoU ...
        background_floor: ... and from this one.
        keep_best: the boxes that overlap a target more than any other box does are foreground whatever their IoU, so
            that no target that overlaps a box goes without; each still goes to the target *it* overlaps most.
        taking_part: bool [N]; other boxes are neither, and the best of no target. None: all do.
    """
    part = torch.ones_like(boxes[:, 0], dtype=torch.bool) if taking_part is None else taking_part
    if len(target_boxes) == 0 or len(boxes) == 0:
        is_background = part if background_floor <= 0 else torch.zeros_like(part)
        return Matches(torch.zeros_like(part, dtype=torch.int64), torch.zeros_like(part), is_background)
    iou = torch.where(part, box_iou(target_boxes, boxes), 0.0)  # [M, N]
    best_iou, index = iou.max(dim=0)
    is_foreground = best_iou >= foreground_iou
    is_background = part & (best_iou < background_iou) & (best_iou >= background_floor)
    if keep_best:
        best_of_target = iou.max(dim=1, keepdim=True).values  # [M, 1]
        is_best = ((iou == best_of_target) & (best_of_target > 0)).any(dim=0)
        is_foreground, is_background = is_foreground | is_best, is_background & ~is_best
    return Matches(index, is_foreground, is_background)


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
