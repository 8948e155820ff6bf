"""Reads annotations in YOLO's text format: one text file per image, one line per object, sizes in shares of the image.

A line is `class cx cy w h` (centre and size divided by the image's), or `class x1 y1 x2 y2 x3 y3 ...`, the outline of
the object, whose box is taken. An image without a text file has no objects. The text file of a/images/b/c.jpg is
a/labels/b/c.txt; where no folder is called images, it lies beside the image.
Class ids are 0-based, as in the files; their names stand in data.yaml, or in classes.txt, labels.txt or obj.names.
Ref: https://docs.ultralytics.com/datasets/detect/
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from runtime.annotated_images import MAX_SIDE, BoxRow, CocoAnnotations, CocoImage, image_from_rows
from runtime.annotation_faults import AnnotationFault, DuplicateBoxes, Findings
from runtime.errors import SourceError
from runtime.image_size import image_size
from runtime.json_values import shown
from runtime.progress import progress
from runtime.yolo_folders import label_file, yolo_images

MAX_BYTES = 16 << 20  # of one label file
LARGEST_SHARE = 1.01  # more is no rounding, but px


@dataclass(frozen=True)
class _Labels:
    """The class names, and where faults go."""

    class_names: tuple[str, ...]
    findings: Findings


def read_yolo(path: str | Path, split: str | None = None, findings: Findings | None = None) -> CocoAnnotations:
    """Reads and checks the annotations of a split, or of all images where there are no splits.

    The head of each image file is read, as its size is not in the annotations.

    Args:
        path: data.yaml, or a folder with it, or with images/, labels/ and classes.txt.
        findings: where faults go; None: the first is raised.
    Raises:
        AnnotationError: one sentence that names the file and the line at fault, or an image that cannot be read.
    """
    path, findings = Path(path), findings or Findings()
    listed = yolo_images(path, split, findings)
    labels = _Labels(listed.class_names, findings)
    images: list[CocoImage] = []
    for number, picture in enumerate(progress(listed.pictures, len(listed.pictures), "reading annotations"), start=1):
        with findings:
            images.append(_image(number, picture, listed.root, labels))
    return CocoAnnotations(
        file=path,
        images=tuple(images),
        class_names=listed.class_names,
        category_ids=tuple(range(len(listed.class_names))),
        clipped=findings.clipped,
        dropped=findings.dropped,
    )


def _image(number: int, picture: Path, root: Path, labels: _Labels) -> CocoImage:
    image_hw = _size(picture)
    file = label_file(picture)
    lines = _lines(file)
    if lines is None:
        message = f"has no label file {file}; add it, an empty one if the image shows no object"
        labels.findings.note("image-without-annotation", picture, message)
    rows: list[BoxRow] = []
    twice = DuplicateBoxes(labels.findings)
    for index, line in enumerate(lines or [], start=1):
        row = None
        with labels.findings:
            row = _row(line.split(), image_hw, labels, file, f"line {index}") if line.strip() else None
        if row is not None:
            twice.add(row, file, f"line {index}")
            rows.append(row)
    name = picture.relative_to(root).as_posix() if picture.is_relative_to(root) else str(picture)
    return image_from_rows(number, name, picture, image_hw, rows)


def _size(picture: Path) -> tuple[int, int]:
    if not os.path.isfile(picture):  # unlike Path's, False for names that are too long
        raise AnnotationFault("missing-image", picture, "is not there; add it, or take it off the list")
    try:
        height, width = image_size(picture)
    except SourceError as error:
        raise AnnotationFault("unreadable-image", picture, f"cannot be read as an image ({error})") from error
    if min(height, width) < 1 or max(height, width) > MAX_SIDE:
        message = f"says that it is {width}x{height} px, expected sides from 1 to {MAX_SIDE} px"
        raise AnnotationFault("unreadable-image", picture, message)
    return height, width


def _lines(file: Path) -> list[str] | None:
    """The lines of a label file; None if there is none."""
    if not file.exists():
        return None
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            message = f"has more than {MAX_BYTES >> 20} MiB, expected the objects of one image"
            raise AnnotationFault("unreadable-annotations", file, message)
        return data.decode("utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise AnnotationFault("unreadable-annotations", file, f"cannot be read ({reason})") from error


def _row(words: Sequence[str], image_hw: tuple[int, int], labels: _Labels, file: Path, where: str) -> BoxRow | None:
    """One line; None if nothing of its box is left, or, when faults are collected, its class is unknown."""
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        message = f"{where}: {len(words)} values, expected `class cx cy w h`, or a class and at least three points"
        raise AnnotationFault("wrong-value", file, message)
    class_id, box = None, None
    with labels.findings:
        class_id = _class_id(words[0], labels.class_names, file, where)
    with labels.findings:
        shares = _shares(words[1:], file, where)
        height, width = image_hw
        x1, y1, x2, y2 = _corners(shares, file, where)
        box = labels.findings.clipped_box((x1 * width, y1 * height, x2 * width, y2 * height), image_hw, file, where)
    if box is None or class_id is None:
        return None
    return BoxRow(box, class_id, (box[2] - box[0]) * (box[3] - box[1]))


def _class_id(word: str, class_names: Sequence[str], file: Path, where: str) -> int:
    number = _number(word)
    if not number.is_integer():
        raise AnnotationFault("wrong-value", file, f"{where}: class {shown(word)}, expected a whole number")
    if not 0 <= number < len(class_names):
        message = f"{where}: class {word}, but names are given for 0 to {len(class_names) - 1} only"
        raise AnnotationFault("unknown-class", file, message)
    return int(number)


def _shares(words: Sequence[str], file: Path, where: str) -> list[float]:
    """The numbers of a line behind its class."""
    values = [_number(word) for word in words]
    if not all(math.isfinite(value) for value in values):
        raise AnnotationFault("box-not-finite", file, f"{where}: {shown(' '.join(words))}, expected finite numbers")
    if max(values) > LARGEST_SHARE or (min(values) < 1 - LARGEST_SHARE and len(values) > 4):
        message = f"{where}: {shown(' '.join(words))}, expected shares of the image from 0 to 1; divide px by its size"
        raise AnnotationFault("box-outside", file, message)
    return values


def _corners(shares: Sequence[float], file: Path, where: str) -> tuple[float, float, float, float]:
    """The box x1, y1, x2, y2 of a line's numbers, all in shares of the image."""
    if len(shares) > 4:
        return min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2])
    x, y, width, height = shares
    if width < 0 or height < 0:
        raise AnnotationFault("negative-size", file, f"{where}: the size {width:g} {height:g}, expected none below 0")
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def _number(text: str) -> float:
    """A number from the file, NaN for what is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
