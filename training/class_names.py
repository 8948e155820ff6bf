"""Names for the classes of weights that carry none."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.errors import UserError
from training.models.specs import COCO_CLASS_NAMES

COCO_80 = tuple(name for name in COCO_CLASS_NAMES if name != "N/A")
VOC_20 = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
PUBLISHED = {len(names): names for names in (COCO_CLASS_NAMES, COCO_80, VOC_20)}


def class_names_for(count: int, given: Sequence[str] | None, is_published: bool) -> tuple[str, ...]:
    """Names for `count` foreground classes, in the order of their labels.

    Args:
        given: the user's, or None.
        is_published: whether the weights are somebody's published ones, whose classes are those of COCO or VOC.

    Raises:
        UserError: another number of names than classes.
    """
    if given is not None:
        if len(given) != count:
            raise UserError(
                f"{len(given)} class names were given for weights with {count} classes: give one for each, without the "
                "background, in the order of the labels."
            )
        return tuple(given)
    if is_published and count in PUBLISHED:
        return PUBLISHED[count]
    return tuple(f"class {number}" for number in range(1, count + 1))
