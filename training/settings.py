"""What is matched, sampled and weighed in training: choices that the weights do not need later.

Ref: Ren et al., Faster R-CNN (2015), section 3.1; Girshick, Fast R-CNN (2015), section 2.3; Lin et al., Focal Loss
(2017); Rezatofighi et al., Generalized IoU (2019).
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, fields, replace

from runtime.errors import UserError

LOG_LOSS, FOCAL_LOSS = "log", "focal"
SMOOTH_L1, GIOU = "smooth_l1", "giou"
BY_SAMPLE, AS_PUBLISHED = "sampled", "published"


DEFAULT_ROIS = 64
_CHOICES = {
    "rpn_objectness_loss": (LOG_LOSS, FOCAL_LOSS),
    "rpn_box_loss": (SMOOTH_L1, GIOU),
    "rpn_normalisation": (BY_SAMPLE, AS_PUBLISHED),
    "box_loss": (SMOOTH_L1, GIOU),
}
_SHARE, _COUNT, _NOT_NEGATIVE = (0.0, 1.0), (1, math.inf), (0.0, math.inf)
_LEAST_IOU = 1e-6  # a foreground threshold of 0 would make objects of boxes that overlap none
_RANGES: dict[str, tuple[float, float]] = {
    "ignore_overlap": (0.0, 0.99),
    "rpn_pre_nms_top_n": _COUNT,
    "rpn_post_nms_top_n": _COUNT,
    "rpn_foreground_iou": (_LEAST_IOU, 1.0),
    "rpn_background_iou": _SHARE,
    "rpn_batch_per_image": _COUNT,
    "rpn_positive_fraction": _SHARE,
    "rpn_focal_alpha": _SHARE,
    "rpn_focal_gamma": _NOT_NEGATIVE,
    "rpn_smooth_l1_beta": _NOT_NEGATIVE,
    "rpn_box_weight": _NOT_NEGATIVE,
    "box_foreground_iou": (_LEAST_IOU, 1.0),
    "box_background_iou": _SHARE,
    "box_background_floor": _SHARE,
    "box_batch_per_image": _COUNT,
    "box_positive_fraction": _SHARE,
    "box_smooth_l1_beta": _NOT_NEGATIVE,
    "box_weight": _NOT_NEGATIVE,
    "box_dropout": (0.0, 0.99),
}
_MAY_BE_OFF = ("ignore_overlap",)  # None: off
_HELP = {  # of the fields that are options under their own names
    "ignore_overlap": "an anchor or proposal of which more than this share lies on a crowd or difficult object is no "
    "background, for example 0.5 (default: it is, as in torchvision)",
    "rpn_pre_nms_top_n": "anchors per level that become proposals in training, before NMS",
    "rpn_post_nms_top_n": "proposals per image in training",
    "rpn_ignore_outside": "anchors that reach out of the image train nothing",
    "rpn_foreground_iou": "an anchor with this IoU with a box is positive",
    "rpn_background_iou": "an anchor with less IoU with every box is negative",
    "rpn_batch_per_image": "anchors per image to train the RPN on",
    "rpn_positive_fraction": "how many of them may be positive",
    "rpn_objectness_loss": "focal: of all anchors, none sampled",
    "rpn_focal_alpha": "weight of positives in the focal loss; negatives have 1 - this",
    "rpn_focal_gamma": "how much the focal loss leaves out what is easy",
    "rpn_box_loss": "loss of the RPN's boxes",
    "rpn_smooth_l1_beta": "error of a delta at which smooth L1 turns linear, in the RPN",
    "rpn_box_weight": "weight of the RPN's box loss (lambda)",
    "rpn_normalisation": "divide both losses of the RPN by the anchors sampled, or as published: that of objectness by "
    "the size of the sample, that of boxes by the number of anchor locations",
    "box_foreground_iou": "a proposal with this IoU with a box is an object",
    "box_background_iou": "a proposal with less is background ...",
    "box_background_floor": "... and trains nothing below this",
    "box_positive_fraction": "how many of the proposals in training may be objects",
    "box_loss": "loss of the detector's boxes",
    "box_smooth_l1_beta": "error of a delta at which smooth L1 turns linear, in the detector",
    "box_weight": "weight of the detector's box loss",
    "box_dropout": "dropout behind fc6 and fc7, where the box head is these two",
}


def _flag(field: str) -> str:
    """The option that sets a field."""
    return "--rois-per-image" if field == "box_batch_per_image" else f"--{field.replace('_', '-')}"


@dataclass(frozen=True)
class TrainSettings:
    """The defaults are torchvision's; `PUBLISHED` are the paper's.

    A box is positive from its IoU threshold on, as in torchvision and the authors' programs; the paper has "above".
    The targets of box regression are normalised by `box_coder_weights` of the DetectorSpec: (10, 10, 5, 5) there are
    the published standard deviations 0.1, 0.1, 0.2, 0.2 of the detector's; the RPN's are not normalised.
    """

    ignore_overlap: float | None = None  # see `matching.on_ignored`; None: what is left out of training is background
    rpn_pre_nms_top_n: int = 2000  # per level
    rpn_post_nms_top_n: int = 2000  # per image
    rpn_ignore_outside: bool = False  # anchors that reach out of the valid area of their image train nothing
    rpn_foreground_iou: float = 0.7  # from here on an anchor is positive, as is the best one of each box
    rpn_background_iou: float = 0.3  # below it is negative; between the two it is ignored
    rpn_batch_per_image: int = 256
    rpn_positive_fraction: float = 0.5  # at most; negatives fill what is missing
    rpn_objectness_loss: str = LOG_LOSS  # or focal: of all anchors that are not ignored, over the number of positives
    rpn_focal_alpha: float = 0.25
    rpn_focal_gamma: float = 2.0
    rpn_box_loss: str = SMOOTH_L1  # or giou, of decoded boxes
    rpn_smooth_l1_beta: float = 1 / 9
    rpn_box_weight: float = 1.0  # lambda
    rpn_normalisation: str = BY_SAMPLE  # or published: see rpn_losses
    box_foreground_iou: float = 0.5
    box_background_iou: float = 0.5  # a proposal below this is background ...
    box_background_floor: float = 0.0  # ... unless it is below this: then it trains nothing
    box_batch_per_image: int = 512
    box_positive_fraction: float = 0.25  # at most: 1 : 3
    box_loss: str = SMOOTH_L1
    box_smooth_l1_beta: float = 1 / 9
    box_weight: float = 1.0
    box_dropout: float = 0.0  # behind fc6 and fc7; heads of other kinds have none

    def __post_init__(self) -> None:
        """Raises: UserError that names the option at fault."""
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"{_flag(name)} is {getattr(self, name)!r}: expected {' or '.join(allowed)}.")
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if value is None and name in _MAY_BE_OFF:
                continue
            if not (math.isfinite(value) and low <= value <= high):
                limits = f"at least {low}" if high == math.inf else f"from {low} to {high}"
                raise UserError(f"{_flag(name)} is {value}: expected a number {limits}.")
        for background, foreground in (
            ("rpn_background_iou", "rpn_foreground_iou"),
            ("box_background_iou", "box_foreground_iou"),
            ("box_background_floor", "box_background_iou"),
        ):
            if getattr(self, background) > getattr(self, foreground):
                raise UserError(
                    f"{_flag(background)} is {getattr(self, background)}: expected at most {_flag(foreground)}, which "
                    f"is {getattr(self, foreground)}."
                )


PUBLISHED = TrainSettings(
    rpn_pre_nms_top_n=12000,
    rpn_ignore_outside=True,
    rpn_box_weight=10.0,
    rpn_normalisation=AS_PUBLISHED,
    box_background_floor=0.1,
    box_batch_per_image=128,
    rpn_smooth_l1_beta=1.0,
    box_smooth_l1_beta=1.0,
    box_dropout=0.5,
)


def add_settings_arguments(group: argparse._ArgumentGroup) -> None:
    """The settings as options of a command line; those not given are left to `train_settings`."""
    group.add_argument(
        "--published",
        action="store_true",
        help="settings of Ren et al. (2015) instead of torchvision's; options given beside it still count",
    )
    group.add_argument(
        "--rois-per-image",
        type=int,
        help=f"proposals per image to train the detector on (default: {DEFAULT_ROIS}; --published: 128)",
    )
    for field in fields(TrainSettings):
        if field.name not in _HELP:
            continue
        if isinstance(field.default, bool):
            group.add_argument(
                _flag(field.name), action=argparse.BooleanOptionalAction, default=None, help=_HELP[field.name]
            )
        else:
            kind = float if field.name in _MAY_BE_OFF else type(field.default)
            choices = _CHOICES.get(field.name)
            group.add_argument(_flag(field.name), type=kind, choices=choices, help=_HELP[field.name])


def train_settings(arguments: argparse.Namespace) -> TrainSettings:
    """The settings that the command line asks for.

    Without --published there are fewer proposals than torchvision's 2000 and 512: enough for some dozens of objects,
    and faster.

    Raises:
        UserError: a value that is out of range.
    """
    given = {name: value for name, value in vars(arguments).items() if name in _HELP and value is not None}
    rois = arguments.rois_per_image
    if rois is not None:
        given["box_batch_per_image"] = rois
    if getattr(arguments, "published", False):
        return replace(PUBLISHED, **given)
    rois = DEFAULT_ROIS if rois is None else rois
    base = {"rpn_pre_nms_top_n": 300, "rpn_post_nms_top_n": max(200, 2 * rois), "rpn_batch_per_image": 128}
    return TrainSettings(**{**base, "box_batch_per_image": rois, **given})
