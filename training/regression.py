"""How far boxes are from where they should be: smooth L1 of deltas, or generalised IoU of the boxes themselves.

Shapes: N boxes, xyxy network px.
Ref: Girshick, Fast R-CNN (2015), equations 2 and 3; Rezatofighi et al., Generalized IoU (2019).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional
from torchvision.ops import generalized_box_iou_loss

from plugins.common.boxes import decode_boxes, encode_boxes
from training.settings import GIOU

MOST_GROWTH = math.log(1000 / 16)  # cap on dw and dh before exp, torchvision's; beyond it GIoU has no gradient


def box_regression_loss(
    deltas: Tensor, boxes: Tensor, targets: Tensor, weights: Sequence[float], *, kind: str, beta: float
) -> Tensor:
    """The sum over N boxes; 0 where there are none.

    Args:
        deltas: [N, 4], predicted, of any floating type.
        boxes: float32 [N, 4], the anchors or proposals that they move.
        targets: float32 [N, 4], the boxes that should come out.
        weights: of (dx, dy, dw, dh), as in `decode_boxes`; the inverse of the targets' standard deviations.
        kind: smooth_l1 or giou.
        beta: where smooth L1 turns linear.
    """
    if kind == GIOU:
        decoded = decode_boxes(deltas.float(), boxes, weights, MOST_GROWTH)
        return generalized_box_iou_loss(decoded, targets, reduction="sum")
    return functional.smooth_l1_loss(deltas.float(), encode_boxes(targets, boxes, weights), beta=beta, reduction="sum")
