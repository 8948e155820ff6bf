"""How a student is held to its teacher, and which teachers can teach it."""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass

from runtime.errors import UserError
from runtime.spec import DetectorSpec


@dataclass(frozen=True)
class DistillSettings:
    """Weights of the terms, 0 for none, and what bounds them."""

    distill_features: float = 1.0
    distill_rpn: float = 1.0
    distill_classes: float = 1.0
    distill_boxes: float = 0.5
    near_share: float = 0.5  # features are imitated where an anchor reaches this share of an object's highest IoU
    teacher_confidence: float = 0.5  # the RPN's boxes are imitated where the teacher's objectness is above it
    temperature: float = 2.0  # of the class probabilities
    box_margin: float = 0.0  # in squared units of the box coding: by how much the student must beat the teacher

    def __post_init__(self) -> None:
        for name in ("distill_features", "distill_rpn", "distill_classes", "distill_boxes", "box_margin"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        self._require("temperature", self.temperature > 0, "a number above 0")
        for name in ("near_share", "teacher_confidence"):
            self._require(name, 0 <= getattr(self, name) < 1, "0 or more, and below 1")
        if not any((self.distill_features, self.distill_rpn, self.distill_classes, self.distill_boxes)):
            raise UserError("all four weights are 0: there is nothing to distil; train with training/train.py instead.")

    def _require(self, name: str, good: bool, expected: str) -> None:
        if not good:
            raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: expected {expected}.")


def add_distill_arguments(group: argparse._ArgumentGroup) -> None:
    """The settings as options of a command line."""
    default = DistillSettings()

    def add(name: str, text: str) -> None:
        group.add_argument(f"--{name.replace('_', '-')}", type=float, default=getattr(default, name), help=text)

    add("distill_features", "weight of the distance of features near objects (0: no such term)")
    add("distill_rpn", "weight of the distance of the RPN's objectness and boxes; needs the teacher's anchors")
    add("distill_classes", "weight of the divergence of class probabilities of the sampled rois")
    add("distill_boxes", "weight of box errors above the teacher's")
    add("near_share", "a cell is near an object from this share of the highest IoU that an anchor has with it")
    add("teacher_confidence", "the RPN's boxes are learned where the teacher's objectness is above it")
    add("temperature", "softens the class probabilities")
    add("box_margin", "a box error counts unless it is smaller than the teacher's by this")


def distill_settings(arguments: argparse.Namespace) -> DistillSettings:
    """The settings that the command line gives.

    Raises:
        UserError: one that cannot be, or all weights 0.
    """
    names = DistillSettings.__dataclass_fields__
    return DistillSettings(**{name: value for name, value in vars(arguments).items() if name in names})


def check_teacher(student: DetectorSpec, teacher: DetectorSpec, settings: DistillSettings) -> None:
    """A teacher must see the same network input and name the same classes in the same order.

    Raises:
        UserError: it does not, or a term has nothing to compare.
    """
    if teacher.class_names != student.class_names:
        raise UserError(
            f"the teacher knows {', '.join(teacher.class_names[:3])}, ... ({teacher.num_classes}), the data have "
            f"{', '.join(student.class_names[:3])}, ... ({student.num_classes}): give a teacher trained on these "
            "classes, in this order."
        )
    for field in dataclasses.fields(student.input):
        own, other = getattr(student.input, field.name), getattr(teacher.input, field.name)
        if own != other:
            raise UserError(
                f"input.{field.name} is {own} for the student and {other} for the teacher: both must see the same "
                f"network input; give --set input.{field.name}=... or another teacher."
            )
    if settings.distill_rpn and teacher.anchors != student.anchors:
        raise UserError(
            "the teacher has other anchors than the student, so that their RPNs cannot be compared: give --distill-rpn "
            "0, or --set anchors.... to the student's."
        )
    if settings.distill_features and not matched_levels(student, teacher):
        raise UserError(
            f"the teacher has levels of strides {teacher.anchors.strides}, the student of {student.anchors.strides}: "
            "none is the same; give --distill-features 0 or another teacher."
        )


def matched_levels(student: DetectorSpec, teacher: DetectorSpec) -> list[tuple[int, int]]:
    """(level of the student, level of the teacher) of equal stride; the first of the teacher's where it has several."""
    theirs = teacher.anchors.strides
    return [(own, theirs.index(stride)) for own, stride in enumerate(student.anchors.strides) if stride in theirs]
