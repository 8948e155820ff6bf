"""Faster R-CNN's four losses, by torchvision's rules or the paper's: see `TrainSettings`.

Which boxes train stands in `matching.py`, the losses of the two stages in `rpn_losses.py` and `box_losses.py`, that of
a box in `regression.py`.
Ref: Ren et al., Faster R-CNN (2015), section 3.1.2; Girshick, Fast R-CNN (2015), section 2.3.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from training.box_losses import RoiSample, detector_losses, sample_rois
from training.matching import BACKGROUND, IGNORED, Matches, Targets, match, sample_labels, usable_targets
from training.rpn_losses import rpn_losses
from training.settings import TrainSettings

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "Losses",
    "Matches",
    "RoiSample",
    "Targets",
    "TrainSettings",
    "detector_losses",
    "match",
    "rpn_losses",
    "sample_labels",
    "sample_rois",
    "usable_targets",
]


class Losses(NamedTuple):
    """The four scalars that are added up."""

    rpn_objectness: Tensor
    rpn_box: Tensor
    detector_class: Tensor
    detector_box: Tensor
