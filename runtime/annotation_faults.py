"""What can be wrong with annotations, and what readers do about it: stop at the first fault, or collect all of them.

Training and evaluation read strictly; `edgercnn check-data` collects. Boxes are xyxy in image px.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType

import numpy as np

from runtime.annotated_images import MAX_SIDE
from runtime.errors import AnnotationError

# kind: what was found; those of the pictures themselves are looked for by training/data/check_data.py only
KINDS = {
    "unreadable-annotations": "annotation files that cannot be read",
    "no-objects": "data without any object to learn from or to find",
    "wrong-value": "entries with a value of the wrong kind, or without one",
    "duplicate-id": "ids that appear twice",
    "unknown-class": "objects of a class that the data set does not list",
    "label-without-image": "annotations of an image that is not there or not listed",
    "image-without-annotation": "images that no annotation mentions",
    "box-not-finite": "boxes with NaN, infinity or no number at all",
    "negative-size": "boxes whose right or lower side comes before the left or upper",
    "zero-area": "boxes without area",
    "box-outside": "boxes that reach out of their image",
    "duplicate-box": "boxes given twice for the same class",
    "missing-image": "images that are not there",
    "unreadable-image": "images that are empty, cut off or no picture",
    "damaged-image": "images that decode, but are damaged inside",
    "wrong-size": "images of another size than their annotations say",
    "duplicate-entry": "image files listed twice",
    "duplicate-image": "images with the same content as another",
    "train-and-val": "images that are in the training and in the validation data",
}
OUTSIDE_TOLERANCE = 0.5  # px; boxes that reach out less were rounded, which is no fault; they are clipped all the same


@dataclass(frozen=True)
class Fault:
    """One fault. kind: of KINDS. file: what is at fault. message: what is wrong with it, without a full stop."""

    kind: str
    file: str
    message: str

    def __post_init__(self) -> None:
        assert self.kind in KINDS, self.kind

    def __str__(self) -> str:
        return f"{self.file} {self.message}."


class AnnotationFault(AnnotationError):
    """Raised by readers: an AnnotationError that knows its kind."""

    def __init__(self, kind: str, file: object, message: str) -> None:
        self.fault = Fault(kind, str(file), message)
        super().__init__(str(self.fault))


class Findings:
    """What a reader found on its way. `with findings:` around one entry makes its AnnotationFault

    strict: go on to the caller; lenient: be noted in `faults`, and the reader goes on with the next entry.
    clipped, dropped: boxes that were cut to their image, and boxes that had no area (left) and were left out.
    """

    def __init__(self, lenient: bool = False) -> None:
        self.lenient = lenient
        self.faults: list[Fault] = []
        self.clipped = 0
        self.dropped = 0

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if not self.lenient or not isinstance(error, AnnotationFault):
            return False
        self.faults.append(error.fault)
        return True

    def note(self, kind: str, file: object, message: str) -> None:
        """A fault that strict readers pass over, or mend and count."""
        if self.lenient:
            self.faults.append(Fault(kind, str(file), message))

    def clipped_box(
        self, box: tuple[float, float, float, float], image_hw: tuple[int, int], file: object, where: str
    ) -> tuple[float, float, float, float] | None:
        """Cuts a box to its image; xyxy in float32's precision, or None where no area is left.

        Args:
            box: finite, or infinite on the right and below.
            where: what the entry is called in sentences, like "annotations[3]".
        Raises:
            AnnotationFault: its right or lower side comes before the left or upper.
        """
        height, width = image_hw
        x1, y1, x2, y2 = box
        if x2 < x1 or y2 < y1:
            raise AnnotationFault("negative-size", file, f"{where}: {_shown(box)} ends before it starts")
        inside = max(x1, 0.0), max(y1, 0.0), max(min(x2, width), -1.0), max(min(y2, height), -1.0)
        cut = np.array([min(side, MAX_SIDE + 1.0) for side in inside], np.float32).tolist()
        beyond = max(-x1, -y1, x2 - width, y2 - height)
        if beyond > OUTSIDE_TOLERANCE:
            self.note("box-outside", file, f"{where}: {_shown(box)} reaches out of {width}x{height} px")
        if cut[2] <= cut[0] or cut[3] <= cut[1]:
            if not beyond > OUTSIDE_TOLERANCE:
                self.note("zero-area", file, f"{where}: {_shown(box)} has no area")
            self.dropped += 1
            return None
        self.clipped += beyond > 0
        return cut[0], cut[1], cut[2], cut[3]


class DuplicateBoxes:
    """Notes the boxes of one image that were there before, with the same class."""

    def __init__(self, findings: Findings) -> None:
        self.findings = findings
        self.seen: dict[tuple[object, ...], str] = {}

    def add(self, key: tuple[object, ...], file: object, where: str) -> None:
        """key: whatever makes two boxes the same."""
        if not self.findings.lenient:
            return
        first = self.seen.setdefault(key, where)
        if first != where:
            self.findings.note("duplicate-box", file, f"{where}: the same box and class as {first}")


def _shown(box: tuple[float, float, float, float]) -> str:
    return f"the box {', '.join(f'{side:g}' for side in box)} (x1, y1, x2, y2)"
